"""Transcribes the records of a JSON Lines file into rows of another, and continues old outputs.

A row in the output file is done, unless it has an error or its audio has changed since. Rows are
in the order of the records. A row is written completely once it and all rows before it are
finished, so a killed run loses only unfinished records. Rows that are done again are noted in the
journal, and merged into the output when all are done or the run ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from .. import Clip, Options, Package, Splitting, Transcriber, Transcript, files
from ..decoding.slots import DEFAULT_SLOTS
from ..errors import ArkError, RecordsError
from ..writers import word_fields
from . import journal
from .identity import AudioState, Setup, Values, audio_state, is_changed, setup
from .journal import Journal, Key, Row, row_line, write_all
from .records import Record, read_records
from .workers import end_if_unguarded, transcribe_clips

_RESULTS = ("pred_text", "pred_text_raw", "pred_words", "error", "finish_reason", "warnings")


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The counts of a run."""

    n_records: int  # in the input, all of them with a row in the output now
    n_done_before: int  # rows of earlier runs that need not be done again
    n_failed: int  # rows with an error, in the whole output
    n_flagged: int  # rows with a finish_reason, in the whole output
    audio_seconds: float  # transcribed in this run
    elapsed_seconds: float  # of this run, opening the model included
    n_warned: int = 0  # rows with warnings about their audio, in the whole output
    n_again: int = 0  # rows done again: they had failed, or their audio has changed
    n_renewed: int = 0  # rows updated, since their record has another text or other fields


