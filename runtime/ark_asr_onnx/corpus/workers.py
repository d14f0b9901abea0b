"""Transcribing in several processes, each with the model of its own.

A worker asks for a clip when it has room for one, so all are busy until the clips run out. It ends
when its parent does, however that ends; one that dies ends the work with an error.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from .. import Clip, Options, Splitting, Transcriber, Transcript
from ..decoding.slots import DEFAULT_SLOTS
from ..errors import ArkError, DecodeError

Result = Transcript | ArkError


_LEAD = 4  # slots full of clips that may be finished before their turn


def transcribe_clips(
    open_transcriber: Callable[[], Transcriber],
    clips: Sequence[Clip],
    *,
    options: Options | None = None,
    splitting: Splitting | None = None,
    slots: int = DEFAULT_SLOTS,
    workers: int = 1,
) -> Generator[Result]:
    """Yield the result of each clip, in order, as :meth:`Transcriber.transcribe_many` does.

    One worker is this process; for more, ``open_transcriber`` must be picklable, such as
    ``functools.partial(ark_asr_onnx.load, model, threads=1)``. What it opens is closed at the end;
    without clips nothing is opened. Raises :class:`DecodeError` when a worker dies.
    """
    workers = min(workers, len(clips))
    transcribe = _Transcribe(open_transcriber, options, splitting, slots)
    numbered = (
        transcribe(enumerate(clips))
        if workers == 1
        else _deal(transcribe, clips, workers, 4 * workers * slots)
    )
    if workers:
        with contextlib.closing(numbered):
            yield from _in_order(numbered)


def _in_order(numbered: Iterator[tuple[int, Result]]) -> Iterator[Result]:
    """Results by number, each as soon as all before it are there."""
    early: dict[int, Result] = {}
    due = 0
    for number, result in numbered:
        early[number] = result
        while due in early:
            yield early.pop(due)
            due += 1


class _Transcribe:
    """What a worker does, as a value that can be sent to it."""

    def __init__(
        self,
        open_transcriber: Callable[[], Transcriber],
        options: Options | None,
        splitting: Splitting | None,
        slots: int,
    ) -> None:
        self._open, self._slots = open_transcriber, slots
        self._options, self._splitting = options, splitting

    def __call__(self, numbered: Iterable[tuple[int, Clip]]) -> Generator[tuple[int, Result]]:
        """Results with the numbers of their clips, which are asked for when there is room."""
        numbers: deque[int] = deque()

        def clips() -> Iterator[Clip]:
            for number, clip in numbered:
                numbers.append(number)
                yield clip

        with self._open() as transcriber:
            for result in transcriber.transcribe_many(
                clips(), options=self._options, splitting=self._splitting, slots=self._slots
            ):
                yield numbers.popleft(), result


def _deal(
    transcribe: _Transcribe, clips: Sequence[Clip], workers: int, lead: int
) -> Generator[tuple[int, Result]]:
    """Results of all workers as they come; whoever asks is given the next clip."""
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, BaseProcess] = {}
    try:
        with _interrupts_held_back():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, transcribe), daemon=True)
                process.start()
                processes[ours] = process
                theirs.close()  # so that the worker's end is the only one
        dealer = _Dealer(clips, lead)
        while processes:
            ready = wait(list(processes))
            for connection in [x for x in processes if x in ready]:
                try:
                    message = connection.recv()
                    if not isinstance(message, ArkError):
                        dealer.hear(connection, message)
                except (EOFError, OSError):
                    _check_ended(processes[connection])
                    del processes[connection]
                    continue
                if isinstance(message, ArkError):
                    raise message
                if message is not None:
                    yield message
    finally:
        for process in processes.values():
            process.kill()
            process.join()


class _Dealer:
    """Gives each worker that asks the next clip, or ``None`` when there is none.

    Results before their turn are in memory. So nobody gets a clip more than ``lead`` behind the
    oldest that is not finished, but whoever has that one: it would not finish it while it waits.
    """

    def __init__(self, clips: Sequence[Clip], lead: int) -> None:
        self._remaining = deque(enumerate(clips))
        self._lead = lead
        self._unfinished: dict[int, Connection] = {}  # in the order in which they were dealt
        self._asking: list[Connection] = []

    def hear(self, worker: Connection, message: tuple[int, Result] | None) -> None:
        """A worker asks, with ``None``, or has a result."""
        if message is None:
            self._asking.append(worker)
        else:
            del self._unfinished[message[0]]
        for other in list(self._asking):
            if not self._remaining or self._may_go(other, self._remaining[0][0]):
                self._asking.remove(other)
                numbered = self._remaining.popleft() if self._remaining else None
                if numbered is not None:
                    self._unfinished[numbered[0]] = other
                with contextlib.suppress(OSError):  # it ended: that is noticed where it is heard
                    other.send(numbered)

    def _may_go(self, worker: Connection, number: int) -> bool:
        for oldest, owner in self._unfinished.items():
            return owner is worker or number < oldest + self._lead
        return True


def _check_ended(process: BaseProcess) -> None:
    """Raise unless a worker that hung up had nothing left to do."""
    process.join()
    status = process.exitcode or 0
    if status:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        raise DecodeError(
            f"a worker process ended ({how}) before its work was done; what is finished is kept: "
            "run the command again to continue, with fewer workers if memory is short"
        )


@contextlib.contextmanager
def _interrupts_held_back() -> Generator[None]:
    """Processes started meanwhile never see Ctrl-C, which the terminal sends to all of them."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # starting it with the first process would let them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, transcribe: _Transcribe) -> None:
    """A worker's life: ask for clips, answer with results, ``None`` being the question."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows holds nothing back
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = _show_warning

    sending = threading.Lock()  # clips are asked for in a thread of their own

    def send(message: object) -> None:
        with sending:
            connection.send(message)

    def asked() -> Iterator[tuple[int, Clip]]:
        while True:
            send(None)
            numbered = connection.recv()
            if numbered is None:
                return
            yield numbered

    try:
        for numbered in transcribe(asked()):
            send(numbered)
    except ArkError as error:
        send(error)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """One line, written at once: several processes share standard error."""
    sys.stderr.write(f"warning: {message}\n")


def _end_with_parent() -> None:
    """Leave no worker behind, in the middle of a pass or not."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
