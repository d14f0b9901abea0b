"""Transcribes in several processes, called workers, each of which opens the model.

A worker asks for a clip when it has room for one, so all are busy until the clips run out. A worker
ends whenever its parent ends; a worker that dies ends the work with an error.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, cast

from .. import Clip, Options, Splitting, Transcriber, Transcript
from ..decoding.slots import DEFAULT_SLOTS
from ..errors import ArkError, DecodeError
from .identity import Values, fingerprint

Result = Transcript | ArkError
Heard = tuple[int, Result] | Values  # first the opened model's fingerprint, then results

_LEAD = 4  # clips per slot that may be finished early
_STARTING, _WORKING = "ark-asr-starting", "ark-asr-worker"  # names of processes
_UNGUARDED = 78  # exit status of a worker whose script starts workers when it is imported


def transcribe_clips(
    open_transcriber: Callable[[], Transcriber],
    clips: Iterable[Clip],
    *,
    options: Options | None = None,
    splitting: Splitting | None = None,
    slots: int = DEFAULT_SLOTS,
    workers: int = 1,
    on_open: Callable[[Values], None] | None = None,
) -> Generator[Result]:
    """Yield the result of each clip, in order, as :meth:`Transcriber.transcribe_many` does.

    Clips are taken when there is room for them. A single worker is this process; for more,
    ``open_transcriber`` must be picklable, such as ``functools.partial(ark_asr_onnx.load, model,
    threads=1)``. ``on_open`` is called with the :func:`fingerprint` of the opened model before a
    clip is taken. The model is closed at the end; without clips it is not opened. Raises
    :class:`DecodeError` if a worker dies.
    """
    end_if_unguarded()
    clips = iter(clips)
    first = next(clips, None)
    if first is None:
        return
    transcribe = _Transcribe(open_transcriber, options, splitting, slots)
    numbered = enumerate(itertools.chain([first], clips))
    heard = (
        transcribe(numbered)
        if workers == 1
        else _deal(transcribe, numbered, workers, _LEAD * workers * slots)
    )
    with contextlib.closing(heard):
        yield from _in_order(heard, on_open)


def end_if_unguarded() -> None:
    """End this process if it is a worker that imports the calling script, which has no guard.

    The parent reports the cause. Going on would do the script's work again, and raising would show
    a traceback for each worker.
    """
    if multiprocessing.current_process().name == _STARTING:
        os._exit(_UNGUARDED)


def _in_order(heard: Iterator[Heard], on_open: Callable[[Values], None] | None) -> Iterator[Result]:
    """Results in the order of their numbers, each once all results before it have arrived."""
    early: dict[int, Result] = {}
    due = 0
    for message in heard:
        if isinstance(message, dict):
            if on_open:
                on_open(message)
            continue
        early[message[0]] = message[1]
        while due in early:
            yield early.pop(due)
            due += 1


class _Transcribe:
    """The work of a worker, as a value that can be sent to it."""

    def __init__(
        self,
        open_transcriber: Callable[[], Transcriber],
        options: Options | None,
        splitting: Splitting | None,
        slots: int,
    ) -> None:
        self._open, self._slots = open_transcriber, slots
        self._options, self._splitting = options, splitting

    def __call__(self, numbered: Iterable[tuple[int, Clip]]) -> Generator[Heard]:
        """Results with the numbers of their clips; takes a clip when there is room."""
        numbers: deque[int] = deque()

        def clips() -> Iterator[Clip]:
            for number, clip in numbered:
                numbers.append(number)
                yield clip

        with self._open() as transcriber:
            yield fingerprint(transcriber)
            for result in transcriber.transcribe_many(
                clips(), options=self._options, splitting=self._splitting, slots=self._slots
            ):
                yield numbers.popleft(), result


def _deal(
    transcribe: _Transcribe, numbered: Iterator[tuple[int, Clip]], workers: int, lead: int
) -> Generator[Heard]:
    """Start workers, give them clips, and yield their messages as they arrive."""
    _check_picklable(transcribe)
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, BaseProcess] = {}
    heard: set[Connection] = set()
    try:
        with _signals_held_back():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(theirs, transcribe), name=_STARTING, daemon=True
                )
                process.start()
                processes[ours] = process
                theirs.close()  # so that only the worker holds its end
        dealer = _Dealer(numbered, lead)
        while processes:
            ready = wait(list(processes))
            for connection in [x for x in processes if x in ready]:
                try:
                    message: Any = connection.recv()
                    if message is None or isinstance(message, tuple):
                        dealer.hear(connection, cast("tuple[int, Result] | None", message))
                except (EOFError, OSError):
                    _check_ended(processes[connection], has_begun=connection in heard)
                    del processes[connection]
                    continue
                heard.add(connection)
                if isinstance(message, ArkError):
                    raise message
                if message is not None:
                    yield message
    finally:
        for process in processes.values():
            process.kill()
            process.join()


def _check_picklable(transcribe: _Transcribe) -> None:
    try:
        ForkingPickler.dumps(transcribe)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"cannot be sent to a worker process: {error}; open_transcriber must be a function of "
            "a module, such as functools.partial(ark_asr_onnx.load, model)"
        ) from error


class _Dealer:
    """Gives the next clip to each worker that asks, or None if there is none.

    Early results wait in memory. To bound them, a worker gets no clip that is ``lead`` or more
    ahead of the oldest unfinished one. The worker that has that one is exempt: it would stall.
    """

    def __init__(self, numbered: Iterator[tuple[int, Clip]], lead: int) -> None:
        self._remaining = numbered
        self._n_dealt = 0
        self._lead = lead
        self._unfinished: dict[int, Connection] = {}  # oldest first
        self._asking: list[Connection] = []

    def hear(self, worker: Connection, message: tuple[int, Result] | None) -> None:
        """Handle a worker's message: None asks for a clip, anything else is a result."""
        if message is None:
            self._asking.append(worker)
        else:
            del self._unfinished[message[0]]
        for other in list(self._asking):
            if self._may_go(other):
                self._asking.remove(other)
                numbered = next(self._remaining, None)
                if numbered is not None:
                    self._n_dealt += 1
                    self._unfinished[numbered[0]] = other
                with contextlib.suppress(OSError):  # it has ended, which :func:`_deal` notices
                    other.send(numbered)

    def _may_go(self, worker: Connection) -> bool:
        for oldest, owner in self._unfinished.items():
            return owner is worker or self._n_dealt < oldest + self._lead
        return True


