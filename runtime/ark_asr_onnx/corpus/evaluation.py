"""Transcribes records with a reference text, and scores them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from .. import Options, Splitting, Transcriber
from ..decoding.slots import DEFAULT_SLOTS
from ..errors import ArkError, RecordsError
from . import scoring
from .batch import record_clip
from .records import Record, read_records

_OURS = ("pred_text", "error", "warnings")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The texts of one model and their scores, by record."""

    records: tuple[Record, ...]
    texts: tuple[str, ...]
    scores: tuple[scoring.Score, ...]
    errors: tuple[str, ...]  # the error of a record without a text, or ""
    warnings: tuple[tuple[str, ...], ...]  # about the audio of each record
    audio_seconds: float  # transcribed in this run
    elapsed_seconds: float

    @property
    def failures(self) -> tuple[str, ...]:
        """A line for each record without a text."""
        pairs = zip(self.records, self.errors, strict=True)
        return tuple(e if r.audio in e else f"{r.audio}: {e}" for r, e in pairs if e)

    @property
    def n_warned(self) -> int:
        """Number of records with warnings about their audio."""
        return sum(map(bool, self.warnings))

    def report(self) -> scoring.Report:
        """Rates and their intervals."""
        return scoring.report(
            self.scores, self.audio_seconds, self.elapsed_seconds, len(self.failures)
        )

    def rows(self) -> list[dict[str, Any]]:
        """The rows of ``open-audio-opd``'s evaluation, worst first."""
        found: list[dict[str, Any]] = []
        for record, text, score, error, warnings in zip(
            self.records, self.texts, self.scores, self.errors, self.warnings, strict=True
        ):
            begin, end = record.begin_seconds, record.end_seconds
            fields = {
                "audio": record.audio,
                "text": record.text or "",
                "pred_text": text,
                "begin_time": -1 if begin is None else begin,
                "end_time": -1 if end is None else end,
                **{k: v for k, v in record.fields.items() if k not in _OURS},
                **({"error": error} if error else {}),
                **({"warnings": list(warnings)} if warnings else {}),
            }
            found.append(scoring.row(fields, score))
        return scoring.sort_rows(found)


def run_evaluation(
    open_transcriber: Callable[[], Transcriber] | None,
    input_path: str | os.PathLike[str],
    *,
    language: str | None = None,
    normalize: bool = True,
    has_texts: bool = True,
    options: Options | None = None,
    splitting: Splitting | None = None,
    slots: int = DEFAULT_SLOTS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Transcribe the records of a list, see :func:`read_records`, and score them by their ``text``.

    Records with a ``pred_text`` and no ``error`` are only scored, unless ``has_texts`` is false.
    The transcriber is opened only if there is work, and closed afterwards; without one, all records
    must have a ``pred_text``, and those with an ``error`` count as failed. ``language`` is used for
    all records; by default each record's, else that of its script. ``on_progress`` is called with
    the numbers of transcribed records and of all records to transcribe.

    Raises :class:`RecordsError`, before any work, for a list with a record that cannot be scored,
    and :class:`MissingExtraError` without the extra ``eval``. The words of audio that fails count
    as deleted, and it is among the ``failures``.
    """
    records = read_scorable(input_path, language, normalize=normalize)
    scoring.score("a", "a", normalize=normalize)  # raises if the extra is missing
    texts = [str(record.fields.get("pred_text", "")) for record in records]
    errors = [str(record.fields.get("error") or "") for record in records]
    warnings = [_warnings(record) for record in records]
    waiting = [
        i
        for i, record in enumerate(records)
        if not has_texts or "pred_text" not in record.fields or (errors[i] and open_transcriber)
    ]
    audio_seconds = elapsed_seconds = 0.0
    if waiting:
        if open_transcriber is None:
            line = records[waiting[0]].line
            raise RecordsError(f"{os.fspath(input_path)}:{line}: pred_text is missing")
        with open_transcriber() as transcriber:
            begin = time.perf_counter()
            results = transcriber.transcribe_many(
                (record_clip(records[i]) for i in waiting),
                options=options,
                splitting=splitting,
                slots=slots,
            )
            for n, (i, result) in enumerate(zip(waiting, results, strict=True), 1):
                if isinstance(result, ArkError):
                    texts[i], errors[i], warnings[i] = "", str(result), ()
                else:
                    texts[i], errors[i] = result.text, ""
                    warnings[i] = tuple(warning.message for warning in result.warnings)
                    audio_seconds += result.duration
                if on_progress:
                    on_progress(n, len(waiting))
            elapsed_seconds = time.perf_counter() - begin
    scores = [
        scoring.score(record.text or "", text, language or _language(record), normalize=normalize)
        for record, text in zip(records, texts, strict=True)
    ]
    return Evaluation(
        tuple(records),
        tuple(texts),
        tuple(scores),
        tuple(errors),
        tuple(warnings),
        audio_seconds,
        elapsed_seconds,
    )


def _warnings(record: Record) -> tuple[str, ...]:
    """The warnings of an earlier run about the audio."""
    found = record.fields.get("warnings")
    return tuple(map(str, cast("list[object]", found))) if isinstance(found, list) else ()


def _language(record: Record) -> str | None:
    """The language of a record; None: decide by its script."""
    language = record.fields.get("language")
    return str(language) if language else None


def read_scorable(
    path: str | os.PathLike[str], language: str | None = None, *, normalize: bool = True
) -> list[Record]:
    """The records of a list. Raises :class:`RecordsError` for the first that cannot be scored."""
    records = read_records(path, needs_text=True)
    if not records:
        raise RecordsError(f"{os.fspath(path)}: no lines, there is nothing to score")
    for record in records:
        where = f"{os.fspath(path)}:{record.line}"
        try:
            scoring.normalizer(language or _language(record), normalize)
        except ValueError as error:
            raise RecordsError(f"{where}: {error}") from error
        if not isinstance(record.fields.get("pred_text", ""), str):
            raise RecordsError(f"{where}: pred_text must be a string")
    return records
