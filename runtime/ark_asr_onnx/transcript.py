"""The results of a transcription."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

# How a text ended: the model ended its turn; the limit of tokens was reached; the model began to
# repeat itself; or it ended its turn at once, although there is clear speech.
FinishReason = Literal["stop", "length", "loop", "empty"]


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text, with its times."""

    text: str  # with its punctuation, without spaces around it
    start: float  # seconds from the beginning of the audio
    end: float
    probability: float  # geometric mean of its tokens' probabilities


@dataclass(frozen=True, slots=True)
class Segment:
    """One pass of the model over a part of the audio."""

    start: float  # seconds from the beginning of the audio
    end: float
    text: str
    raw_text: str  # as decoded, special tokens included
    token_ids: tuple[int, ...]  # the end-of-turn token included
    logprobs: tuple[float, ...]  # natural log, one per token id
    finish_reason: FinishReason
    speech_seconds: float  # of detected speech; without a detector, its length
    is_final: bool = True  # False: unfinished speech, a longer text will replace this one
    audio_tokens: int = 0  # positions of the prompt that held audio
    words: tuple[Word, ...] = ()  # of the text, if they were requested

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the tokens."""
        return math.fsum(self.logprobs) / len(self.logprobs)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent in each stage."""

    read: float  # decoding and resampling the audio
    split: float  # detecting speech and splitting
    features: float  # log-mel
    encode: float  # encoder and adapter
    prefill: float  # prompts, up to the first token
    decode: float  # all further tokens
    total: float
    words: float = 0.0  # times of words, if they were requested


@dataclass(frozen=True, slots=True)
class AudioWarning:
    """A fault of the audio that may have cost words, such as a truncated file."""

    kind: str
    message: str  # one line, without the name of the audio


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of one audio, with its segments, timings and warnings."""

    text: str
    segments: tuple[Segment, ...]
    duration: float  # seconds of audio
    timings: Timings
    warnings: tuple[AudioWarning, ...] = ()  # about faults of the audio

    @property
    def raw_text(self) -> str:
        """The text as decoded, special tokens included."""
        return "".join(segment.raw_text for segment in self.segments)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of all segments."""
        return tuple(i for segment in self.segments for i in segment.token_ids)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Log-probabilities of all segments, one per token id."""
        return tuple(p for segment in self.segments for p in segment.logprobs)

    @property
    def words(self) -> tuple[Word, ...]:
        """Words of all segments, if they were requested."""
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def flagged(self) -> tuple[Segment, ...]:
        """Segments whose text may be incomplete: those that did not end with ``stop``."""
        return tuple(s for s in self.segments if s.finish_reason != "stop")

    @property
    def finish_reason(self) -> FinishReason:
        """``stop`` if no segment is flagged, else the reason of the first flagged one."""
        return self.flagged[0].finish_reason if self.flagged else "stop"

    @property
    def speech_seconds(self) -> float:
        """Seconds of speech in all segments."""
        return math.fsum(segment.speech_seconds for segment in self.segments)

    @property
    def covered_seconds(self) -> float:
        """Seconds of speech in segments that are not flagged."""
        return math.fsum(s.speech_seconds for s in self.segments if s.finish_reason == "stop")

    @property
    def rtfx(self) -> float:
        """Seconds of audio transcribed per second (inverse real-time factor)."""
        return self.duration / self.timings.total


def join(
    segments: Sequence[Segment],
    duration: float,
    timings: Timings,
    warnings: Callable[[str], tuple[AudioWarning, ...]] = lambda _: (),
) -> Transcript:
    """The transcript of an audio from its segments; ``warnings`` gives the warnings for a text."""
    text = " ".join(segment.text for segment in segments if segment.text)
    return Transcript(text, tuple(segments), duration, timings, warnings(text))


def transcript_to_json(transcript: Transcript) -> str:
    """One line of JSON with the fields of :class:`Transcript`, UTF-8 unescaped."""
    found = {
        name: getattr(transcript, name)
        for name in ("finish_reason", "speech_seconds", "covered_seconds")
    }
    return json.dumps({**asdict(transcript), **found}, ensure_ascii=False)
