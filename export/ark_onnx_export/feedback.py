"""Rounding weights so that what one rounding does wrong, the next ones make good.

Rounding each weight for itself ignores that inputs go together: an error at one input can be
cancelled at another that moves with it. Inputs are rounded one after the other, the strongest
first, and each one's error is spread over those that are still to come, as far as the inputs of
real speech say that it can be (optimal brain surgeon, in the order that GPTQ gave it).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ark_asr_onnx.arrays import F32

_DAMPING = 1.0  # of the mean square of an input, added to all: few rows must not be trusted too far
_BLOCK = 64  # inputs whose errors are spread together


def round_weights(weight: F32, steps: F32, limits: F32, rows: F32 | None) -> F32:
    """Whole numbers ``[n_in, n_out]`` with ``weight ~ codes * steps``.

    ``weight [n_in, n_out]``, ``steps`` the same or broadcast to it, ``limits [n_in]`` the largest
    magnitude of a code, ``rows [n, n_in]`` what the weights are multiplied with; without rows each
    weight is rounded for itself.
    """
    steps = np.broadcast_to(np.where(steps > 0, steps, 1).astype(np.float32), weight.shape)
    if rows is None or not len(rows):
        return np.clip(np.rint(weight / steps), -limits[:, None], limits[:, None])
    with torch.inference_mode():
        found = _spread(
            torch.from_numpy(np.ascontiguousarray(weight.T)),
            torch.from_numpy(np.ascontiguousarray(steps.T)),
            limits,
            torch.from_numpy(np.ascontiguousarray(rows, np.float32)),
        )
    return np.ascontiguousarray(found.T.numpy())


def _spread(weight: Tensor, steps: Tensor, limits: F32, rows: Tensor) -> Tensor:
    """Codes ``[n_out, n_in]``."""
    squares = rows.T @ rows
    strength = squares.diagonal()
    order = strength.argsort(descending=True)
    squares = squares[order][:, order]
    squares.diagonal().add_(_DAMPING * float(strength.mean()) + 1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(squares))
    upper = torch.linalg.cholesky(inverse, upper=True)
    left, steps = weight[:, order].clone(), steps[:, order]
    bounds = limits[order.numpy()].tolist()
    codes = torch.empty_like(left)
    n_in = left.shape[1]
    for begin in range(0, n_in, _BLOCK):
        end = min(begin + _BLOCK, n_in)
        errors = torch.empty(len(left), end - begin)
        for i in range(begin, end):
            code = (left[:, i] / steps[:, i]).round().clamp(-bounds[i], bounds[i])
            error = (left[:, i] - code * steps[:, i]) / upper[i, i]
            left[:, i + 1 : end] -= error[:, None] * upper[i, i + 1 : end]
            codes[:, i], errors[:, i - begin] = code, error
        left[:, end:] -= errors @ upper[begin:end, end:]
    return codes[:, order.argsort()]
