"""Makes a model of :mod:`ark_asr_onnx.model.seam` from a decoder of embeddings and a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ...arrays import F32, I64
from ...package.contract import Tokens
from . import prompt
from .embedding import Embedding


class EmbedsDecoding(Protocol):
    """As :class:`ark_asr_onnx.model.seam.Decoding`, fed with embeddings."""

    def prefill(self, slot: int, inputs_embeds: F32) -> F32:
        """Read a prompt ``[1, L, H]``, without its cached positions; returns logits ``[V]``."""
        ...

    def step(self, inputs_embeds: F32) -> F32:
        """Append one position ``[B, 1, H]`` to the first B slots; returns logits ``[B, V]``."""
        ...

    def move(self, source: int, target: int) -> None:
        """Move the utterance of slot ``source`` to slot ``target``, whose utterance is dropped."""
        ...

    def rewind(self, slot: int, n: int) -> None:
        """Remove the last ``n`` positions that were appended to a slot."""
        ...

    def align(self, slot: int, inputs_embeds: F32, first: int, audio_end: int) -> F32:
        """Attention ``[heads, T, N]`` to the audio, from rows ``[1, T, H]`` of a slot.

        ``first`` is the position of the first row, ``audio_end`` the one after the audio.
        """
        ...


class EmbedsDecoder(Protocol):
    """The weights of a decoder that reads embeddings."""

    @property
    def capacity(self) -> int:
        """Positions a slot can hold."""
        ...

    @property
    def max_slots(self) -> int:
        """Utterances that can be decoded together."""
        ...

    @property
    def can_align(self) -> bool:
        """See :class:`ark_asr_onnx.model.seam.Model`."""
        ...

    def start(self, slots: int, positions: int) -> EmbedsDecoding:
        """Caches for ``slots`` utterances of ``positions`` positions, cached ones included."""
        ...


class PromptedModel:
    """See :class:`ark_asr_onnx.model.seam.Model`.

    The decoder already holds the first ``n_cached`` positions of the prompt's prefix.
    """

    def __init__(
        self,
        encode: Callable[[F32], F32],
        embed: Embedding,
        decoder: EmbedsDecoder,
        tokens: Tokens,
        merge_factor: int,
        n_cached: int = 0,
    ) -> None:
        self.embed, self.decoder, self.n_cached = embed, decoder, n_cached
        self.capacity, self.max_slots = decoder.capacity, decoder.max_slots
        self.can_align = decoder.can_align
        self._encode, self._tokens, self._merge_factor = encode, tokens, merge_factor

    def n_prompt(self, n_frames: int) -> int:
        """See :class:`ark_asr_onnx.model.seam.Model`."""
        return prompt.n_positions(self._tokens, prompt.n_audio(n_frames, self._merge_factor))

    def encode(self, log_mel: F32) -> F32:
        """See :class:`ark_asr_onnx.model.seam.Model`."""
        return self._encode(log_mel)

    def start(self, slots: int, positions: int) -> PromptedDecoding:
        """See :class:`ark_asr_onnx.model.seam.Model`."""
        return PromptedDecoding(self, self.decoder.start(slots, positions))

    def text_embeds(self, ids: I64) -> F32:
        """The input rows ``[1, T, H]`` that predict the ids ``[T]`` of a text."""
        return self.embed(np.concatenate((self._tokens.suffix[-1:], ids[:-1])))

    def audio_end(self, n_audio: int) -> int:
        """The position after ``n_audio`` audio rows."""
        return len(self._tokens.prefix) + n_audio

    def n_positions(self, n_audio: int) -> int:
        """Positions of the prompt for ``n_audio`` audio rows."""
        return prompt.n_positions(self._tokens, n_audio)

    def inputs_embeds(self, audio_embeds: F32) -> F32:
        """The prompt around ``audio_embeds``, ``[1, L, H]``, without its cached positions."""
        return prompt.splice(self._tokens, audio_embeds, self.embed, self.n_cached)


class PromptedDecoding:
    """See :class:`ark_asr_onnx.model.seam.Decoding`."""

    def __init__(self, model: PromptedModel, decoding: EmbedsDecoding) -> None:
        self._model, self._decoding = model, decoding
        self.move, self.rewind = decoding.move, decoding.rewind

    def prefill(self, slot: int, audio_embeds: F32) -> F32:
        """See :class:`ark_asr_onnx.model.seam.Decoding`."""
        return self._decoding.prefill(slot, self._model.inputs_embeds(audio_embeds))

    def step(self, ids: I64) -> F32:
        """See :class:`ark_asr_onnx.model.seam.Decoding`."""
        return self._decoding.step(np.swapaxes(self._model.embed(ids), 0, 1))

    def align(self, slot: int, ids: I64, n_audio: int) -> F32:
        """See :class:`ark_asr_onnx.model.seam.Decoding`."""
        model = self._model
        first = model.n_positions(n_audio) - 1
        return self._decoding.align(slot, model.text_embeds(ids), first, model.audio_end(n_audio))
