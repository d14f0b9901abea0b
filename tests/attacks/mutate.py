"""What damages a file: bytes, and values of JSON. Everything comes from the ``Random`` given."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_HEAD_BYTES = 200  # where headers have their integers


@dataclass(frozen=True)
class Damage:
    """A damaged file."""

    kind: str  # the name of what did it
    what: str  # the same with its numbers
    content: bytes
    first: int  # where it differs from the whole one


def flip(content: bytes, chance: random.Random) -> Damage:
    """Some bits, half of them near the beginning."""
    found = bytearray(content)
    places = [_place(content, chance) for _ in range(chance.choice((1, 1, 2, 8, 64)))]
    for at in places:
        found[at] ^= 1 << chance.randrange(8)
    return Damage("flip", f"{len(places)} bits from {min(places)}", bytes(found), min(places))


def run(content: bytes, chance: random.Random) -> Damage:
    """A run of zeros, ones or noise."""
    at = _place(content, chance)
    n = min(chance.choice((1, 4, 64, 1024, 16384)), len(content) - at)
    value = chance.choice((b"\0", b"\xff", b""))
    filler = value * n or chance.randbytes(n)
    what = f"{n} bytes of {value.hex() or 'noise'} at {at}"
    return Damage("run", what, content[:at] + filler + content[at + n :], at)


def truncate(content: bytes, chance: random.Random) -> Damage:
    """The end is missing: anything from a byte to almost all."""
    n = len(content)
    near_end, near_begin = n - 1 - chance.randrange(min(64, n)), chance.randrange(min(256, n))
    at = chance.choice((chance.randrange(n), chance.randrange(n), near_end, near_begin))
    return Damage("truncate", f"{at} of {n} bytes", content[:at], at)


def duplicate(content: bytes, chance: random.Random) -> Damage:
    """A block comes twice."""
    at, end = _block(content, chance)
    what = f"bytes {at} to {end} twice"
    return Damage("duplicate", what, content[:end] + content[at:], end)


def remove(content: bytes, chance: random.Random) -> Damage:
    """A block is missing."""
    at, end = _block(content, chance)
    what = f"bytes {at} to {end} removed of {len(content)}"
    return Damage("remove", what, content[:at] + content[end:], at)


def swap(content: bytes, chance: random.Random) -> Damage:
    """Two blocks have each other's place."""
    a, b, c, d = sorted(chance.randrange(len(content) + 1) for _ in range(4))
    found = content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]
    return Damage("swap", f"{a} to {b} and {c} to {d} swapped", found, a)


def field(content: bytes, chance: random.Random) -> Damage:
    """An integer of the header has an extreme value."""
    width, order = chance.choice((2, 4, 8)), chance.choice(("little", "big"))
    at = chance.randrange(max(1, min(_HEAD_BYTES, len(content) - width)))
    bits = 8 * width
    value = chance.choice(
        (0, 1, 2**bits - 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2 ** (bits - 2))
    )
    raw = value.to_bytes(width, "little" if order == "little" else "big")
    what = f"{value:#x} in {width} bytes ({order} endian) at {at}"
    return Damage("field", what, content[:at] + raw + content[at + width :], at)


