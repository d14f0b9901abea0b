"""Finds the files from which an ONNX graph reads its weights, without the ``onnx`` library.

The graph itself names these files, so it could read one that the manifest does not list. The format
is protobuf: a field is a key (number and kind) and a value; a value with a length is bytes, text or
another message. Only messages that can hold a tensor are parsed.
"""

from __future__ import annotations

import mmap
from collections.abc import Container, Iterator
from pathlib import Path

from ..errors import PackageError
from .contract import REMEDY
from .foreign import is_plain, reason, shown

_MAX_FIELDS = 1_000_000  # a decoder of 0.6B has some ten thousand
_MAX_NAME_BYTES = 4096
# Kinds of values; two others, for groups, are obsolete.
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}  # bytes

# For each message, the fields that are messages; from onnx.proto.
_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}  # fmt: skip
_KEY, _VALUE = 1, 2  # fields of an entry, both texts


def check_data_files(path: Path, listed: Container[str] | None = None) -> set[str]:
    """The files that a graph reads its weights from.

    Raises :class:`PackageError` if one is outside the folder or not ``listed``, or if the file is
    no graph, and ``OSError``.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as graph:
            found = {name.removeprefix("./") for name in _locations(graph)}
    except ValueError as error:
        raise PackageError(
            f"{path}: onnxruntime cannot open this graph ({reason(error)}); {REMEDY}"
        ) from error
    for name in found:
        if not is_plain(name):
            raise PackageError(
                f"{path}: has weights in {shown(name)}, outside the package; {REMEDY}"
            )
        if listed is not None and name not in listed:
            raise PackageError(
                f"{path}: the manifest lists no file {shown(name)}, where this graph has weights; "
                f"{REMEDY}"
            )
    return found


def _locations(graph: mmap.mmap) -> Iterator[str]:
    found = [("model", 0, len(graph))]
    n_fields = 0
    while found:
        message, begin, end = found.pop()
        inside = _MESSAGES.get(message, {})
        texts: list[tuple[int, bytes]] = []
        for number, first, last in _fields(graph, begin, end):
            n_fields += 1
            if n_fields > _MAX_FIELDS:
                raise ValueError(f"more than {_MAX_FIELDS} parts")
            if number in inside:
                found.append((inside[number], first, last))
            elif message == "entry":
                texts.append((number, graph[first : min(last, first + _MAX_NAME_BYTES)]))
        if (_KEY, b"location") in texts:
            yield from (text.decode() for number, text in texts if number == _VALUE)


def _fields(graph: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, and begin and end of the value, of each field of a message.

    A field that is longer than its message is refused, so no byte is parsed twice at one depth.
    """
    while at < end:
        key, at = _varint(graph, at, end)
        number, kind, begin = (key & 0xFFFFFFFF) >> 3, key & 7, at  # as other readers do
        if kind == _BYTES:
            length, begin = _varint(graph, at, end)
            at = begin + length
        elif kind == _VARINT:
            _, at = _varint(graph, at, end)
        else:
            at += _FIXED.get(kind, 0)
        if not number or kind not in (_VARINT, _BYTES, *_FIXED):
            raise ValueError("no ONNX file")
        if at > end:
            raise ValueError("it is cut off")
        yield number, begin, at


def _varint(graph: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """An integer, stored with seven bits in a byte, lowest first, and its end."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it is cut off")
        byte = graph[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("no ONNX file")
