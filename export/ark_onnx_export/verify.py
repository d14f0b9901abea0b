"""Is this package still its model? Stage by stage, on real audio, with limits and a verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ark_asr_onnx import audio
from ark_asr_onnx.contract import Tokens, file_sha256
from ark_asr_onnx.errors import ExportError
from ark_asr_onnx.mel import SAMPLE_RATE

from . import reference
from .checkpoint import Checkpoint
from .engines import Engine, PackageEngine

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a package of one precision may cost."""

    mel: float  # largest difference of a log-mel value
    encoder: float  # relative root-mean-square error of the audio embeddings, worst clip
    mean_dlogp: float  # mean |difference| of a token's log-probability, teacher-forced
    top1: float  # share of teacher-forced steps with the same first choice
    margin: float  # most by which the reference may have preferred its token where texts part


LIMITS = {
    "fp32": Limits(mel=1e-3, encoder=2e-3, mean_dlogp=0.002, top1=0.995, margin=0.05),
    "int8": Limits(mel=1e-3, encoder=0.10, mean_dlogp=0.05, top1=0.98, margin=1.0),
}


@dataclass(frozen=True, slots=True)
class Clip:
    """The comparison on one audio."""

    audio: str
    seconds: float
    mel_error: float  # largest absolute difference
    encoder_error: float  # ||a - b|| / ||a|| of the audio embeddings
    first_logits_error: float  # the same of the first logits that may be chosen
    dlogp: tuple[float, ...]  # log-probability of each reference token: package minus reference
    same_choices: int  # teacher-forced steps at which the package would choose the same
    token_ids: tuple[int, ...]  # the reference's
    package_token_ids: tuple[int, ...]
    diverges_at: int | None  # first step at which the tokens part
    margin: float | None  # by how many logits the reference preferred its token there
    text: str
    package_text: str


@dataclass(frozen=True, slots=True)
class Report:
    """All clips, the totals, and whether they are within the limits."""

    package: str
    reference: str
    weights: str  # whether the package says that it was made from this checkpoint
    limits: Limits
    clips: tuple[Clip, ...]

    def totals(self) -> dict[str, float]:
        """Figures over all clips and tokens."""
        dlogp = np.abs(np.concatenate([clip.dlogp for clip in self.clips]))
        margins = [clip.margin for clip in self.clips if clip.margin is not None]
        return {
            "clips": len(self.clips),
            "seconds": sum(clip.seconds for clip in self.clips),
            "tokens": len(dlogp),
            "mel_error": _worst([clip.mel_error for clip in self.clips]),
            "encoder_error": _worst([clip.encoder_error for clip in self.clips]),
            "first_logits_error": _worst([clip.first_logits_error for clip in self.clips]),
            "mean_dlogp": float(dlogp.mean()),
            "p99_dlogp": float(np.quantile(dlogp, 0.99)),
            "worst_dlogp": float(dlogp.max()),
            "top1": sum(clip.same_choices for clip in self.clips) / len(dlogp),
            "same_tokens": sum(clip.diverges_at is None for clip in self.clips),
            "same_text": sum(clip.text == clip.package_text for clip in self.clips),
            "worst_margin": max(margins, default=0.0),
        }

    def checks(self) -> list[tuple[str, float, str, float, bool]]:
        """Name, figure, relation, limit, and whether it holds. NaN never holds."""
        t, m = self.totals(), self.limits
        rows = [
            ("log-mel, largest difference", t["mel_error"], "<=", m.mel),
            ("encoder, relative error", t["encoder_error"], "<=", m.encoder),
            ("tokens, mean |dlogp|", t["mean_dlogp"], "<=", m.mean_dlogp),
            ("tokens, same first choice", t["top1"], ">=", m.top1),
            ("where texts part, margin", t["worst_margin"], "<=", m.margin),
        ]
        return [(*row, row[1] <= row[3] if row[2] == "<=" else row[1] >= row[3]) for row in rows]

    @property
    def passed(self) -> bool:
        """The verdict."""
        return all(holds for *_, holds in self.checks())


def compare(
    found: PackageEngine,
    expected: Engine,
    sounds: Iterable[tuple[str, F32]],
    max_new_tokens: int,
) -> Iterator[Clip]:
    """Each named waveform ``[n]`` at 16 kHz through both engines."""
    require_same_prompt(found.tokens, expected.tokens)
    for name, waveform in sounds:
        found_mel = found.log_mel(waveform)  # first: it refuses what is too short
        expected_mel = expected.log_mel(waveform)
        if found_mel.shape != expected_mel.shape:
            raise ExportError(
                f"{name}: the package computes log-mel {found_mel.shape}, the reference "
                f"{expected_mel.shape}; these are not the same model"
            )
        found_rows, expected_rows = found.encode(found_mel), expected.encode(expected_mel)
        if found_rows.shape != expected_rows.shape:
            raise ExportError(
                f"{name}: the package's encoder gives {found_rows.shape}, the reference's "
                f"{expected_rows.shape}; these are not the same model"
            )
        theirs = expected.decode(expected_rows, max_new_tokens)
        forced = found.decode(found_rows, max_new_tokens, theirs.token_ids)
        n = len(forced.logits)  # fewer only when the package's cache is full before
        ids = theirs.token_ids[:n]
        p, q = _log_probabilities(theirs.logits[:n], forced.logits, expected.tokens)
        steps = np.arange(n)
        choices = q.argmax(axis=1)
        diverges_at = next((i for i in range(n) if choices[i] != ids[i]), None)
        margin, ours = None, ids
        if diverges_at is not None:
            rival = choices[diverges_at]
            margin = float(p[diverges_at, ids[diverges_at]] - p[diverges_at, rival])
            ours = found.decode(found_rows, max_new_tokens).token_ids
        yield Clip(
            audio=name,
            seconds=len(waveform) / SAMPLE_RATE,
            mel_error=float(np.abs(found_mel - expected_mel).max()),
            encoder_error=_relative(expected_rows, found_rows),
            first_logits_error=_relative(*_open(theirs.logits[0], forced.logits[0], p[0])),
            dlogp=tuple((q[steps, ids] - p[steps, ids]).tolist()),
            same_choices=int((choices == ids).sum()),
            token_ids=ids,
            package_token_ids=ours,
            diverges_at=diverges_at,
            margin=margin,
            text=expected.words(ids),
            package_text=found.words(ours),
        )


