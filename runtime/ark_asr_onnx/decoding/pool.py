"""One thread that decodes for everybody.

It admits a window of one line after the other while there are slots. An admission, from the
waveform to the first token, takes as long as many steps, and whoever is in the middle of a text
should not wait for several of them: after each, all slots go on until one is free or a share of
its time has gone. Without lines the thread sleeps, and the model may be let go of.

Nothing here knows of files and of how windows are found.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ..arrays import F32
from ..audio import mel, vad
from ..audio.split import Splitting, Window
from ..errors import ArkError, ClosedError, DecodeError, QueueFullError
from ..model.resident import Resident
from ..model.seam import Model
from ..package.contract import Manifest
from ..package.text import Text, clean
from ..transcript import Segment
from . import greedy
from .clock import Clock
from .greedy import Options, Utterance
from .line import Line, Place, Task
from .slots import Slots

DEFAULT_SLOTS = 8
_SHARE = 0.1  # of the time of an admission, for which the slots go on before the next
_CLEAR_SPEECH_SECONDS = 0.5  # so much speech cannot be empty
_LAST_SECONDS = 2.0  # that a reader may take to notice the end of the interpreter
_SHORTEST_CUT_SECONDS = 2.0  # shorter windows are not cut in two


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
        self._audio_seconds = self._busy_seconds = 0.0  # admitted so far, and what all took
        self.is_closed = False
        self._lines: deque[Line] = deque()
        self._begin()
        _POOLS.add(self)

    def __del__(self) -> None:
        with self._changed:
            self._changed.notify_all()  # its thread sees that it is gone

    def _begin(self) -> None:
        """No thread, and a lock that nobody holds."""
        self._changed = threading.Condition(threading.RLock())
        self.computing = threading.Lock()  # held during an admission or a step
        self._thread: threading.Thread | None = None

    def open(
        self,
        options: Options,
        splitting: Splitting,
        limit: int,
        seconds_of: Callable[[], float] = float,
    ) -> Line:
        """A line for some seconds of audio, which are asked for where the queue has bounds.

        Raises :class:`ClosedError` after :meth:`close`, and :class:`QueueFullError`.
        """
        longest = splitting.longest(self._manifest.sizes.max_seconds)
        has_bounds = self._max_waiting is not None or self._max_waiting_seconds is not None
        seconds = seconds_of() if has_bounds else 0.0
        line = Line(self._changed, options, splitting, limit, longest, seconds)
        with self._changed:
            if self.is_closed:
                raise ClosedError("this transcriber was closed; load the model again")
            self._check_queue()
            self._lines.append(line)
            if self._thread is None:
                arguments = weakref.ref(self), self._changed
                self._thread = threading.Thread(
                    target=_serve, args=arguments, name="ark-asr", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()
        return line

    def n_before(self, line: Line) -> int:
        """How many lines that had no slot yet came before one that had none either."""
        with self._changed:
            n_before = sum(other.number < line.number for other in self._lines if other.is_queued)
            return n_before if line.is_queued else 0

    def _check_queue(self) -> None:
        """Refuse more work than may wait."""
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
        with self._changed:
            self.is_closed, thread = True, self._thread
            for line in self._lines:
                line.cancel(ClosedError("the transcriber was closed while this was in work"))
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def after_fork(self) -> None:
        """In a child, where the thread does not run and the lock may be held for ever."""
        lines, self._lines = self._lines, deque()
        self._resident.after_fork()
        self._begin()
        for line in lines:
            line.lose(self._changed, DecodeError("this was begun before the process was forked"))

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in work."""
        return not self._lines

    def serve(self) -> None:
        """Work until there is no line."""
        try:
            with self._resident.use() as model:
                decoder = _Decoder(model, self._manifest, self._text)
                while self._turn(decoder):
                    pass
        except Exception as error:
            with self._changed:
                for line in self._lines:
                    line.n_active = 0
                    line.cancel(error)
                self._lines.clear()

    def _turn(self, decoder: _Decoder) -> bool:
        """An admission or a step; False when there is no line left."""
        with self._changed:
            while True:
                decoder.leave(line for line in self._lines if line.is_cancelled)
                self._lines = deque(line for line in self._lines if not line.is_over)
                place = self._next(decoder)
                if place or decoder.n_active:
                    break
                if not self._lines:
                    return False
                self._changed.wait()
        begin = time.perf_counter()
        with self.computing:
            if place:
                assert place.task is not None
                self._audio_seconds += place.task.window.seconds
                decoder.admit(place)
            else:
                decoder.step()
        self._busy_seconds += time.perf_counter() - begin
        return True

    def _next(self, decoder: _Decoder) -> Place | None:
        """The window to be admitted now: lines take turns."""
        if not decoder.may_admit:
            return None
        for _ in range(len(self._lines)):
            line = self._lines[0]
            if line.waiting and line.n_active < line.limit:
                if not decoder.has_room(line.waiting[0], self._lines):
                    return None  # first all slots must be free: nobody overtakes
                self._lines.rotate(-1)
                line.n_active += 1
                line.was_admitted = True
                place = line.waiting.popleft()
                line.notify()
                return place
            self._lines.rotate(-1)
        return None


