"""Splits audio of any length into windows, each for one pass of the model.

Speech that no pause interrupts makes one window, up to the longest one allowed; the longer a window
is, the shorter is the pause that ends it. Speech without a pause is cut at its quietest point. The
audio comes in blocks of any size and is dropped as soon as its window is complete, so memory does
not grow with the length of the audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .. import values
from ..arrays import F32
from . import level, vad
from .mel import MIN_SAMPLES, SAMPLE_RATE
from .vad import CHUNK, Detector

_HYSTERESIS = 0.15  # speech ends this far below the threshold, but not below half of it
_MIN_GAP = round(0.1 * SAMPLE_RATE)  # a shorter silence does not end speech
_FREE = 0.2  # share of the longest window; in a longer one, ever shorter pauses end it
_QUIET = round(0.1 * SAMPLE_RATE)  # how long a quiet point must be
_LONG_END = 1 * SAMPLE_RATE  # silence before or after the speech of a short audio
_SILENT = 1e-3  # share of the highest energy, 30 dB below it
_DEFAULT_WINDOW_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Splitting:
    """How audio is split into windows. Override with ``dataclasses.replace``."""

    window_seconds: float | None = None  # longest window; None: 15 s, or the model's if less
    # Makes a speech detector for one audio; None: windows follow each other without a gap.
    vad: Callable[[], Detector] | None = vad.silero
    split_short: bool = False  # also split audio that fits into one window
    threshold: float = 0.5  # of the probability of speech
    pause_seconds: float = 0.7  # silence that ends a window; less ends a long window
    min_speech_seconds: float = 0.1  # a shorter sound is not speech
    pad_seconds: float = 0.2  # of audio kept on both sides of speech

    def __post_init__(self) -> None:
        window = self.window_seconds
        if window is not None and values.positive("window_seconds", window) < 1:
            raise ValueError(f"window_seconds is {window!r}, must be at least 1")
        if values.positive("threshold", self.threshold) >= 1:
            raise ValueError(f"threshold is {self.threshold!r}, must be between 0 and 1")
        for name in ("pause_seconds", "min_speech_seconds", "pad_seconds"):
            values.seconds(name, getattr(self, name))

    def longest(self, max_seconds: float) -> float:
        """Seconds of the longest window for a model that takes ``max_seconds`` in one pass.

        Raises ``ValueError`` if ``window_seconds`` is longer than that.
        """
        if self.window_seconds is None:
            return min(_DEFAULT_WINDOW_SECONDS, max_seconds)
        if self.window_seconds > max_seconds:
            raise ValueError(
                f"window_seconds is {self.window_seconds:g}, this model hears at most "
                f"{max_seconds:g} s at once"
            )
        return self.window_seconds


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the audio for one pass. Times are seconds from the beginning of the audio."""

    waveform: F32  # [n], 16 kHz, with the audio kept around the speech
    begin: float  # of the waveform
    start: float  # of the first speech
    end: float  # of the last speech
    spans: tuple[tuple[float, float], ...] | None = None  # of speech; None: no detector was run

    @property
    def seconds(self) -> float:
        """Seconds of the waveform."""
        return len(self.waveform) / SAMPLE_RATE

    @property
    def speech_seconds(self) -> float:
        """Seconds of speech; from start to end if the detector was not run."""
        if self.spans is None:
            return self.end - self.start
        return sum(end - start for start, end in self.spans)

    def halves(self) -> tuple[Window, Window]:
        """The window cut in two, at the quietest point of its middle half."""
        n = len(self.waveform)
        at = quietest(self.waveform, n // 4, 3 * n // 4)
        cut = min(max(self.begin + at / SAMPLE_RATE, self.start), self.end)

        def part(waveform: F32, begin: float, start: float, end: float) -> Window:
            spans = self.spans and tuple(
                (max(start, a), min(end, b)) for a, b in self.spans if a < end and b > start
            )
            return Window(waveform, begin, start, end, spans)

        return (
            part(self.waveform[:at], self.begin, self.start, cut),
            part(self.waveform[at:], self.begin + at / SAMPLE_RATE, cut, self.end),
        )


def windows(
    blocks: Iterable[F32], splitting: Splitting, max_seconds: float, offset: float = 0.0
) -> Iterator[Window]:
    """Windows of an audio that comes in blocks ``[n]``, lazily and in order.

    ``offset`` is the time of the first sample in seconds. Audio that fits into one window becomes
    one window, without long silence at its ends, unless ``split_short``. Raises ``ValueError`` for
    windows longer than ``max_seconds``.
    """
    longest = round(splitting.longest(max_seconds) * SAMPLE_RATE)
    blocks = iter(blocks)
    first: list[F32] = []
    if not splitting.split_short:
        for block in blocks:
            first.append(block)
            if sum(map(len, first)) > longest:
                break
        else:
            if first:
                yield _only(np.concatenate(first), splitting, offset)
            return
    splitter = Splitter(splitting, max_seconds, offset)
    while first:
        yield from splitter.push(first.pop(0))
    for block in blocks:
        yield from splitter.push(block)
    yield from splitter.flush()


def _only(waveform: F32, splitting: Splitting, offset: float) -> Window:
    """A short audio as one window: whole, or only its speech if long silence is around that.

    If no speech was found or looked for, its times are those of the first and the last loud sound.
    """
    n, loud = len(waveform), _loud(waveform)
    has_long_ends = max(loud[0], n - loud[1]) >= _LONG_END
    found = None
    if splitting.vad is not None and (has_long_ends or level.is_soft(waveform)):
        found = vad.first_and_last(waveform, splitting.vad(), splitting.threshold)
    start, end = (offset + at / SAMPLE_RATE for at in found or loud)
    if found is None:
        return Window(level.centred(waveform), offset, start, end)
    pad = round(splitting.pad_seconds * SAMPLE_RATE) if has_long_ends else n
    first, last = max(0, found[0] - pad), min(n, found[1] + pad)
    part = level.levelled(waveform[first:last])
    return Window(part, offset + first / SAMPLE_RATE, start, end, ((start, end),))


def _loud(waveform: F32) -> tuple[int, int]:
    """Begin and end of the loud part, in samples; of the whole waveform if none is loud."""
    # The rest after the last whole chunk is added to that chunk.
    borders = np.append(np.arange(max(1, len(waveform) // CHUNK)) * CHUNK, len(waveform))
    energy = np.add.reduceat(np.square(level.centred(waveform)), borders[:-1]) / np.diff(borders)
    loud = np.flatnonzero(energy > _SILENT * energy.max())
    if not len(loud):
        return 0, len(waveform)
    return int(borders[loud[0]]), int(borders[loud[-1] + 1])


class Splitter:
    """Takes blocks and gives windows, as soon as they are complete."""

    def __init__(self, splitting: Splitting, max_seconds: float, offset: float = 0.0) -> None:
        self._longest = round(splitting.longest(max_seconds) * SAMPLE_RATE)
        self._pad = min(round(splitting.pad_seconds * SAMPLE_RATE), self._longest // 8)
        self._pause = max(round(splitting.pause_seconds * SAMPLE_RATE), _MIN_GAP)
        self._min_speech = round(splitting.min_speech_seconds * SAMPLE_RATE)
        self._threshold, self._offset = splitting.threshold, offset
        self._silence = max(splitting.threshold - _HYSTERESIS, splitting.threshold / 2)
        self._detector = splitting.vad() if splitting.vad else None
        self._ear = level.Ear()
        # All positions are in samples, from the first sample of the audio.
        self._kept = np.empty(0, np.float32)  # samples that may still be part of a window
        self._base = 0  # where they begin
        self._seen = 0  # how far the detector has run
        self._floor = 0  # where the next window may begin
        self._spans: list[tuple[int, int]] = []  # speech of the open window
        self._speech_from: int | None = None  # where the current speech began
        self._quiet_from: int | None = None  # where that speech may have ended

    def push(self, block: F32) -> list[Window]:
        """Windows that this block ``[n]`` completes."""
        self._kept = np.concatenate((self._kept, block))
        found: list[Window] = []
        while self._seen + CHUNK <= self._base + len(self._kept):
            found += self._chunk(self._part(self._seen, self._seen + CHUNK))
        self._forget()
        return found

    def flush(self) -> list[Window]:
        """The last window, if there is one."""
        end = self._base + len(self._kept)
        found: list[Window] = []
        if rest := end - self._seen:
            found += self._chunk(np.pad(self._part(self._seen, end), (0, CHUNK - rest)))
        if self._speech_from is not None:
            self._close_span(min(self._quiet_from or end, end))
        if self._spans:
            found.append(self._window(end + self._pad))
        self._kept, self._base = np.empty(0, np.float32), end
        return found

    def open_window(self) -> Window | None:
        """The window that is not yet complete, as far as it is known; changes nothing."""
        spans = list(self._spans)
        if self._speech_from is not None:
            spans.append((self._speech_from, self._seen))
        return self._cut(spans, self._seen) if spans else None

    def _chunk(self, chunk: F32) -> list[Window]:
        """Run the detector on the next chunk; gives the windows that it completes."""
        begin, end = self._seen, self._seen + CHUNK
        self._seen = end
        probability = self._detector(self._ear(chunk)) if self._detector else 1.0
        found: list[Window] = []
        if self._speech_from is None:
            if probability >= self._threshold:
                self._speech_from, self._quiet_from = begin, None
            elif self._spans and end - self._spans[-1][1] >= self._pause_after(end):
                found.append(self._window(end))
        elif probability >= self._threshold:
            self._quiet_from = None
        elif probability < self._silence:
            self._quiet_from = begin if self._quiet_from is None else self._quiet_from
            if end - self._quiet_from >= _MIN_GAP:
                self._close_span(self._quiet_from)
        if self._speech_from is not None:
            found += self._too_long(end)
        return found

    def _pause_after(self, end: int) -> float:
        """Samples of silence that end the open window: the longer the window, the fewer."""
        length = (end - self._spans[0][0]) / self._longest
        share = min(max((length - _FREE) / (1 - _FREE), 0.0), 1.0)
        return self._pause + share * (_MIN_GAP - self._pause)

    def _too_long(self, end: int) -> list[Window]:
        """Close the window before the current speech, or cut that, once all would be too long."""
        assert self._speech_from is not None
        first = self._spans[0][0] if self._spans else self._speech_from
        if end + self._pad - max(first - self._pad, self._floor) <= self._longest:
            return []
        if self._spans:
            return [self._window(self._speech_from), *self._too_long(end)]
        at = self._speech_from + quietest(
            self._part(self._speech_from, end), self._longest // 2, end - self._speech_from
        )
        self._spans = [(self._speech_from, at)]
        self._speech_from = at
        return [self._window(at)]

    def _close_span(self, end: int) -> None:
        assert self._speech_from is not None
        is_rest = self._speech_from == self._floor and self._floor > 0  # after a cut
        if end > self._speech_from and (is_rest or end - self._speech_from >= self._min_speech):
            self._spans.append((self._speech_from, end))
        self._speech_from = self._quiet_from = None

    def _window(self, before: int) -> Window:
        """Close the open window, which ends at ``before`` at the latest."""
        window = self._cut(self._spans, before)
        self._floor = round((window.begin - self._offset) * SAMPLE_RATE) + len(window.waveform)
        self._spans = []
        return window

    def _cut(self, spans: list[tuple[int, int]], before: int) -> Window:
        start, end = spans[0][0], spans[-1][1]
        begin = max(start - self._pad, self._floor)
        waveform = self._part(begin, min(end + self._pad, (end + before + 1) // 2))
        if len(waveform) < MIN_SAMPLES:
            waveform = np.pad(waveform, (0, MIN_SAMPLES - len(waveform)))
        at = [(self._time(a), self._time(b)) for a, b in spans]
        heard = level.levelled(waveform) if self._detector else level.centred(waveform)
        return Window(
            heard.copy(), self._time(begin), at[0][0], at[-1][1],
            tuple(at) if self._detector else None,
        )  # fmt: skip

    def _part(self, begin: int, end: int) -> F32:
        return self._kept[begin - self._base : end - self._base]

    def _forget(self) -> None:
        """Drop samples that no later window can contain."""
        first = self._spans[0][0] if self._spans else self._speech_from
        needed = max(self._floor, (self._seen if first is None else first) - self._pad)
        if needed > self._base:
            self._kept = self._kept[needed - self._base :]
            self._base = needed

    def _time(self, position: int) -> float:
        return self._offset + position / SAMPLE_RATE


def quietest(waveform: F32, first: int, last: int) -> int:
    """Middle of the 100 ms with the least energy, between two positions."""
    part = waveform[first:last].astype(np.float64)
    width = min(_QUIET, len(part))
    if width == 0:
        return first
    sums = np.concatenate(([0.0], np.cumsum(np.square(part))))
    return first + int((sums[width:] - sums[:-width]).argmin()) + width // 2
