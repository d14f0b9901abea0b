"""Lets one thread at a time, the driver, decode for all callers.

The driver admits windows of all lines in turn while there are free slots. It is the pool's thread,
or a caller that is alone and would only wait: handing a short clip to another thread and back takes
as long as decoding a part of its text. Without lines the thread sleeps, and the model may be freed.

This module does not know files, or how windows are found.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from ..audio.split import Splitting
from ..errors import ClosedError, DecodeError, QueueFullError
from ..model.resident import Resident, keep
from ..model.seam import Model
from ..package.contract import Manifest
from ..package.foreign import shortage
from ..package.text import Text
from .greedy import Options
from .hotwords import Hotwords
from .line import Line, Place
from .slots import Slots

_LAST_SECONDS = 2.0  # a reader may take to notice the end of the interpreter


class Pool:
    """The lines of a model, and the thread that serves them.

    At most ``max_waiting`` lines, and ``max_waiting_seconds`` of audio, may wait for their first
    slot when a line is opened; None: any number.
    """

    def __init__(
        self,
        resident: Resident[Model],
        manifest: Manifest,
        text: Text,
        max_waiting: int | None = None,
        max_waiting_seconds: float | None = None,
    ) -> None:
        self._resident, self._manifest, self._text = resident, manifest, text
        self._max_waiting, self._max_waiting_seconds = max_waiting, max_waiting_seconds
        self._audio_seconds = self._busy_seconds = 0.0  # of audio admitted, and of work
        self._last_turn = time.monotonic()
        self.is_closed = False
        self._lines: deque[Line] = deque()
        self._begin()
        with _LISTING:
            _POOLS.add(self)

    def __del__(self) -> None:
        with self._changed:
            self._changed.notify_all()  # so that its thread ends

    def _begin(self) -> None:
        """Reset to no thread, no slots and free locks."""
        self._changed = threading.Condition(threading.RLock())
        self.computing = threading.RLock()  # held during an admission or a step
        self._thread: threading.Thread | None = None
        self._driver: threading.Thread | None = None
        self._slots: Slots | None = None  # while they hold windows, or a thread drives

    def open(
        self,
        options: Options,
        splitting: Splitting,
        limit: int,
        seconds_of: Callable[[], float] = float,
        *,
        is_own: bool = False,
        hotwords: Hotwords | None = None,
    ) -> Line:
        """A new line. ``seconds_of``, the seconds of its audio, is called if the queue has limits.

        ``is_own``: its caller calls :meth:`drive_for` before it waits for a result. ``hotwords``:
        those of the options.
        Raises :class:`ClosedError` after :meth:`close`, :class:`QueueFullError`, and
        :class:`DecodeError` if no more threads can be started.
        """
        longest = splitting.longest(self._manifest.sizes.max_seconds)
        has_bounds = self._max_waiting is not None or self._max_waiting_seconds is not None
        seconds = seconds_of() if has_bounds else 0.0
        line = Line(self._changed, options, splitting, limit, longest, seconds, is_own, hotwords)
        with self._changed:
            if self.is_closed:
                raise ClosedError("this transcriber was closed; load the model again")
            self._check_queue()
            if self._thread is None:
                arguments = weakref.ref(self), self._changed
                self._thread = started(
                    threading.Thread(target=_serve, args=arguments, name="ark-asr", daemon=True)
                )
            if not self._lines:
                self._last_turn = time.monotonic()
            self._lines.append(line)
            line.notify()
        return line

    def n_before(self, line: Line) -> int:
        """How many lines before this one wait for their first slot; 0 if this one has had one."""
        with self._changed:
            n_before = sum(other.number < line.number for other in self._lines if other.is_queued)
            return n_before if line.is_queued else 0

    def _check_queue(self) -> None:
        """Raise :class:`QueueFullError` if no more work may wait."""
        waiting = [line for line in self._lines if line.is_queued]
        seconds = sum(line.audio_seconds for line in waiting)
        is_full = self._max_waiting is not None and len(waiting) >= self._max_waiting
        if self._max_waiting_seconds is not None:
            is_full |= bool(waiting) and seconds >= self._max_waiting_seconds
        if is_full:
            speed = self._audio_seconds / self._busy_seconds if self._busy_seconds else 1.0
            after = max(1.0, seconds / max(speed, 1e-3))
            raise QueueFullError(
                f"{len(waiting)} jobs with {seconds:.0f} s of audio wait already; try again in "
                f"{after:.0f} s",
                after,
            )

    def close(self) -> None:
        """Cancel all lines and wait for the step in progress."""
        here = threading.current_thread()
        with self._changed:
            self.is_closed = True
            for line in self._lines:
                line.cancel(ClosedError("the transcriber was closed while this was in work"))
            self._changed.notify_all()
            while self._driver not in (None, here):
                self._changed.wait(1.0)
        if self._thread not in (None, here):
            self._thread.join()

    def after_fork(self) -> None:
        """Reset in a forked child, where no other thread runs and the lock may be held for ever."""
        lines, self._lines = self._lines, deque()
        keep(self._slots)
        self._resident.after_fork()
        self._begin()
        for line in lines:
            line.lose(self._changed, DecodeError("this was begun before the process was forked"))

    @property
    def is_idle(self) -> bool:
        """Whether there is no work."""
        with self._changed:
            return self._driver is None and all(line.is_over for line in self._lines)

    @property
    def n_active(self) -> int:
        """Number of windows in slots."""
        return self._slots.n_active if self._slots is not None else 0

    @property
    def n_waiting(self) -> int:
        """Number of lines that have had no slot yet."""
        with self._changed:
            return sum(line.is_queued for line in self._lines)

    @property
    def stalled_seconds(self) -> float:
        """Seconds since the last step, while windows wait for one; else 0."""
        with self._changed:
            has_work = any(line.waiting or line.n_active for line in self._lines)
            return time.monotonic() - self._last_turn if has_work else 0.0

    @property
    def needs_thread(self) -> bool:
        """Whether there are lines whose caller does not drive."""
        return any(not line.is_own and not line.is_over for line in self._lines)

    def drive(self) -> None:
        """Work for all lines, in the pool's thread, until there is no more work."""
        with self._changed:
            while self._driver is not None:
                self._changed.wait()
            self._driver = threading.current_thread()
        self._drive(lambda: True)

    def drive_for(self, line: Line) -> None:
        """Work for all lines, in the thread of a waiting caller, until ``line`` has a result.

        Does nothing if another thread drives.
        """
        with self._changed:
            if line.has_result:
                return
            if self._driver is not None:
                line.call()
                return
            self._driver = threading.current_thread()
        self._drive(lambda: not line.has_result)

    def _drive(self, goes_on: Callable[[], bool]) -> None:
        try:
            if self._slots is None:
                self._slots = Slots(self._resident.take(), self._manifest, self._text)
            while goes_on() and self._turn(self._slots):
                pass
        except BaseException as error:  # an error of the model, or Ctrl-C during a turn
            with self._changed:
                for line in self._lines:
                    line.restart()
                    if isinstance(error, Exception):
                        line.cancel(error)
                self._rest()
            if not isinstance(error, Exception):
                raise
        finally:
            with self._changed:
                self._sweep()
                if self._slots is not None and not self._slots.n_active:
                    self._rest()
                for line in self._lines:
                    line.is_own &= not line.n_active  # its caller may not drive again
                self._driver = None
                self._changed.notify_all()

    def _rest(self) -> None:
        """Release the slots and the model."""
        if self._slots is not None:
            self._slots = None
            self._resident.give_back()

    def _sweep(self) -> None:
        """Free the slots of cancelled lines, and remove lines without work."""
        if self._slots is not None:
            self._slots.leave(line for line in self._lines if line.is_cancelled)
        self._lines = deque(line for line in self._lines if not line.is_over)

    def _turn(self, slots: Slots) -> bool:
        """Do one admission or step; False if the driver is no longer needed."""
        with self._changed:
            while True:
                self._sweep()
                place = self._next(slots)
                if place or slots.n_active:
                    break
                if not self.needs_thread:
                    return False
                self._changed.wait()
        begin = time.perf_counter()
        with self.computing:
            if place:
                self._audio_seconds += place.task.window.seconds
                slots.admit(place)
            else:
                slots.step()
        self._busy_seconds += time.perf_counter() - begin
        self._last_turn = time.monotonic()
        return True

    def _next(self, slots: Slots) -> Place | None:
        """The window to admit now; lines take turns. None if no window can be admitted."""
        if not slots.may_admit(self._lines):
            return None
        for _ in range(len(self._lines)):
            line = self._lines[0]
            if line.waiting and line.n_active < line.limit:
                if not slots.has_room(line.waiting[0], self._lines):
                    return None  # it waits for larger slots, and no line may overtake it
                self._lines.rotate(-1)
                return line.admit()
            self._lines.rotate(-1)
        return None


