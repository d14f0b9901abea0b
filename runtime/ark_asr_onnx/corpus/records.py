"""What a batch's input says: JSON Lines, one object for each piece of audio.

The fields are those of ``open-audio-opd``'s inference script. Whether the audio exists and can be
read is found when it is transcribed, not here.
"""

from __future__ import annotations

import codecs
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from ..errors import RecordsError

_MOST_SECONDS = 1e9  # below it, a position in samples is exact


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a list."""

    line: int  # number in the file, from 1
    audio: str  # as written
    path: Path  # relative ones resolved against the folder of the list
    text: str | None  # what is said, if known
    begin_seconds: float | None  # None: from the start
    end_seconds: float | None  # None: to the end
    fields: dict[str, object]  # everything else, in order


def read_records(path: str | os.PathLike[str], needs_text: bool = False) -> list[Record]:
    """Every record of a JSON Lines file, in order.

    Blank lines are skipped. ``audio`` is required, ``text`` too if ``needs_text``; ``begin_time``
    and ``end_time`` are seconds, negative (upstream's default is -1) or null for none; ``task``,
    if present, is ``asr``. Raises :class:`RecordsError` for the first line that is wrong, so that
    no work starts on half a list.
    """
    path = Path(path)
    records: list[Record] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if content.strip():
                    records.append(_record(content, path, number, needs_text))
    except OSError as error:
        raise RecordsError(f"{path}: cannot be read ({error.strerror or error})") from error
    return records


def _record(line: bytes, path: Path, number: int, needs_text: bool) -> Record:
    """The record that a line holds; every complaint names file and line."""
    try:
        fields = _object(line)
        audio = _text(fields, "audio", required=True)
        text = _text(fields, "text", required=needs_text)
        begin, end = _seconds(fields, "begin_time"), _seconds(fields, "end_time")
        if fields.get("task", "asr") != "asr":
            raise ValueError(f"task is {_show(fields['task'])}, only 'asr' can be done")
        if not audio or "\0" in audio:
            raise ValueError(f"audio is {_show(audio)}, must name a file")
        os.fsencode(audio)  # half a surrogate pair is no file name
        if end is not None and end <= (begin or 0):
            raise ValueError(f"end_time {end:g} is not after begin_time {begin or 0:g}")
    except ValueError as error:
        raise RecordsError(f"{path}:{number}: {error}") from error
    return Record(number, audio, path.parent / audio, text, begin, end, fields)


def _object(line: bytes) -> dict[str, object]:
    """The JSON object of a line, of finite numbers only: others could not be written again."""
    text = line.decode("utf-8").rstrip("\r\n")
    try:
        parsed: Any = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg} (column {error.colno})") from error
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


def _text(fields: dict[str, object], key: str, *, required: bool) -> str | None:
    """Take a string out of the fields."""
    value = fields.pop(key, None)
    if value is None and required:
        raise ValueError(f"{key} is missing")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is {_show(value)}, must be a string")
    return value


def _seconds(fields: dict[str, object], key: str) -> float | None:
    """Take a time out of the fields."""
    value = fields.pop(key, None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MOST_SECONDS:
        raise ValueError(f"{key} is {_show(value)}, must be a number of seconds")
    return None if value < 0 else value


def _show(value: object) -> str:
    """A value in a message of one line."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
