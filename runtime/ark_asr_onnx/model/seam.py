"""The seam between a layout and everything above it: audio in, ids in, logits out.

The prompt, and the embedding of ids, belong to the layout.
"""

from __future__ import annotations

from typing import Protocol

from ..arrays import F32, I64


class Decoding(Protocol):
    """Utterances that are decoded together; owns their KV caches."""

    def prefill(self, slot: int, audio_embeds: F32) -> F32:
        """Read the prompt around ``audio_embeds [1, N, H]`` into a slot.

        Returns the logits ``[V]`` of its last position. The next call may overwrite them.
        """
        ...

    def step(self, ids: I64) -> F32:
        """Append an id ``[B]`` to each of the first B slots; logits ``[B, V]``.

        The next call may overwrite them.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Move the utterance of slot ``source`` to slot ``target``, whose utterance is dropped."""
        ...

    def rewind(self, slot: int, n: int) -> None:
        """Remove the last ``n`` ids that were appended to a slot."""
        ...

    def align(self, slot: int, ids: I64, n_audio: int) -> F32:
        """Attention to the audio for each of the first T ids ``[T]`` of the text in a slot.

        Returns ``[heads, T, N]``: the attention of some heads to the N = ``n_audio`` audio rows;
        each distribution sums to 1. Call it only if the model :attr:`~Model.can_align`.
        """
        ...


class Model(Protocol):
    """A package that is ready to run: weights without state of utterances, shared by threads."""

    @property
    def capacity(self) -> int:
        """Positions a slot can hold, prompt and text."""
        ...

    @property
    def max_slots(self) -> int:
        """Utterances that can be decoded together."""
        ...

    @property
    def can_align(self) -> bool:
        """Whether :meth:`Decoding.align` works."""
        ...

    def n_prompt(self, n_frames: int) -> int:
        """Positions of the prompt for ``n_frames`` mel frames."""
        ...

    def encode(self, log_mel: F32) -> F32:
        """``log_mel [1, n_mels, T]`` to ``audio_embeds [1, N, H]``."""
        ...

    def start(self, slots: int, positions: int) -> Decoding:
        """Caches for ``slots`` utterances of at most ``positions`` positions each."""
        ...
