"""The proof in every package: ``report.json`` for programs, ``REPORT.md`` for people."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ark_asr_onnx.package.contract import File, file_sha256

from .budget import Rung
from .choose import FASTEST, Choice
from .findings import Finding
from .heads import Errors, Found
from .parity import Parity
from .quantize import Matrix
from .report import report_to_record, report_to_text
from .verify import Report, Totals

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
    rungs: tuple[Rung, ...]  # in the order tried; the last of each graph is in the package
    findings: tuple[Finding, ...]
    choices: tuple[Choice, ...]
    references: dict[str, str]  # clip -> its words
    heads: Found | None  # how words are timed; None: this layout has no times
    word_errors: Errors | None  # of the package's times
    seconds: float  # the whole export


def write(proof: Proof, directory: Path) -> dict[str, File]:
    """Write both files; gives their sizes and checksums."""
    texts = {JSON_FILE: to_json(proof), TEXT_FILE: to_markdown(proof)}
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8", errors="backslashreplace")
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
        "ladder": [asdict(rung) for rung in proof.rungs],
        "calibration": [asdict(finding) for finding in proof.findings],
        "choices": [asdict(choice) for choice in proof.choices],
        "word_error_rate": word_error_rate(proof.report, proof.references),
        "word_times": {
            "heads": proof.heads and proof.heads.to_record(),
            "package": proof.word_errors and asdict(proof.word_errors),
        },
        "seconds": round(proof.seconds, 1),
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
        *_words(proof),
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
        f"- time of the export: {proof.seconds:.0f} s",
    ]
    if proof.rungs:
        lines += [
            "",
            "What was tried, the last of each graph is in the package. The cost is, for audio, the "
            "relative error of the audio embeddings (worst clip), for the decoder the mean change "
            "of the log-probability of the reference's tokens.",
            "",
            "| graph | matrices | cost, predicted | measured | budget | bytes |",
            "| --- | --- | --: | --: | --: | --: |",
            *(
                f"| {r.graph} | {', '.join(f'{n} {name}' for name, n in r.recipes.items())} "
                f"| {'-' if r.predicted is None else f'{r.predicted:.4f}'} | {r.cost:.4f} "
                f"| {r.budget:g} | {r.bytes:,} |"
                for r in proof.rungs
            ),
        ]
    if proof.choices:
        lines += _choices(proof)
    if proof.matrices:
        lines += [
            "",
            "The matrix of each layer whose weights lost most, as ||W - W'|| / ||W||:",
            "",
            "| matrix | shape | recipe | block | error |",
            "| --- | --- | --- | --: | --: |",
            *(
                f"| {m.name} | {m.shape[0]} x {m.shape[1]} | {m.recipe} | {m.block or '-'} "
                f"| {m.error:.2e} |"
                for m in _worst_by_layer(proof.matrices)
            ),
        ]
    lines += _word_times(proof)
    lines += ["", "## Files", "", "| file | bytes |", "| --- | --: |"]
    lines += [f"| {name} | {file.bytes:,} |" for name, file in proof.files.items()]
    return "\n".join(lines) + "\n"


def word_error_rate(report: Report, references: dict[str, str]) -> dict[str, float]:
    """Of reference and package, in per cent, on the clips whose words are known; lower case."""
    import jiwer

    named = {clip: clip.audio if clip.audio in references else Path(clip.audio).name
             for clip in report.clips}  # fmt: skip
    known = {clip: _plain(references[name]) for clip, name in named.items() if name in references}
    texts = list(known.values())
    if not all(texts) or not texts:
        return {}
    return {
        "clips": len(texts),
        "words": sum(len(text.split()) for text in texts),
        "reference": round(100 * jiwer.wer(texts, [_plain(clip.text) for clip in known]), 3),
        "package": round(100 * jiwer.wer(texts, [_plain(clip.package_text) for clip in known]), 3),
    }


def _plain(text: str) -> str:
    """Lower case, without punctuation."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower()).split())


def _words(proof: Proof) -> list[str]:
    found = word_error_rate(proof.report, proof.references)
    if not found:
        return []
    return [
        f"Word error rate on {found['clips']} clips whose {found['words']} words are known: "
        f"reference {found['reference']:.2f} %, package {found['package']:.2f} %.",
        "",
    ]


def _word_times(proof: Proof) -> list[str]:
    found = proof.heads
    if found is None:
        return []
    lines = ["", "## Times of words", ""]
    if not found.heads:
        return [*lines, f"None: {found.reason}."]
    chosen = ", ".join(f"{head} of layer {layer}" for layer, head in found.heads)
    lines += [
        f"By the attention of these heads: {chosen}. They were found on sequences of single spoken "
        f"words; the checkpoint understood {found.understood} of {found.spoken}.",
        "",
    ]
    if errors := proof.word_errors:
        lines += [
            f"Expected error, measured with the package on {errors.borders} starts and ends of "
            f"words of other speakers: median {1000 * errors.median:.0f} ms, "
            f"{errors.within_100_ms:.0%} within 100 ms, {errors.within_200_ms:.0%} within 200 ms.",
            "",
        ]
    lines += [
        "Share of their attention to the audio that is on the word that is being written:",
        "",
        "| layer | head | on the word |",
        "| --: | --: | --: |",
    ]
    return lines + [f"| {layer} | {head} | {share:.1%} |" for layer, head, share in found.ranking]


def _choices(proof: Proof) -> list[str]:
    """The sites that did not get the fastest recipe, and the inputs with outliers."""
    slower = [choice for choice in proof.choices if choice.reason != FASTEST]
    lines = [
        "",
        f"{len(proof.choices) - len(slower)} of {len(proof.choices)} groups of matrices are stored "
        "in the fastest recipe. The others, with the predicted error of the product and of the "
        "graph's output, if nothing else erred:",
        "",
        "| matrices | recipe | error | at the output | why |",
        "| --- | --- | --: | --: | --- |",
        *(
            f"| {c.site} | {c.recipe} | {c.error:.2e} | {c.at_output:.2e} | {c.reason} |"
            for c in slower
        ),
    ]
    wild = [f for f in proof.findings if f.outlier_channels or f.outlier_rows]
    smoothed = sum(f.strength is not None for f in proof.findings)
    lines += [
        "",
        f"Smoothing was folded into what writes the inputs of {smoothed} groups. Groups that "
        f"read outliers, channels or rows that reach 20 times the median one: {len(wild)}.",
    ]
    if wild:
        lines += [
            "",
            "| matrices | largest input | outlier channels | outlier rows | smoothing |",
            "| --- | --: | --: | --: | --: |",
            *(
                f"| {f.site} | {f.largest:.3g} | {f.outlier_channels} of {f.channels} "
                f"| {f.outlier_rows} | {'-' if f.strength is None else f.strength} |"
                for f in wild
            ),
        ]
    return lines


def _worst_by_layer(matrices: tuple[Matrix, ...]) -> list[Matrix]:
    """For each layer its matrix with the largest error; others stand for themselves."""
    worst: dict[str, Matrix] = {}
    for matrix in matrices:
        found: Any = re.match(r".*layers\.\d+", matrix.name)
        layer = found.group() if found else matrix.name
        if layer not in worst or matrix.error > worst[layer].error:
            worst[layer] = matrix
    return list(worst.values())
