"""``ark-asr batch`` and ``ark-asr evaluate``: lists of many files."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ark_asr_onnx

from .. import RecordsError
from ..corpus import batch, scoring
from ..corpus.evaluation import Evaluation, read_scorable, run_evaluation
from ..model import threads
from .settings import MODEL_VARIABLE, Settings, arguments_of_all, positive, settings
from .terminal import Progress, say


@dataclass(frozen=True, slots=True)
class _Batch:
    """What ``batch`` was told."""

    settings: Settings
    input: Path
    output: Path
    overwrite: bool
    workers: int
    has_bar: bool


@dataclass(frozen=True, slots=True)
class _Comparison:
    """What ``evaluate`` was told."""

    settings: Settings
    input: Path
    output: Path | None
    against: str | None
    language: str | None
    normalize: bool
    has_bar: bool


def batch_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``batch``."""
    add = parser.add_argument
    add("--input", required=True, type=Path, metavar="JSONL", help="an object a line: audio, …")
    add("--output", required=True, type=Path, metavar="JSONL", help="continued if it is there")
    add("--overwrite", action="store_true", help="begin the output anew")
    add("--workers", type=positive, default=1, metavar="N",
        help="processes, each with the model of its own (1)")  # fmt: skip
    add("--no-progress", action="store_true", help="no bar on the terminal")
    arguments_of_all(parser)
    parser.set_defaults(run=_batch)


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``evaluate``."""
    add = parser.add_argument
    add("--input", required=True, type=Path, metavar="JSONL",
        help="an object a line: audio and text; rows with pred_text are only scored")  # fmt: skip
    add("--output", type=Path, metavar="JSONL", help="rows with their errors, worst first")
    add("--against", metavar="MODEL", help="a second model, compared with the first")
    add("--language", help="such as en, de, zh (default: the row's, else by its script)")
    add("--no-normalize", action="store_true", help="compare the texts as they are written")
    add("--no-progress", action="store_true", help="no bar on the terminal")
    arguments_of_all(parser)
    parser.set_defaults(run=_evaluate)


def _batch(arguments: argparse.Namespace) -> int:
    """Transcribe what has no row yet."""
    return _run_batch(
        _Batch(
            settings(arguments),
            arguments.input,
            arguments.output,
            arguments.overwrite,
            arguments.workers,
            not arguments.no_progress,
        )
    )


def _run_batch(told: _Batch) -> int:
    model = told.settings.model
    package = ark_asr_onnx.open_package(model.name, local_files_only=model.local_files_only)
    told.settings.check_window(package.manifest)  # before anything is overwritten
    n_threads = model.threads or max(1, threads.default_threads() // told.workers)
    show: Progress | None = None

    def on_progress(done: int, total: int) -> None:
        nonlocal show
        if show is None:
            if done:
                say(f"{done} of {total} rows are there already")
            show = Progress(total, lambda n: f"{n:.0f}", is_wanted=told.has_bar)
        show(done)

    try:
        result = batch.run_batch(
            functools.partial(told.settings.load, threads=n_threads),
            told.input,
            told.output,
            options=told.settings.options,
            splitting=told.settings.splitting,
            slots=told.settings.slots,
            workers=told.workers,
            overwrite=told.overwrite,
            on_progress=on_progress,
        )
    finally:
        if show is not None:
            show.clear()
    n_now = result.n_records - result.n_done_before
    speed = f", RTFx {result.audio_seconds / result.elapsed_seconds:.1f}" if n_now else ""
    say(f"{n_now} of {result.n_records} rows written, {result.audio_seconds:.1f} s of audio{speed}")
    if result.n_flagged:
        say(f"warning: {result.n_flagged} rows have a finish_reason: their text may lack something")
    if result.n_failed:
        say(f"{result.n_failed} rows have an error")
    return 1 if result.n_failed else 0


def _evaluate(arguments: argparse.Namespace) -> int:
    """Transcribe, score and print."""
    return _run_evaluate(
        _Comparison(
            settings(arguments),
            arguments.input,
            arguments.output,
            arguments.against,
            arguments.language,
            not arguments.no_normalize,
            not arguments.no_progress,
        )
    )


def _run_evaluate(told: _Comparison) -> int:
    if told.language is not None:
        try:
            scoring.normalizer(told.language, told.normalize)
        except ValueError as error:
            raise RecordsError(f"--language {told.language}: {error}") from error
    records = read_scorable(told.input, told.language, normalize=told.normalize)
    if told.output is not None:  # told now, not when all is done
        if _is_same(told.output, told.input):
            raise RecordsError(f"{told.output}: is the input too, choose another output")
        _check_writable(told.output)
    if told.against is not None:
        offline = told.settings.model.local_files_only
        ark_asr_onnx.open_package(told.against, local_files_only=offline)
    ours = _evaluated(told, None)
    name = str(told.settings.model.model or os.environ.get(MODEL_VARIABLE))
    if all("pred_text" in record.fields for record in records):
        name = str(told.input)  # the texts are in the rows
    if told.against is not None:
        print(name)
    print(scoring.summary(_report(told, ours)))
    if told.output is not None:
        _write_rows(told.output, ours.rows())
    failures = ours.failures
    if told.against is not None:
        theirs = _evaluated(told, told.against)
        print(f"\n{told.against}\n{scoring.summary(_report(told, theirs))}")
        difference = scoring.compare(ours.scores, theirs.scores)
        print(f"\n{scoring.comparison_summary(difference, (name, told.against))}")
        failures += theirs.failures
    for line in failures:
        say(f"error: {line}")
    return 1 if failures else 0


def _evaluated(told: _Comparison, model: str | None) -> Evaluation:
    """Texts and scores of a model; of the first one, texts that the rows have already count."""
    show: Progress | None = None

    def on_progress(done: int, total: int) -> None:
        nonlocal show
        show = show or Progress(total, lambda n: f"{n:.0f}", is_wanted=told.has_bar)
        show(done)

    try:
        return run_evaluation(
            functools.partial(told.settings.load, model),
            told.input,
            language=told.language,
            normalize=told.normalize,
            has_texts=model is None,
            options=told.settings.options,
            splitting=told.settings.splitting,
            slots=told.settings.slots,
            on_progress=on_progress,
        )
    finally:
        if show is not None:
            show.clear()


def _report(told: _Comparison, evaluation: Evaluation) -> scoring.Report:
    try:
        return evaluation.report()
    except ValueError as error:
        raise RecordsError(f"{told.input}: {error}") from error


def _check_writable(path: Path) -> None:
    try:
        path.open("ab").close()
    except OSError as error:
        raise RecordsError(f"{path}: cannot be written ({error.strerror})") from error


def _write_rows(path: Path, rows: Sequence[dict[str, object]]) -> None:
    try:
        path.write_bytes(b"".join(map(batch.row_line, rows)))
    except OSError as error:
        raise RecordsError(f"{path}: cannot be written ({error.strerror})") from error


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False
