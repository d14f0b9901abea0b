"""Is this graph still the network? Figures, and the error when the answer is no."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from ark_asr_onnx.arrays import F32
from ark_asr_onnx.errors import ExportError

from .checkpoint import Network
from .figures import log_softmax, relative
from .listen import Heard
from .mask import blocked
from .reference import lengths

Progress = Callable[[Iterable[Any]], Iterable[Any]]
# New embeddings [1, S, hidden] and the state so far (None: empty) to logits [1, vocab] and state.
DecoderRun = Callable[[F32, Any], tuple[F32, Any]]

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


def session(path: Path, *, prepack: bool = True) -> ort.InferenceSession:
    """A graph on the CPU.

    Without ``prepack`` its weights stay in the file, mapped: large fp32 graphs fit into little
    memory, at some cost of speed. 8-bit products need it to compute as they do at run time.
    """
    options = cast("Any", ort.SessionOptions())
    options.add_session_config_entry("session.disable_prepacking", str(int(not prepack)))
    options.log_severity_level = 4  # failures are exceptions
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def expect(
    cases: Sequence[F32], network: Callable[[Tensor], Tensor], progress: Progress = iter
) -> list[F32]:
    """What a torch function makes of each case."""
    with torch.inference_mode():
        return [network(torch.from_numpy(case)).numpy() for case in progress(cases)]


def compare(
    cases: Sequence[F32],
    expected: Sequence[F32],
    found: Callable[[F32], F32],
    progress: Progress = iter,
) -> Parity:
    """What a graph makes of each case, against torch."""
    outputs = [found(case) for case in progress(cases)]
    return _parity(list(zip(expected, outputs, strict=True)))


def mel_cases(n_mels: int, max_frames: int) -> list[F32]:
    """Log-mel-like inputs ``[1, n_mels, T]`` at every awkward length."""
    generator = np.random.default_rng(0)
    cases: list[F32] = []
    for n_frames in (n for n in AWKWARD_FRAMES if n <= max_frames):
        # Log-mel lies in about [-1.5, 1.5]; neighbouring frames resemble each other.
        noise = generator.standard_normal((1, n_mels, n_frames), np.float32)
        mel = np.clip(0.5 * noise + 0.3 * np.sin(np.arange(n_frames) / 7), -1.5, 1.5)
        cases.append(mel.astype(np.float32))
    return cases


def expect_prefills(
    network: Network, progress: Progress = iter, *, cached: Sequence[F32] | None = None
) -> list[tuple[F32, F32]]:
    """Short prefills, and what torch makes of them: embeddings and logits.

    ``cached`` are the keys and values of the first positions of every prompt. All begins after
    them: the first position of a real network has its largest activations, and no graph ever sees
    it.
    """
    prefills: list[tuple[F32, F32]] = []
    generator = np.random.default_rng(0)
    with torch.inference_mode():
        for n in progress(PREFILL_LENGTHS):
            ids = generator.integers(0, len(network.table), n).tolist()
            embeds, past = network.embed(ids)[None], network.decoder.empty_past()
            if cached is not None:
                tensors = [torch.from_numpy(array) for array in cached]
                past = list(zip(tensors[::2], tensors[1::2], strict=True))
            n_cached = past[0][0].shape[2]
            expected, _ = network.decoder(embeds, *lengths(n_cached + n), past)
            prefills.append((embeds.numpy(), expected[:, 0].numpy()))
    return prefills


def compare_decoder(
    network: Network,
    run: DecoderRun,
    prefills: Sequence[tuple[F32, F32]],
    clips: Sequence[Heard],
    progress: Progress = iter,
    *,
    n_cached: int = 0,
    cached: Sequence[F32] | None = None,
) -> Parity:
    """The decoder graph against torch: short prefills, then real prompts, teacher-forced."""
    pairs = [(expected, run(embeds, cached)[0]) for embeds, expected in prefills]
    pairs += [
        (clip.decoded.logits, _forced(network, run, clip, n_cached, cached))
        for clip in progress(clips)
    ]
    return _parity(pairs)


def _forced(network: Network, run: DecoderRun, clip: Heard, n_cached: int, cached: object) -> F32:
    """Logits ``[n, vocab]`` on the reference's own tokens."""
    inputs_embeds = network.prompt(clip.tokens, torch.from_numpy(clip.audio_embeds))
    logits, state = run(inputs_embeds[:, n_cached:].numpy(), cached)
    rows = [logits]
    for token_id in clip.decoded.token_ids[:-1]:
        logits, state = run(network.embed([token_id])[None].numpy(), state)
        rows.append(logits)
    return np.concatenate(rows)


def decoder_cost(
    network: Network, run: DecoderRun, clips: Sequence[Heard], *, n_cached: int, cached: object
) -> float:
    """Mean absolute change of the log-probability of the reference's tokens, teacher-forced."""
    changes: list[F32] = []
    for clip in clips:
        found = _forced(network, run, clip, n_cached, cached)
        expected = clip.decoded.logits[:, : found.shape[1]]
        closed = blocked(clip.tokens, len(network.table))[: found.shape[1]]
        ids = list(clip.decoded.token_ids)
        both = [log_softmax(x, closed)[np.arange(len(ids)), ids] for x in (expected, found)]
        changes.append(both[1] - both[0])
    return float(np.abs(np.concatenate(changes)).mean())


def audio_cost(run: Callable[[F32], F32], clips: Sequence[Heard]) -> float:
    """Relative error of the audio embeddings, worst clip."""
    return float(np.max([relative(clip.audio_embeds, run(clip.log_mel)) for clip in clips]))


def _parity(pairs: list[tuple[F32, F32]]) -> Parity:
    # A pruned head scores only the lowest ids; the others can never be chosen.
    pairs = [(a[..., : b.shape[-1]], b) for a, b in pairs]
    for expected, found in pairs:
        if expected.shape != found.shape:
            raise ExportError(f"a graph gives {found.shape} where torch gives {expected.shape}")
    errors = [np.abs(a - b).max() for a, b in pairs]
    peaks = [max(np.abs(a).max(), 1e-9) for a, _ in pairs]
    hits = np.concatenate([(a.argmax(-1) == b.argmax(-1)).reshape(-1) for a, b in pairs])
    # np.max keeps NaN, which max() loses unless it comes first.
    return Parity(
        max_error=float(np.max(errors)),
        max_relative=float(np.max(np.divide(errors, peaks))),
        rms_relative=float(np.max([relative(a, b) for a, b in pairs])),
        top1=float(hits.mean()),
    )


def require_fp32(parity: Parity, graph: str) -> None:
    """The traced graph must be torch up to rounding."""
    if not parity.max_relative <= FP32_TOLERANCE:  # also catches NaN
        raise ExportError(
            f"{graph}: the traced graph differs from torch by {parity.max_relative:.2e} of the "
            f"largest value (allowed {FP32_TOLERANCE:.0e}); please report this checkpoint's config"
        )


def int8_shortfall(parity: Parity, graph: str) -> str:
    """By how much an INT8 graph is too far from torch; nothing if it is close enough."""
    if parity.rms_relative <= INT8_TOLERANCE:
        return ""
    return (
        f"{graph} differs from fp32 by {parity.rms_relative:.1%} (root mean square, allowed "
        f"{INT8_TOLERANCE:.0%})"
    )
