"""Decodes windows together: each step appends a token to all of them.

A slot whose text has ended goes to the next window at once. Only slots with windows are computed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ..arrays import F32
from ..audio import mel, vad
from ..errors import ArkError, DecodeError
from ..model.seam import Decoding, Model
from ..package.contract import Manifest
from ..package.text import Text, clean
from ..transcript import Segment, Word
from . import greedy, words
from .greedy import Options, Rules, Utterance
from .line import Line, Place, Task
from .second_look import HotwordUtterance

DEFAULT_SLOTS = 8
_SHARE = 0.1  # share of an admission's time that steps get before the next admission
_CLEAR_SPEECH_SECONDS = 0.5  # the text of this much speech cannot be empty
_SHORTEST_CUT_SECONDS = 2.0  # shorter windows are not cut in two


class Slots:
    """Slots of a model; the first ``n_active`` hold windows. For one thread at a time.

    An admission, from the waveform to the first token, takes as long as many steps. A line in the
    middle of a text should not wait for several admissions of others: after each one, all slots
    step until one is free or a share of its time has passed. A line that is alone fills its slots
    first.
    """

    def __init__(self, model: Model, manifest: Manifest, text: Text) -> None:
        self._model, self._manifest, self._text = model, manifest, text
        self._decoding: Decoding | None = None
        self._n_slots = self._positions = 0
        self._active: list[Place] = []
        self._masks: dict[int | None, F32] = {}
        self._owed = 0.0  # seconds of steps that are due before the next admission

    @property
    def n_active(self) -> int:
        """Number of windows in slots."""
        return len(self._active)

    def may_admit(self, lines: Sequence[Line]) -> bool:
        """Whether a window may be admitted, if there is room for it."""
        is_due = self._owed <= 0 or len(lines) == 1
        return not self._active or (self.n_active < self._n_slots and is_due)

    def has_room(self, place: Place, lines: Sequence[Line]) -> bool:
        """Whether the slots can hold a window, or none are active so that new ones can be made."""
        if len(lines) == 1 and place.line.is_last(place):  # one slot is enough
            n_slots = 1
            positions = self._needed(place.line.options, place.task.window.seconds)
        else:
            limits = [line.limit for line in lines]
            n_slots = min(sum(limits), max(DEFAULT_SLOTS, *limits), self._model.max_slots)
            positions = max(self._needed(line.options, line.longest) for line in lines)
        if n_slots <= self._n_slots and positions <= self._positions:
            return True
        if self._active:
            return False
        self._n_slots, self._positions, self._decoding = n_slots, positions, None
        return True

    def _needed(self, options: Options, seconds: float) -> int:
        """Positions for the prompt and the text; the last token is not fed back."""
        n_prompt = self._model.n_prompt(mel.n_frames(round(seconds * mel.SAMPLE_RATE)))
        wanted = n_prompt + options.max_tokens(seconds) - 1
        return max(n_prompt, min(wanted, self._model.capacity))

    def admit(self, place: Place) -> None:
        """Give a window a slot: log-mel, encoder, prefill, first token."""
        begin = time.perf_counter()
        try:
            self._start(place)
        except Exception as error:
            place.line.finish(place, _told(error))
            return
        self._owed = _SHARE * (time.perf_counter() - begin)
        if place.utterance.finish_reason is None:
            self._active.append(place)
        elif error := self._look(place, self.n_active):
            place.line.finish(place, error)
        else:
            self._end(place)

    def _start(self, place: Place) -> None:
        window, clock, options = place.task.window, place.task.clock, place.line.options
        if self._decoding is None:
            self._decoding = self._model.start(self._n_slots, self._positions)
        with clock.stage("features"):
            log_mel = mel.log_mel(window.waveform, self._manifest.sizes.n_mels)
        with clock.stage("encode"):
            audio_embeds = self._model.encode(log_mel)
            place.n_audio = audio_embeds.shape[1]
        with clock.stage("prefill"):
            room = self._positions - self._model.n_prompt(log_mel.shape[2]) + 1
            n_tokens = max(1, min(options.max_tokens(window.seconds), room))
            place.utterance = self._utterance(place, n_tokens)
            place.utterance.choose(self._decoding.prefill(self.n_active, audio_embeds))

    def _utterance(self, place: Place, max_new_tokens: int) -> Utterance:
        options, hotwords = place.line.options, place.line.hotwords
        rules = Rules(
            self._manifest.tokens,
            self._mask(options),
            max_new_tokens,
            options.max_repeats,
            place.forbid_empty,
        )
        if hotwords is None:
            return Utterance(rules)
        return HotwordUtterance(rules, hotwords, options.hotword_strength)

    def step(self) -> None:
        """Append a token to all windows; their clocks share the time equally."""
        assert self._decoding is not None
        places, begin = list(self._active), time.perf_counter()
        try:
            for slot, place in enumerate(places):
                if n_back := place.utterance.n_back:
                    self._decoding.rewind(slot, n_back)
            logits = self._decoding.step(np.array([place.utterance.next_id for place in places]))
        except Exception as error:  # the graph failed, so every active window fails
            errors = dict.fromkeys(places, _told(error))
            self._active, self._decoding = [], None
        else:
            chosen = zip(places, map(_choose, places, logits), strict=True)
            errors = {place: error for place, error in chosen if error is not None}
        seconds = time.perf_counter() - begin
        ended = [place for place in places if place in errors or place.utterance.finish_reason]
        self._owed = 0.0 if ended else self._owed - seconds
        for place in places:
            place.task.clock.seconds["decode"] += seconds / len(places)
        for place in reversed(ended):
            if place not in errors and (error := self._look(place, self._active.index(place))):
                errors[place] = error
            self._free(place)
            if place in errors:
                place.line.finish(place, errors[place])
            else:
                self._end(place)

    def _look(self, place: Place, slot: int) -> ArkError | None:
        """Get the attention of a text's tokens before its slot is reused; returns an error."""
        if not place.line.options.words or not (ids := _spoken(place.utterance)):
            return None
        assert self._decoding is not None
        try:
            with place.task.clock.stage("words"):
                place.attention = self._decoding.align(slot, np.array(ids), place.n_audio)
        except Exception as error:
            return _told(error)
        return None

    def leave(self, lines: Iterable[Line]) -> None:
        """Free the slots of cancelled lines; call it with the lock held."""
        cancelled = set(lines)
        for place in [place for place in self._active if place.line in cancelled]:
            self._free(place)
            place.line.n_active -= 1

    def _free(self, place: Place) -> None:
        """Free a window's slot, and move the last active window into it."""
        if place not in self._active:
            return
        slot, last = self._active.index(place), self._active.pop()
        if last is not place:
            assert self._decoding is not None
            self._decoding.move(self.n_active, slot)
            self._active[slot] = last

    def _end(self, place: Place) -> None:
        """Handle a finished text: deliver it, or retry its window."""
        line, window, clock = place.line, place.task.window, place.task.clock
        segment = self._segment(place)
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

    def _segment(self, place: Place) -> Segment:
        window, utterance = place.task.window, place.utterance
        assert utterance.finish_reason is not None
        ids = tuple(utterance.ids)
        spoken = _spoken(utterance)
        text = clean(self._text.decode(spoken))
        found: tuple[Word, ...] = ()
        if place.attention is not None:
            with place.task.clock.stage("words"):
                tokens = [self._text.token_bytes([i]) for i in spoken]
                written = words.Written(text, tokens, utterance.logprobs)
                found = words.timed(written, place.attention, window.waveform, window.begin)
        return Segment(
            start=found[0].start if found else window.start,
            end=found[-1].end if found else window.end,
            text=text,
            raw_text=self._text.decode(ids),
            token_ids=ids,
            logprobs=tuple(utterance.logprobs),
            finish_reason=utterance.finish_reason,
            speech_seconds=window.speech_seconds,
            audio_tokens=place.n_audio,
            words=found,
        )

    def _mask(self, options: Options) -> F32:
        """The mask of :func:`token_mask`, made once for each value of ``block_from_id``."""
        sizes, tokens = self._manifest.sizes, self._manifest.tokens
        if options.block_from_id not in self._masks:
            self._masks[options.block_from_id] = greedy.token_mask(
                tokens, sizes.n_logits, options.block_from_id
            )
        return self._masks[options.block_from_id]


def _spoken(utterance: Utterance) -> list[int]:
    """The ids of the text, without end of turn."""
    is_whole = utterance.finish_reason == "stop"
    return utterance.ids[:-1] if is_whole else utterance.ids[: utterance.n_kept]


def _choose(place: Place, logits: F32) -> ArkError | None:
    """Choose the next token of one window; returns its error, which others need not share."""
    try:
        place.utterance.choose(logits)
    except DecodeError as error:
        return error
    return None


def _is_clear_speech(place: Place) -> bool:
    window, splitting = place.task.window, place.line.splitting
    if window.spans is not None:
        return window.speech_seconds >= _CLEAR_SPEECH_SECONDS
    detector = (splitting.vad or vad.silero)()
    with place.task.clock.stage("split"):
        found = vad.speech_seconds(window.waveform, detector, splitting.threshold)
    return found >= _CLEAR_SPEECH_SECONDS


def _told(error: Exception) -> ArkError:
    """An error as an :class:`ArkError`."""
    if isinstance(error, ArkError):
        return error
    found = DecodeError(f"the model could not go on ({type(error).__name__}: {error})")
    found.__cause__ = error
    return found
