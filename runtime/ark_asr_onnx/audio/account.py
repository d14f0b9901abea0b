"""Warnings about audio that is incomplete, longer than its header says, or damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from ..transcript import AudioWarning

OnWarning: TypeAlias = Callable[[AudioWarning], None]


def joined(seconds: Sequence[float]) -> AudioWarning:
    """The warning that several recordings, of these durations in seconds, were read as one."""
    each = ", ".join(f"{s:.1f}" for s in seconds[:5]) + (" …" if len(seconds) > 5 else "")
    return AudioWarning(
        "joined",
        f"{len(seconds)} recordings one after the other, of {each} s: all of them were heard",
    )
