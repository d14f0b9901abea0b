"""Prepares a clip for the model: opens it, counts its samples, and cuts it into windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from .. import values
from ..arrays import F32
from ..audio import level, mel, sources, split
from ..audio.sources import AudioSource
from ..audio.split import Splitting, Window
from ..errors import ArkError, AudioTooLongError, EmptyAudioError
from ..transcript import AudioWarning
from .clock import Clock
from .line import End, Line, Task

_LOUD = 0.05  # peak of audio without a text that deserves a warning


@dataclass(frozen=True, slots=True)
class Clip:
    """Audio to transcribe, whole or in part; see :meth:`Transcriber.transcribe`."""

    source: AudioSource
    sample_rate: int | None = None
    begin_seconds: float | None = None
    end_seconds: float | None = None


class Take:
    """A clip that is being read: its windows, and how much of it was read."""

    def __init__(
        self,
        clip: Clip,
        splitting: Splitting,
        model_seconds: float,
        max_seconds: float | None = None,
    ) -> None:
        if max_seconds is not None:
            values.positive("max_seconds", max_seconds)
        splitting.longest(model_seconds)  # raises now, not when the first window is read
        self.clip, self.splitting, self.model_seconds = clip, splitting, model_seconds
        self.clock, self.decoding = Clock(), Clock()  # of the reader, and of the pool
        self.seconds = 0.0  # of audio read
        self._warnings: list[AudioWarning] = []
        self._loudest = 0.0
        self._is_read = False
        self._max_seconds = max_seconds

    def expected_seconds(self) -> float:
        """Seconds of audio by the header; 0 if it states none."""
        clip = self.clip
        whole = sources.duration(clip.source, clip.sample_rate) or 0.0
        end = min(whole, math.inf if clip.end_seconds is None else clip.end_seconds)
        return max(0.0, end - (clip.begin_seconds or 0.0))

    def windows(self, is_unwanted: Callable[[], bool] = bool) -> Iterator[Window]:
        """The audio's windows; errors are raised when they are read, not here.

        Reading ends once ``is_unwanted()`` is true.
        """
        clip = self.clip
        if self._max_seconds is not None:  # before any work, if a header states it
            self._check_duration(self.expected_seconds())
        blocks = sources.blocks(
            clip.source,
            clip.sample_rate,
            begin_seconds=clip.begin_seconds,
            end_seconds=clip.end_seconds,
            on_warning=self._warnings.append,
        )
        counted = self._counted(self.clock.each("read", blocks), is_unwanted)
        offset = clip.begin_seconds or 0.0
        found = split.windows(counted, self.splitting, self.model_seconds, offset)
        for window in self.clock.each("split", found):
            if len(window.waveform) < mel.MIN_SAMPLES:
                raise too_short(sources.describe(clip.source), len(window.waveform))
            yield window
        self._is_read = True

    def warnings(self, text: str) -> tuple[AudioWarning, ...]:
        """Warnings about faults of the audio that may cost words; ``text`` is its transcript."""
        if text or not self._is_read:
            return tuple(self._warnings)
        return (*self._warnings, *nothing_heard(self._loudest, self.splitting))

    def _counted(self, blocks: Iterator[F32], is_unwanted: Callable[[], bool]) -> Iterator[F32]:
        n_read = 0
        for block in blocks:
            if is_unwanted():
                return
            n_read += len(block)
            self.seconds = n_read / mel.SAMPLE_RATE
            self._check_duration(self.seconds)
            self._loudest = max(self._loudest, level.peak(block))
            yield block

    def _check_duration(self, seconds: float) -> None:
        if self._max_seconds is not None and seconds > self._max_seconds:
            raise AudioTooLongError(
                f"{sources.describe(self.clip.source)}: longer than the {self._max_seconds:g} s "
                "that are allowed; raise the limit or select a part with begin and end"
            )


def nothing_heard(loudest: float, splitting: Splitting) -> list[AudioWarning]:
    """Warnings about audio with the peak ``loudest`` for which the transcript is empty."""
    if loudest < _LOUD or splitting.vad is None:
        return []
    loudness = f"{-level.decibels(loudest):.0f} dB below full scale"
    message = f"sound of up to {loudness}, but no speech was found in it"
    return [AudioWarning("no speech", message)]


def too_short(name: str, n_samples: int) -> EmptyAudioError:
    """The error for audio of only ``n_samples`` samples at 16 kHz."""
    return EmptyAudioError(
        f"{name}: too short, {n_samples} samples at 16 kHz; at least {mel.MIN_SAMPLES} (0.013 s) "
        "are needed"
    )


def tasks_of(take: Take, line: Line) -> Generator[Task | End]:
    """Windows for a line until it is cancelled, then an end with the error, if there was one.

    The windows before an error are still transcribed.
    """
    try:
        for window in take.windows(lambda: line.is_cancelled):
            yield Task(window, take.decoding)
        yield End()
    except ArkError as error:
        yield End(error)
