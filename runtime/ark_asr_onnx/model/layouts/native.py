"""The native layout: one audio graph, and a decoder whose KV cache is a buffer of this module.

``GroupQueryAttention`` gets past and present at the same address and then writes only the new
rows, so no step copies the cache. A slot is the slice ``[b : b + 1]`` of the buffer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np

from ...arrays import F32, Array
from ...errors import DecodeError, PackageError
from ...package import contract
from ...package.contract import Sizes
from ...package.foreign import reason
from ...package.opening import Package
from ..cpu import adds_exactly
from ..graph import Binding, Graph, Shape, open_graphs
from .embedding import Embedding
from .prompted import PromptedModel

# After audio of at least this many frames, the encoder's pages are released: reading them again
# takes less than a hundredth of the time.
_LONG_AUDIO = 1000
_CALL = (contract.INPUTS_EMBEDS, contract.SEQLENS_K, contract.TOTAL_SEQUENCE_LENGTH)
# For a prompt of fewer positions the decoder graph is as fast as the prefill graph.
_LONG_PROMPT = 96


def graphs(package: Package) -> tuple[str, ...]:
    """The graphs that :func:`build` opens on this CPU."""
    prefill = (contract.PREFILL_FILE,) if contract.PREFILL_FILE in package.paths else ()
    return (contract.DECODER_FILE, *prefill, _audio_file(package))


def _audio_file(package: Package) -> str:
    """The audio graph that is exact on this CPU. Raises :class:`PackageError` if there is none."""
    if contract.CPU_CHECK_FILE not in package.paths:
        return contract.AUDIO_FILE
    if adds_exactly(package.path(contract.CPU_CHECK_FILE)):
        return contract.AUDIO_FILE
    if contract.AUDIO_NARROW_FILE in package.paths:
        return contract.AUDIO_NARROW_FILE
    raise PackageError(
        f"{package.directory}: this package was made for CPUs of kind {package.manifest.target!r}, "
        "and this CPU would compute it wrongly; export it with --target any"
    )


def build(package: Package, threads: int) -> PromptedModel:
    """Open the graphs of a native package."""
    manifest = package.manifest
    sizes = manifest.sizes
    if manifest.target not in ("any", "avx2"):
        package.path(contract.CPU_CHECK_FILE)  # raises if it is not listed
    # The audio graph last: encoding comes first.
    paths = [package.path(name) for name in graphs(package)]
    decoder, *others, audio = open_graphs(paths, threads, is_prepared=bool(package.prepared))
    audio.expect({contract.LOG_MEL: (1, sizes.n_mels, None)}, [contract.AUDIO_EMBEDS])
    _check_decoder(decoder, sizes)
    prefill = others[0] if others else None
    if prefill:
        prefill.expect(_cache_inputs(sizes), contract.present_names(sizes.n_layers))

    def encode(log_mel: F32) -> F32:
        (audio_embeds,) = audio.run({contract.LOG_MEL: log_mel}, [contract.AUDIO_EMBEDS])
        if log_mel.shape[2] >= _LONG_AUDIO:
            audio.give_back()
        return audio_embeds

    aligner = None
    if contract.ALIGN_FILE in package.paths:
        path = package.path(contract.ALIGN_FILE)
        aligner = Aligner(lambda: Graph(path, threads), sizes)
    prefix = _read_prefix(package)
    table = package.path(contract.embedding_files(manifest.embedding)[1])
    return PromptedModel(
        encode,
        Embedding(table, sizes.n_embeddings, sizes.hidden_size),
        NativeDecoder(decoder, prefill, aligner, sizes, prefix),
        manifest.tokens,
        sizes.merge_factor,
        n_cached=prefix.shape[2],
    )


def _check_decoder(graph: Graph, sizes: Sizes) -> None:
    """Raise :class:`PackageError` for a decoder graph that differs from the manifest."""
    outputs = [contract.LOGITS, *contract.present_names(sizes.n_layers)]
    graph.expect(_cache_inputs(sizes), outputs)
    n_logits = graph.outputs[contract.LOGITS][-1]
    if n_logits != sizes.n_logits:
        raise PackageError(
            f"{graph.path}: {n_logits} logits, the manifest says {sizes.n_logits}; "
            f"{contract.REMEDY}"
        )


def _cache_inputs(sizes: Sizes) -> dict[str, Shape]:
    cache = (None, sizes.n_kv_heads, None, sizes.head_dim)
    return {
        contract.INPUTS_EMBEDS: (None, None, sizes.hidden_size),
        contract.SEQLENS_K: (None,),
        contract.TOTAL_SEQUENCE_LENGTH: (),
        **dict.fromkeys(contract.past_names(sizes.n_layers), cache),
    }


def _read_prefix(package: Package) -> F32:
    """Keys and values ``[2 n_layers, n_kv_heads, P, head_dim]`` of the prompt's prefix."""
    sizes, path = package.manifest.sizes, package.path(contract.PREFIX_FILE)
    n_positions = len(package.manifest.tokens.prefix)
    shape = (2 * sizes.n_layers, sizes.n_kv_heads, n_positions, sizes.head_dim)
    expected = math.prod(shape)
    try:
        n_bytes = path.stat().st_size
        numbers = np.fromfile(path, "<f4", expected) if n_bytes == 4 * expected else None
    except OSError as error:
        raise PackageError(
            f"{path}: cannot be read ({reason(error)}); {contract.REMEDY}"
        ) from error
    if numbers is None:
        raise PackageError(
            f"{path}: {n_bytes // 4} numbers, expected {' x '.join(map(str, shape))}; "
            f"{contract.REMEDY}"
        )
    return numbers.astype(np.float32, copy=False).reshape(shape)


