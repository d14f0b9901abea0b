"""One audio in work: its segments as they are finished, its transcript, and the way to stop it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator

from ..errors import ArkError
from ..transcript import Segment, Transcript, join
from .clips import Take, tasks_of
from .clock import timings
from .line import CancelledError, End, Line, Task
from .pool import Pool, await_at_end, started


class Job(Iterator[Segment]):
    """An audio on its way: iterate for its segments, in order, each as soon as it is finished.

    The work goes on in the background whether somebody iterates or not. An error is raised where
    it occurs: the segments before it stand.
    """

    def __init__(self, pool: Pool, take: Take, open_line: Callable[[bool], Line]) -> None:
        self._pool, self._taken_from, self._open_line = pool, take, open_line
        self._line: Line | None = None
        self._lock = threading.Lock()
        self._segments: list[Segment] = []
        self._n_given = 0
        self._is_closed = False

    def start(self) -> Line:
        """Begin, if that has not happened yet."""
        with self._lock:
            if self._line is None:
                self._line = self._open_line(False)
                feed(self._line, tasks_of(self._taken_from, self._line))
            return self._line

    @property
    def position(self) -> int:
        """How many jobs that came before it wait for the model, as it does; 0 for the next."""
        return self._pool.n_before(self.start())

    @property
    def done(self) -> bool:
        """Whether nothing more will come, for whatever reason."""
        return self._is_closed or (self._line is not None and self._line.is_finished)

    def __next__(self) -> Segment:
        while not self._is_closed and self._n_given == len(self._segments):
            if not self._take(self.start()):
                break
        if self._is_closed or self._n_given == len(self._segments):
            raise StopIteration
        self._n_given += 1
        return self._segments[self._n_given - 1]

    def run(self, on_segment: Callable[[Segment], None]) -> Transcript:
        """Do all of it, reading in this thread, and decoding too when nobody else does."""
        with self._lock:
            if self._is_closed:
                return self.transcript()
            line = self._line = self._open_line(True)
        try:
            with (
                contextlib.suppress(CancelledError),
                contextlib.closing(tasks_of(self._taken_from, line)) as items,
            ):
                for item in () if line.is_cancelled else items:
                    line.put(item)
                    line.collect(self._segments)
                    self._give(on_segment)
            line.complete()
            while self._take(line):
                self._give(on_segment)
        finally:
            self.cancel()
        return self.transcript()

    def result(self, timeout: float | None = None) -> Transcript:
        """Wait for the end and give the transcript.

        Raises what ended the work early, and ``TimeoutError`` after ``timeout`` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self._is_closed:
            if not self._take(self.start(), until and max(0.0, until - time.monotonic())):
                break
        return self.transcript()

    def transcript(self) -> Transcript:
        """What is finished so far."""
        take, line = self._taken_from, self._line
        if line is not None:
            line.collect(self._segments)
        spent = timings((take.clock, take.decoding), line.seconds if line is not None else 0.0)
        return join(self._segments, take.seconds, spent, take.warnings)

    def cancel(self) -> None:
        """End the work, from any thread: slots and file are free after the step in progress.

        What is finished stays.
        """
        with self._lock:
            self._is_closed = True
            if self._line is not None:
                self._line.cancel()

    close = cancel

    def __del__(self) -> None:
        if getattr(self, "_line", None) is not None:
            self.cancel()

    def _give(self, on_segment: Callable[[Segment], None]) -> None:
        """Tell of the segments that nobody was told of."""
        while self._n_given < len(self._segments):
            self._n_given += 1
            on_segment(self._segments[self._n_given - 1])

    def _take(self, line: Line, timeout: float | None = None) -> bool:
        """Wait for a result; False at the end."""
        if line.is_own:
            self._pool.drive_for(line)
        result = line.take(timeout, self._segments)
        error = result.error if isinstance(result, End) else result
        if isinstance(error, ArkError):
            self.cancel()
            raise error
        return result is not None


def feed(line: Line, items: Generator[Task | End]) -> None:
    """Put everything into a line, in a thread of its own, until it is cancelled."""

    def put() -> None:
        error: BaseException | None = None
        try:
            with contextlib.closing(items):
                for item in () if line.is_cancelled else items:
                    line.put(item)
        except CancelledError:
            pass
        except BaseException as found:
            error = found
        line.complete(error)

    reader = threading.Thread(target=put, name="ark-asr-reader", daemon=True)
    # Known before it runs: Ctrl-C may come while it starts, and it must not be in the middle of
    # foreign code when the interpreter ends.
    await_at_end(reader)
    try:
        started(reader)
    except BaseException:
        line.cancel()
        raise
