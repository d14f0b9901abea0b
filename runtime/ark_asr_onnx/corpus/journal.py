"""The journal of a batch, ``OUTPUT.meta`` beside its output: how its rows were made.

The first line is the setup: model, options, splitting. Then follow lines for rows: the state of the
audio when it was transcribed and, for a row that is done again, the new row, until all of these
are merged into the output. Lines are only appended, so the journal stays readable if a run is
killed at any moment. It is locked while the output is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Generator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, TypeAlias, cast

from ..errors import RecordsError
from .identity import AudioState, Setup

if sys.platform != "win32":
    import fcntl

Key: TypeAlias = tuple[str, float, float, int]  # audio, begin, end, number of such before it
Row: TypeAlias = dict[str, object]

_MARK = "ark_asr_batch"  # the first key of the first line
_FORMAT = 1  # its value; raised when an older version would misread the rows or the journal
_HEAD = f'{{"{_MARK}": '.encode()


class Journal:
    """The notes of one output, see :func:`opened`."""

    def __init__(self, file: FileIO, path: Path) -> None:
        self._file, self._path = file, path
        self.setup: Setup | None = None  # of the existing rows; None: unknown
        self.format = _FORMAT
        self._audio: dict[Key, AudioState] = {}
        self._places: dict[Key, int] = {}  # positions of lines whose rows are not merged yet
        self._read()
        if self.format != _FORMAT:
            raise RecordsError(
                f"{path}: has format {self.format!r}, this version of ark-asr-onnx writes "
                f"{_FORMAT}; upgrade, or choose another output"
            )

    @property
    def has_rows(self) -> bool:
        """Whether rows wait to be merged into the output."""
        return bool(self._places)

    def audio(self, key: Key) -> AudioState | None:
        """The state of a row's audio when it was transcribed, if known."""
        return self._audio.get(key)

    def row(self, key: Key) -> Row | None:
        """A row that was done again and is not in the output yet."""
        place = self._places.get(key)
        if place is None:
            return None
        self._file.seek(place)
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            return cast("Row", json.loads(lines.readline())["row"])

    def begin(self, setup: Setup) -> None:
        """Empty the journal for a new output, and write the setup."""
        self._file.truncate(0)
        self._audio.clear()
        self._places.clear()
        self.declare(setup)

    def declare(self, setup: Setup) -> None:
        """Write the setup of the rows."""
        self._append({_MARK: _FORMAT, **dataclasses.asdict(setup)})
        self.setup = setup

    def note(self, key: Key, audio: AudioState | None, row: Row | None = None) -> None:
        """Note an audio's state before its row is written, or together with a row to be merged."""
        line: dict[str, object] = {"key": key}
        if audio is not None:
            line["audio"] = dataclasses.astuple(audio)
        if row is not None:
            line["row"] = row
        place = self._append(line)
        self._keep(key, audio, None if row is None else place)

    def merged(self) -> None:
        """Note that the rows are in the output."""
        self._append({"merged": True})
        self._places.clear()

    def _append(self, line: Mapping[str, object]) -> int:
        place = self._file.seek(0, os.SEEK_END)
        write_all(self._file, row_line(line))
        return place

    def _keep(self, key: Key, audio: AudioState | None, place: int | None) -> None:
        self._audio.pop(key, None)
        self._places.pop(key, None)
        if audio is not None:
            self._audio[key] = audio
        if place is not None:
            self._places[key] = place

    def _read(self) -> None:
        """Read the lines; skips one damaged by a power failure, cuts off an incomplete last one."""
        place = 0
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            for line in lines:
                if place == 0 and not (
                    line.startswith(_HEAD) or _HEAD.startswith(line.strip(b"\0"))
                ):
                    raise RecordsError(
                        f"{self._path}: is no journal of a batch; move it away, or choose another "
                        "output"
                    )
                if not line.endswith(b"\n"):
                    self._file.truncate(place)
                    return
                with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
                    self._take(json.loads(line), place)
                place += len(line)

    def _take(self, line: Any, place: int) -> None:
        if _MARK in line:
            self.format = line[_MARK]
            self.setup = Setup(line["package"], line["options"], line["splitting"])
        elif "merged" in line:
            self._places.clear()
        else:
            audio, begin, end, n = line["key"]
            state = AudioState(*line["audio"]) if "audio" in line else None
            self._keep((audio, begin, end, n), state, place if "row" in line else None)


@contextlib.contextmanager
def opened(output: Path) -> Generator[Journal]:
    """Open the journal of an output, locked for this process.

    Raises ``OSError``, and :class:`RecordsError` if another process holds it.
    """
    path = output.with_name(f"{output.name}.meta")
    with path.open("a+b", buffering=0) as file:
        if sys.platform != "win32":
            try:  # a process that dies releases the lock
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RecordsError(f"{output}: is being written by another process") from error
            except OSError:
                pass  # the file system has no locks
        yield Journal(file, path)


def row_line(row: Mapping[str, object]) -> bytes:
    """A row as it is written: UTF-8, with line feed."""
    text = json.dumps(row, ensure_ascii=False) + "\n"
    # Half a surrogate pair cannot be encoded; the backslash escape of it is valid JSON.
    return text.encode("utf-8", "backslashreplace")


def write_all(file: FileIO, content: bytes) -> None:
    """Write all bytes without buffering. Raises ``OSError``; a part may then be written."""
    while content:
        content = content[file.write(content) :]
