"""Is this package still its model? Stage by stage, on real audio, with limits and a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ark_asr_onnx.arrays import F32
from ark_asr_onnx.audio import sources
from ark_asr_onnx.audio.mel import SAMPLE_RATE
from ark_asr_onnx.errors import ArkError, ExportError
from ark_asr_onnx.package.contract import Tokens

from .engines import PackageEngine, Subject
from .figures import first_difference, log_softmax, relative
from .listen import Heard, hear, room
from .mask import blocked

MIN_TOKENS = 200  # a share of fewer tokens says nothing


@dataclass(frozen=True, slots=True)
class Limits:
    """What a package of one precision may cost."""

    mel: float  # largest difference of a log-mel value
    encoder: float  # relative root-mean-square error of the audio embeddings, worst clip
    mean_dlogp: float  # mean |difference| of a token's log-probability, teacher-forced
    margin: float  # most by which the reference may have preferred a token the package gives up
    same_choices: float  # share of teacher-forced steps with the same first choice


LIMITS = {
    "fp32": Limits(mel=1e-3, encoder=2e-3, mean_dlogp=0.002, margin=0.05, same_choices=0.995),
    "int8": Limits(mel=1e-3, encoder=0.10, mean_dlogp=0.05, margin=1.0, same_choices=0.98),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison on one audio."""

    audio: str
    seconds: float
    mel_error: float  # largest absolute difference
    encoder_error: float  # ||a - b|| / ||a|| of the audio embeddings
    first_logits_error: float  # the same of the first logits, of the ids that may be chosen
    dlogp: tuple[float, ...]  # log-probability of each reference token: package minus reference
    same_choices: int  # teacher-forced steps at which the package would choose the same
    worst_margin: float  # by how many logits the reference preferred what the package gives up
    token_ids: tuple[int, ...]  # the reference's
    text: str
    package_token_ids: tuple[int, ...]  # what the runtime gives, by itself
    package_text: str
    diverges_at: int | None  # first step at which the two part
    explained: bool  # they part nowhere, or where the teacher-forced choices part first


