"""The seam between a layout and everything above it: audio in, ids in, logits out.

What a prompt is, and how ids become embeddings, is a layout's business.
"""

from __future__ import annotations

from typing import Protocol

from ..arrays import F32, I64


class Decoding(Protocol):
    """Utterances being decoded together: owns their KV caches, and dies with them."""

    def prefill(self, slot: int, audio_embeds: F32) -> F32:
        """Read the prompt around ``audio_embeds [1, N, H]`` into a slot.

        Gives the logits ``[V]`` of its last position. The next call may overwrite them.
        """
        ...

    def step(self, ids: I64) -> F32:
        """Append an id ``[B]`` to each of the first B slots; logits ``[B, V]``.

        The next call may overwrite them.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Let one slot go on with the utterance of another, which it replaces."""
        ...

    def rewind(self, slot: int, n: int) -> None:
        """Let a slot forget the last ``n`` of the ids that were appended to it."""
        ...

    def align(self, slot: int, ids: I64, n_audio: int) -> F32:
        """Where it looked for each id ``[T]`` of the text in a slot, of the first T it has.

        Gives ``[heads, T, N]``: the attention of some heads to the ``n_audio`` rows of the audio,
        which sum up to 1. Only where the model :attr:`~Model.can_align`.
        """
        ...


class Model(Protocol):
    """A package ready to run: loaded weights without state of any utterance, shared by threads."""

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
        """Whether it can tell where in the audio it looked."""
        ...

    def n_prompt(self, n_frames: int) -> int:
        """Positions of the prompt for so many mel frames."""
        ...

    def encode(self, log_mel: F32) -> F32:
        """``log_mel [1, n_mels, T]`` to ``audio_embeds [1, N, H]``."""
        ...

    def start(self, slots: int, positions: int) -> Decoding:
        """Caches for ``slots`` utterances of at most ``positions`` positions each."""
        ...
