"""The export: one straight line from a checkpoint folder to a checked package."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import ark_asr_onnx
from ark_asr_onnx import contract
from ark_asr_onnx.contract import Provenance, Sizes, Tokens, file_sha256
from ark_asr_onnx.errors import ExportError
from ark_asr_onnx.mel import SAMPLE_RATE
from ark_asr_onnx.vocabulary import INSTRUCTION, open_end

from . import parity, proof, quantize, reference, verify, write
from .checkpoint import Checkpoint, load_network, open_checkpoint, open_text
from .engines import PackageEngine
from .layouts import LAYOUTS, Facts, GraphPlan
from .oracle import TorchEngine
from .parity import Parity
from .probes import F32, builtin_speech
from .verify import Led, Report, Totals

Precision = Literal["int8", "fp32"]
LayoutName = Literal["native", "published"]
Progress = Callable[[str, Sequence[Any]], Iterable[Any]]

# Positions the decoder's RoPE tables cover: 30 s of audio are 385, the rest is for text.
MAX_POSITIONS = 4096
MAX_SECONDS = 30.0  # the published models' limit of one pass
_PROBE_TOKENS = 24
_TOOLS = ("torch", "onnx", "onnxruntime", "onnxscript", "safetensors", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    directory: Path
    precision: Precision
    provenance: Provenance
    notes: tuple[str, ...]  # remarks for the log


def export(
    checkpoint_dir: Path,
    out: Path,
    *,
    name: str | None = None,
    precision: Precision = "int8",
    layout: LayoutName = "native",
    embedding: Literal["fp32", "fp16"] = "fp32",
    prune: bool = True,
    instruction: str = INSTRUCTION,
    probes: Sequence[tuple[str, F32]] = (),
    allow_degraded: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Turn a Hugging Face checkpoint into a package folder ``out``, which must not exist yet.

    ``name`` is for people (default: the checkpoint folder's). ``layout`` is ours or, for upstream's
    readers and as a baseline, the published one. ``embedding`` is the type of the stored table;
    ``prune`` leaves out rows of table and head that can never be read or chosen. ``probes`` are
    further sounds to compare torch and the package on: names and waveforms ``[n]`` at 16 kHz.
    A package outside the limits of :mod:`verify` is refused, unless ``allow_degraded``: then its
    manifest says so. Raises :class:`ExportError`; whatever fails, ``out`` does not appear.
    """
    track = progress or (lambda _, items: items)
    checkpoint = open_checkpoint(checkpoint_dir)
    text, tokens = open_text(checkpoint, instruction)
    write.require_space(out.parent, _needed_bytes(checkpoint, precision))
    chosen = LAYOUTS[layout]
    sizes = _sizes(checkpoint, tokens, prune=prune and layout == "native")
    sounds = _sounds(probes, checkpoint, sizes.max_seconds)
    made = _provenance(checkpoint, instruction)
    named = name or checkpoint_dir.resolve().name
    facts = Facts(named, precision, embedding, sizes, tokens, made, files={})

    with write.published(out) as staging:
        network = load_network(
            checkpoint, sizes.max_positions, lambda names: track("read weights", names)
        )
        oracle = TorchEngine(checkpoint, network, text, tokens)
        leds = [
            verify.lead(oracle, sound, waveform, _PROBE_TOKENS)
            for sound, waveform in track("torch reference", sounds)
        ]
        work = _Work(staging, leds, precision, layout, allow_degraded, track)
        prefix = reference.prefix_caches(network, tokens) if chosen.prefix else []
        for plan in chosen.plans(checkpoint, network, leds, facts, prefix):
            network.page_out()
            _make_graph(work, plan)
        if chosen.prefix:
            write.write_prefix(prefix, staging)
        write.write_embedding(network.table[: sizes.n_embeddings], staging, embedding)
        (staging / contract.TOKENIZER_FILE).write_text(text.to_json(), encoding="utf-8")
        facts = replace(facts, files=write.list_files(staging))
        chosen.describe(staging, facts, checkpoint)
        report = _prove(work, facts)
        _judge(work, proof.shortfall(report))
        degraded = "; ".join(work.degraded)
        made = replace(made, recipe=_recipe(work), parity=_figures(work, report))
        facts = replace(facts, provenance=made, degraded=degraded)
        proved = proof.Proof(name=named, recipe=made.recipe, graphs=work.figures, report=report,
                             matrices=tuple(work.matrices), files=facts.files)  # fmt: skip
        facts = replace(facts, files={**facts.files, **proof.write(proved, staging)})
        chosen.describe(staging, facts, checkpoint)
    notes = (*network.notes, *([degraded] if degraded else []))
    return Exported(out, precision, made, notes)


@dataclass
class _Work:
    """What the stages share, and the figures they collect."""

    directory: Path
    leds: list[Led]
    precision: Precision
    layout: LayoutName
    allow_degraded: bool
    track: Progress
    figures: dict[str, Parity] = field(default_factory=dict)
    matrices: list[quantize.Matrix] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)


def _make_graph(work: _Work, plan: GraphPlan) -> None:
    """Trace, compare with torch, and for INT8 quantise and compare again."""
    path = work.directory / plan.file
    for _ in work.track(f"trace {plan.file}", [plan.file]):
        plan.trace(path)
    parity.require_fp32(_compare(work, plan, "fp32"), plan.file)
    if work.precision == "int8":
        work.matrices += plan.quantise(path, _labelled(work, f"quantise {plan.file}"))
        found = _compare(work, plan, "int8")
        _judge(work, parity.int8_shortfall(found, plan.file))


