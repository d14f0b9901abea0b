"""The two layouts a package can be written in: which graphs, how made, how compared with torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from torch import Tensor

from ark_asr_onnx.arrays import F32
from ark_asr_onnx.model.cpu import adds_exactly
from ark_asr_onnx.package import contract
from ark_asr_onnx.package.contract import File, Manifest, Provenance, Sizes, Tokens
from ark_asr_onnx.package.published import cache_names

from . import dynamic, narrow, parity, prefill, published, quantize, trace, write
from .checkpoint import Checkpoint, Network, graph_weight
from .listen import Heard
from .parity import DecoderRun, Parity, Progress
from .quantize import Examples, Matrix, Recipes
from .recipes import Graph
from .reference import lengths
from .shapes import Shape, Shapes
from .smoothing import Fold
from .unfold import unfold_convolutions


@dataclass(frozen=True, slots=True)
class Written:
    """A graph in its file, opened when it is needed."""

    path: Path
    prepack: bool = True

    def open(self) -> ort.InferenceSession:
        """The graph, or the one beside it that this CPU needs."""
        twin = self.path.with_name(contract.AUDIO_NARROW_FILE)
        check = self.path.with_name(contract.CPU_CHECK_FILE)
        has_twin = self.path.name == contract.AUDIO_FILE and twin.is_file()
        path = twin if has_twin and not adds_exactly(check) else self.path
        return parity.session(path, prepack=self.prepack)

    def open_prefill(self) -> ort.InferenceSession | None:
        """The graph for long prompts, if there is one beside the decoder."""
        path = self.path.with_name(contract.PREFILL_FILE)
        return parity.session(path) if path.is_file() else None


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """One graph of a package, as steps the pipeline takes in order."""

    file: str
    trace: Callable[[Path], Any]  # writes the fp32 graph; gives what `quantise` starts from
    # Replaces the graph by INT8.
    quantise: Callable[[Any, Path, Recipes, Progress, Examples], list[Matrix]]
    expect: Callable[[Progress], Any]  # what torch gives, which the next compares with
    compare: Callable[[Written, Any, Progress], Parity]
    part: Graph | None = None  # what calibration calls it
    # Of INT8 on some speech, in the unit of the part's budget.
    cost: Callable[[Written, Sequence[Heard]], float] | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a package says about itself."""

    name: str
    precision: str
    embedding: str
    sizes: Sizes
    tokens: Tokens
    provenance: Provenance
    files: dict[str, File]  # all but the manifest, hashed once
    target: str = "any"  # kind of CPU
    degraded: str = ""  # how it misses its limits


@dataclass(frozen=True, slots=True)
class Layout:
    """How one layout is written."""

    plans: Callable[
        [Checkpoint, Network, Sequence[Heard], Facts, Sequence[Tensor], Fold], list[GraphPlan]
    ]
    # Of a precision: the graphs' files and matrices, in the order of the plans.
    graphs: Callable[[str, Shapes], list[tuple[str, Sequence[Shape]]]]
    describe: Callable[[Path, Facts, Checkpoint], None]
    prefix: bool  # keys and values of the prompt's prefix are stored


def native_plans(
    checkpoint: Checkpoint,
    network: Network,
    clips: Sequence[Heard],
    facts: Facts,
    prefix: Sequence[Tensor],
    fold: Fold,
) -> list[GraphPlan]:
    """Our layout: one audio graph, a decoder with a shared KV buffer."""

    def weights(name: str) -> Tensor:
        return graph_weight(checkpoint, network, name, facts.sizes.n_logits, fold)

    return [
        _audio_plan(network, weights, has_narrow=facts.target == "any"),
        _decoder_plan(network, weights, clips, facts, prefix),
    ]


def native_graphs(_: str, shapes: Shapes) -> list[tuple[str, Sequence[Shape]]]:
    """See :class:`Layout`."""
    return [(contract.AUDIO_FILE, shapes.audio), (contract.DECODER_FILE, shapes.decoder)]


