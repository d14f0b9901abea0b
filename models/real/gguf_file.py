"""Reads GGUF: the fields and the tensors of a model, as far as this recipe needs them.

Little endian: magic ``GGUF``, ``u32`` version, ``u64`` tensors, ``u64`` fields; the fields (string
key, ``u32`` type, value), the tensors' headers (string name, ``u32`` rank, ``u64`` sizes with the
fastest first, ``u32`` type, ``u64`` offset), padding, data. A string is ``u64`` length and bytes.

Two quantised types are known, both in blocks of 32 numbers. ``Q8_0``: fp16 scale ``d`` and 32
signed bytes. ``Q4_1``: fp16 scale ``d``, fp16 minimum ``m`` and 16 bytes with two codes each, the
low halves first: ``q d + m``.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ctranslate2_file import FileFormatError

F32 = npt.NDArray[np.float32]
_Bytes = npt.NDArray[np.uint8]

_NUMBERS = ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d")  # by type in the file
_STRING, _ARRAY = 8, 9
_BLOCK = 32  # numbers
_DEFAULT_ALIGNMENT = 32  # bytes


@dataclass(frozen=True, slots=True)
class Gguf:
    """The fields of a GGUF file, and its tensors, which are dequantised on demand."""

    path: Path
    fields: dict[str, Any]  # numbers, strings, or lists of them
    tensors: dict[str, Callable[[], F32]]

    def field(self, key: str, kind: type) -> Any:
        """One field, which must be of ``kind``."""
        value = self.fields.get(key)
        if not isinstance(value, kind):
            raise FileFormatError(f"{self.path}: field {key} is {value!r}, no {kind.__name__}")
        return value

    def tensor(self, name: str) -> F32:
        """A copy of one tensor in fp32."""
        if name not in self.tensors:
            raise FileFormatError(f"{self.path}: has no tensor {name}")
        return self.tensors[name]()


def read_gguf(path: Path) -> Gguf:
    """Map the file and read all headers."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise FileFormatError(f"{path}: is no GGUF file")
        reader = _Reader(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path)
    version = reader.number("I")
    if version not in (2, 3):
        raise FileFormatError(f"{path}: GGUF version {version}, known are 2 and 3")
    n_tensors, n_fields = reader.number("Q"), reader.number("Q")
    fields = {reader.string(): reader.value(reader.number("I")) for _ in range(n_fields)}
    headers = [reader.header() for _ in range(n_tensors)]
    alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
    start = -(-reader.at // alignment) * alignment
    return Gguf(path, fields, {h.name: reader.loader(h, start) for h in headers})


def dequantize_q8_0(raw: _Bytes) -> F32:
    """Blocks of 34 bytes ``[n, 34]`` to ``[n, 32]``."""
    scale = raw[:, :2].copy().view("<f2").astype(np.float32)
    return raw[:, 2:].view(np.int8).astype(np.float32) * scale


def dequantize_q4_1(raw: _Bytes) -> F32:
    """Blocks of 20 bytes ``[n, 20]`` to ``[n, 32]``."""
    scale, least = raw[:, :4].copy().view("<f2").astype(np.float32).T[:, :, None]
    codes = np.concatenate((raw[:, 4:] & 15, raw[:, 4:] >> 4), axis=1)
    return codes.astype(np.float32) * scale + least


def _plain(dtype: str) -> Callable[[_Bytes], F32]:
    return lambda raw: raw.view(dtype).astype(np.float32)


# By type in the file: numbers in a block, bytes of a block, function for `[blocks, bytes]`.
_KINDS: dict[int, tuple[int, int, Callable[[_Bytes], F32]]] = {
    0: (1, 4, _plain("<f4")),
    1: (1, 2, _plain("<f2")),
    3: (_BLOCK, 20, dequantize_q4_1),
    8: (_BLOCK, 34, dequantize_q8_0),
}


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    shape: tuple[int, ...]  # slowest first, as in numpy
    kind: int
    offset: int  # bytes from the start of the data


class _Reader:
    """A position in the mapped file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self.at = data, path, 4

    def number(self, kind: str) -> Any:
        """A number in ``struct``'s notation."""
        return struct.unpack("<" + kind, self._take(struct.calcsize("<" + kind)))[0]

    def string(self) -> str:
        """A string; names and tokens are UTF-8."""
        return self._take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        """A field's value: a number, a string or a list."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, n = self.number("I"), self.number("Q")
            return [self.value(inner) for _ in range(n)]
        if kind >= len(_NUMBERS):
            raise FileFormatError(f"{self._path}: a field of unknown type {kind}; damaged")
        return self.number(_NUMBERS[kind])

    def header(self) -> _Header:
        """The next tensor's header."""
        name = self.string()
        sizes = [self.number("Q") for _ in range(self.number("I"))]
        kind, offset = self.number("I"), self.number("Q")
        return _Header(name, tuple(reversed(sizes)), kind, offset)

    def loader(self, header: _Header, start: int) -> Callable[[], F32]:
        """A function that reads a tensor; its type and its place in the file are checked now."""
        if header.kind not in _KINDS:
            raise FileFormatError(
                f"{self._path}: {header.name} is of type {header.kind}; known are F32, F16, Q4_1 "
                "and Q8_0"
            )
        n_in_block, n_bytes, read = _KINDS[header.kind]
        n_blocks, rest = divmod(int(np.prod(header.shape, dtype=np.int64)), n_in_block)
        first = start + header.offset
        if rest or first + n_blocks * n_bytes > len(self._data):
            raise FileFormatError(
                f"{self._path}: {header.name} {list(header.shape)} does not fit the file; cut off"
            )

        def load() -> F32:
            raw = np.frombuffer(self._data, np.uint8, n_blocks * n_bytes, first)
            return read(raw.reshape(n_blocks, n_bytes)).reshape(header.shape)

        return load

    def _take(self, n_bytes: int) -> bytes:
        start, self.at = self.at, self.at + n_bytes
        if self.at > len(self._data):
            raise FileFormatError(f"{self._path}: ends within its headers; cut off")
        return self._data[start : self.at]