def require_same_prompt(found: Tokens, expected: Tokens) -> None:
    """The ids that frame and bound decoding must be the same, or nothing can be compared."""
    names = [
        name
        for name in ("prefix", "audio", "suffix", "eos")
        if getattr(found, name) != getattr(expected, name)
    ]
    top = 1 + max(found.block_from_id, expected.block_from_id, *found.eos, *expected.eos)
    if (reference.blocked(found, top) != reference.blocked(expected, top)).any():
        names.append("mask")
    if names:
        raise ExportError(
            f"package and reference have different ids ({', '.join(names)}); these are not the "
            "same model, or one was exported with another instruction"
        )


def weights_origin(found: PackageEngine, checkpoint: Checkpoint) -> str:
    """Whether the checksums in the package are those of this checkpoint's files."""
    recorded = found.transcriber.manifest.provenance.source_sha256
    if not recorded:
        return "the package does not say which files it was made from"
    same = recorded == {path.name: file_sha256(path) for path in checkpoint.files}
    return f"the package was made from {'these' if same else 'OTHER'} files, says its manifest"


def read_sounds(paths: Sequence[Path], max_seconds: float) -> tuple[list[tuple[str, F32]], int]:
    """Waveforms at 16 kHz, at most one pass of the model each; and how many were cut to that."""
    longest, n_cut = int(max_seconds * SAMPLE_RATE), 0
    sounds: list[tuple[str, F32]] = []
    for path in paths:
        waveform = audio.read(path)
        n_cut += len(waveform) > longest
        sounds.append((str(path), waveform[:longest]))
    return sounds, n_cut


def report_to_json(report: Report) -> str:
    """The whole report, UTF-8 unescaped."""
    record = asdict(report)
    clips = record.pop("clips")
    verdict = "within limits" if report.passed else "outside limits"
    totals = {"verdict": verdict, "totals": report.totals(), "clips": clips}
    return json.dumps({**record, **totals}, indent=1, ensure_ascii=False) + "\n"


def report_to_text(report: Report) -> str:
    """The report for a terminal."""
    width = max(len(Path(clip.audio).name) for clip in report.clips)
    lines = [
        f"package    {report.package}",
        f"reference  {report.reference}",
        f"weights    {report.weights}",
        "",
        f"{'audio':{width}} {'s':>6} {'mel':>8} {'encoder':>8} {'logits':>8} "
        f"{'|dlogp|':>8} {'worst':>8} {'choices':>9}  tokens",
    ]
    for clip in report.clips:
        n = len(clip.dlogp)
        if clip.diverges_at is None:
            tokens = f"same {n}"
        else:
            tokens = f"part at {clip.diverges_at} (margin {clip.margin:.2f})"
        lines.append(
            f"{Path(clip.audio).name:{width}} {clip.seconds:6.2f} {clip.mel_error:8.1e} "
            f"{clip.encoder_error:8.1e} {clip.first_logits_error:8.1e} "
            f"{np.abs(clip.dlogp).mean():8.4f} {np.abs(clip.dlogp).max():8.4f} "
            f"{clip.same_choices:4}/{n:<4}  {tokens}"
        )
    for clip in report.clips:
        if clip.text != clip.package_text:
            lines += ["", f"{clip.audio}", f"  reference: {clip.text}"]
            lines += [f"  package:   {clip.package_text}"]
    lines.append("")
    for name, value, relation, limit, holds in report.checks():
        verdict = "ok" if holds else "NO"
        lines.append(f"{name:28} {value:10.3g}  {relation} {limit:<6g} {verdict}")
    totals = report.totals()
    lines += [
        f"{totals['same_tokens']:.0f} of {totals['clips']:.0f} clips with the same tokens, "
        f"{totals['same_text']:.0f} with the same text",
        "verdict: " + ("within limits" if report.passed else "OUTSIDE LIMITS"),
    ]
    return "\n".join(lines)


def _log_probabilities(a: F32, b: F32, tokens: Tokens) -> tuple[F32, F32]:
    """Log-softmax over the ids that may be chosen, for rows of two engines ``[n, vocab]``.

    A pruned head scores fewer ids; those it lacks can never be chosen.
    """
    width = min(a.shape[1], b.shape[1])
    closed = reference.blocked(tokens, width)
    out: list[F32] = []
    for rows in (a[:, :width], b[:, :width]):
        open_rows = np.where(closed, -np.inf, rows)
        shifted = open_rows - open_rows.max(axis=1, keepdims=True)
        out.append(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
    return out[0], out[1]


def _open(a: F32, b: F32, row: F32) -> tuple[F32, F32]:
    """The logits of two engines where ``row`` is finite: the ids that may be chosen."""
    allowed = np.isfinite(row)
    return a[: len(row)][allowed], b[: len(row)][allowed]


def _relative(a: F32, b: F32) -> float:
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-9))


def _worst(values: list[float]) -> float:
    return float(np.max(values))  # keeps NaN, which max() may lose
