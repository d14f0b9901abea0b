"""What a transcription gives back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from .greedy import FinishReason


@dataclass(frozen=True, slots=True)
class Segment:
    """One pass of the model over a part of the audio."""

    start: float  # seconds from the beginning of the audio
    end: float
    text: str
    raw_text: str  # as decoded, special tokens included
    token_ids: tuple[int, ...]  # as chosen, the end-of-turn token included
    logprobs: tuple[float, ...]  # natural log, one per token id
    finish_reason: FinishReason

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the tokens."""
        return sum(self.logprobs) / len(self.logprobs)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent in each stage."""

    read: float  # decoding and resampling the audio
    features: float  # log-mel
    encode: float  # encoder and adapter
    prefill: float  # prompt, up to the first token
    decode: float  # all further tokens
    total: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of one audio, and how it came about."""

    text: str
    segments: tuple[Segment, ...]
    duration: float  # seconds of audio
    timings: Timings

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of all segments."""
        return tuple(i for segment in self.segments for i in segment.token_ids)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Log-probabilities of all segments, one per token id."""
        return tuple(p for segment in self.segments for p in segment.logprobs)

    @property
    def finish_reason(self) -> FinishReason:
        """``length`` when any segment ran into the token limit, else ``stop``."""
        return "length" if any(s.finish_reason == "length" for s in self.segments) else "stop"

    @property
    def rtfx(self) -> float:
        """Seconds of audio transcribed per second (inverse real-time factor)."""
        return self.duration / self.timings.total


def transcript_to_json(transcript: Transcript) -> str:
    """One line of JSON with the fields of :class:`Transcript`, UTF-8 unescaped."""
    return json.dumps(
        {**asdict(transcript), "finish_reason": transcript.finish_reason}, ensure_ascii=False
    )
