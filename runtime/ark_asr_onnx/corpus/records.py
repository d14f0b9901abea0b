"""Reads the input of a batch: JSON Lines, one object for each piece of audio.

The fields are those of ``open-audio-opd``'s inference script, of NeMo's manifests or of Hugging
Face's ``metadata.jsonl``. This module does not check whether the audio exists and can be read;
transcribing it does.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast
from urllib.parse import urlsplit

from ..errors import RecordsError

_MOST_SECONDS = 1e9  # below it, a position in samples is exact
_MOST_LINES = 10_000_000
_MOST_LINE_BYTES = 8 << 20  # a JSON object of this size takes up to 200 MB of memory
_MOST_DIGITS = 1000  # of an integer; Python refuses to write one of more than 4300

_NEMO, _HUGGING_FACE = "audio_filepath", "file_name"
_TEXTS = ("transcription", "transcript", "sentence")  # used if there is no text
_LHOTSE = {"recording", "supervisions", "sources", "recording_id", "mixed_cuts", "tracks"}
_URL = re.compile("([a-z][a-z0-9+.-]+)://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a list."""

    line: int  # number in the file, from 1
    audio: str  # as in the list
    path: Path  # a relative one is joined to the folder of the list
    text: str | None  # reference text, if known
    begin_seconds: float | None  # None: from the start
    end_seconds: float | None  # None: to the end
    fields: dict[str, object]  # all other fields, in order


def read_records(path: str | os.PathLike[str], needs_text: bool = False) -> list[Record]:
    """The records of a JSON Lines file, in order: UTF-8, UTF-16 with its mark, or gzipped.

    Blank lines are skipped. ``audio``, a path or ``file:`` URL, is required, and ``text`` if
    ``needs_text``. ``begin_time`` and ``end_time`` are seconds; null or a negative number
    (upstream's default is -1) means none. ``task``, if present, is ``asr``. NeMo's
    ``audio_filepath`` or Hugging Face's ``file_name`` may replace ``audio``, ``offset`` and
    ``duration`` the times, ``transcription``, ``transcript`` or ``sentence`` the ``text``. Raises
    :class:`RecordsError` for the first wrong line, so no work starts on an incomplete list.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe may block, a device may never end
            found = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise RecordsError(f"{path}: is {found}, expected a file of JSON Lines")
        with path.open("rb") as file, contextlib.closing(_lines(file, path)) as lines:
            return [
                _record(line, path, number, needs_text) for number, line in lines if line.strip()
            ]
    except (OSError, EOFError, zlib.error) as error:
        complaint = getattr(error, "strerror", None) or error
        raise RecordsError(f"{path}: cannot be read ({complaint})") from error


def _lines(file: BinaryIO, path: Path) -> Generator[tuple[int, bytes]]:
    """Line numbers from 1, and lines converted to UTF-8."""
    magic = file.read(2)
    file.seek(0)
    source = io.BufferedReader(gzip.GzipFile(fileobj=file)) if magic == b"\x1f\x8b" else file
    start = source.read(4)
    encoding = json.detect_encoding(start)
    source.seek(len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0)
    is_utf8 = encoding.startswith("utf-8")
    text = None if is_utf8 else io.TextIOWrapper(source, encoding, newline="\n")
    size = _MOST_LINE_BYTES + 1
    try:
        for number in range(1, _MOST_LINES + 2):
            line = source.readline(size) if text is None else text.readline(size).encode()
            if not line:
                return
            if len(line) > _MOST_LINE_BYTES:
                raise RecordsError(f"{path}:{number}: is longer than {_MOST_LINE_BYTES >> 20} MiB")
            yield number, line
        raise RecordsError(f"{path}: has more than {_MOST_LINES} lines; split it")
    except UnicodeError as error:
        raise RecordsError(f"{path}: {error}") from error
    finally:
        if text is not None:
            text.detach()  # else the file would be closed here, with a warning


def _record(line: bytes, path: Path, number: int, needs_text: bool) -> Record:
    """The record in a line. Raises :class:`RecordsError`, which names file and line."""
    try:
        fields = _object(line)
        is_nemo = fields.get("audio") is None and _NEMO in fields
        audio = _audio(fields)
        text = _text(fields, "text")
        fields.pop("text", None)
        if text is None:
            others = (fields.get(key) for key in _TEXTS)
            text = next((x for x in others if isinstance(x, str)), None)
        if text is None and needs_text:
            raise ValueError("text is missing")
        begin, end = _part(fields, is_nemo)
        if fields.get("task", "asr") != "asr":
            raise ValueError(f"task is {_show(fields['task'])}, only 'asr' can be done")
        place = path.parent / _local(audio)
    except ValueError as error:
        raise RecordsError(f"{path}:{number}: {error}") from error
    return Record(number, audio, place, text, begin, end, fields)


def _audio(fields: dict[str, object]) -> str:
    """The name of the audio; its field is removed unless it has another toolkit's name."""
    names = ("audio", _NEMO, _HUGGING_FACE)
    key = next((key for key in names if fields.get(key) is not None), "audio")
    audio = _text(fields, key)
    fields.pop("audio", None)
    if audio is not None:
        return audio
    if _LHOTSE & fields.keys():
        raise ValueError(
            "audio is missing: manifests of Lhotse are not read; write audio, begin_time, "
            "end_time and text"
        )
    has = f"; the line has {_show(', '.join(fields))}" if fields else ""
    raise ValueError(f"audio is missing{has}")


