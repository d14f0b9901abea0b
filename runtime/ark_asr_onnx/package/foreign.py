"""Reads small files from unknown authors, within bounds. Standard library only."""

from __future__ import annotations

import json
import mmap
import posixpath
import re
import reprlib
import stat
from collections import Counter
from pathlib import Path
from typing import Any, cast

from ..errors import PackageError

_MAX_JSON_BYTES = 4 << 20  # a manifest has a few thousand
_MAX_DIGITS = 20  # of an integer; more take long to read, and no size has so many

_NO_MEMORY = re.compile(r"bad_alloc|[Aa]llocat|[Oo]ut of memory|not enough memory")
_NO_THREADS = re.compile(r"start new thread|pthread_create|Resource temporarily unavailable")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def shown(value: Any) -> str:
    """A value for a message: escaped and shortened."""
    return _short.repr(value)


def shown_name(name: str) -> str:
    """A name for a message: unchanged if it is short and printable, else as :func:`shown`."""
    return name if name.isprintable() and len(name) <= 100 else shown(name)


def check_memory(n_bytes: int) -> None:
    """Raise ``OSError`` if ``n_bytes`` of memory cannot be allocated; the check uses none.

    Without memory some libraries end the process, or wait for a thread that never starts.
    """
    mmap.mmap(-1, n_bytes).close()


def shortage(error: BaseException) -> str | None:
    """If an error means a lack of memory or threads, a message with the remedy; else None."""
    text = str(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return "too little memory; free some, or allow more"
    if _NO_THREADS.search(text):
        return "no more threads can be started; allow more (ulimit -u), or use fewer (threads=1)"
    return None


def reason(error: BaseException) -> str:
    """The message of a library's error, in one short line."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    if len(text) > 200:
        text = f"{text[:200]} …"
    return text or type(error).__name__


def is_plain(name: str) -> bool:
    """Whether a name stays within its folder, on any system."""
    if not name.isprintable() or len(name) > 255 or set(name) & set('\\:*?"<>|'):
        return False
    return name == posixpath.normpath(name) and name.partition("/")[0] not in ("", ".", "..")


def check_size(path: Path, remedy: str, max_bytes: int) -> int:
    """The size of a file, bytes.

    Raises :class:`PackageError` for a file that is too large, and for a pipe, which would block.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({reason(error)}); {remedy}") from error
    if not stat.S_ISREG(found.st_mode):
        raise PackageError(f"{path}: cannot be read (it is no file); {remedy}")
    if found.st_size > max_bytes:
        raise PackageError(
            f"{path}: {found.st_size} bytes, at most {max_bytes} make sense; {remedy}"
        )
    return found.st_size


def read_text(path: Path, remedy: str) -> str:
    """UTF-8 text of a small file. Raises :class:`PackageError`."""
    n_bytes = check_size(path, remedy, _MAX_JSON_BYTES)
    try:
        with path.open("rb") as stream:
            content = stream.read(n_bytes)  # nothing of files in /proc, whose size is 0
        return content.decode().removeprefix("\ufeff")  # some editors write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(f"{path}: cannot be read ({reason(error)}); {remedy}") from error


def read_object(path: Path, remedy: str) -> dict[str, object]:
    """The JSON object in a file. Raises :class:`PackageError` for anything else."""
    text = read_text(path, remedy)
    try:
        found = parse_json(text)
    except ValueError as error:
        raise PackageError(f"{path}: cannot be read as JSON ({reason(error)}); {remedy}") from error
    if not isinstance(found, dict):
        raise PackageError(f"{path}: expected a JSON object; {remedy}")
    return cast("dict[str, object]", found)


def parse_json(text: str) -> Any:
    """A value from JSON. Raises ``ValueError`` if two readers might read it differently."""
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_int=_whole_number)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair cannot be encoded
    except RecursionError as error:
        raise ValueError("too deeply nested") from error
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {shown(key)} given twice")
    return found


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)