class Aligner:
    """The graph that gives the decoder's attention to the audio; opened at its first use."""

    def __init__(self, open_graph: Callable[[], Graph], sizes: Sizes) -> None:
        self._open, self._sizes = open_graph, sizes

    @functools.cached_property
    def graph(self) -> Graph:
        """The opened graph. Raises :class:`PackageError` if it differs from the manifest."""
        graph, expected = self._open(), _cache_inputs(self._sizes)
        # The graph ends at the last layer whose attention is used.
        past = [name for name in contract.past_names(self._sizes.n_layers) if name in graph.inputs]
        inputs = {name: expected[name] for name in (*_CALL, *past)}
        inputs |= {contract.POSITIONS: (None,), contract.AUDIO_END: (1,)}
        present = contract.present_names(self._sizes.n_layers)
        graph.expect(
            inputs, [contract.ATTENTION, *(name for name in present if name in graph.outputs)]
        )
        return graph


class NativeDecoder:
    """The decoder graph and its sizes; see :class:`.prompted.EmbedsDecoder`."""

    max_slots = 64  # on a CPU a step over more slots gains nothing

    def __init__(
        self,
        graph: Graph,
        prefill: Graph | None,
        aligner: Aligner | None,
        sizes: Sizes,
        prefix: F32,
    ) -> None:
        self.graph, self.prefill, self.aligner = graph, prefill, aligner
        self.sizes, self.prefix = sizes, prefix
        self.capacity, self.can_align = sizes.max_positions, aligner is not None

    def start(self, slots: int, positions: int) -> NativeDecoding:
        """See :class:`.prompted.EmbedsDecoder`."""
        return NativeDecoding(self, slots, positions)