def _part(fields: dict[str, object], is_nemo: bool) -> tuple[float | None, float | None]:
    """Begin and end; their fields are removed, except NeMo's ``offset`` and ``duration``.

    With NeMo's name for the audio, ``duration`` counts without ``offset``, as in NeMo.
    """
    begin, end = _seconds(fields, "begin_time"), _seconds(fields, "end_time")
    fields.pop("begin_time", None)
    fields.pop("end_time", None)
    offset = _seconds(fields, "offset")
    if offset is not None or is_nemo:
        duration = _seconds(fields, "duration")
        if duration == 0:
            raise ValueError("duration is 0, must be positive")
        stop = None if duration is None else (offset or 0) + duration
        for name, given, theirs in (("begin_time", begin, offset), ("end_time", end, stop)):
            if given is not None and theirs is not None and given != theirs:
                raise ValueError(
                    f"{name} is {given:g}, but offset and duration say {theirs:g}; give one of them"
                )
        begin = offset if begin is None else begin
        end = stop if end is None else end
    if end is not None and end <= (begin or 0):
        raise ValueError(f"end_time {end:g} is not after begin_time {begin or 0:g}")
    return begin, end


def _local(audio: str) -> str:
    """The path for a path or ``file:`` URL; a relative one stays relative."""
    path = audio
    if audio.lower().startswith("file:"):
        from urllib.request import url2pathname  # takes long to import

        url = urlsplit(audio)
        if url.netloc not in ("", "localhost"):
            raise ValueError(f"audio is {_show(audio)}, a file of another computer")
        path = url2pathname(url.path)
    elif _URL.match(audio):
        raise ValueError(f"audio is {_show(audio)}, must be a file here; download it first")
    elif audio.startswith("~"):
        path = os.path.expanduser(audio)  # noqa: PTH111 - it does not fail without a home
    if not path or "\0" in path:
        raise ValueError(f"audio is {_show(audio)}, must name a file")
    os.fsencode(path)  # raises for half a surrogate pair
    return path


def _object(line: bytes) -> dict[str, object]:
    """The JSON object of a line; only finite numbers, since others cannot be written again."""
    text = line.decode("utf-8").rstrip("\r\n")
    try:
        parsed: Any = json.loads(
            text, parse_constant=_refuse, parse_float=_finite, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        hint = "" if text.lstrip()[:1] in ("{", "[", '"') else (
            "; tables and Kaldi's wav.scp are not read, write a line such as "
            '{"audio": "a.wav"} for each'
        )  # fmt: skip
        raise ValueError(f"is no JSON: {error.msg} (column {error.colno}){hint}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"a line must be a JSON object, found {_show(parsed)}")
    return cast("dict[str, object]", parsed)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number} is too large a number")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"{_show(digits)} is too large a number")
    return int(digits)


def _text(fields: dict[str, object], key: str) -> str | None:
    """The string in a field; None without it. Raises ``ValueError``."""
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is {_show(value)}, must be a string")
    return value


def _seconds(fields: dict[str, object], key: str) -> float | None:
    """The time in a field, in seconds; None without it. Raises ``ValueError``."""
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MOST_SECONDS:
        raise ValueError(f"{key} is {_show(value)}, must be a number of seconds")
    return None if value < 0 else value


def _show(value: object) -> str:
    """A value for a message, shortened, on one line."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