class _Decoder:
    """Slots of a model, and whose windows are in them. For one thread."""

    def __init__(self, model: Model, manifest: Manifest, text: Text) -> None:
        self._model, self._manifest, self._text = model, manifest, text
        self._slots: Slots | None = None
        self._n_slots = self._positions = 0
        self._in_slots: dict[Utterance, Place] = {}
        self._masks: dict[int | None, F32] = {}
        self._owed = 0.0  # seconds of steps that are due before the next admission

    @property
    def n_active(self) -> int:
        """Windows in slots."""
        return len(self._in_slots)

    @property
    def may_admit(self) -> bool:
        """Whether a window may be admitted, if there is room for it."""
        return not self.n_active or (self.n_active < self._n_slots and self._owed <= 0)

    def has_room(self, place: Place, lines: Sequence[Line]) -> bool:
        """Whether a slot can hold a window, or there will be new ones when it is admitted."""
        assert place.task is not None
        if len(lines) == 1 and place.task.window.is_whole:  # no more than it needs
            n_slots = 1
            positions = self._needed(place.line.options, place.task.window.seconds)
        else:
            limits = [line.limit for line in lines]
            n_slots = min(sum(limits), max(DEFAULT_SLOTS, *limits), self._model.max_slots)
            positions = max(self._needed(line.options, line.longest) for line in lines)
        if n_slots <= self._n_slots and positions <= self._positions:
            return True
        if self.n_active:
            return False
        self._n_slots, self._positions, self._slots = n_slots, positions, None
        return True

    def _needed(self, options: Options, seconds: float) -> int:
        """Positions for prompt and text; the last token is not fed back."""
        n_prompt = self._model.n_prompt(mel.n_frames(round(seconds * mel.SAMPLE_RATE)))
        wanted = n_prompt + options.max_tokens(seconds) - 1
        return max(n_prompt, min(wanted, self._model.capacity))

    def admit(self, place: Place) -> None:
        """From the waveform to the first token."""
        assert place.task is not None
        window, clock, options = place.task.window, place.task.clock, place.line.options
        begin = time.perf_counter()
        try:
            if self._slots is None:
                self._slots = Slots(self._model.start(self._n_slots, self._positions))
            with clock.stage("features"):
                log_mel = mel.log_mel(window.waveform, self._manifest.sizes.n_mels)
            with clock.stage("encode"):
                audio_embeds = self._model.encode(log_mel)
            with clock.stage("prefill"):
                room = self._positions - self._model.n_prompt(log_mel.shape[2]) + 1
                place.utterance = Utterance(
                    self._manifest.tokens,
                    self._mask(options),
                    max(1, min(options.max_tokens(window.seconds), room)),
                    max_repeats=options.max_repeats,
                    forbid_empty=place.forbid_empty,
                )
                self._slots.add(place.utterance, audio_embeds)
        except Exception as error:
            place.line.finish(place, _told(error))
            return
        self._owed = _SHARE * (time.perf_counter() - begin)
        if place.utterance.finish_reason is None:
            self._in_slots[place.utterance] = place
        else:
            self._end(place)

    def step(self) -> None:
        """One token for all; what it takes is shared by their clocks."""
        assert self._slots is not None
        places, whole = list(self._in_slots.values()), Clock()
        ended: list[tuple[Utterance, ArkError | None]] = []
        try:
            with whole.stage("decode"):
                ended += self._slots.step()
        except Exception as error:
            ended += [(utterance, _told(error)) for utterance in self._in_slots]
            self._slots.clear()
        self._owed = 0.0 if ended else self._owed - whole.seconds["decode"]
        for place in places:
            assert place.task is not None
            place.task.clock.seconds["decode"] += whole.seconds["decode"] / len(places)
        for utterance, error in ended:
            place = self._in_slots.pop(utterance)
            if error is not None:
                place.line.finish(place, error)
            else:
                self._end(place)

    def leave(self, lines: Iterable[Line]) -> None:
        """Free the slots of lines that were cancelled; under the lock."""
        cancelled = set(lines)
        gone = [u for u, place in self._in_slots.items() if place.line in cancelled]
        for utterance in gone:
            assert self._slots is not None
            self._slots.remove(utterance)
            self._in_slots.pop(utterance).line.n_active -= 1

    def _end(self, place: Place) -> None:
        """The text is there: good, or to be tried again in another way."""
        assert place.task is not None and place.utterance is not None
        line, window, clock = place.line, place.task.window, place.task.clock
        segment = self._segment(window, place.utterance)
        if segment.finish_reason in ("length", "loop"):
            if line.options.retry and place.may_split and window.seconds >= _SHORTEST_CUT_SECONDS:
                tasks = [Task(part, clock) for part in window.halves()]
                line.again(place, [Place(line, task, may_split=False) for task in tasks])
                return
        elif not segment.text and (place.forbid_empty or _is_clear_speech(place)):
            if line.options.retry and not place.forbid_empty:
                again = Place(line, place.task, may_split=place.may_split, forbid_empty=True)
                line.again(place, [again])
                return
            segment = replace(segment, finish_reason="empty")
        line.finish(place, segment)

    def _segment(self, window: Window, utterance: Utterance) -> Segment:
        assert utterance.finish_reason is not None
        ids = tuple(utterance.ids)
        # However end of turn is spelled, it is no part of the text.
        spoken = ids[:-1] if utterance.finish_reason == "stop" else ids[: utterance.n_kept]
        return Segment(
            start=window.start,
            end=window.end,
            text=clean(self._text.decode(spoken)),
            raw_text=self._text.decode(ids),
            token_ids=ids,
            logprobs=tuple(utterance.logprobs),
            finish_reason=utterance.finish_reason,
            speech_seconds=window.speech_seconds,
        )

    def _mask(self, options: Options) -> F32:
        """The mask of ids that may be chosen, made once for each value."""
        sizes, tokens = self._manifest.sizes, self._manifest.tokens
        if options.block_from_id not in self._masks:
            self._masks[options.block_from_id] = greedy.token_mask(
                tokens, sizes.n_logits, options.block_from_id
            )
        return self._masks[options.block_from_id]


