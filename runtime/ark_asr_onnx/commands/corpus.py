"""``ark-asr batch`` and ``ark-asr evaluate``: lists of many files."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import ark_asr_onnx

from .. import ArkError, RecordsError, Transcriber
from ..corpus import batch, scoring
from ..corpus.records import Record, read_records
from ..model import threads
from .terminal import (
    MODEL_VARIABLE,
    Progress,
    check_window,
    engine_arguments,
    named_model,
    opened,
    options_of,
    positive,
    say,
    splitting_of,
)


def batch_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``batch``."""
    add = parser.add_argument
    add("--input", required=True, type=Path, metavar="JSONL", help="an object a line: audio, …")
    add("--output", required=True, type=Path, metavar="JSONL", help="continued if it is there")
    add("--overwrite", action="store_true", help="begin the output anew")
    add("--workers", type=positive, default=1, metavar="N",
        help="processes, each with the model of its own (1)")  # fmt: skip
    add("--no-progress", action="store_true", help="no bar on the terminal")
    engine_arguments(parser)
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
    engine_arguments(parser)
    parser.set_defaults(run=_evaluate)


def _batch(arguments: argparse.Namespace, _: object) -> int:
    """Transcribe what has no row yet."""
    model = named_model(arguments)
    package = ark_asr_onnx.open_package(model, local_files_only=arguments.local_files_only)
    check_window(arguments, package.manifest)  # before anything is overwritten
    n_threads = arguments.threads or max(1, threads.default_threads() // arguments.workers)
    load = functools.partial(
        ark_asr_onnx.load,
        model,
        threads=n_threads,
        local_files_only=arguments.local_files_only,
        prepared_dir=arguments.prepared_dir,
    )
    show: Progress | None = None

    def on_progress(done: int, total: int) -> None:
        nonlocal show
        if show is None:
            if done:
                say(f"{done} of {total} rows are there already")
            show = Progress(total, lambda n: f"{n:.0f}")
            show.is_shown &= not arguments.no_progress
        show(done)

    try:
        result = batch.run_batch(
            load,
            arguments.input,
            arguments.output,
            options=options_of(arguments),
            splitting=splitting_of(arguments),
            slots=arguments.slots,
            workers=arguments.workers,
            overwrite=arguments.overwrite,
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


def _evaluate(arguments: argparse.Namespace, _: object) -> int:
    """Transcribe, score and print."""
    normalize = not arguments.no_normalize
    with _told(f"--language {arguments.language}"):
        scoring.normalizer(arguments.language, normalize)
    scoring.score("a", "a", normalize=normalize)  # what it needs is installed
    records = read_records(arguments.input, needs_text=True)
    if not records:
        raise RecordsError(f"{arguments.input}: no lines, there is nothing to score")
    if arguments.output is not None and _is_same(arguments.output, arguments.input):
        raise RecordsError(f"{arguments.output}: is the input too, choose another output")
    for record in records:
        with _told(f"{arguments.input}:{record.line}"):
            scoring.normalizer(_language(arguments, record), normalize)
        if not isinstance(record.fields.get("pred_text", ""), str):
            raise RecordsError(f"{arguments.input}:{record.line}: pred_text must be a string")
    if arguments.output is not None:
        _check_writable(arguments.output)  # told now, not when all is done
    if arguments.against is not None:
        ark_asr_onnx.open_package(arguments.against, local_files_only=arguments.local_files_only)
    ours = _scored(arguments, records, None)
    name = str(arguments.model or os.environ.get(MODEL_VARIABLE))
    if all("pred_text" in record.fields for record in records):
        name = str(arguments.input)  # the texts are in the rows
    if arguments.against is not None:
        print(name)
    with _told(arguments.input):
        print(scoring.summary(ours.report()))
    if arguments.output is not None:
        _write_rows(arguments.output, ours.rows())
    if arguments.against is not None:
        theirs = _scored(arguments, records, arguments.against)
        print(f"\n{arguments.against}\n{scoring.summary(theirs.report())}")
        names = (name, str(arguments.against))
        difference = scoring.compare(ours.scores, theirs.scores)
        print(f"\n{scoring.comparison_summary(difference, names)}")
        ours.failures += theirs.failures
    for line in ours.failures:
        say(f"error: {line}")
    return 1 if ours.failures else 0


def _language(arguments: argparse.Namespace, record: Record) -> str | None:
    """What to count a row as: as the command says, or the row; None: look at its script."""
    language = arguments.language or record.fields.get("language")
    return str(language) if language else None


@contextlib.contextmanager
def _told(where: object) -> Generator[None]:
    """A score that cannot be, as an error of the manifest."""
    try:
        yield
    except ValueError as error:
        raise RecordsError(f"{where}: {error}") from error


class _Scored:
    """The texts of one model and their scores."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.texts: list[str] = []
        self.scores: list[scoring.Score] = []
        self.failures: list[str] = []
        self.audio_seconds = self.elapsed_seconds = 0.0

    def report(self) -> scoring.Report:
        return scoring.report(
            self.scores, self.audio_seconds, self.elapsed_seconds, len(self.failures)
        )

    def rows(self) -> list[dict[str, Any]]:
        """Upstream's rows, worst first."""
        found: list[dict[str, Any]] = []
        for record, text, score in zip(self.records, self.texts, self.scores, strict=True):
            begin, end = record.begin_seconds, record.end_seconds
            fields = {
                "audio": record.audio,
                "text": record.text or "",
                "pred_text": text,
                "begin_time": -1 if begin is None else begin,
                "end_time": -1 if end is None else end,
                **{k: v for k, v in record.fields.items() if k != "pred_text"},
            }
            found.append(scoring.row(fields, score))
        return scoring.sort_rows(found)


def _scored(arguments: argparse.Namespace, records: Sequence[Record], model: str | None) -> _Scored:
    """Texts of a model, those that the rows have already left out, and their scores."""
    found = _Scored()
    ready = [model is None and "pred_text" in r.fields for r in records]
    results: dict[int, str] = {
        i: str(r.fields["pred_text"]) for i, r in enumerate(records) if ready[i]
    }
    found.failures += [f"{records[i].audio}: {records[i].fields['error']}"
                       for i in results if records[i].fields.get("error")]  # fmt: skip
    waiting = [i for i in range(len(records)) if not ready[i]]
    if waiting:
        with opened(arguments, model) as transcriber:
            results |= _transcribed(arguments, transcriber, records, waiting, found)
    for i, record in enumerate(records):
        found.records.append(record)
        found.texts.append(results[i])
        found.scores.append(
            scoring.score(
                record.text or "",
                results[i],
                _language(arguments, record),
                normalize=not arguments.no_normalize,
            )
        )
    return found


def _transcribed(
    arguments: argparse.Namespace,
    transcriber: Transcriber,
    records: Sequence[Record],
    waiting: Sequence[int],
    found: _Scored,
) -> dict[int, str]:
    show = Progress(len(waiting), lambda n: f"{n:.0f}")
    show.is_shown &= not arguments.no_progress
    begin = time.perf_counter()
    results = transcriber.transcribe_many(
        (batch.record_clip(records[i]) for i in waiting),
        options=options_of(arguments),
        splitting=splitting_of(arguments),
        slots=arguments.slots,
    )
    texts: dict[int, str] = {}
    for n, (i, result) in enumerate(zip(waiting, results, strict=True), 1):
        if isinstance(result, ArkError):
            texts[i] = ""
            found.failures.append(str(result))
        else:
            texts[i] = result.text
            found.audio_seconds += result.duration
        show(n)
    show.clear()
    found.elapsed_seconds = time.perf_counter() - begin
    return texts


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