def _audio_plan(network: Network, weights: trace.Weights, *, has_narrow: bool) -> GraphPlan:
    config = network.tower.config
    mels = parity.mel_cases(config.n_mels, config.max_frames)

    def traced(path: Path) -> ir.Model:
        return _written(trace.trace_audio(config, network.table.shape[1], weights), path)

    def quantise(model: ir.Model, path: Path, *how: Any) -> list[Matrix]:
        matrices = _quantise_native(model, path, *how)
        if has_narrow:
            narrow.write(path, path.with_name(contract.AUDIO_NARROW_FILE))
        return matrices

    def expect(progress: Progress) -> list[F32]:
        return parity.expect(mels, network.tower, progress)

    def compare(graph: Written, expected: list[F32], progress: Progress) -> Parity:
        run = _function(graph.open(), contract.LOG_MEL)
        return parity.compare(mels, expected, run, progress)

    def cost(graph: Written, speech: Sequence[Heard]) -> float:
        return parity.audio_cost(_function(graph.open(), contract.LOG_MEL), speech)

    return GraphPlan(contract.AUDIO_FILE, traced, quantise, expect, compare, "audio", cost)


def _decoder_plan(
    network: Network,
    weights: trace.Weights,
    clips: Sequence[Heard],
    facts: Facts,
    prefix: Sequence[Tensor],
) -> GraphPlan:
    config = replace(network.decoder.config, vocab_size=facts.sizes.n_logits)
    n_cached, cached = len(facts.tokens.prefix), [cache.numpy() for cache in prefix]

    def traced(path: Path) -> ir.Model:
        return _written(trace.trace_decoder(config, network.decoder.max_positions, weights), path)

    def quantise(model: ir.Model, path: Path, *how: Any) -> list[Matrix]:
        matrices = _quantise_native(model, path, *how)
        prefill.write(path, path.with_name(contract.PREFILL_FILE), matrices)
        return matrices

    def expect(progress: Progress) -> list[tuple[F32, F32]]:
        return parity.expect_prefills(network, progress, cached=cached)

    def compare(graph: Written, expected: list[tuple[F32, F32]], progress: Progress) -> Parity:
        return parity.compare_decoder(
            network,
            _native_run(network, graph),
            expected,
            clips,
            progress,
            n_cached=n_cached,
            cached=cached,
        )

    def cost(graph: Written, speech: Sequence[Heard]) -> float:
        run = _native_run(network, graph)
        return parity.decoder_cost(network, run, speech, n_cached=n_cached, cached=cached)

    return GraphPlan(contract.DECODER_FILE, traced, quantise, expect, compare, "decoder", cost)


def _written(model: ir.Model, path: Path) -> ir.Model:
    write.write_graph(model, path)
    return model


def _quantise_native(
    model: ir.Model, path: Path, recipes: Recipes, progress: Progress, examples: Examples
) -> list[Matrix]:
    """Write a graph in INT8; ``model``, whose weights are read when needed, stays as it is."""
    stored = model.clone()
    unfold_convolutions(stored)
    stored, matrices = dynamic.quantise(stored, recipes, path.parent)
    matrices += quantize.quantise(stored, recipes, progress, examples)
    write.write_graph(stored, path)
    return matrices


def _native_run(network: Network, written: Written) -> DecoderRun:
    """The decoder as a function; prompts of any length through the graph for long ones."""
    graph, prompts = written.open(), written.open_prefill()
    names = contract.past_names(network.decoder.config.n_layers)
    empty = [t.numpy() for pair in network.decoder.empty_past() for t in pair]

    def call(session: ort.InferenceSession, embeds: F32, past: Any) -> list[Any]:
        seqlens, total = (t.numpy() for t in lengths(past[0].shape[2] + embeds.shape[1]))
        feeds = {
            contract.INPUTS_EMBEDS: embeds,
            contract.SEQLENS_K: seqlens,
            contract.TOTAL_SEQUENCE_LENGTH: total,
            **dict(zip(names, past, strict=True)),
        }
        return cast("Any", session.run(None, feeds))

    def run(embeds: F32, past: Any) -> tuple[F32, Any]:
        past = past or empty
        if prompts is not None and embeds.shape[1] > 1:
            past, embeds = call(prompts, embeds[:, :-1], past), embeds[:, -1:]
        logits, *present = call(graph, embeds, past)
        return logits[:, 0], present

    return run


def describe_native(directory: Path, facts: Facts, _: Checkpoint) -> None:
    """``ark_manifest.json``."""
    manifest = Manifest(
        schema=contract.SCHEMA,
        name=facts.name,
        layout="native",
        model_type="arkasr",
        precision=facts.precision,
        embedding=facts.embedding,
        target=facts.target,
        min_onnxruntime=trace.MIN_ONNXRUNTIME,
        sizes=facts.sizes,
        tokens=facts.tokens,
        files=facts.files,
        degraded=facts.degraded,
        provenance=facts.provenance,
    )
    write.write_manifest(manifest, directory)


