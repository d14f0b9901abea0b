"""JSON Lines in, JSON Lines out: a row for each record, in order, continued where it stopped.

What is in the output file is done. A row is written whole as soon as it and those before it are
finished, so that a run that is killed loses only what was in work.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, cast

from .. import Clip, Options, Splitting, Transcriber, Transcript
from ..decoding.slots import DEFAULT_SLOTS
from ..errors import ArkError, RecordsError
from .records import Record, read_records
from .workers import transcribe_clips

if sys.platform != "win32":
    import fcntl


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a run did."""

    n_records: int  # in the input, all of them with a row in the output now
    n_done_before: int  # rows that were there already
    n_failed: int  # rows with an error, in the whole output
    n_flagged: int  # rows with a finish_reason, likewise
    audio_seconds: float  # transcribed in this run
    elapsed_seconds: float  # of this run, opening the model included


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
    on_progress: Callable[[int, int], None] | None = None,
) -> BatchResult:
    """Transcribe every record of a list into a row of the output, see :func:`output_row`.

    An output that is there is continued, or begun anew with ``overwrite``. The transcriber is
    opened only if there is work, and closed afterwards; with several ``workers``, processes that
    open one each, ``open_transcriber`` must be picklable. ``on_progress`` is told the number of
    rows in the output and of all records, first before any work.

    Raises :class:`RecordsError` for an input that :func:`read_records` refuses and for an output
    of another input, or that another process writes; :class:`DecodeError` when a worker dies. Audio
    that fails is a row with an ``error``.
    """
    start = time.perf_counter()
    if slots < 1 or workers < 1:
        raise ValueError(f"slots is {slots}, workers {workers}: both must be at least 1")
    records, path = read_records(input_path), Path(output_path)
    with _open_output(path, Path(input_path), overwrite=overwrite) as output:
        n_done, n_failed, n_flagged = _resume(output, path, records)
        n_done_before, audio_seconds = n_done, 0.0
        if on_progress:
            on_progress(n_done, len(records))
        remaining = records[n_done:]
        results = transcribe_clips(
            open_transcriber,
            [record_clip(record) for record in remaining],
            options=options,
            splitting=splitting,
            slots=slots,
            workers=workers,
        )
        with contextlib.closing(results):
            for record, result in zip(remaining, results, strict=True):
                _append(output, path, row_line(row := output_row(record, result)))
                n_done += 1
                n_failed += "error" in row
                n_flagged += "finish_reason" in row
                if not isinstance(result, ArkError):
                    audio_seconds += result.duration
                if on_progress:
                    on_progress(n_done, len(records))
    elapsed = time.perf_counter() - start
    return BatchResult(len(records), n_done_before, n_failed, n_flagged, audio_seconds, elapsed)


def record_clip(record: Record) -> Clip:
    """What there is to transcribe of a record."""
    return Clip(record.path, begin_seconds=record.begin_seconds, end_seconds=record.end_seconds)


def output_row(record: Record, result: Transcript | ArkError) -> dict[str, object]:
    """The row of a record: the keys of ``open-audio-opd``'s inference script, in its order.

    They are ``audio``, ``text`` (empty if unknown), ``pred_text``, ``pred_text_raw`` (with special
    tokens), ``begin_time`` and ``end_time`` (-1 for none), and the record's other fields; last an
    ``error`` where there was one, or the ``finish_reason`` of a doubtful text. An earlier run's
    results among the fields make way for these.
    """
    failed = isinstance(result, ArkError)
    row: dict[str, object] = {
        "audio": record.audio,
        "text": record.text or "",
        "pred_text": "" if failed else result.text,
        "pred_text_raw": "" if failed else result.raw_text,
        "begin_time": -1 if record.begin_seconds is None else record.begin_seconds,
        "end_time": -1 if record.end_seconds is None else record.end_seconds,
    }
    ours = {*row, "error", "finish_reason"}
    row |= {key: value for key, value in record.fields.items() if key not in ours}
    if failed:
        row["error"] = str(result)
    elif result.finish_reason != "stop":
        row["finish_reason"] = result.finish_reason
    return row


def row_line(row: dict[str, object]) -> bytes:
    """A row as it is written: UTF-8, with line feed."""
    text = json.dumps(row, ensure_ascii=False) + "\n"
    # Half a surrogate pair has no UTF-8; with a backslash it is JSON's own notation for it.
    return text.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _open_output(path: Path, input_path: Path, *, overwrite: bool) -> Generator[FileIO]:
    """The output, for this process alone, appended to."""
    try:
        if path.exists() and path.samefile(input_path):
            raise RecordsError(f"{path}: is the input too, choose another output")
        if path.exists() and not path.is_file():
            raise RecordsError(f"{path}: is no file that could be continued")
        output = path.open("a+b", buffering=0)
    except OSError as error:
        raise _unwritable(path, error) from error
    with output:
        _lock(output, path)
        if overwrite:
            output.truncate(0)
        yield output


def _lock(output: FileIO, path: Path) -> None:
    """Claim the output until it is closed; a process that dies lets go of it."""
    if sys.platform != "win32":
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecordsError(f"{path}: is being written by another process") from error
        except OSError:
            pass  # a file system that knows no locks


def _resume(output: FileIO, path: Path, records: Sequence[Record]) -> tuple[int, int, int]:
    """Numbers of rows done, failed and flagged; a torn last row is cut off."""
    n_done = n_failed = n_flagged = n_bytes = 0
    output.seek(0)
    with open(output.fileno(), "rb", closefd=False) as lines:
        for line in lines:
            is_whole = line.endswith(b"\n")
            belongs = _is_row_of if is_whole else _begins_row_of
            if n_done == len(records) or not belongs(line, records[n_done]):
                raise RecordsError(
                    f"{path}:{n_done + 1}: this row belongs to another input; choose another "
                    "output, or --overwrite this one"
                )
            if not is_whole:
                output.truncate(n_bytes)
                break
            n_bytes += len(line)
            n_done += 1
            row = json.loads(line)
            n_failed += "error" in row
            n_flagged += "finish_reason" in row
    return n_done, n_failed, n_flagged


def _is_row_of(line: bytes, record: Record) -> bool:
    """Whether a whole line is the row of a record."""
    try:
        parsed: Any = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(parsed, dict):
        return False
    row = cast("dict[str, object]", parsed)
    expected = output_row(record, ArkError())
    same = all(row.get(key) == expected[key] for key in ("audio", "begin_time", "end_time"))
    return same and "pred_text" in row


def _begins_row_of(torn: bytes, record: Record) -> bool:
    """Whether a line without end can be what was written of a record's row.

    If not, it is somebody's text, and cutting it off would lose it.
    """
    written = torn.rstrip(b"\0")  # a power failure may leave zeros
    start = row_line({"audio": record.audio})[: -len(b"}\n")]
    return written.startswith(start) or start.startswith(written)


def _append(output: FileIO, path: Path, line: bytes) -> None:
    """Write a row at once; a full disk takes a part of it and refuses the rest."""
    try:
        while line:
            line = line[output.write(line) :]
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> RecordsError:
    return RecordsError(f"{path}: cannot be written ({error.strerror or error})")