def _judge(work: _Work, shortfall: str) -> None:
    """Refuse what is outside its limits, or note it; upstream's recipe is what it is."""
    if not shortfall or work.layout == "published":
        return
    if not work.allow_degraded:
        raise ExportError(
            f"the package was not published: {shortfall}; --allow-degraded publishes it all the "
            "same, --precision fp32 may be within the limits"
        )
    work.degraded.append(shortfall)


def _compare(work: _Work, plan: GraphPlan, what: str) -> Parity:
    """Compare a written graph with torch and note the figures."""
    progress = _labelled(work, f"compare {plan.file} {what}")
    path, prepack = work.directory / plan.file, what == "int8"
    found = plan.compare(lambda: parity.session(path, prepack=prepack), progress)
    work.figures[f"torch to {what}, {plan.file}"] = found
    return found


def _labelled(work: _Work, label: str) -> parity.Progress:
    return lambda items: work.track(label, list(items))


def _prove(work: _Work, facts: Facts) -> Report:
    """Open the package with the runtime and compare it with torch, clip by clip."""
    found = PackageEngine(work.directory)
    clips = [
        verify.judge(found, led, _PROBE_TOKENS)
        for led in work.track("verify with the runtime", work.leds)
    ]
    return Report(
        package=f"{facts.name} ({work.layout} {work.precision})",
        reference=f"{facts.provenance.source} (torch fp32)",
        weights="exported from the reference",
        limits=verify.limits(work.precision, "fp32"),
        clips=tuple(clips),
    )


def _sounds(
    probes: Sequence[tuple[str, F32]], checkpoint: Checkpoint, longest: float
) -> list[tuple[str, F32]]:
    """The built-in speech, as much of it as the model can hear, and the user's."""
    config = checkpoint.config
    for name, waveform in probes:
        if len(waveform) > longest * SAMPLE_RATE:
            raise ExportError(
                f"probe {name}: {len(waveform) / SAMPLE_RATE:.2f} s long, at most {longest:g} s"
            )
    needed = 12 * int(longest) + 64  # audio rows and prompt of the longest clip, some text
    if config.decoder.max_positions < needed:
        raise ExportError(
            f"{checkpoint.directory / 'config.json'}: max_position_embeddings is "
            f"{config.decoder.max_positions}, {longest:g} s of audio need {needed}"
        )
    n_samples = int(longest * SAMPLE_RATE)
    return [*((name, waveform[:n_samples]) for name, waveform in builtin_speech()), *probes]


def _sizes(checkpoint: Checkpoint, tokens: Tokens, *, prune: bool) -> Sizes:
    audio, decoder = checkpoint.config.audio, checkpoint.config.decoder
    n_logits = n_embeddings = decoder.vocab_size
    if prune:
        blocked = {i for first, last in tokens.blocked for i in range(first, last + 1)}
        n_logits = open_end(blocked, decoder.vocab_size)  # end of turn is in no range
        n_embeddings = max(n_logits, 1 + max(*tokens.prefix, *tokens.suffix))
    return Sizes(
        n_mels=audio.n_mels,
        merge_factor=audio.merge_factor,
        max_seconds=min(MAX_SECONDS, audio.max_frames / 100),
        hidden_size=decoder.hidden_size,
        n_layers=decoder.n_layers,
        n_kv_heads=decoder.n_kv_heads,
        head_dim=decoder.head_dim,
        vocab_size=decoder.vocab_size,
        n_embeddings=n_embeddings,
        n_logits=n_logits,
        max_positions=min(decoder.max_positions, MAX_POSITIONS),
    )


def _provenance(checkpoint: Checkpoint, instruction: str) -> Provenance:
    tools = {name: metadata.version(name) for name in _TOOLS}
    return Provenance(
        exporter=f"ark-asr-onnx {ark_asr_onnx.__version__}",
        tools={"python": platform.python_version(), **tools},
        source=checkpoint.directory.resolve().name,
        source_sha256={path.name: file_sha256(path) for path in checkpoint.files},
        instruction=instruction,
        recipe={},
        parity={},
    )


def _recipe(work: _Work) -> dict[str, str]:
    """How the weights are stored."""
    if work.precision == "fp32":
        return {"weights": "fp32"}
    if not work.matrices:
        return {"name": "dynamic, unsigned 8 bits per channel (upstream's)"}
    worst = max(work.matrices, key=lambda m: m.error)
    return {
        "name": "blocks8",
        "matrices": ", ".join(
            f"{sum(m.block == block for m in work.matrices)} in blocks of {block}"
            for block in sorted({m.block for m in work.matrices})
        ),
        "worst weight error": f"{worst.error:.2e} ({worst.name})",
    }


def _figures(work: _Work, report: Report) -> dict[str, dict[str, float]]:
    totals = Totals.of(report.clips)
    package = {
        "probes": totals.clips,
        "same_tokens": totals.same_tokens,
        "mean_dlogp": round(totals.mean_dlogp, 9),
        "worst_dlogp": round(totals.worst_dlogp, 9),
    }
    graphs = {name: found.figures() for name, found in work.figures.items()}
    return {**graphs, "torch to package": package}


def _needed_bytes(checkpoint: Checkpoint, precision: Precision) -> int:
    """Disk needed at the worst moment: the table, and the larger graph once in fp32."""
    n_values = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    decoder = checkpoint.config.decoder
    n_values += decoder.vocab_size * decoder.hidden_size  # the head, where it is not stored
    return int(n_values * (4.0 if precision == "fp32" else 3.0)) + (1 << 20)
