"""Is this graph still the network? Figures, and the error when the answer is no."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from ark_asr_onnx import contract
from ark_asr_onnx.errors import ExportError

from .checkpoint import Network
from .reference import Reference, lengths

F32 = npt.NDArray[np.float32]
Progress = Callable[[Iterable[Any]], Iterable[Any]]

# Frames on both sides of every rounding: of the stride-2 convolution, of the merge by four, of
# the shortest clip; an odd one; and the longest.
AWKWARD_FRAMES = (1, 2, 3, 5, 6, 7, 8, 9, 15, 16, 17, 301, 3000)
PREFILL_LENGTHS = (1, 2, 9, 31)
FP32_TOLERANCE = 1e-3  # largest error over largest value; massive activations cost fp32 digits
INT8_TOLERANCE = 0.1  # relative root-mean-square error


@dataclass(frozen=True, slots=True)
class Parity:
    """A comparison of two sets of arrays of equal shapes."""

    max_error: float  # largest absolute difference
    max_relative: float  # the same over the largest absolute reference value, worst array
    rms_relative: float  # ||a - b|| / ||a||, worst array
    top1: float  # share of rows whose largest value is at the same place

    def figures(self) -> dict[str, float]:
        """For the manifest."""
        return {name: round(float(getattr(self, name)), 9) for name in self.__slots__}


def session(path: Path) -> ort.InferenceSession:
    """A graph on the CPU."""
    options = cast("Any", ort.SessionOptions())
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def compare_audio(network: Network, path: Path, progress: Progress = iter) -> Parity:
    """The audio graph against torch at every awkward length."""
    graph = session(path)
    config = network.tower.config
    generator = np.random.default_rng(0)
    pairs: list[tuple[F32, F32]] = []
    for n_frames in progress([n for n in AWKWARD_FRAMES if n <= config.max_frames]):
        # Log-mel lies in about [-1.5, 1.5]; neighbouring frames resemble each other.
        noise = generator.standard_normal((1, config.n_mels, n_frames), np.float32)
        mel = np.clip(0.5 * noise + 0.3 * np.sin(np.arange(n_frames) / 7), -1.5, 1.5)
        mel = mel.astype(np.float32)
        found = cast("Any", graph.run(None, {contract.LOG_MEL: mel})[0])
        pairs.append((network.tower(torch.from_numpy(mel)).numpy(), found))
    return _parity(pairs)


@torch.inference_mode()
def compare_decoder(
    network: Network, path: Path, references: Sequence[Reference], progress: Progress = iter
) -> Parity:
    """The decoder graph against torch: short prefills, then real prompts, teacher-forced."""
    graph = session(path)
    config = network.decoder.config
    names = contract.past_names(config.n_layers)
    pairs: list[tuple[F32, F32]] = []

    def run(embeds: F32, past: list[F32]) -> tuple[F32, list[F32]]:
        total = past[0].shape[2] + embeds.shape[1]
        seqlens, total_length = (t.numpy() for t in lengths(total))
        feeds = {
            contract.INPUTS_EMBEDS: embeds,
            contract.SEQLENS_K: seqlens,
            contract.TOTAL_SEQUENCE_LENGTH: total_length,
            **dict(zip(names, past, strict=True)),
        }
        logits, *present = cast("Any", graph.run(None, feeds))
        return logits[:, 0], present

    empty = [t.numpy() for pair in network.decoder.empty_past() for t in pair]
    generator = np.random.default_rng(0)
    for n in PREFILL_LENGTHS:
        embeds = network.table[torch.from_numpy(generator.integers(0, len(network.table), n))]
        expected, _ = network.decoder(embeds[None], *lengths(n), network.decoder.empty_past())
        pairs.append((expected[:, 0].numpy(), run(embeds[None].numpy(), empty)[0]))
    for reference in progress(references):
        logits, past = run(reference.inputs_embeds, empty)
        rows = [logits]
        for token_id in reference.token_ids[:-1]:
            logits, past = run(network.table[token_id][None, None].numpy(), past)
            rows.append(logits)
        pairs.append((reference.logits, np.concatenate(rows)))
    return _parity(pairs)


def _parity(pairs: list[tuple[F32, F32]]) -> Parity:
    for expected, found in pairs:
        if expected.shape != found.shape:
            raise ExportError(f"a graph gives {found.shape} where torch gives {expected.shape}")
    errors = [np.abs(a - b).max() for a, b in pairs]
    hits = np.concatenate([(a.argmax(-1) == b.argmax(-1)).reshape(-1) for a, b in pairs])
    return Parity(
        max_error=float(max(errors)),
        max_relative=max(
            float(e / max(np.abs(a).max(), 1e-9)) for e, (a, _) in zip(errors, pairs, strict=True)
        ),
        rms_relative=max(
            float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-9)) for a, b in pairs
        ),
        top1=float(hits.mean()),
    )


def require_fp32(parity: Parity, graph: str) -> None:
    """The traced graph must be torch up to rounding."""
    if not parity.max_relative <= FP32_TOLERANCE:  # also catches NaN
        raise ExportError(
            f"{graph}: the traced graph differs from torch by {parity.max_relative:.2e} of the "
            f"largest value (allowed {FP32_TOLERANCE:.0e}); please report this checkpoint's config"
        )


def require_int8(parity: Parity, graph: str) -> None:
    """The INT8 graph must stay close to torch."""
    if not parity.rms_relative <= INT8_TOLERANCE:
        raise ExportError(
            f"{graph}: INT8 differs from fp32 by {parity.rms_relative:.1%} (root mean square, "
            f"allowed {INT8_TOLERANCE:.0%}); export with --precision fp32"
        )


def first_divergence(reference: Reference, token_ids: Sequence[int]) -> tuple[int, float] | None:
    """Step and torch's margin where a token sequence leaves torch's, or None."""
    for step, (ours, theirs) in enumerate(zip(reference.token_ids, token_ids, strict=False)):
        if ours != theirs:
            return step, reference.margin(step, theirs)
    if len(reference.token_ids) != len(token_ids):
        return min(len(reference.token_ids), len(token_ids)), float("inf")
    return None