def started(thread: threading.Thread) -> threading.Thread:
    """Start a thread and return it. Raises :class:`DecodeError` if no more can be started."""
    try:
        thread.start()
    except RuntimeError as error:
        raise DecodeError(shortage(error) or str(error)) from error
    return thread


def await_at_end(reader: threading.Thread) -> None:
    """Make the interpreter, at its end, wait shortly for a thread that puts into lines."""
    with _LISTING:
        _READERS.add(reader)


def _serve(of: weakref.ref[Pool], changed: threading.Condition) -> None:
    """The body of a pool's thread; it holds no reference to the pool while it sleeps."""
    while True:
        with changed:
            while (pool := of()) is not None and not (pool.needs_thread or pool.is_closed):
                del pool
                changed.wait()
        if pool is None or pool.is_closed:
            return
        pool.drive()
        del pool


def _close_all() -> None:
    """Close all pools at the end of the interpreter, which must not end threads within C code."""
    with _LISTING:
        pools, readers = list(_POOLS), list(_READERS)
    for pool in pools:
        pool.close()
    until = time.monotonic() + _LAST_SECONDS
    for reader in readers:
        if reader.is_alive():  # a reader that has not begun will find its line cancelled
            reader.join(max(0.0, until - time.monotonic()))


def _before_fork() -> None:
    """Wait for computations, since their libraries do not survive a fork during a call."""
    _LISTING.acquire()
    _FORKING.extend(_POOLS)
    for pool in _FORKING:
        pool.computing.acquire()


def _after_fork_in_parent() -> None:
    while _FORKING:
        _FORKING.pop().computing.release()
    _LISTING.release()


def _after_fork_in_child() -> None:
    while _FORKING:
        _FORKING.pop().after_fork()
    _LISTING.release()


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()
_READERS: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # threads that put into lines
_LISTING = threading.Lock()  # guards both sets
_FORKING: list[Pool] = []
atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
