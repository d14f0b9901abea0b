"""The two layouts a package can be written in: which graphs, how made, how compared with torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from torch import Tensor

from ark_asr_onnx.package import contract
from ark_asr_onnx.package.contract import File, Manifest, Provenance, Sizes, Tokens
from ark_asr_onnx.package.published import cache_names

from . import dynamic, narrow, parity, prefill, published, quantize, trace, write
from .checkpoint import Checkpoint, Network, graph_weight
from .listen import Heard
from .parity import DecoderRun, Parity, Progress
from .quantize import Examples, Matrix, Recipes
from .reference import lengths
from .smoothing import Fold, Graph
from .unfold import unfold_convolutions

F32 = npt.NDArray[np.float32]
Open = Callable[[], ort.InferenceSession]  # opens the graph that was just written


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """One graph of a package, as steps the pipeline takes in order."""

    file: str
    trace: Callable[[Path], None]  # writes the fp32 graph
    quantise: Callable[[Path, Recipes, Progress, Examples], list[Matrix]]  # replaces it by INT8
    compare: Callable[[Open, Progress], Parity]  # against torch
    part: Graph | None = None  # what calibration calls it
    # Of INT8 on some speech, in the unit of the part's budget.
    cost: Callable[[Open, Sequence[Heard]], float] | None = None


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
    config = network.tower.config
    n_logits = facts.sizes.n_logits
    decoder_config = replace(network.decoder.config, vocab_size=n_logits)
    mels = parity.mel_cases(config.n_mels, config.max_frames)

    def weights(name: str) -> Tensor:
        return graph_weight(checkpoint, network, name, n_logits, fold)

    def compare_audio(opened: Open, progress: Progress) -> Parity:
        run = _function(opened(), contract.LOG_MEL)
        return parity.compare(mels, network.tower, run, progress)

    def compare_decoder(opened: Open, progress: Progress) -> Parity:
        return parity.compare_decoder(
            network,
            lambda: _native_run(network, opened(), decoder.prefill()),
            clips,
            progress,
            **known,
        )

    def decoder_cost(opened: Open, speech: Sequence[Heard]) -> float:
        run = _native_run(network, opened(), decoder.prefill())
        return parity.decoder_cost(network, run, speech, **known)

    known: Any = {
        "n_cached": len(facts.tokens.prefix),
        "cached": [cache.numpy() for cache in prefix],
    }
    audio, decoder = _Native(narrow=facts.target == "any"), _Native()
    return [
        GraphPlan(
            contract.AUDIO_FILE,
            lambda path: audio.trace(
                path, lambda: trace.trace_audio(config, network.table.shape[1], weights)
            ),
            audio.quantise,
            compare_audio,
            "audio",
            lambda opened, speech: parity.audio_cost(_function(opened(), contract.LOG_MEL), speech),
        ),
        GraphPlan(
            contract.DECODER_FILE,
            lambda path: decoder.trace(
                path,
                lambda: trace.trace_decoder(decoder_config, network.decoder.max_positions, weights),
            ),
            decoder.quantise,
            compare_decoder,
            "decoder",
            decoder_cost,
        ),
    ]


class _Native:
    """A traced graph between its two writings."""

    def __init__(self, *, narrow: bool = False) -> None:
        self._model: ir.Model | None = None
        self._prefill: Path | None = None
        self._narrow = narrow

    def trace(self, path: Path, make: Callable[[], ir.Model]) -> None:
        self._model = make()
        write.write_graph(self._model, path)

    def prefill(self) -> ort.InferenceSession | None:
        """The graph for long prompts, if there is one."""
        return None if self._prefill is None else parity.session(self._prefill)

    def quantise(
        self, path: Path, recipes: Recipes, progress: Progress, examples: Examples
    ) -> list[Matrix]:
        assert self._model is not None
        model = self._model.clone()
        unfold_convolutions(model)
        model, matrices = dynamic.quantise(model, recipes, path.parent)
        matrices += quantize.quantise(model, recipes, progress, examples)
        write.write_graph(model, path)
        if self._narrow:
            narrow.write(path, path.with_name(contract.AUDIO_NARROW_FILE))
        graph, self._prefill = path.with_name(contract.PREFILL_FILE), None
        if prefill.write(path, graph, matrices):
            self._prefill = graph
        return matrices


def _native_run(
    network: Network, graph: ort.InferenceSession, prompts: ort.InferenceSession | None
) -> DecoderRun:
    """The decoder as a function; prompts of any length through the graph for long ones."""
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

    def compare_encoder(opened: Open, progress: Progress) -> Parity:
        return parity.compare(mels, tower.encode, _function(opened(), "audios"), progress)

    def compare_adapter(opened: Open, progress: Progress) -> Parity:
        run = _function(opened(), "merged_audio_features")
        return parity.compare(merged, tower.adapt, run, progress)

    def compare_decoder(opened: Open, progress: Progress) -> Parity:
        return parity.compare_decoder(
            network, lambda: _published_run(network, opened(), capacity), clips, progress
        )

    return [
        GraphPlan(
            names.encoder,
            lambda path: published.trace_encoder(network, path),
            _quantise_published,
            compare_encoder,
        ),
        GraphPlan(
            names.adapter,
            lambda path: published.trace_adapter(network, path),
            _quantise_published,
            compare_adapter,
        ),
        GraphPlan(
            names.decoder,
            lambda path: published.trace_decoder(network, path, capacity),
            _quantise_published,
            compare_decoder,
        ),
    ]


def describe_published(directory: Path, facts: Facts, checkpoint: Checkpoint) -> None:
    """``runtime_manifest.json``, ``llm_kv_*.json`` and the checkpoint's side files."""
    names = published.Names.of(facts.precision)
    capacity = min(facts.sizes.max_positions, published.CAPACITY)
    published.write_metadata(directory, checkpoint, facts.tokens, names, capacity)


def _quantise_published(path: Path, _: Recipes, progress: Progress, __: Examples) -> list[Matrix]:
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
    "native": Layout(native_plans, describe_native, prefix=True),
    "published": Layout(published_plans, describe_published, prefix=False),
}
