"""Seconds per stage of a transcription."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ..transcript import Timings

_T = TypeVar("_T")
_STAGES = ("read", "split", "features", "encode", "prefill", "decode", "words")


class Clock:
    """Adds up the seconds that each stage of one audio takes in one thread.

    The time of a stage within another is subtracted from the outer one.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(_STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Add the time of this context to a stage."""
        begin, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            within = sum(self.seconds.values()) - before
            self.seconds[name] += time.perf_counter() - begin - within

    def each(self, name: str, items: Iterable[_T]) -> Iterator[_T]:
        """The items; the time to get each of them is added to a stage."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                found = list(_at_most_one(iterator))
            if not found:
                return
            yield found[0]


def timings(clocks: Sequence[Clock], total: float | None = None) -> Timings:
    """The summed times of the clocks of one audio; ``total`` defaults to their sum."""
    seconds = {stage: sum(clock.seconds[stage] for clock in clocks) for stage in _STAGES}
    return Timings(**seconds, total=sum(seconds.values()) if total is None else total)


def _at_most_one(iterator: Iterator[_T]) -> Iterator[_T]:
    for item in iterator:
        yield item
        return
