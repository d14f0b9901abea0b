"""The job of transcribing one audio: its segments, its transcript, and cancelling it."""

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
    """A transcription in progress: iterate for its segments, in order, each once it is finished.

    The work continues in the background, with or without iteration. An error is raised at its
    place in the audio, after the segments before it.
    """

    def __init__(self, pool: Pool, take: Take, open_line: Callable[[bool], Line]) -> None:
        self._pool, self._taken_from, self._open_line = pool, take, open_line
        self._line: Line | None = None
        self._lock = threading.Lock()
        self._segments: list[Segment] = []
        self._n_given = 0
        self._is_closed = False

    def start(self) -> Line:
        """Begin the work unless it has begun."""
        with self._lock:
            if self._line is None:
                self._line = self._open_line(False)
                feed(self._line, tasks_of(self._taken_from, self._line))
            return self._line

    @property
    def position(self) -> int:
        """How many waiting jobs are before this one; 0 for the next one, and once it has begun."""
        return self._pool.n_before(self.start())

    @property
    def done(self) -> bool:
        """Whether the work has ended: it is finished, has failed, or was cancelled."""
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
        """Do all the work; read in this thread, and decode here unless another thread decodes."""
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
        """Wait for the end and return the transcript.

        Raises the error that ended the work, and ``TimeoutError`` after ``timeout`` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self._is_closed:
            if not self._take(self.start(), until and max(0.0, until - time.monotonic())):
                break
        return self.transcript()

    def transcript(self) -> Transcript:
        """The transcript of the segments that are finished."""
        take, line = self._taken_from, self._line
        if line is not None:
            line.collect(self._segments)
        spent = timings((take.clock, take.decoding), line.seconds if line is not None else 0.0)
        return join(self._segments, take.seconds, spent, take.warnings)

    def cancel(self) -> None:
        """End the work, from any thread; slots and file are released after the current step.

        Finished segments are kept.
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
        """Call ``on_segment`` for the segments that it has not received."""
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
    """Put all items into a line, in a new thread, until the line is cancelled."""

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
    # Registered before it runs: Ctrl-C may come while it starts, and the thread must not be within
    # C code when the interpreter ends.
    await_at_end(reader)
    try:
        started(reader)
    except BaseException:
        line.cancel()
        raise
