"""A comparison of :mod:`verify` as JSON, and as text for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .verify import MIN_TOKENS, Comparison, Report, Totals


def report_to_json(report: Report) -> str:
    """The whole report, UTF-8 unescaped."""
    record = report_to_record(report)
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def report_to_record(report: Report) -> dict[str, Any]:
    """The whole report for JSON; what is no number is ``None``."""
    record = {
        "package": report.package,
        "reference": report.reference,
        "weights": report.weights,
        "verdict": "within limits" if report.passed else "outside limits",
        "limits": asdict(report.limits),
        "totals": asdict(Totals.of(report.clips)) if report.clips else None,
        "clips": [asdict(clip) for clip in report.clips],
        "failures": [asdict(failure) for failure in report.failures],
    }
    return _finite(record)


def report_to_text(report: Report) -> str:
    """The report for a terminal."""
    lines = [
        f"package    {report.package}",
        f"reference  {report.reference}",
        f"weights    {report.weights}",
        "",
    ]
    if report.clips:
        lines += _clip_table(report.clips)
    for failure in report.failures:
        lines.append(f"{failure.audio}: not compared: {failure.reason}")
    lines.append("")
    for check in report.checks():
        relation, verdict = ">=" if check.at_least else "<=", "ok" if check.holds else "NO"
        lines.append(f"{check.name:29} {check.value:10.3g}  {relation} {check.limit:<6g} {verdict}")
    if report.clips:
        totals = Totals.of(report.clips)
        if totals.tokens < MIN_TOKENS:
            lines.append(f"(no share of same choices below {MIN_TOKENS} tokens: {totals.tokens})")
        lines.append(
            f"{totals.same_tokens} of {totals.clips} clips with the same tokens, "
            f"{totals.same_text} with the same text"
        )
    lines.append("verdict: " + ("within limits" if report.passed else "OUTSIDE LIMITS"))
    return "\n".join(lines)


def _clip_table(clips: Sequence[Comparison]) -> list[str]:
    width = max(len(Path(clip.audio).name) for clip in clips)
    lines = [
        f"{'audio':{width}} {'s':>6} {'mel':>8} {'encoder':>8} {'logits':>8} "
        f"{'|dlogp|':>8} {'worst':>8} {'choices':>9} {'margin':>7}  tokens"
    ]
    for clip in clips:
        n, dlogp = len(clip.dlogp), np.abs(clip.dlogp)
        tokens = "same" if clip.diverges_at is None else f"part at {clip.diverges_at}"
        lines.append(
            f"{Path(clip.audio).name:{width}} {clip.seconds:6.2f} {clip.mel_error:8.1e} "
            f"{clip.encoder_error:8.1e} {clip.first_logits_error:8.1e} "
            f"{dlogp.mean():8.4f} {dlogp.max():8.4f} {clip.same_choices:4}/{n:<4} "
            f"{clip.worst_margin:7.2f}  {tokens}{'' if clip.explained else ', UNEXPLAINED'}"
        )
    for clip in clips:
        if clip.text != clip.package_text:
            lines += ["", clip.audio, f"  reference: {clip.text}"]
            lines += [f"  package:   {clip.package_text}"]
    return lines


def _finite(value: Any) -> Any:
    """A copy in which numbers that JSON does not know are ``None``."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
