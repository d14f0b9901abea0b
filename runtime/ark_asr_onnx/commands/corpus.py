"""``ark-asr batch`` and ``ark-asr evaluate``: lists of many files."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ark_asr_onnx

from .. import PackageError, RecordsError, files
from ..corpus import batch, scoring
from ..corpus.evaluation import Evaluation, read_scorable, run_evaluation
from ..corpus.journal import row_line
from ..model import threads
from .settings import ModelSettings, Settings, arguments_of_all, positive, settings
from .terminal import Progress, say


@dataclass(frozen=True, slots=True)
class _Batch:
    """The arguments of ``batch``."""

    settings: Settings
    input: Path
    output: Path
    overwrite: bool
    workers: int
    has_bar: bool


@dataclass(frozen=True, slots=True)
class _Comparison:
    """The arguments of ``evaluate``."""

    settings: Settings
    input: Path
    output: Path | None
    against: str | None
    language: str | None
    normalize: bool
    has_bar: bool


def batch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``batch``."""
    add = parser.add_argument
    add("--input", required=True, type=Path, metavar="JSONL", help="one object per line: audio, …")
    add("--output", required=True, type=Path, metavar="JSONL", help="continued if it exists")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--workers", type=positive, default=1, metavar="N",
        help="processes, each of which opens the model (1)")  # fmt: skip
    add("--words", action="store_true", help="add pred_words to rows: times of words")
    add("--no-progress", action="store_true", help="no bar on the terminal")
    arguments_of_all(parser)
    parser.set_defaults(run=_batch)


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate``."""
    add = parser.add_argument
    add("--input", required=True, type=Path, metavar="JSONL",
        help="one object per line: audio and text; with pred_text it is only scored")  # fmt: skip
    add("--output", type=Path, metavar="JSONL", help="rows with their errors, worst first")
    add("--against", metavar="MODEL", help="a second model, compared with the first")
    add("--language", help="such as en, de, zh (default: the row's, else by its text's script)")
    add("--no-normalize", action="store_true", help="compare the texts as they are written")
    add("--no-progress", action="store_true", help="no bar on the terminal")
    arguments_of_all(parser)
    parser.set_defaults(run=_evaluate)


def _batch(arguments: argparse.Namespace) -> int:
    """Transcribe the records that have no row yet."""
    return _run_batch(
        _Batch(
            settings(arguments, words=arguments.words),
            arguments.input,
            arguments.output,
            arguments.overwrite,
            arguments.workers,
            not arguments.no_progress,
        )
    )


def _run_batch(told: _Batch) -> int:
    model = told.settings.model
    _check_writable(told.output)  # before a model is downloaded or opened
    package = ark_asr_onnx.open_package(model.name, local_files_only=model.local_files_only)
    told.settings.check_window(package.manifest)  # before anything is overwritten
    told.settings.check_hotwords(package)
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
            package=package,
            on_progress=on_progress,
        )
    finally:
        if show is not None:
            show.clear()
    n_now = result.n_records - result.n_done_before
    speed = f", RTFx {result.audio_seconds / result.elapsed_seconds:.1f}" if n_now else ""
    say(f"{n_now} of {result.n_records} rows written, {result.audio_seconds:.1f} s of audio{speed}")
    if result.n_again:
        say(f"{result.n_again} of them again: they were missing, had failed or were of other audio")
    if result.n_renewed:
        say(f"{result.n_renewed} rows have another text or other fields now, as their records")
    if result.n_flagged:
        say(f"warning: {result.n_flagged} rows have a finish_reason: their text may lack something")
    if result.n_warned:
        say(f"warning: {result.n_warned} rows have warnings about their audio")
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
    if told.output is not None:  # raises now, not after the work
        if _is_same(told.output, told.input):
            raise RecordsError(f"{told.output}: is the input too, choose another output")
        _check_writable(told.output)
    if told.against is not None:
        offline = told.settings.model.local_files_only
        ark_asr_onnx.open_package(told.against, local_files_only=offline)
    is_scored = all("pred_text" in record.fields for record in records)
    name = str(told.input) if is_scored else str(told.settings.model.name)
    # Failed rows of an earlier run are done again only if there is a model.
    has_model = not is_scored or _has_model(told.settings.model)
    ours = _evaluated(told, None, has_model=has_model)
    if told.against is not None:
        print(name)
    print(scoring.summary(_report(told, ours)))
    complaint = None if told.output is None else _write_rows(told.output, ours.rows())
    all_of_them = [ours]
    if told.against is not None:
        theirs = _evaluated(told, told.against)
        print(f"\n{told.against}\n{scoring.summary(_report(told, theirs))}")
        difference = scoring.compare(ours.scores, theirs.scores)
        print(f"\n{scoring.comparison_summary(difference, (name, told.against))}")
        all_of_them.append(theirs)
    for evaluation in all_of_them:
        for line in evaluation.failures:
            say(f"error: {line}")
        if evaluation.n_warned:
            say(f"warning: {evaluation.n_warned} rows have warnings about their audio")
    if complaint:
        say(f"error: {complaint}")
    return 1 if complaint or any(evaluation.failures for evaluation in all_of_them) else 0


def _evaluated(told: _Comparison, model: str | None, *, has_model: bool = True) -> Evaluation:
    """Texts and scores of a model; for the first model, texts in the rows are used."""
    show: Progress | None = None

    def on_progress(done: int, total: int) -> None:
        nonlocal show
        show = show or Progress(total, lambda n: f"{n:.0f}", is_wanted=told.has_bar)
        show(done)

    try:
        return run_evaluation(
            functools.partial(told.settings.load, model) if has_model else None,
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


def _has_model(model: ModelSettings) -> bool:
    try:
        return bool(model.name)
    except PackageError:
        return False


def _check_writable(path: Path) -> None:
    """Raise :class:`RecordsError` now if the output could not be written later; changes nothing."""
    place = Path(os.path.realpath(path))  # a link is followed
    try:
        if not place.exists():
            place.open("xb").close()
            place.unlink()
        elif place.is_file():
            place.open("ab").close()
            # It will be replaced by a new file, which must be in the same folder.
            tempfile.TemporaryFile(dir=place.parent).close()
        elif place.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise RecordsError(f"{path}: cannot be written ({error.strerror})") from error


def _write_rows(path: Path, rows: Sequence[dict[str, object]]) -> str | None:
    """Write rows completely or not at all; returns the error, with the place of the rows."""
    content = b"".join(map(row_line, rows))
    try:
        files.write(path, content)
    except OSError as error:
        complaint = f"{path}: cannot be written ({error.strerror or error})"
        try:
            with tempfile.NamedTemporaryFile(
                prefix="ark-asr-", suffix=".jsonl", delete=False
            ) as file:
                file.write(content)
        except OSError:
            return complaint
        return f"{complaint}; the rows are in {file.name}"
    return None


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False
