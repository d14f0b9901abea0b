"""A line of windows to the pool: one caller puts them in, and takes their results in order."""

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
    """What a line holds for a task: its utterance once it is admitted, then its result."""

    line: Line
    task: Task
    may_split: bool = True
    forbid_empty: bool = False
    utterance: Utterance = field(init=False)
    n_audio: int = 0  # rows of its audio embeddings
    attention: F32 | None = None  # to the audio, of its tokens, where times of words are wanted
    result: Segment | ArkError | None = None


class Line:
    """Windows of at most ``longest`` seconds, of which at most ``limit`` are decoded together.

    One thread puts, one takes, any may cancel. ``changed`` tells the pool; its lock guards all.
    ``is_own``: whoever puts will decode them too, and the pool's thread need not wake up.
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
        self.audio_seconds = audio_seconds  # as far as they are known before reading
        self.is_own = is_own
        self.waiting: deque[Place] = deque()  # for a slot
        self.order: deque[Place | End] = deque()  # as the audio goes, until results are taken
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
        self._room = threading.Condition(changed._lock)  # pyright: ignore
        self._results = threading.Condition(changed._lock)  # pyright: ignore

    @property
    def is_queued(self) -> bool:
        """Whether it still waits for its first slot."""
        return not self.was_admitted and not self.is_cancelled

    @property
    def is_finished(self) -> bool:
        """Whether all results are there that will be."""
        with self._changed:
            is_whole = self.is_complete and all(_result(item) is not None for item in self.order)
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

    def is_last(self, place: Place) -> bool:
        """Whether a window is all that there is to decode, now and later."""
        return self.is_complete and not self.n_active and list(self.waiting) == [place]

    def put(self, item: Task | End) -> None:
        """Add a window or an end; waits while enough of them wait.

        Raises :class:`CancelledError` once the line was cancelled.
        """
        with self._changed:
            while not self.is_cancelled and (
                (isinstance(item, Task) and len(self.waiting) >= _AHEAD)
                or len(self.order) >= _UNREAD
            ):
                self.call()
                self._room.wait(1.0)  # on Windows Ctrl-C does not interrupt a wait without end
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
        """Let the pool's thread decode what its caller would have decoded."""
        with self._changed:
            if self.is_own:
                self.is_own = False
                self.notify()

    @property
    def has_result(self) -> bool:
        """Whether there is something to take, or will never be."""
        has_ended = self.is_cancelled or (self.is_complete and not self.order)
        return has_ended or (bool(self.order) and _result(self.order[0]) is not None)

    def complete(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes, and why if it should have."""
        with self._changed:
            self.is_complete, self.error = True, self.error or error
            self._tell()
            self.notify()

    def take(
        self, timeout: float | None = None, kept: list[Segment] | None = None
    ) -> Result | None:
        """The next result, or None when there is none any more; a segment is appended to ``kept``.

        Waits for it; ``TimeoutError`` after ``timeout`` seconds. Raises what ended the line early.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self.has_result:
                # Not without end: on Windows Ctrl-C would not interrupt that.
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
        """Append the segments that are there, without waiting."""
        with self._changed:
            while self.order and isinstance(result := _result(self.order[0]), Segment):
                self.order.popleft()
                kept.append(result)
            self._room.notify()

    def cancel(self, error: BaseException | None = None) -> None:
        """End the line: its windows leave their slots at the next step; finished results stay."""
        with self._changed:
            if self.is_finished:  # what is there may be taken still, and its time stands
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
        """The next window gets a slot."""
        place = self.waiting.popleft()
        self.n_active += 1
        self.was_admitted = True
        self._room.notify()
        return place

    def finish(self, place: Place, result: Segment | ArkError) -> None:
        """A window has left its slot."""
        with self._changed:
            place.result = result
            self.n_active -= 1
            self._tell()

    def again(self, place: Place, others: list[Place]) -> None:
        """A window has left its slot, and others take its place, the next to be admitted."""
        with self._changed:
            self.n_active -= 1
            if not self.is_cancelled:
                each = ([item] if item is not place else others for item in self.order)
                self.order = deque(itertools.chain.from_iterable(each))
                self.waiting.extendleft(reversed(others))

    def restart(self) -> None:
        """The slots are lost: what was in them waits again."""
        places = (item for item in self.order if isinstance(item, Place) and item.result is None)
        self.waiting, self.n_active = deque(places), 0

    def lose(self, changed: threading.Condition, error: BaseException) -> None:
        """In a forked child, where the pool is another and the old lock may be held."""
        self._share(changed)
        self.n_active = 0
        self.cancel(error)

    def notify(self) -> None:
        """Wake the pool's thread, if it is to work for this line; under the lock."""
        if not self.is_own:
            self._changed.notify_all()

    def _tell(self) -> None:
        """Wake whoever waits for a result, if there is one."""
        self._last = time.perf_counter()
        if self.has_result:
            self._results.notify()


def _result(item: Place | End) -> Result | None:
    return item.result if isinstance(item, Place) else item
