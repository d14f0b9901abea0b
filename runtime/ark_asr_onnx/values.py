"""Checks numbers from callers: accepts equal values of other types, refuses the rest."""

from __future__ import annotations

import math
import numbers


def whole(name: str, value: object, least: int = 1) -> int:
    """A count, such as 2, 2.0 or numpy's 2. Raises ``ValueError`` for anything else."""
    found = _float(value)
    if found is None or not math.isfinite(found) or found != int(found) or found < least:
        raise ValueError(f"{name} is {value!r}, must be a whole number of at least {least}")
    return int(found)


def positive(name: str, value: object) -> float:
    """A finite number above 0. Raises ``ValueError`` for anything else."""
    found = _float(value)
    if found is None or not 0 < found < math.inf:
        raise ValueError(f"{name} is {value!r}, must be a positive number")
    return found


def seconds(name: str, value: object) -> float:
    """A finite number of at least 0. Raises ``ValueError`` for anything else."""
    found = _float(value)
    if found is None or not 0 <= found < math.inf:
        raise ValueError(f"{name} is {value!r}, must be a number of seconds, and not negative")
    return found


def _float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
