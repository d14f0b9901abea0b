"""Reads CTranslate2's ``model.bin``: named arrays, one after the other, little endian.

``u32`` version of the format, string (name of the specification), ``u32`` its revision, ``u32``
number of variables; then for each variable: string (name), ``u8`` rank, ``u32`` sizes, ``u8`` type,
``u32`` bytes of data, data. A string is ``u16`` length, which includes its NUL, and its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.generic]]

VERSION = 6
_TYPES = ("<f4", "i1", "<i2", "<i4", "<f2")  # by the number in the file
_MAX_RANK = 8


class FileFormatError(ValueError):
    """A file does not have the expected format; the message names it."""


def read_ctranslate2(paths: Sequence[Path]) -> Arrays:
    """Variables of a model; its file may be in several parts, in the order of ``paths``."""
    where = " + ".join(path.name for path in paths)
    reader = _Reader(b"".join(path.read_bytes() for path in paths), where)
    version = reader.number("I")
    if version != VERSION:
        raise FileFormatError(
            f"{where}: begins with {version}, expected {VERSION}, the version of a CTranslate2 "
            "model.bin; parts in the wrong order or another file"
        )
    reader.string()  # the specification, such as WhisperSpec
    reader.number("I")  # its revision
    return dict(reader.variable() for _ in range(reader.number("I")))


class _Reader:
    """A position in the bytes of a file."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where, self._at = data, where, 0

    def number(self, kind: str) -> int:
        """An unsigned number: ``B``, ``H`` or ``I``."""
        return int(struct.unpack("<" + kind, self._take(struct.calcsize("<" + kind)))[0])

    def string(self) -> str:
        """A string without its NUL."""
        raw = bytes(self._take(self.number("H")))
        try:
            return raw.removesuffix(b"\0").decode()
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{self._where}: a name is no UTF-8; damaged") from error

    def variable(self) -> tuple[str, npt.NDArray[np.generic]]:
        """Name and array of the next variable."""
        name = self.string()
        rank = self.number("B")
        if rank > _MAX_RANK:
            raise FileFormatError(f"{self._where}: {name!r} has {rank} dimensions; damaged")
        shape = tuple(self.number("I") for _ in range(rank))
        kind, n_bytes = self.number("B"), self.number("I")
        if kind >= len(_TYPES):
            raise FileFormatError(
                f"{self._where}: {name!r} is of type {kind}, known are 0 to {len(_TYPES) - 1}"
            )
        dtype = np.dtype(_TYPES[kind])
        if n_bytes != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
            raise FileFormatError(
                f"{self._where}: {name!r} has {n_bytes} bytes, which does not fit its shape "
                f"{list(shape)}; damaged"
            )
        return name, np.frombuffer(self._take(n_bytes), dtype).reshape(shape)

    def _take(self, n_bytes: int) -> memoryview:
        start, self._at = self._at, self._at + n_bytes
        if self._at > len(self._data):
            raise FileFormatError(
                f"{self._where}: ends after {len(self._data)} bytes, {self._at} are needed; "
                "a part is missing or cut off"
            )
        return memoryview(self._data)[start : self._at]