def _serve(of: weakref.ref[Pool], changed: threading.Condition) -> None:
    """The thread of a pool, which it does not keep alive while it sleeps."""
    while (pool := of()) is not None and not pool.is_closed:
        if not pool.is_idle:
            pool.serve()
        del pool
        with changed:
            while (pool := of()) is not None and pool.is_idle and not pool.is_closed:
                del pool
                changed.wait()


def check_slots(slots: int) -> None:
    """``ValueError`` for a number of slots that cannot be."""
    if slots < 1:
        raise ValueError(f"slots is {slots}, must be at least 1")


def _is_clear_speech(place: Place) -> bool:
    assert place.task is not None
    window, splitting = place.task.window, place.line.splitting
    if window.spans is not None:
        return window.speech_seconds >= _CLEAR_SPEECH_SECONDS
    detector = (splitting.vad or vad.silero)()
    with place.task.clock.stage("split"):
        found = vad.speech_seconds(window.waveform, detector, splitting.threshold)
    return found >= _CLEAR_SPEECH_SECONDS


def _told(error: Exception) -> ArkError:
    """An error as one that callers expect."""
    if isinstance(error, ArkError):
        return error
    found = DecodeError(f"the model could not go on ({type(error).__name__}: {error})")
    found.__cause__ = error
    return found


def _close_all() -> None:
    """At the end of the interpreter, which must not end threads in the middle of foreign code."""
    for pool in list(_POOLS):
        pool.close()
    until = time.monotonic() + _LAST_SECONDS
    for reader in list(READERS):
        reader.join(max(0.0, until - time.monotonic()))


def _before_fork() -> None:
    """Wait for computations: the libraries for them do not survive a fork in their middle."""
    _FORKING.extend(_POOLS)
    for pool in _FORKING:
        pool.computing.acquire()


def _after_fork_in_parent() -> None:
    while _FORKING:
        _FORKING.pop().computing.release()


def _after_fork_in_child() -> None:
    while _FORKING:
        _FORKING.pop().after_fork()


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()
_FORKING: list[Pool] = []
READERS: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # that put into lines
atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
