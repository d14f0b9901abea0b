"""Upstream's layout: two audio graphs with a merge between them, and a decoder fed all its cache.

There are two kinds of decoder, which differ in their inputs. The published one takes every cache
buffer ``[1, P, n_kv_heads, head_dim]`` (sequence-major) at each call and returns the new rows,
which this module writes into the buffer. Another export that is in use takes ``past_key_i
[1, n_kv_heads, past, head_dim]`` and returns the whole present.
"""

from __future__ import annotations

import abc

import numpy as np

from ...arrays import F32, Array
from ...errors import DecodeError, PackageError
from ...package import published
from ...package.contract import Sizes
from ...package.opening import Package
from ..graph import Graph, open_graphs
from .embedding import Embedding
from .prompted import PromptedModel


def graphs(_: Package) -> tuple[str, ...]:
    """The graphs that :func:`build` opens."""
    return published.GRAPHS


def build(package: Package, threads: int) -> PromptedModel:
    """Open the graphs of a published folder."""
    sizes = package.manifest.sizes
    paths = [package.path(name) for name in graphs(package)]
    encoder, adapter, decoder = open_graphs(paths, threads)
    return PromptedModel(
        _Audio(encoder, adapter, sizes),
        Embedding(package.path(published.EMBEDDING), sizes.n_embeddings, sizes.hidden_size),
        _open_decoder(decoder, sizes),
        package.manifest.tokens,
        sizes.merge_factor,
    )


class _Audio:
    """Encoder, merge by ``merge_factor`` on the host, adapter."""

    def __init__(self, encoder: Graph, adapter: Graph, sizes: Sizes) -> None:
        self._encoder, self._adapter = encoder, adapter
        self._encoder.expect({published.AUDIOS: (1, sizes.n_mels, None)}, [published.ENCODED])
        self._adapter.expect({published.MERGED: (1, None, None)}, [published.AUDIO_EMBEDS])
        self._factor = sizes.merge_factor
        width = encoder.outputs[published.ENCODED][-1]
        merged = adapter.inputs[published.MERGED][-1]
        if isinstance(width, int) and isinstance(merged, int) and merged != width * self._factor:
            raise PackageError(
                f"{adapter.path}: input {published.MERGED!r} has {merged} columns, expected "
                f"{self._factor} x {width}; the files belong to different models"
            )

    def __call__(self, log_mel: F32) -> F32:
        encoded = self._encoder.run({published.AUDIOS: log_mel}, [published.ENCODED])[0]
        merged = merge(encoded, self._factor)
        return self._adapter.run({published.MERGED: merged}, [published.AUDIO_EMBEDS])[0]