class NativeDecoding:
    """Caches ``[slots, n_kv_heads, positions, head_dim]`` for each layer, key and value."""

    def __init__(self, decoder: NativeDecoder, slots: int, positions: int) -> None:
        sizes = decoder.sizes
        if not 0 < positions <= sizes.max_positions:
            raise DecodeError(
                f"{positions} positions wanted, this model holds {sizes.max_positions}; "
                "use shorter audio or a smaller max_new_tokens"
            )
        self._decoder = decoder
        self._graph, self._prefill = decoder.graph, decoder.prefill
        self._prefix, self._positions = decoder.prefix, positions
        shape = (2 * sizes.n_layers, slots, sizes.n_kv_heads, positions, sizes.head_dim)
        self._cache = np.zeros(shape, np.float32)
        self._past = contract.past_names(sizes.n_layers)
        self._present = contract.present_names(sizes.n_layers)
        self._logits = np.empty((slots, 1, sizes.n_logits), np.float32)
        self._embeds = np.empty((slots, 1, sizes.hidden_size), np.float32)
        self._seqlens = np.zeros(slots, np.int32)  # positions held, minus one after each call
        self._total = np.zeros((), np.int32)
        self._lengths = np.zeros(slots, np.int32)
        self._steps: dict[int, Binding] = {}  # number of active slots -> call

    def prefill(self, slot: int, inputs_embeds: F32) -> F32:
        """See :class:`.prompted.EmbedsDecoding`."""
        n_cached = self._prefix.shape[2]
        length = n_cached + inputs_embeds.shape[1]
        if length > self._positions:
            raise DecodeError(f"prompt of {length} positions, the cache holds {self._positions}")
        # In fp32, from the export: attention to the first token must not see a rounded one.
        self._cache[:, slot, :, :n_cached] = self._prefix
        self._lengths[slot] = n_cached
        rest = inputs_embeds
        if self._prefill and rest.shape[1] > _LONG_PROMPT:
            self._append(self._prefill, slot, rest[:, :-1], {})
            rest = rest[:, -1:]
        self._append(self._graph, slot, rest, {contract.LOGITS: self._logits[slot : slot + 1]})
        return self._logits[slot, 0]

    def _append(
        self, graph: Graph, slot: int, inputs_embeds: F32, outputs: dict[str, Array]
    ) -> None:
        """Run positions ``[1, L, H]`` after those in a slot."""
        call = self._bind(graph, slice(slot, slot + 1), outputs)
        call.set(contract.INPUTS_EMBEDS, np.ascontiguousarray(inputs_embeds))
        self._lengths[slot] += inputs_embeds.shape[1]
        self._seqlens[slot], self._total[...] = self._lengths[slot] - 1, self._lengths[slot]
        call()

    def step(self, inputs_embeds: F32) -> F32:
        """See :class:`.prompted.EmbedsDecoding`."""
        n = len(inputs_embeds)
        lengths = self._lengths[:n]
        if not lengths.all():
            raise DecodeError(f"slot {int(lengths.argmin())} has no prompt yet")
        if lengths.max() >= self._positions:
            raise DecodeError(f"the cache of {self._positions} positions is full")
        self._embeds[:n] = inputs_embeds
        self._seqlens[:n] = lengths
        lengths += 1
        self._total[...] = lengths.max()
        if n not in self._steps:
            part = slice(0, n)
            self._steps[n] = self._bind(self._graph, part, {contract.LOGITS: self._logits[part]})
        self._steps[n]()
        return self._logits[:n, 0]

    def move(self, source: int, target: int) -> None:
        """See :class:`.prompted.EmbedsDecoding`."""
        length = self._lengths[source]
        self._cache[:, target, :, :length] = self._cache[:, source, :, :length]
        self._lengths[target] = length

    def rewind(self, slot: int, n: int) -> None:
        """See :class:`.prompted.EmbedsDecoding`; later rows overwrite the removed ones."""
        self._lengths[slot] -= n

    def align(self, slot: int, inputs_embeds: F32, first: int, audio_end: int) -> F32:
        """See :class:`.prompted.EmbedsDecoding`."""
        aligner = self._decoder.aligner
        assert aligner is not None
        n, n_audio = inputs_embeds.shape[1], audio_end - self._prefix.shape[2]
        n_heads = aligner.graph.outputs[contract.ATTENTION][0]
        assert isinstance(n_heads, int)
        attention = np.empty((n_heads, n, n_audio), np.float32)
        inputs: dict[str, Array] = {  # kept alive here: a binding holds only pointers
            contract.POSITIONS: np.arange(first, first + n, dtype=np.int64),
            contract.AUDIO_END: np.array([audio_end], np.int64),
        }
        # The rows are written again unchanged, so that later rows can attend to them.
        call = self._bind(
            aligner.graph,
            slice(slot, slot + 1),
            {contract.ATTENTION: attention},
            inputs,
        )
        call.set(contract.INPUTS_EMBEDS, np.ascontiguousarray(inputs_embeds))
        self._seqlens[slot], self._total[...] = first + n - 1, first + n
        call()
        return attention

    def _bind(
        self,
        graph: Graph,
        part: slice,
        outputs: dict[str, Array],
        inputs: Mapping[str, Array] | None = None,
    ) -> Binding:
        """A call for a range of slots, with their caches and lengths bound in place."""
        caches = [cache[part] for cache in self._cache]
        past = zip(self._past, caches, strict=True)
        present = zip(self._present, caches, strict=True)
        return graph.bind(
            {
                contract.INPUTS_EMBEDS: self._embeds[part],
                contract.SEQLENS_K: self._seqlens[part],
                contract.TOTAL_SEQUENCE_LENGTH: self._total,
                **{name: cache for name, cache in past if name in graph.inputs},
                **(inputs or {}),
            },
            {**outputs, **{name: cache for name, cache in present if name in graph.outputs}},
        )
