"""A package as an engine whose stages can be compared, and what such an engine is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

import ark_asr_onnx
from ark_asr_onnx.arrays import F32
from ark_asr_onnx.audio import mel
from ark_asr_onnx.package.contract import Tokens
from ark_asr_onnx.transcript import Word


@dataclass(frozen=True, slots=True)
class Decoded:
    """A greedy transcription, and the logits its tokens were chosen from."""

    token_ids: tuple[int, ...]
    logits: F32  # [n_tokens, vocab], before masking
    text: str


class Subject(Protocol):
    """A model that leads a comparison: its log-mel, its audio embeddings, its tokens."""

    name: str
    precision: str  # fp32 or int8
    tokens: Tokens
    max_seconds: float
    positions: int  # of one utterance, prompt and text
    merge_factor: int  # encoder frames in one audio embedding

    def log_mel(self, waveform: F32) -> F32:
        """``[1, n_mels, T]`` of a waveform ``[n]`` at 16 kHz."""
        ...

    def encode(self, log_mel: F32) -> F32:
        """``audio_embeds [1, N, H]``."""
        ...

    def decode(self, waveform: F32, audio_embeds: F32, max_new_tokens: int) -> Decoded:
        """Greedy tokens for a waveform whose audio embeddings are given."""
        ...


class PackageEngine:
    """A package of either layout, run by the runtime."""

    def __init__(self, directory: Path) -> None:
        self._transcriber = ark_asr_onnx.load(directory, verify=True)
        self._model = self._transcriber.model
        self.manifest = self._transcriber.manifest
        self.name = f"{directory} ({self.manifest.layout} {self.manifest.precision})"
        self.precision = self.manifest.precision
        self.tokens = self.manifest.tokens
        self.max_seconds = self.manifest.sizes.max_seconds
        self.merge_factor = self.manifest.sizes.merge_factor
        self.positions = self._model.capacity

    def log_mel(self, waveform: F32) -> F32:
        """See :class:`Subject`."""
        return mel.log_mel(waveform, self.manifest.sizes.n_mels)

    def encode(self, log_mel: F32) -> F32:
        """See :class:`Subject`."""
        return self._model.encode(log_mel)

    def decode(self, waveform: F32, audio_embeds: F32, max_new_tokens: int) -> Decoded:
        """See :class:`Subject`."""
        token_ids, text = self.transcribe(waveform, max_new_tokens)
        return Decoded(token_ids, self.score(audio_embeds, token_ids), text)

    def transcribe(self, waveform: F32, max_new_tokens: int) -> tuple[tuple[int, ...], str]:
        """Token ids and text of one pass of the runtime, without its guards."""
        options = ark_asr_onnx.Options(
            max_new_tokens, max_tokens_per_second=None, max_repeats=None, retry=False
        )
        transcript = self._transcriber.transcribe(
            waveform,
            mel.SAMPLE_RATE,
            options=options,
            splitting=ark_asr_onnx.Splitting(window_seconds=self.max_seconds),
        )
        return transcript.token_ids, transcript.text

    def words(self, waveform: F32) -> tuple[Word, ...]:
        """The words of one pass of the runtime, with their times."""
        found = self._transcriber.transcribe(waveform, mel.SAMPLE_RATE, words=True)
        return tuple(word for segment in found.segments for word in segment.words)

    def score(self, audio_embeds: F32, token_ids: Sequence[int]) -> F32:
        """Teacher-forced logits ``[n_tokens, n_logits]`` before each of the tokens."""
        n_prompt = len(self.tokens.prefix) + audio_embeds.shape[1] + len(self.tokens.suffix)
        decoding = self._model.start(1, n_prompt + len(token_ids) - 1)
        first = decoding.prefill(0, audio_embeds).copy()
        steps = (decoding.step(np.array([i]))[0].copy() for i in token_ids[:-1])
        return np.stack([first, *steps])
