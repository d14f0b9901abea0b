"""The proof in every package: ``report.json`` for programs, ``REPORT.md`` for people."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ark_asr_onnx.contract import File, file_sha256

from .parity import Parity
from .quantize import Matrix
from .verify import Report, Totals, report_to_record, report_to_text

JSON_FILE, TEXT_FILE = "report.json", "REPORT.md"


@dataclass(frozen=True, slots=True)
class Proof:
    """What was measured while a package was made."""

    name: str
    recipe: dict[str, str]
    graphs: dict[str, Parity]  # comparison -> figures
    matrices: tuple[Matrix, ...]
    report: Report  # on speech, against torch
    files: dict[str, File]


def write(proof: Proof, directory: Path) -> dict[str, File]:
    """Write both files; gives their sizes and checksums."""
    texts = {JSON_FILE: to_json(proof), TEXT_FILE: to_markdown(proof)}
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    paths = [directory / name for name in texts]
    return {path.name: File(path.stat().st_size, file_sha256(path)) for path in paths}


def shortfall(report: Report) -> str:
    """Which limits a package misses, in words."""
    return ", ".join(
        f"{check.name} is {check.value:.3g} (allowed {check.limit:g})"
        for check in report.checks()
        if not check.holds
    )


def to_json(proof: Proof) -> str:
    """Every figure, token and text."""
    record = {
        "name": proof.name,
        "recipe": proof.recipe,
        "graphs": {name: parity.figures() for name, parity in proof.graphs.items()},
        "layers": [asdict(matrix) for matrix in _worst_by_layer(proof.matrices)],
        "matrices": [asdict(matrix) for matrix in proof.matrices],
        "bytes": {name: file.bytes for name, file in proof.files.items()},
        "speech": report_to_record(proof.report),
    }
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(proof: Proof) -> str:
    """One page."""
    totals = Totals.of(proof.report.clips)
    lines = [
        f"# How good is {proof.name}?",
        "",
        f"Compared with {proof.report.reference} on {totals.clips} clips of speech, "
        f"{totals.seconds:.1f} s in all, while the package was made. "
        "`ark-onnx-export verify` repeats this on your own audio.",
        "",
        "```text",
        report_to_text(proof.report),
        "```",
        "",
        f"Log-probabilities of the reference's {totals.tokens} tokens, teacher-forced: mean "
        f"|dlogp| {totals.mean_dlogp:.4f}, 99th percentile {totals.p99_dlogp:.4f}, worst "
        f"{totals.worst_dlogp:.4f}.",
        "",
        "## Graphs",
        "",
        "Largest error over largest value, relative root-mean-square error (worst case of several "
        "lengths), and share of rows whose largest value is in the same place.",
        "",
        "| comparison | largest | root mean square | same place |",
        "| --- | --: | --: | --: |",
        *(
            f"| {name} | {p.max_relative:.1e} | {p.rms_relative:.1e} | {p.top1:.2%} |"
            for name, p in proof.graphs.items()
        ),
        "",
        "## Recipe",
        "",
        *(f"- {key}: {value}" for key, value in proof.recipe.items()),
    ]
    if proof.matrices:
        lines += [
            "",
            "The matrix of each layer whose weights lost most, as ||W - W'|| / ||W||:",
            "",
            "| matrix | shape | block | error |",
            "| --- | --- | --: | --: |",
            *(
                f"| {m.name} | {m.shape[0]} x {m.shape[1]} | {m.block} | {m.error:.2e} |"
                for m in _worst_by_layer(proof.matrices)
            ),
        ]
    lines += ["", "## Files", "", "| file | bytes |", "| --- | --: |"]
    lines += [f"| {name} | {file.bytes:,} |" for name, file in proof.files.items()]
    return "\n".join(lines) + "\n"


def _worst_by_layer(matrices: tuple[Matrix, ...]) -> list[Matrix]:
    """For each layer its matrix with the largest error; others stand for themselves."""
    worst: dict[str, Matrix] = {}
    for matrix in matrices:
        found: Any = re.match(r".*layers\.\d+", matrix.name)
        layer = found.group() if found else matrix.name
        if layer not in worst or matrix.error > worst[layer].error:
            worst[layer] = matrix
    return list(worst.values())