def run_batch(
    open_transcriber: Callable[[], Transcriber],
    input_path: str | os.PathLike[str],
    output_path: str | os.PathLike[str],
    *,
    options: Options | None = None,
    splitting: Splitting | None = None,
    slots: int = DEFAULT_SLOTS,
    workers: int = 1,
    overwrite: bool = False,
    package: Package | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BatchResult:
    """Transcribe every record of a list into a row of the output, see :func:`output_row`.

    An existing output is continued, or replaced with ``overwrite``. Rows with an error or with
    changed audio are done again; rows whose record has another text or other fields are updated.
    The journal ``OUTPUT.meta`` beside it notes this, and the model and the options of the rows: an
    output made with others is refused. ``package`` is the one that ``open_transcriber`` opens;
    without it, another model is noticed only when it is opened.

    The transcriber is opened only if there is work, and closed afterwards; with several
    ``workers``, processes that open one each, ``open_transcriber`` must be picklable.
    ``on_progress`` is called with the numbers of finished rows and of all records, first before any
    work.

    Raises :class:`RecordsError` for an input that :func:`read_records` refuses and for an output
    of another input, model or options, or that another process writes; :class:`DecodeError` if a
    worker dies. Audio that fails gives a row with an ``error``.
    """
    end_if_unguarded()
    start = time.perf_counter()
    if slots < 1 or workers < 1:
        raise ValueError(f"slots is {slots}, workers {workers}: both must be at least 1")
    records = read_records(input_path)
    now = setup(options, splitting, package)
    path = Path(output_path)
    with _opened(path, Path(input_path), records, now, overwrite=overwrite) as output:
        n_done_before = len(records) - len(output.to_do)
        if on_progress:
            on_progress(n_done_before, len(records))
        states: deque[AudioState | None] = deque()

        def clips() -> Iterator[Clip]:
            for i in output.to_do:
                states.append(audio_state(records[i].path))
                yield record_clip(records[i])

        audio_seconds = 0.0
        results = transcribe_clips(
            open_transcriber,
            clips(),
            options=options,
            splitting=splitting,
            slots=slots,
            workers=min(workers, len(output.to_do)),
            on_open=output.agree,
        )
        with contextlib.closing(results):
            for n, (i, result) in enumerate(zip(output.to_do, results, strict=True), 1):
                row = output_row(records[i], result, words=bool(options and options.words))
                output.add(i, row, states.popleft())
                if not isinstance(result, ArkError):
                    audio_seconds += result.duration
                if on_progress:
                    on_progress(n_done_before + n, len(records))
    counts = output.counts
    return BatchResult(
        n_records=len(records),
        n_done_before=n_done_before,
        n_failed=counts["error"],
        n_flagged=counts["finish_reason"],
        audio_seconds=audio_seconds,
        elapsed_seconds=time.perf_counter() - start,
        n_warned=counts["warnings"],
        n_again=output.n_again,
        n_renewed=output.n_renewed,
    )


def record_clip(record: Record) -> Clip:
    """The audio of a record, as a clip."""
    return Clip(record.path, begin_seconds=record.begin_seconds, end_seconds=record.end_seconds)


def output_row(record: Record, result: Transcript | ArkError, *, words: bool = False) -> Row:
    """The row of a record: the keys of ``open-audio-opd``'s inference script, in its order.

    They are ``audio``, ``text`` (empty if unknown), ``pred_text``, ``pred_text_raw`` (with special
    tokens), ``begin_time`` and ``end_time`` (-1 for none), and the record's other fields; last
    ``pred_words`` with whisper's keys if ``words`` are requested, an ``error`` if there was one,
    or the ``finish_reason`` of a doubtful text, and ``warnings`` about the audio. They replace an
    earlier run's results among the fields.
    """
    if isinstance(result, ArkError):
        return _row(record, {"error": str(result)})
    found: Row = {"pred_text": result.text, "pred_text_raw": result.raw_text}
    if words:
        found["pred_words"] = [word_fields(word) for word in result.words]
    if result.finish_reason != "stop":
        found["finish_reason"] = result.finish_reason
    if result.warnings:
        found["warnings"] = [warning.message for warning in result.warnings]
    return _row(record, found)


def _row(record: Record, result: Row) -> Row:
    row: Row = {
        "audio": record.audio,
        "text": record.text or "",
        "pred_text": result.get("pred_text", ""),
        "pred_text_raw": result.get("pred_text_raw", ""),
        "begin_time": -1 if record.begin_seconds is None else record.begin_seconds,
        "end_time": -1 if record.end_seconds is None else record.end_seconds,
    }
    ours = {*row, *_RESULTS}
    row |= {key: value for key, value in record.fields.items() if key not in ours}
    return row | {key: result[key] for key in _RESULTS[2:] if key in result}


def _renewed(row: Row, record: Record) -> Row:
    """A row with its record's present text and fields; all other keys of the row are kept."""
    new = _row(record, {key: row[key] for key in _RESULTS if key in row})
    new |= {key: value for key, value in row.items() if key not in new}
    return row if row == new else new


class _Output:
    """The rows of a batch in a file, and the notes about them in the journal."""

    def __init__(
        self, path: Path, records: Sequence[Record], notes: Journal, setup: Setup, *, is_fresh: bool
    ) -> None:
        self._path, self._records, self._notes, self._setup = path, records, notes, setup
        self._keys = _keys(records)
        self._is_fresh = is_fresh  # an existing output is replaced
        self._n_rows = 0  # number of records up to the last one with a row
        self.to_do: list[int] = list(range(len(records)))  # records, by number from 0
        self.n_again = self.n_renewed = 0
        self.counts: Counter[str] = Counter()  # rows with an error, a finish_reason, warnings
        self._file = path.open("a+b", buffering=0)
        try:
            if not is_fresh:
                self._resume()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Merge the rows that were done again, also if a run breaks off."""
        try:
            if self._notes.has_rows:
                self._merge()
            elif self._is_fresh and not self._records:
                self._begin()
        except OSError as error:
            raise _unwritable(self._path, error) from error
        finally:
            self._file.close()

    def agree(self, package: Values) -> None:
        """Refuse the opened model if another one made the rows."""
        self._setup = replace(self._setup, package=self._setup.package or package)
        if not self._is_fresh:
            self._check()

    def add(self, i: int, row: Row, state: AudioState | None) -> None:
        """Write the row of record ``i``, or note it if the file already has later rows."""
        self.counts.update(row.keys())
        try:
            self._begin()
            if i < self._n_rows:
                self._notes.note(self._keys[i], state, row)
                return
            if self._notes.has_rows:
                self._merge()
            self._notes.note(self._keys[i], state)
            write_all(self._file, row_line(row))
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _begin(self) -> None:
        """Write the setup into the journal before the first row."""
        if self._is_fresh:
            self._file.truncate(0)
            self._notes.begin(self._setup)
            self._is_fresh = False
        elif self._notes.setup is None:
            self._notes.declare(self._setup)

    def _check(self) -> None:
        """Raise :class:`RecordsError` if the rows were made with another setup."""
        before = self._notes.setup
        if before is None:
            return
        if found := self._setup.differences(before):
            raise RecordsError(
                f"{self._path}: was made with {', '.join(found)}; choose another output, or "
                "--overwrite this one"
            )

    def _resume(self) -> None:
        """Find the rows that are done, and the records to do."""
        n_renewed = self._classify()
        if not self._n_rows:
            self._is_fresh = True
            return
        self._check()
        if self._notes.setup is None:
            warnings.warn(
                f"{self._path}: does not say with which model and options it was made, as outputs "
                "of older versions; it is continued as if with these",
                stacklevel=6,
            )
            if self._setup.package:
                self._notes.declare(self._setup)
        if self._notes.has_rows or n_renewed:
            self._merge()
            self._classify()
        self.n_renewed = n_renewed
        self.n_again = sum(i < self._n_rows for i in self.to_do)

    def _classify(self) -> int:
        """Find the records without a good row; returns how many rows need an update."""
        n_renewed, self._n_rows, self.to_do = 0, 0, []
        self.counts.clear()
        for i, _, row in self._matched():
            self.to_do += range(self._n_rows, i)
            self._n_rows = i + 1
            state = self._notes.audio(self._keys[i])
            if "error" in row or (state and is_changed(self._records[i].path, state)):
                self.to_do.append(i)
            else:
                self.counts.update(row.keys())
            n_renewed += _renewed(row, self._records[i]) is not row
        self.to_do += range(self._n_rows, len(self._records))
        return n_renewed

    def _matched(self) -> Iterator[tuple[int, bytes, Row]]:
        """Numbers of records, with their lines and rows; cuts off an incomplete last line."""
        n_bytes = due = 0
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            for n_lines, line in enumerate(lines, 1):
                is_torn = not line.endswith(b"\n") and due < len(self._records)
                if is_torn and _begins_row_of(line, self._records[due]):
                    self._file.truncate(n_bytes)
                    return
                row = _parsed(line)
                place = row and (row.get("audio"), row.get("begin_time"), row.get("end_time"))
                keys = range(due, len(self._keys))
                i = next((i for i in keys if place == self._keys[i][:3]), None)
                if row is None or i is None or "pred_text" not in row:
                    raise RecordsError(
                        f"{self._path}:{n_lines}: this row belongs to another input; choose "
                        "another output, or --overwrite this one"
                    )
                yield i, line, row
                n_bytes += len(line)
                due = i + 1

    def _merge(self) -> None:
        """Replace rows by those that were done again."""
        target = Path(os.path.realpath(self._path))
        with files.staging(target.parent) as folder:
            is_new = False
            with (folder / "rows").open("wb") as new:
                for before, line in self._lines():
                    is_new |= before != line
                    new.write(line)
                new.flush()
                os.fsync(new.fileno())
            if is_new:
                shutil.copymode(target, folder / "rows")
                self._file.close()
                (folder / "rows").replace(target)
                self._file = target.open("a+b", buffering=0)
        self._notes.merged()

    def _lines(self) -> Iterator[tuple[bytes, bytes]]:
        """Pairs of the present line, empty if missing, and the new line."""
        due = 0
        for i, line, row in self._matched():
            for k in range(due, i + 1):
                again = self._notes.row(self._keys[k])
                if again is not None:
                    yield line if k == i else b"", row_line(_renewed(again, self._records[k]))
                elif k == i:
                    new = _renewed(row, self._records[i])
                    yield line, line if new is row else row_line(new)
            due = i + 1


@contextlib.contextmanager
def _opened(
    path: Path, input_path: Path, records: Sequence[Record], setup: Setup, *, overwrite: bool
) -> Generator[_Output]:
    """Open the output, locked for this process."""
    with contextlib.ExitStack() as stack:
        try:
            if path.exists() and path.samefile(input_path):
                raise RecordsError(f"{path}: is the input too, choose another output")
            if path.exists() and not path.is_file():
                raise RecordsError(f"{path}: is no file that could be continued")
            notes = stack.enter_context(journal.opened(path))
            output = _Output(path, records, notes, setup, is_fresh=overwrite)
        except OSError as error:
            raise _unwritable(path, error) from error
        with contextlib.closing(output):
            yield output


def _keys(records: Sequence[Record]) -> list[Key]:
    """Keys that identify records, also in another list."""
    seen: Counter[tuple[str, float, float]] = Counter()
    keys: list[Key] = []
    for record in records:
        begin = -1 if record.begin_seconds is None else record.begin_seconds
        end = -1 if record.end_seconds is None else record.end_seconds
        keys.append((record.audio, begin, end, seen[record.audio, begin, end]))
        seen[record.audio, begin, end] += 1
    return keys


def _parsed(line: bytes) -> Row | None:
    """The JSON object in a complete line; None if there is none."""
    try:
        parsed: Any = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return cast("Row", parsed) if isinstance(parsed, dict) else None


def _begins_row_of(torn: bytes, record: Record) -> bool:
    """Whether an incomplete line can be the beginning of a record's row.

    If not, a user may have written it, and cutting it off would lose it.
    """
    written = torn.rstrip(b"\0")  # a power failure may leave zeros
    start = row_line({"audio": record.audio})[: -len(b"}\n")]
    return written.startswith(start) or start.startswith(written)


def _unwritable(path: Path, error: OSError) -> RecordsError:
    return RecordsError(f"{path}: cannot be written ({error.strerror or error})")
