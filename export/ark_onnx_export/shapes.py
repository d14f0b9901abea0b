"""The matrices of a network, counted from its configuration, before a weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .config import ArkConfig

Shape = tuple[int, int]  # [inputs, outputs]


@dataclass(frozen=True, slots=True)
class Shapes:
    """The matrices of both graphs; those that read the same input count as one."""

    audio: tuple[Shape, ...]  # the adapter's two are the last
    decoder: tuple[Shape, ...]  # the head is the last
    table: Shape

    @classmethod
    def of(cls, config: ArkConfig) -> Shapes:
        """What a configuration describes."""
        audio, decoder = config.audio, config.decoder
        width, hidden = audio.d_model, decoder.hidden_size
        heads, kv = decoder.n_heads * decoder.head_dim, decoder.n_kv_heads * decoder.head_dim
        encoder_layer = (
            *((width, 3 * width), (width, width)),
            *((width, audio.ffn_dim), (audio.ffn_dim, width)),
        )
        decoder_layer = (
            *((hidden, heads + 2 * kv), (heads, hidden)),
            *((hidden, 2 * decoder.ffn_dim), (decoder.ffn_dim, hidden)),
        )
        convolutions = ((3 * audio.n_mels, width), (3 * width, width))
        adapter = ((audio.merge_factor * width, 2 * hidden), (2 * hidden, hidden))
        return cls(
            (*convolutions, *encoder_layer * audio.n_layers, *adapter),
            (*decoder_layer * decoder.n_layers, (hidden, decoder.vocab_size)),
            (decoder.vocab_size, hidden),
        )

    @property
    def audio_parts(self) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
        """Encoder and adapter."""
        return self.audio[:-2], self.audio[-2:]


def count(shapes: Iterable[Shape]) -> int:
    """How many numbers there are in some matrices."""
    return sum(n * m for n, m in shapes)
