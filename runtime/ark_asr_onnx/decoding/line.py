"""A queue of one caller's windows, called a line, through which the results come in order."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

from ..arrays import F32
from ..audio.split import Splitting, Window
from ..errors import ArkError
from ..transcript import Segment
from .clock import Clock
from .greedy import Options, Utterance
from .hotwords import Hotwords

_AHEAD = 2  # windows of a line that wait for a slot
_UNREAD = 64  # windows whose results were not yet taken
_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Task:
    """A window to transcribe, and the clock of its audio's decoding."""

    window: Window
    clock: Clock


@dataclass(frozen=True, slots=True)
class End:
    """The end of an audio's windows; taken after its last segment."""

    error: ArkError | None = None  # the error that ended the audio early


Result: TypeAlias = Segment | ArkError | End


class CancelledError(Exception):
    """The line was cancelled; raised in the thread that puts windows into it."""


@dataclass(eq=False, slots=True)
class Place:
    """A task's place in a line; holds its utterance once it is admitted, then its result."""

    line: Line
    task: Task
    may_split: bool = True
    forbid_empty: bool = False
    utterance: Utterance = field(init=False)
    n_audio: int = 0  # rows of its audio embeddings
    attention: F32 | None = None  # [heads, tokens, rows], if times of words are wanted
    result: Segment | ArkError | None = None