def published_plans(
    _: Checkpoint,
    network: Network,
    clips: Sequence[Heard],
    facts: Facts,
    __: Sequence[Tensor],
    ___: Fold,
) -> list[GraphPlan]:
    """Upstream's layout: encoder, adapter, decoder with a static cache."""
    tower, names = network.tower, published.Names.of(facts.precision)
    capacity = min(network.decoder.max_positions, published.CAPACITY)
    mels = parity.mel_cases(tower.config.n_mels, tower.config.max_frames)
    width = tower.config.merge_factor * tower.config.d_model
    generator = np.random.default_rng(0)
    merged = [generator.standard_normal((1, n, width), np.float32) for n in (1, 2, 7, 75)]

    def compare_encoder(graph: Written, expected: list[F32], progress: Progress) -> Parity:
        return parity.compare(mels, expected, _function(graph.open(), "audios"), progress)

    def compare_adapter(graph: Written, expected: list[F32], progress: Progress) -> Parity:
        run = _function(graph.open(), "merged_audio_features")
        return parity.compare(merged, expected, run, progress)

    def compare_decoder(
        graph: Written, expected: list[tuple[F32, F32]], progress: Progress
    ) -> Parity:
        run = _published_run(network, graph.open(), capacity)
        return parity.compare_decoder(network, run, expected, clips, progress)

    return [
        GraphPlan(
            names.encoder,
            lambda path: published.trace_encoder(network, path),
            _quantise_published,
            lambda progress: parity.expect(mels, tower.encode, progress),
            compare_encoder,
        ),
        GraphPlan(
            names.adapter,
            lambda path: published.trace_adapter(network, path),
            _quantise_published,
            lambda progress: parity.expect(merged, tower.adapt, progress),
            compare_adapter,
        ),
        GraphPlan(
            names.decoder,
            lambda path: published.trace_decoder(network, path, capacity),
            _quantise_published,
            lambda progress: parity.expect_prefills(network, progress),
            compare_decoder,
        ),
    ]


def published_graphs(precision: str, shapes: Shapes) -> list[tuple[str, Sequence[Shape]]]:
    """See :class:`Layout`."""
    names, (encoder, adapter) = published.Names.of(precision), shapes.audio_parts
    return [(names.encoder, encoder), (names.adapter, adapter), (names.decoder, shapes.decoder)]


def describe_published(directory: Path, facts: Facts, checkpoint: Checkpoint) -> None:
    """``runtime_manifest.json``, ``llm_kv_*.json`` and the checkpoint's side files."""
    names = published.Names.of(facts.precision)
    capacity = min(facts.sizes.max_positions, published.CAPACITY)
    published.write_metadata(directory, checkpoint, facts.tokens, names, capacity)


def _quantise_published(
    _: None, path: Path, __: Recipes, progress: Progress, ___: Examples
) -> list[Matrix]:
    for _ in progress([path.name]):
        published.quantize(path)
    return []


def _published_run(network: Network, graph: ort.InferenceSession, capacity: int) -> DecoderRun:
    config = network.decoder.config
    names = cache_names(config.n_layers)
    shape = (1, capacity, config.n_kv_heads, config.head_dim)

    def run(embeds: F32, state: Any) -> tuple[F32, Any]:
        caches, begin = state or ([np.zeros(shape, np.float32) for _ in names], 0)
        end = begin + embeds.shape[1]
        mask = np.zeros((1, capacity), np.int64)
        mask[:, :end] = 1
        feeds = {
            "inputs_embeds": embeds,
            "attention_mask": mask,
            "cache_position": np.arange(begin, end),
            **dict(zip(names, caches, strict=True)),
        }
        logits, *deltas = cast("Any", graph.run(None, feeds))
        for cache, delta in zip(caches, deltas, strict=True):
            cache[:, begin:end] = delta
        return logits[:, 0], (caches, end)

    return run


def _function(graph: ort.InferenceSession, name: str) -> Callable[[F32], F32]:
    """A graph with one input and one output as a function."""
    return lambda array: cast("Any", graph.run(None, {name: array})[0])


LAYOUTS = {
    "native": Layout(native_plans, native_graphs, describe_native, prefix=True),
    "published": Layout(published_plans, published_graphs, describe_published, prefix=False),
}