def _check_ended(process: BaseProcess, *, has_begun: bool) -> None:
    """Raise :class:`DecodeError` unless a worker that ended has finished its work."""
    process.join()
    status = process.exitcode or 0
    if status == _UNGUARDED:
        raise DecodeError(
            "workers import the script that starts them, and it starts them there again: put what "
            'it does under if __name__ == "__main__":'
        )
    if status:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        if status > 0 and not has_begun:
            raise DecodeError(
                f"a worker process ended ({how}) before it had begun; it imports the script that "
                'starts it, whose work must be under if __name__ == "__main__":'
            )
        raise DecodeError(
            f"a worker process ended ({how}) before its work was done; what is finished is kept: "
            "run the command again to continue, with fewer workers if memory is short"
        )


@contextlib.contextmanager
def _signals_held_back() -> Generator[None]:
    """Block signals in processes that are started within this context.

    They do not see Ctrl-C or the signals that end a service's processes; they end with their
    parent, which handles these.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # else the first process starts it, unblocking them
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, transcribe: _Transcribe) -> None:
    """The body of a worker: asks for clips by sending None, and sends results."""
    multiprocessing.current_process().name = _WORKING
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows has no signal mask
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = _show_warning

    sending = threading.Lock()  # another thread asks for clips

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
    """Write a warning as one line in one call, since several processes share standard error."""
    sys.stderr.write(f"warning: {message}\n")


def _end_with_parent() -> None:
    """End this worker when its parent ends, even in the middle of a pass."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
