"""The figures by which arrays and sequences are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ark_asr_onnx.arrays import F32


def relative(expected: F32, found: F32) -> float:
    """``||found - expected|| / ||expected||``, Frobenius; NaN stays NaN."""
    norm = max(float(np.linalg.norm(expected)), 1e-9)
    return float(np.linalg.norm(found - expected)) / norm


def log_softmax(logits: F32, closed: npt.NDArray[np.bool_]) -> F32:
    """Log-probabilities ``[n, vocab]`` among the ids that are not closed."""
    masked = np.where(closed, -np.inf, logits)
    shifted = masked - masked.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first place at which two sequences differ; the end of the shorter is a difference."""
    if tuple(a) == tuple(b):
        return None
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
