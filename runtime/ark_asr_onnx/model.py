"""The seam between a layout and everything above it: three callables, and what a decoder is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .mel import F32
from .prompt import I64


class Decoding(Protocol):
    """Utterances being decoded together: owns their KV caches, and dies with them."""

    def prefill(self, slot: int, inputs_embeds: F32) -> F32:
        """Read a prompt ``[1, L, H]``, without the ``n_cached`` positions before it, into a slot.

        Gives the logits ``[V]`` of its last position.

        The result may be overwritten by the next call.
        """
        ...

    def step(self, inputs_embeds: F32) -> F32:
        """Append one position ``[B, 1, H]`` to each of the first B slots; logits ``[B, V]``.

        The result may be overwritten by the next call.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Let one slot go on with the utterance of another, which it replaces."""
        ...


class Decoder(Protocol):
    """Loaded weights, without state of any utterance: shared by threads."""

    @property
    def capacity(self) -> int:
        """Positions a slot can hold."""
        ...

    @property
    def max_slots(self) -> int:
        """Utterances that can be decoded together."""
        ...

    def start(self, slots: int, positions: int) -> Decoding:
        """Caches for ``slots`` utterances of at most ``positions`` positions each, cached ones
        included.
        """
        ...


@dataclass(frozen=True, slots=True)
class Model:
    """A package ready to run."""

    encode_audio: Callable[[F32], F32]  # log_mel [1, n_mels, T] -> audio_embeds [1, N, H]
    embed: Callable[[I64], F32]  # ids [L] -> rows [1, L, H]
    decoder: Decoder
    n_cached: int = 0  # prompt positions whose keys and values the decoder has from the package