def merge(encoded: F32, factor: int) -> F32:
    """``[1, S, d]`` to ``[1, max(S // factor, 1), factor * d]``; a short clip is zero-filled."""
    _, length, width = encoded.shape
    n_audio = max(length // factor, 1)
    rows = np.zeros((1, n_audio * factor, width), np.float32)
    n_kept = min(length, n_audio * factor)
    rows[:, :n_kept] = encoded[:, :n_kept]
    return rows.reshape(1, n_audio, factor * width)


def _open_decoder(graph: Graph, sizes: Sizes) -> StaticDecoder | GrowingDecoder:
    if published.past_names(1)[0] in graph.inputs:
        return GrowingDecoder(graph, sizes)
    return StaticDecoder(graph, sizes)


def _check_logits(graph: Graph, sizes: Sizes) -> None:
    n_logits = graph.outputs[published.LOGITS][-1]
    if n_logits != sizes.n_logits:
        raise PackageError(
            f"{graph.path}: {n_logits} logits, the embedding has {sizes.n_embeddings} rows; "
            "the files belong to different models"
        )


class _OneSlot(abc.ABC):
    """A single slot; see :class:`.prompted.EmbedsDecoding`."""

    def prefill(self, slot: int, inputs_embeds: F32) -> F32:
        """See :class:`.prompted.EmbedsDecoding`."""
        assert slot == 0
        self._empty()
        return self._call(inputs_embeds)[0]

    def step(self, inputs_embeds: F32) -> F32:
        """See :class:`.prompted.EmbedsDecoding`."""
        return self._call(inputs_embeds)

    def move(self, source: int, target: int) -> None:
        """See :class:`.prompted.EmbedsDecoding`; there is one slot."""
        assert source == target == 0

    def rewind(self, slot: int, n: int) -> None:
        """See :class:`.prompted.EmbedsDecoding`."""
        assert slot == 0
        self._forget(n)

    def align(self, slot: int, inputs_embeds: F32, first: int, audio_end: int) -> F32:
        """Never called: see :attr:`.prompted.EmbedsDecoder.can_align`."""
        raise NotImplementedError

    @abc.abstractmethod
    def _empty(self) -> None:
        """Empty the cache."""

    @abc.abstractmethod
    def _forget(self, n: int) -> None:
        """Remove the last ``n`` positions."""

    @abc.abstractmethod
    def _call(self, inputs_embeds: F32) -> F32:
        """Append rows ``[1, n, hidden]``; returns the last position's logits ``[1, V]``."""


class StaticDecoder:
    """The published decoder; see :class:`.prompted.EmbedsDecoder`."""

    max_slots = 1
    can_align = False

    def __init__(self, graph: Graph, sizes: Sizes) -> None:
        self.capacity = _static_size(graph, published.cache_names(1)[0], 1)
        self.caches = published.cache_names(sizes.n_layers)
        self.deltas = published.delta_names(sizes.n_layers)
        cache = (None, self.capacity, sizes.n_kv_heads, sizes.head_dim)
        graph.expect(
            {
                published.EMBEDS: (None, None, sizes.hidden_size),
                published.MASK: (None, self.capacity),
                published.POSITIONS: (None,),
                **dict.fromkeys(self.caches, cache),
            },
            [published.LOGITS, *self.deltas],
        )
        _check_logits(graph, sizes)
        self.graph, self.cache_shape = graph, (1, *cache[1:])

    def start(self, slots: int, positions: int) -> StaticDecoding:
        """One empty cache; see :class:`.prompted.EmbedsDecoder`."""
        _check_room(slots, positions, self.capacity)
        return StaticDecoding(self)


class StaticDecoding(_OneSlot):
    """Caches ``[1, P, n_kv_heads, head_dim]`` for each layer, key and value, written in place."""

    def __init__(self, decoder: StaticDecoder) -> None:
        self._decoder = decoder
        self._caches = {name: np.zeros(decoder.cache_shape, np.float32) for name in decoder.caches}
        self._mask = np.zeros((1, decoder.capacity), np.int64)
        self._length = 0

    def _empty(self) -> None:
        self._length = 0
        self._mask[:] = 0

    def _forget(self, n: int) -> None:
        self._length -= n
        self._mask[0, self._length :] = 0

    def _call(self, inputs_embeds: F32) -> F32:
        begin, end = self._length, self._length + inputs_embeds.shape[1]
        if end > self._decoder.capacity:
            raise DecodeError(f"the cache of {self._decoder.capacity} positions is full")
        self._mask[0, :end] = 1
        feeds: dict[str, Array] = {
            published.EMBEDS: inputs_embeds,
            published.MASK: self._mask,
            published.POSITIONS: np.arange(begin, end),
            **self._caches,
        }
        logits, *deltas = self._decoder.graph.run(feeds, [published.LOGITS, *self._decoder.deltas])
        for cache, delta in zip(self._caches.values(), deltas, strict=True):
            cache[:, begin:end] = delta
        self._length = end
        return logits[:, -1]


class GrowingDecoder:
    """The decoder of the other export; see :class:`.prompted.EmbedsDecoder`."""

    max_slots = 1
    can_align = False

    def __init__(self, graph: Graph, sizes: Sizes) -> None:
        self.capacity = sizes.max_positions
        self.pasts = published.past_names(sizes.n_layers)
        self.presents = published.present_names(sizes.n_layers)
        past = (None, sizes.n_kv_heads, None, sizes.head_dim)
        graph.expect(
            {
                published.EMBEDS: (None, None, sizes.hidden_size),
                published.POSITIONS: (None,),
                **dict.fromkeys(self.pasts, past),
            },
            [published.LOGITS, *self.presents],
        )
        _check_logits(graph, sizes)
        self.graph, self.past_shape = graph, (1, sizes.n_kv_heads, 0, sizes.head_dim)

    def start(self, slots: int, positions: int) -> GrowingDecoding:
        """An empty past; see :class:`.prompted.EmbedsDecoder`."""
        _check_room(slots, positions, self.capacity)
        return GrowingDecoding(self)


class GrowingDecoding(_OneSlot):
    """Past arrays, which the present arrays replace after each call."""

    def __init__(self, decoder: GrowingDecoder) -> None:
        self._decoder = decoder
        self._past: list[Array] = []

    def _empty(self) -> None:
        self._past = [np.zeros(self._decoder.past_shape, np.float32)] * len(self._decoder.pasts)

    def _forget(self, n: int) -> None:
        n_kept = self._past[0].shape[2] - n
        self._past = [np.ascontiguousarray(past[:, :, :n_kept]) for past in self._past]

    def _call(self, inputs_embeds: F32) -> F32:
        begin = self._past[0].shape[2]
        end = begin + inputs_embeds.shape[1]
        if end > self._decoder.capacity:
            raise DecodeError(f"the cache of {self._decoder.capacity} positions is full")
        feeds: dict[str, Array] = {
            published.EMBEDS: inputs_embeds,
            published.POSITIONS: np.arange(begin, end),
            **dict(zip(self._decoder.pasts, self._past, strict=True)),
        }
        outputs = [published.LOGITS, *self._decoder.presents]
        logits, *self._past = self._decoder.graph.run(feeds, outputs)
        return logits[:, -1]


def _check_room(slots: int, positions: int, capacity: int) -> None:
    if slots != 1:
        raise DecodeError(f"{slots} utterances at once wanted, this layout decodes one")
    if not 0 < positions <= capacity:
        raise DecodeError(
            f"{positions} positions wanted, this model holds {capacity}; use shorter audio or a "
            "smaller max_new_tokens"
        )


def _static_size(graph: Graph, name: str, axis: int) -> int:
    """The size of a fixed axis of an input. Raises :class:`PackageError` if it is not fixed."""
    shape = graph.inputs.get(name)
    if shape is None:
        raise PackageError(f"{graph.path}: no input {name!r}; this is no ARK-ASR decoder")
    size = shape[axis] if len(shape) > axis else None
    if not isinstance(size, int):
        raise PackageError(f"{graph.path}: input {name!r} is {shape}, expected a fixed axis {axis}")
    return size