def append(content: bytes, chance: random.Random) -> Damage:
    """More bytes after the end."""
    n = chance.choice((1, 2, 100, 5000, 100_000))
    filler = chance.choice((bytes(n), b"\xff" * n, b"text " * (n // 5 + 1), chance.randbytes(n)))[
        :n
    ]
    what = f"{n} bytes {filler[:4].hex()}… after {len(content)}"
    return Damage("append", what, content + filler, len(content))


def join(content: bytes, other: bytes) -> Damage:
    """Another file after the end."""
    what = f"{len(other)} bytes of another file after {len(content)}"
    return Damage("join", what, content + other, len(content))


ALONE: tuple[Callable[[bytes, random.Random], Damage], ...] = (
    flip, run, truncate, duplicate, remove, swap, field, append,
)  # fmt: skip


def damaged(content: bytes, chance: random.Random) -> Damage:
    """One of them, sometimes two."""
    first = chance.choice(ALONE)(content, chance)
    if chance.random() < 0.85 or not first.content:
        return first
    second = chance.choice(ALONE)(first.content, chance)
    both = f"{first.what}; {second.kind} {second.what}"
    return Damage(first.kind, both, second.content, min(first.first, second.first))


def _place(content: bytes, chance: random.Random) -> int:
    n = len(content) if chance.random() < 0.5 else min(512, len(content))
    return chance.randrange(n)


def _block(content: bytes, chance: random.Random) -> tuple[int, int]:
    """Where a block begins and ends, not empty."""
    at = _place(content, chance)
    return at, min(len(content), at + chance.choice((1, 2, 7, 100, 512, 4096, 20000)))


# Values of JSON

_NESTED, _DIGITS, _LONG = (
    "\0nested",
    "\0digits",
    "\0long",
)  # written as what json.dumps cannot write
_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 1e-308, float("nan"), float("inf"),
    2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30, 10_000_000, 300_000_000,
    "", "0", "none", ".", "..", "../../../etc/passwd", "/dev/zero", "/etc/passwd", "a/b", "a\\b",
    "\ud800", "a\0b", "é" * 300, "x.onnx", [], {}, [[]], [1], ["a"], {"a": 1}, [None], [-1],
    [2**63], [0] * 5000, _NESTED, _DIGITS, _LONG,
)  # fmt: skip


def json_damaged(text: bytes, chance: random.Random) -> Damage:
    """A value, a key or several of a JSON text are odd; what is no JSON is damaged as bytes."""
    try:
        value = json.loads(text)
    except ValueError:
        return damaged(text, chance)
    whats: list[str] = []
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        value, what = _with_odd(value, chance)
        whats.append(what)
    written = _dumped(value, chance)
    return Damage("json", "; ".join(whats), written, 0)


def _with_odd(value: Any, chance: random.Random) -> tuple[Any, str]:
    paths = list(_paths(value))
    if len(paths) == 1:
        odd = copy.deepcopy(chance.choice(_ODD))
        return odd, f"all is {_shown(odd)}"
    path = chance.choice(paths[1:])
    parent: Any = value
    for step in path[:-1]:
        parent = parent[step]
    where, last = ".".join(map(str, path)), path[-1]
    how = chance.choice(("odd", "odd", "odd", "remove", "rename", "wrap", "other", "more"))
    if how == "remove":
        del parent[last]
    elif how == "rename" and isinstance(parent, dict):
        parent[f"{last}x"] = parent.pop(last)
    elif how == "wrap":
        parent[last] = chance.choice(([parent[last]], {"a": parent[last]}, str(parent[last])))
    elif how == "other":
        parent[last] = copy.deepcopy(_at(value, chance.choice(paths[1:])))
        return value, f"{where} has another's value"
    elif how == "more" and isinstance(parent[last], (int, float)):
        parent[last] = parent[last] * chance.choice((2, 10, 1000, -1)) + chance.choice((0, 1, -1))
    else:
        odd = copy.deepcopy(chance.choice(_ODD))
        parent[last] = odd
        return value, f"{where} is {_shown(odd)}"
    return value, f"{where}: {how}"


def _at(value: Any, path: Sequence[Any]) -> Any:
    for step in path:
        value = value[step]
    return value


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = list(enumerate(value))[:50]
    for key, item in items:
        found += _paths(item, (*path, key))
    return found


def _dumped(value: Any, chance: random.Random) -> bytes:
    text = json.dumps(value)
    depth = chance.choice((500, 100_000))
    for name, instead in (
        (_NESTED, "[" * depth + "]" * depth),
        (_DIGITS, "1" * chance.choice((400, 5000, 100_000))),
        (_LONG, '"' + "x" * 1_000_000 + '"'),
    ):
        text = text.replace(json.dumps(name), instead)
    return text.encode()


def _shown(value: Any) -> str:
    return repr(value)[:40]
