"""Transcribing in several processes, each with the model of its own.

A worker asks for a clip when it has room for one, so all are busy until the clips run out. It ends
when its parent does, however that ends; one that dies ends the work with an error.
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
Heard = tuple[int, Result] | Values  # the result of a clip; first, the model that was opened

_LEAD = 4  # slots full of clips that may be finished before their turn
_STARTING, _WORKING = "ark-asr-starting", "ark-asr-worker"  # names of processes
_UNGUARDED = 78  # exit status of a worker that was to start workers while it started itself


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

    Clips are taken when there is room for them. One worker is this process; for more,
    ``open_transcriber`` must be picklable, such as ``functools.partial(ark_asr_onnx.load, model,
    threads=1)``. What it opens is told ``on_open``, see :func:`fingerprint`, before a clip is
    taken, and closed at the end; without clips nothing is opened. Raises :class:`DecodeError` when
    a worker dies.
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
    """End this process if it is a worker that imports the script which calls us, without a guard.

    Its parent tells the cause. To go on would do the script's work again, and to raise would show
    a traceback of each worker.
    """
    if multiprocessing.current_process().name == _STARTING:
        os._exit(_UNGUARDED)


def _in_order(heard: Iterator[Heard], on_open: Callable[[Values], None] | None) -> Iterator[Result]:
    """Results by number, each as soon as all before it are there."""
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

    def __call__(self, numbered: Iterable[tuple[int, Clip]]) -> Generator[Heard]:
        """Results with the numbers of their clips, which are asked for when there is room."""
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
    """What all workers say as they say it; whoever asks is given the next clip."""
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
                theirs.close()  # so that the worker's end is the only one
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
    """Gives each worker that asks the next clip, or ``None`` when there is none.

    Results before their turn are in memory. So nobody gets a clip more than ``lead`` behind the
    oldest that is not finished, but whoever has that one: it would not finish it while it waits.
    """

    def __init__(self, numbered: Iterator[tuple[int, Clip]], lead: int) -> None:
        self._remaining = numbered
        self._n_dealt = 0
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
            if self._may_go(other):
                self._asking.remove(other)
                numbered = next(self._remaining, None)
                if numbered is not None:
                    self._n_dealt += 1
                    self._unfinished[numbered[0]] = other
                with contextlib.suppress(OSError):  # it ended: that is noticed where it is heard
                    other.send(numbered)

    def _may_go(self, worker: Connection) -> bool:
        for oldest, owner in self._unfinished.items():
            return owner is worker or self._n_dealt < oldest + self._lead
        return True


def _check_ended(process: BaseProcess, *, has_begun: bool) -> None:
    """Raise unless a worker that hung up had nothing left to do."""
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
    """Processes started meanwhile never see Ctrl-C, nor what ends all processes of a service.

    They end with their parent, which ends as it likes.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # starting it with the first process would let them through
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, transcribe: _Transcribe) -> None:
    """A worker's life: ask for clips, answer with results, ``None`` being the question."""
    multiprocessing.current_process().name = _WORKING
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