class Line:
    """Windows of at most ``longest`` seconds, of which at most ``limit`` are decoded together.

    One thread puts, one takes, any may cancel. ``changed`` notifies the pool; its lock guards all
    fields. ``is_own``: the thread that puts will also decode, so the pool's thread can sleep.
    """

    def __init__(
        self,
        changed: threading.Condition,
        options: Options,
        splitting: Splitting,
        limit: int,
        longest: float,
        audio_seconds: float,
        is_own: bool = False,
        hotwords: Hotwords | None = None,
    ) -> None:
        self.options, self.splitting, self.limit, self.longest = options, splitting, limit, longest
        self.hotwords = hotwords  # those of the options
        self.audio_seconds = audio_seconds  # known before reading, or 0
        self.is_own = is_own
        self.waiting: deque[Place] = deque()  # for a slot
        self.order: deque[Place | End] = deque()  # until taken, in the audio's order
        self.number = next(_NUMBERS)
        self._begin = self._last = time.perf_counter()
        self.n_active = 0  # windows in slots
        self.was_admitted = False
        self.is_complete = False  # no more items will be put
        self.is_cancelled = False
        self.error: BaseException | None = None  # raised after the results have been taken
        self._share(changed)

    def _share(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._room = threading.Condition(changed._lock)  # pyright: ignore
        self._results = threading.Condition(changed._lock)  # pyright: ignore

    @property
    def is_queued(self) -> bool:
        """Whether the line still waits for its first slot."""
        return not self.was_admitted and not self.is_cancelled

    @property
    def is_finished(self) -> bool:
        """Whether all results have arrived, or the line is cancelled."""
        with self._changed:
            is_whole = self.is_complete and all(_result(item) is not None for item in self.order)
            return self.is_cancelled or is_whole

    @property
    def seconds(self) -> float:
        """Seconds that the work has taken, up to now or to its end."""
        with self._changed:
            return (self._last if self.is_finished else time.perf_counter()) - self._begin

    @property
    def is_over(self) -> bool:
        """Whether the pool has no more work for the line."""
        ended = self.is_cancelled or (self.is_complete and not self.waiting)
        return ended and not self.n_active

    def is_last(self, place: Place) -> bool:
        """Whether a window is the only one that is left to decode, now and later."""
        return self.is_complete and not self.n_active and list(self.waiting) == [place]

    def put(self, item: Task | End) -> None:
        """Add a window or an end; waits while the line is full.

        Raises :class:`CancelledError` once the line is cancelled.
        """
        with self._changed:
            while not self.is_cancelled and (
                (isinstance(item, Task) and len(self.waiting) >= _AHEAD)
                or len(self.order) >= _UNREAD
            ):
                self.call()
                self._room.wait(1.0)  # without a timeout Ctrl-C cannot interrupt it on Windows
            if self.is_cancelled:
                raise CancelledError
            if isinstance(item, Task):
                self.waiting.append(Place(self, item))
                self.order.append(self.waiting[-1])
            else:
                self.order.append(item)
                self._tell()
            self.notify()

    def call(self) -> None:
        """Let the pool's thread decode this line instead of its caller."""
        with self._changed:
            if self.is_own:
                self.is_own = False
                self.notify()

    @property
    def has_result(self) -> bool:
        """Whether :meth:`take` can return: with a result, or because no more will come."""
        has_ended = self.is_cancelled or (self.is_complete and not self.order)
        return has_ended or (bool(self.order) and _result(self.order[0]) is not None)

    def complete(self, error: BaseException | None = None) -> None:
        """Declare that no more items will come; ``error`` if that is too early."""
        with self._changed:
            self.is_complete, self.error = True, self.error or error
            self._tell()
            self.notify()

    def take(
        self, timeout: float | None = None, kept: list[Segment] | None = None
    ) -> Result | None:
        """Wait for the next result; None after the last one. Appends a segment to ``kept``.

        Raises ``TimeoutError`` after ``timeout`` seconds, and the error that ended the line early.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self.has_result:
                # With a timeout: Ctrl-C cannot interrupt a wait without one on Windows.
                left = 1.0 if until is None else min(1.0, until - time.monotonic())
                if left <= 0:
                    raise TimeoutError
                self._results.wait(left)
            if not self.order:
                if self.error is not None:
                    raise self.error
                return None
            self._room.notify()
            result = _result(self.order.popleft())
            if kept is not None and isinstance(result, Segment):
                kept.append(result)
            return result

    def collect(self, kept: list[Segment]) -> None:
        """Append the segments that are ready to ``kept``, without waiting."""
        with self._changed:
            while self.order and isinstance(result := _result(self.order[0]), Segment):
                self.order.popleft()
                kept.append(result)
            self._room.notify()

    def cancel(self, error: BaseException | None = None) -> None:
        """End the line: its windows leave their slots at the next step; finished results stay."""
        with self._changed:
            if self.is_finished:  # keep the results and the time of the last one
                self.is_cancelled = True
                return
            self.is_cancelled, self.error = True, self.error or error
            self.waiting.clear()
            finished = itertools.takewhile(lambda item: _result(item) is not None, self.order)
            self.order = deque(finished)
            self._room.notify()
            self._tell()
            self.notify()

    def admit(self) -> Place:
        """Give the next window a slot."""
        place = self.waiting.popleft()
        self.n_active += 1
        self.was_admitted = True
        self._room.notify()
        return place

    def finish(self, place: Place, result: Segment | ArkError) -> None:
        """Store the result of a window that has left its slot."""
        with self._changed:
            place.result = result
            self.n_active -= 1
            self._tell()

    def again(self, place: Place, others: list[Place]) -> None:
        """Replace a window that has left its slot by others, which are admitted next."""
        with self._changed:
            self.n_active -= 1
            if not self.is_cancelled:
                each = ([item] if item is not place else others for item in self.order)
                self.order = deque(itertools.chain.from_iterable(each))
                self.waiting.extendleft(reversed(others))

    def restart(self) -> None:
        """Let the windows that were in slots wait again, since the slots are lost."""
        places = (item for item in self.order if isinstance(item, Place) and item.result is None)
        self.waiting, self.n_active = deque(places), 0

    def lose(self, changed: threading.Condition, error: BaseException) -> None:
        """Cancel the line in a forked child, where the pool is another and the lock may be held."""
        self._share(changed)
        self.n_active = 0
        self.cancel(error)

    def notify(self) -> None:
        """Wake the pool's thread if it works for this line; call it with the lock held."""
        if not self.is_own:
            self._changed.notify_all()

    def _tell(self) -> None:
        """If there is a result, wake the thread that waits for it."""
        self._last = time.perf_counter()
        if self.has_result:
            self._results.notify()


def _result(item: Place | End) -> Result | None:
    return item.result if isinstance(item, Place) else item