@dataclass(frozen=True, slots=True)
class Failure:
    """An audio that could not be compared."""

    audio: str
    reason: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Figures over all clips and tokens; NaN anywhere stays NaN."""

    clips: int
    seconds: float
    tokens: int
    mel_error: float
    encoder_error: float
    first_logits_error: float
    mean_dlogp: float
    p99_dlogp: float
    worst_dlogp: float
    same_choices: float  # share of tokens
    worst_margin: float
    same_tokens: int  # clips
    same_text: int  # clips
    unexplained: int  # clips

    @classmethod
    def of(cls, clips: Sequence[Comparison]) -> Totals:
        """Sum up at least one clip."""
        dlogp = np.abs(np.concatenate([clip.dlogp for clip in clips]))
        return cls(
            clips=len(clips),
            seconds=sum(clip.seconds for clip in clips),
            tokens=len(dlogp),
            mel_error=_worst(clip.mel_error for clip in clips),
            encoder_error=_worst(clip.encoder_error for clip in clips),
            first_logits_error=_worst(clip.first_logits_error for clip in clips),
            mean_dlogp=float(dlogp.mean()),
            p99_dlogp=float(np.quantile(dlogp, 0.99)),
            worst_dlogp=float(dlogp.max()),
            same_choices=sum(clip.same_choices for clip in clips) / len(dlogp),
            worst_margin=_worst(clip.worst_margin for clip in clips),
            same_tokens=sum(clip.diverges_at is None for clip in clips),
            same_text=sum(clip.text == clip.package_text for clip in clips),
            unexplained=sum(not clip.explained for clip in clips),
        )


@dataclass(frozen=True, slots=True)
class Check:
    """One figure and its limit."""

    name: str
    value: float
    limit: float
    holds: bool  # NaN never does
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """All clips, the totals, and whether they are within the limits."""

    package: str
    reference: str
    weights: str  # whether the package says that it was made from this checkpoint
    limits: Limits
    clips: tuple[Comparison, ...]
    failures: tuple[Failure, ...] = ()

    def checks(self) -> list[Check]:
        """What the verdict rests on."""
        if not self.clips:
            return []
        totals, limits = Totals.of(self.clips), self.limits
        rows = [
            ("log-mel, largest difference", totals.mel_error, limits.mel),
            ("encoder, relative error", totals.encoder_error, limits.encoder),
            ("tokens, mean |dlogp|", totals.mean_dlogp, limits.mean_dlogp),
            ("choices, largest margin lost", totals.worst_margin, limits.margin),
            ("clips with unexplained tokens", totals.unexplained, 0),
        ]
        checks = [Check(name, value, limit, value <= limit) for name, value, limit in rows]
        if totals.tokens >= MIN_TOKENS:
            value, limit = totals.same_choices, limits.same_choices
            checks.append(Check("choices, share of same", value, limit, value >= limit, True))
        return checks

    @property
    def passed(self) -> bool:
        """The verdict."""
        checks = self.checks()
        return bool(checks) and not self.failures and all(check.holds for check in checks)


def limits(found: str, expected: str) -> Limits:
    """The limits for two precisions; those of fp32 only where both are."""
    return LIMITS["fp32" if (found, expected) == ("fp32", "fp32") else "int8"]


def compare(
    found: PackageEngine, expected: Subject, paths: Iterable[Path], max_new_tokens: int
) -> Iterator[Comparison | Failure]:
    """Each audio file through both engines, at most one pass of the model of each."""
    require_same_prompt(found.tokens, expected.tokens)
    return (_attempt(found, expected, path, max_new_tokens) for path in paths)


def _attempt(
    found: PackageEngine, expected: Subject, path: Path, max_new_tokens: int
) -> Comparison | Failure:
    try:
        longest = min(found.max_seconds, expected.max_seconds)
        waveform = sources.read(path, end_seconds=longest)
        n_tokens = min(max_new_tokens, room(found, waveform), room(expected, waveform))
        heard = hear(expected, str(path), waveform, n_tokens)
        return compare_clip(found, heard, n_tokens)
    except ArkError as error:
        return Failure(str(path), str(error))


def compare_clip(found: PackageEngine, heard: Heard, n_tokens: int) -> Comparison:
    """Run a package on the same waveform, and compare."""
    log_mel = found.log_mel(heard.waveform)
    _require_same_shape("log-mel", log_mel, heard.log_mel)
    audio_embeds = found.encode(log_mel)
    _require_same_shape("encoder", audio_embeds, heard.audio_embeds)
    ours, package_text = found.transcribe(heard.waveform, n_tokens)
    ids, steps = heard.decoded.token_ids, np.arange(len(heard.decoded.token_ids))
    logits = found.score(audio_embeds, ids)
    # A pruned head scores fewer ids; those it lacks are never chosen.
    width = min(logits.shape[1], heard.decoded.logits.shape[1])
    closed = blocked(heard.tokens, width)
    raw = heard.decoded.logits[:, :width], logits[:, :width]
    p, q = (log_softmax(rows, closed) for rows in raw)
    choices = q.argmax(axis=1)
    lost = p[steps, ids] - p[steps, choices]
    diverges_at = first_difference(ids, ours)
    finite = np.isfinite(q[:, ~closed]).all()
    return Comparison(
        audio=heard.name,
        seconds=len(heard.waveform) / SAMPLE_RATE,
        mel_error=float(np.abs(log_mel - heard.log_mel).max()),
        encoder_error=relative(heard.audio_embeds, audio_embeds),
        first_logits_error=relative(*(rows[0, ~closed] for rows in raw)),
        dlogp=tuple((q[steps, ids] - p[steps, ids]).tolist()),
        same_choices=int((choices == ids).sum()),
        worst_margin=float(np.max(lost)) if finite else math.nan,
        token_ids=ids,
        text=heard.decoded.text,
        package_token_ids=ours,
        package_text=package_text,
        diverges_at=diverges_at,
        explained=diverges_at == first_difference(ids, choices.tolist()),
    )


def require_same_prompt(found: Tokens, expected: Tokens) -> None:
    """The ids that frame and bound decoding must be the same, or nothing can be compared."""
    names = [
        name
        for name in ("prefix", "audio", "suffix", "eos")
        if getattr(found, name) != getattr(expected, name)
    ]
    tokens = (found, expected)
    n_ids = 1 + max(i for t in tokens for i in (t.block_from_id, *t.eos, *t.stop))
    closed = [blocked(t, n_ids) for t in tokens]
    if (closed[0] != closed[1]).any():
        names.append("mask")
    # Other stop ids make no difference where they are blocked.
    ends = [{i for i in t.stop if not c[i]} for t, c in zip(tokens, closed, strict=True)]
    if ends[0] != ends[1]:
        names.append("stop")
    if names:
        raise ExportError(
            f"package and reference have different ids ({', '.join(names)}); these are not the "
            "same model, or one was exported with another instruction"
        )


def _require_same_shape(stage: str, found: F32, expected: F32) -> None:
    if found.shape != expected.shape:
        raise ExportError(
            f"the package's {stage} gives {found.shape}, the reference's {expected.shape}; these "
            "are not the same model"
        )


def _worst(values: Iterable[float]) -> float:
    return float(np.max(list(values)))  # keeps NaN, which max() may lose
