"""Windows in, segments out: several windows in flight, results in order, doubtful ones again.

Knows nothing of files and of how windows are found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from . import greedy, mel, vad
from .clock import Clock
from .contract import Manifest
from .errors import ArkError, DecodeError
from .greedy import Options, Utterance
from .model import Model
from .slots import Slots
from .split import Splitting, Window
from .text import Text, clean
from .transcript import Segment

_CLEAR_SPEECH_SECONDS = 0.5  # so much speech cannot be empty
_SHORTEST_CUT_SECONDS = 2.0  # shorter windows are not cut in two


@dataclass(frozen=True, slots=True)
class Task:
    """A window to transcribe, and the clock of its audio."""

    window: Window
    clock: Clock


@dataclass(frozen=True, slots=True)
class End:
    """An audio has no more windows; comes out after the last of its segments."""

    error: ArkError | None = None  # why, if that is not its end


@dataclass(eq=False, slots=True)
class _Job:
    """What is on its way through the engine, and its result once there is one."""

    task: Task | None
    may_split: bool = True
    forbid_empty: bool = False
    utterance: Utterance | None = None
    result: Segment | ArkError | End | None = None


class Engine:
    """A model with slots for windows of at most ``max_seconds``."""

    def __init__(
        self,
        model: Model,
        manifest: Manifest,
        text: Text,
        options: Options,
        splitting: Splitting,
        n_slots: int,
        max_seconds: float,
    ) -> None:
        self._model, self._manifest, self._text = model, manifest, text
        self._options, self._splitting = options, splitting
        sizes, tokens = manifest.sizes, manifest.tokens
        n_slots = min(n_slots, model.max_slots)
        n_prompt = model.n_prompt(mel.n_frames(round(max_seconds * mel.SAMPLE_RATE)))
        # The last token is not fed back, so it needs no position.
        wanted = n_prompt + options.max_tokens(max_seconds) - 1
        self._positions = max(n_prompt, min(wanted, model.capacity))
        mask = greedy.token_mask(tokens, sizes.n_logits, options.block_from_id)
        self._slots = Slots(model.start(n_slots, self._positions), n_slots, mask)
        self._order: deque[_Job] = deque()  # as the audio goes
        self._again: deque[_Job] = deque()  # to be started first
        self._in_slots: dict[Utterance, _Job] = {}

    def run(self, items: Iterable[Task | End]) -> Iterator[Segment | ArkError | End]:
        """Results in the order of the windows, each as soon as it and those before it are there.

        A window is taken from ``items`` when there is a slot for it. Closing the iterator stops
        after the step in progress.
        """
        try:
            yield from self._run(iter(items))
        finally:
            self._slots.clear()
            self._order.clear()
            self._again.clear()
            self._in_slots.clear()

    def _run(self, items: Iterator[Task | End]) -> Iterator[Segment | ArkError | End]:
        exhausted = False
        while not exhausted or self._order:
            while self._slots.has_room and (self._again or not exhausted):
                if self._again:
                    self._start(self._again.popleft())
                elif (item := next(items, None)) is None:
                    exhausted = True
                elif isinstance(item, End):
                    self._order.append(_Job(None, result=item))
                    if self._slots.n_active:  # audios without windows do not keep others waiting
                        self._step()
                else:
                    self._order.append(_Job(item))
                    self._start(self._order[-1])
                yield from self._finished()
            if self._slots.n_active:
                self._step()
                yield from self._finished()

    def _finished(self) -> Iterator[Segment | ArkError | End]:
        while self._order and (result := self._order[0].result) is not None:
            self._order.popleft()
            yield result

    def _start(self, job: _Job) -> None:
        """From the waveform to the first token."""
        assert job.task is not None
        window, clock = job.task.window, job.task.clock
        tokens, options = self._manifest.tokens, self._options
        try:
            with clock.stage("features"):
                log_mel = mel.log_mel(window.waveform, self._manifest.sizes.n_mels)
            with clock.stage("encode"):
                audio_embeds = self._model.encode(log_mel)
            with clock.stage("prefill"):
                room = self._positions - self._model.n_prompt(log_mel.shape[2]) + 1
                seconds = len(window.waveform) / mel.SAMPLE_RATE
                job.utterance = Utterance(
                    tokens,
                    max(1, min(options.max_tokens(seconds), room)),
                    max_repeats=options.max_repeats,
                    forbid_empty=job.forbid_empty,
                )
                self._slots.add(job.utterance, audio_embeds)
        except ArkError as error:
            job.result = error
            return
        if job.utterance.finish_reason is None:
            self._in_slots[job.utterance] = job
        else:
            self._end(job)

    def _step(self) -> None:
        """One token for all; what it takes is shared by their clocks."""
        jobs = list(self._in_slots.values())
        whole = Clock()
        ended: list[tuple[Utterance, ArkError | None]] = []
        try:
            with whole.stage("decode"):
                ended += self._slots.step()
        except DecodeError as error:  # of the graph: of nobody in particular
            ended += [(utterance, error) for utterance in self._in_slots]
            self._slots.clear()
        for job in jobs:
            assert job.task is not None
            job.task.clock.seconds["decode"] += whole.seconds["decode"] / len(jobs)
        for utterance, error in ended:
            job = self._in_slots.pop(utterance)
            if error is not None:
                job.result = error
            else:
                self._end(job)

    def _end(self, job: _Job) -> None:
        """The text is there: good, or to be tried again in another way."""
        assert job.task is not None and job.utterance is not None
        window, clock = job.task.window, job.task.clock
        segment = self._segment(window, job.utterance)
        if segment.finish_reason in ("length", "loop"):
            long_enough = len(window.waveform) >= _SHORTEST_CUT_SECONDS * mel.SAMPLE_RATE
            if self._options.retry and job.may_split and long_enough:
                parts = [_Job(Task(part, clock), may_split=False) for part in window.halves()]
                self._replace(job, parts)
                return
        elif not segment.text and (job.forbid_empty or self._is_clear_speech(window, clock)):
            if self._options.retry and not job.forbid_empty:
                again = _Job(job.task, may_split=job.may_split, forbid_empty=True)
                self._replace(job, [again])
                return
            segment = replace(segment, finish_reason="empty")
        job.result = segment

    def _replace(self, job: _Job, others: list[_Job]) -> None:
        at = self._order.index(job)
        del self._order[at]
        for i, other in enumerate(others):
            self._order.insert(at + i, other)
        self._again.extend(others)

    def _is_clear_speech(self, window: Window, clock: Clock) -> bool:
        if window.spans is not None:
            return window.speech_seconds >= _CLEAR_SPEECH_SECONDS
        detector = (self._splitting.vad or vad.silero)()
        with clock.stage("split"):
            found = vad.speech_seconds(window.waveform, detector, self._splitting.threshold)
        return found >= _CLEAR_SPEECH_SECONDS

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
