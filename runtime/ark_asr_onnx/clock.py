"""Seconds per stage of a transcription."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from .transcript import Timings

_T = TypeVar("_T")
_STAGES = ("read", "split", "features", "encode", "prefill", "decode")


class Clock:
    """Adds up what each stage of one audio takes; stages within a stage count for themselves."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self.seconds: dict[str, float] = dict.fromkeys(_STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Count the block's time for a stage."""
        begin, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            within = sum(self.seconds.values()) - before
            self.seconds[name] += time.perf_counter() - begin - within

    def each(self, name: str, items: Iterable[_T]) -> Iterator[_T]:
        """The items; what it takes to get each counts for a stage."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                found = list(_at_most_one(iterator))
            if not found:
                return
            yield found[0]

    def timings(self, *, wall: bool = False) -> Timings:
        """So far; the total is that of the stages, or by the clock on the wall."""
        elapsed = time.perf_counter() - self._begin
        return Timings(**self.seconds, total=elapsed if wall else sum(self.seconds.values()))


def _at_most_one(iterator: Iterator[_T]) -> Iterator[_T]:
    for item in iterator:
        yield item
        return
