"""Writes files and folders completely or not at all, and removes leftovers of killed processes."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import time
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_PREFIX = ".ark-asr-"  # of names of unfinished files and folders
_LOCK = "lock"  # in a staging folder, held by the process that fills it
_MIN_AGE_SECONDS = 60.0  # a younger file may not yet be locked, so it is no leftover
_swept: set[str] = set()


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file completely or not at all: the old one stays until the new one is on the disk.

    A link is followed. A device or a pipe is written directly. Raises ``OSError``.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        target.write_bytes(content)
        return
    target = Path(os.path.realpath(target))
    sweep(target.parent)
    # Opened as any new file, so that its mode follows the umask.
    temporary = target.with_name(f"{_PREFIX}{secrets.token_hex(8)}")
    with temporary.open("xb") as stream:
        try:
            lock(stream)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
        except BaseException:
            stream.close()
            temporary.unlink()
            raise
    try:
        os.replace(temporary, target)  # noqa: PTH105 - tests replace this function
    except BaseException:
        temporary.unlink()
        raise


@contextlib.contextmanager
def staging(parent: Path) -> Generator[Path]:
    """A new folder in ``parent``, whose content is then renamed to its place; removed afterwards.

    ``parent`` is made if needed. Raises ``OSError``.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    folder = parent / f"{_PREFIX}{secrets.token_hex(8)}"
    folder.mkdir()
    try:
        with (folder / _LOCK).open("xb") as claimed:
            lock(claimed)
            inside = folder / "new"
            inside.mkdir()
            yield inside
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Generator[None]:
    """Hold a lock on a name in a folder; waits for other threads and processes that hold it.

    A process that dies releases it. Without locks in the file system, nothing waits. Raises
    ``OSError``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_PREFIX}{name}"
    while True:
        stream = path.open("ab")
        _wait_for(stream)
        if _is_same(stream.fileno(), path):
            break
        stream.close()  # its last owner has removed it
    try:
        yield
    finally:
        if sys.platform != "win32":
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a forked child may have the file open
                fcntl.flock(stream, fcntl.LOCK_UN)
        stream.close()
        if sys.platform == "win32":
            with contextlib.suppress(OSError):  # waiting processes have it open
                path.unlink()


class Claim:
    """A shared claim on a folder: while any claim on it exists, this package does not remove it.

    ``name`` is a file in the folder, which is held open on Windows. Raises ``OSError`` if there is
    no such folder.
    """

    def __init__(self, folder: Path, name: str) -> None:
        held = folder / name if sys.platform == "win32" else folder
        descriptor = os.open(held, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # a file system that knows no locks
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not _is_same(descriptor, held):
            raise FileNotFoundError(held)


def remove_unclaimed(folder: Path) -> None:
    """Remove a folder unless there is a :class:`Claim` on it."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":  # renaming fails if a file in it is open
            _remove(folder)
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
        finally:
            os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove leftovers of killed processes from a folder, once in the life of this process."""
    name = str(folder.absolute())
    if name in _swept:
        return
    _swept.add(name)
    with contextlib.suppress(OSError):
        for path in list(folder.glob(f"{_PREFIX}*")):
            if _is_left_over(path):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    with staging(folder.parent) as inside:
        folder.rename(inside / "removed")


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _wait_for(stream: BinaryIO) -> None:
    """Lock a file once it is free."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # a file system that knows no locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        return
    while not _lock_byte(stream):
        time.sleep(0.1)


def _lock_byte(stream: BinaryIO) -> bool:
    """Try to lock a file on Windows, by its first byte; returns whether it was free."""
    if sys.platform == "win32":
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
    return True


def lock(stream: BinaryIO) -> bool:
    """Lock a file until it is closed or the process ends; returns whether it was free."""
    if sys.platform == "win32":
        return True  # an open file cannot be removed there
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system that knows no locks
    return True


def _is_left_over(path: Path) -> bool:
    """Whether a path is a leftover: old enough, and not locked."""
    if path.is_symlink() or time.time() - path.stat().st_mtime < _MIN_AGE_SECONDS:
        return False
    claimed = path / _LOCK if path.is_dir() else path
    try:
        if sys.platform == "win32":
            claimed.unlink()
            return True
        with claimed.open("rb") as stream:
            return lock(stream)
    except FileNotFoundError:
        return path.is_dir()  # killed before it could lock
    except OSError:
        return False
