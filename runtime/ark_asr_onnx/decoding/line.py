"""A line of windows to the pool: one caller puts them in, and takes their results in order."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from ..audio.split import Splitting, Window
from ..errors import ArkError
from ..transcript import Segment
from .clock import Clock
from .greedy import Options, Utterance

_AHEAD = 2  # windows of a line that wait for a slot
_UNREAD = 64  # windows whose results nobody took yet
_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Task:
    """A window to transcribe, and the clock of its audio's decoding."""

    window: Window
    clock: Clock


@dataclass(frozen=True, slots=True)
class End:
    """An audio has no more windows; comes out after the last of its segments."""

    error: ArkError | None = None  # why, if that is not its end


Result: TypeAlias = Segment | ArkError | End


class CancelledError(Exception):
    """Whoever puts windows into a line learns that nobody wants them any more."""


@dataclass(eq=False, slots=True)
class Place:
    """What a line holds for a task or an end, and its result once there is one."""

    line: Line
    task: Task | None
    result: Result | None = None
    utterance: Utterance | None = None
    may_split: bool = True
    forbid_empty: bool = False


class Line:
    """Windows of at most ``longest`` seconds, of which at most ``limit`` are decoded together.

    One thread puts, one takes, any may cancel. ``changed`` tells the pool; its lock guards all.
    """

    def __init__(
        self,
        changed: threading.Condition,
        options: Options,
        splitting: Splitting,
        limit: int,
        longest: float,
        audio_seconds: float,
    ) -> None:
        self.options, self.splitting, self.limit, self.longest = options, splitting, limit, longest
        self.audio_seconds = audio_seconds  # as far as they are known before reading
        self.waiting: deque[Place] = deque()  # for a slot
        self.order: deque[Place] = deque()  # as the audio goes, until the results are taken
        self.number = next(_NUMBERS)
        self._begin = self._last = time.perf_counter()
        self.n_active = 0  # windows in slots
        self.was_admitted = False
        self.is_complete = False  # nothing more is put
        self.is_cancelled = False
        self.error: BaseException | None = None  # raised when the results have been taken
        self._share(changed)

    def _share(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._own = threading.Condition(changed._lock)  # pyright: ignore

    @property
    def is_queued(self) -> bool:
        """Whether it still waits for its first slot."""
        return not self.was_admitted and not self.is_cancelled

    @property
    def is_finished(self) -> bool:
        """Whether all results are there that will be."""
        with self._changed:
            is_whole = self.is_complete and all(p.result is not None for p in self.order)
            return self.is_cancelled or is_whole

    @property
    def seconds(self) -> float:
        """How long the work has taken so far, or took."""
        with self._changed:
            return (self._last if self.is_finished else time.perf_counter()) - self._begin

    @property
    def is_over(self) -> bool:
        """Whether the pool has nothing more to do for it."""
        ended = self.is_cancelled or (self.is_complete and not self.waiting)
        return ended and not self.n_active

    def put(self, item: Task | End) -> None:
        """Add a window or an end; waits while enough of them wait.

        Raises :class:`CancelledError` once the line was cancelled.
        """
        task = item if isinstance(item, Task) else None
        place = Place(self, task, None if isinstance(item, Task) else item)
        with self._changed:
            while not self.is_cancelled and (
                (task and len(self.waiting) >= _AHEAD) or len(self.order) >= _UNREAD
            ):
                self._own.wait(1.0)  # on Windows Ctrl-C does not interrupt a wait without end
            if self.is_cancelled:
                raise CancelledError
            self.order.append(place)
            if task:
                self.waiting.append(place)
            self.notify()

    def complete(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes, and why if it should have."""
        with self._changed:
            self.is_complete, self.error = True, self.error or error
            self.notify()

    def take(
        self, timeout: float | None = None, kept: list[Segment] | None = None
    ) -> Result | None:
        """The next result, or None when there is none any more; a segment is appended to ``kept``.

        Waits for it; ``TimeoutError`` after ``timeout`` seconds. Raises what ended the line early.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not (self.order and self.order[0].result is not None):
                if self.is_cancelled or (self.is_complete and not self.order):
                    if self.error is not None:
                        raise self.error
                    return None
                # Not without end: on Windows Ctrl-C would not interrupt that.
                left = 1.0 if until is None else min(1.0, until - time.monotonic())
                if left <= 0:
                    raise TimeoutError
                self._own.wait(left)
            self._own.notify_all()
            result = self.order.popleft().result
            if kept is not None and isinstance(result, Segment):
                kept.append(result)
            return result

    def collect(self, kept: list[Segment]) -> None:
        """Append the segments that are there, without waiting."""
        with self._changed:
            while self.order and isinstance(result := self.order[0].result, Segment):
                self.order.popleft()
                kept.append(result)
            self._own.notify_all()

    def cancel(self, error: BaseException | None = None) -> None:
        """End the line: its windows leave their slots at the next step; finished results stay."""
        with self._changed:
            if self.is_finished:  # what is there may be taken still, and its time stands
                self.is_cancelled = True
                return
            self.is_cancelled, self.error = True, self.error or error
            self.waiting.clear()
            n_finished = next((i for i, p in enumerate(self.order) if p.result is None), None)
            while n_finished is not None and len(self.order) > n_finished:
                self.order.pop()
            self.notify()

    def finish(self, place: Place, result: Result) -> None:
        """A window has left its slot."""
        with self._changed:
            place.result = result
            self.n_active -= 1
            self.notify()

    def again(self, place: Place, others: list[Place]) -> None:
        """A window has left its slot, and others take its place, the next to be admitted."""
        with self._changed:
            self.n_active -= 1
            if not self.is_cancelled:
                at = self.order.index(place)
                self.order.remove(place)
                for other in reversed(others):
                    self.order.insert(at, other)
                    self.waiting.appendleft(other)
            self.notify()

    def lose(self, changed: threading.Condition, error: BaseException) -> None:
        """In a forked child, where the pool is another and the old lock may be held."""
        self._share(changed)
        self.n_active = 0
        self.cancel(error)

    def notify(self) -> None:
        """Wake whoever puts or takes, and the pool; under the lock."""
        self._last = time.perf_counter()
        self._own.notify_all()
        self._changed.notify_all()
