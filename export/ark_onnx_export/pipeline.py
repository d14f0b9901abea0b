"""The export: one straight line from a checkpoint folder to a checked package."""

from __future__ import annotations

import math
import platform
import time
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import ark_asr_onnx
from ark_asr_onnx.audio.mel import SAMPLE_RATE
from ark_asr_onnx.errors import ExportError
from ark_asr_onnx.model.cpu import adds_exactly
from ark_asr_onnx.package import contract
from ark_asr_onnx.package.contract import Provenance, Sizes, Tokens, file_sha256
from ark_asr_onnx.package.vocabulary import INSTRUCTION, open_end

from . import (
    align,
    calibrate,
    choose,
    findings,
    heads,
    listen,
    parity,
    plans,
    proof,
    quantize,
    recipes,
    reference,
    smoothing,
    verify,
    write,
)
from .checkpoint import Checkpoint, load_network, open_checkpoint, open_text
from .config import MAX_POSITIONS
from .engines import PackageEngine
from .findings import Calibration
from .layouts import LAYOUTS, Facts, GraphPlan
from .listen import Heard
from .oracle import TorchEngine
from .parity import Parity
from .probes import F32, builtin_references, builtin_speech, calibration_speech
from .proof import Rung
from .recipes import RECIPES, Asked, Graph, Target
from .smoothing import Fold
from .space import export_need, require_space
from .verify import Report, Totals

Precision = Literal["int8", "fp32"]
LayoutName = Literal["native", "published"]
Progress = Callable[[str, Sequence[Any]], Iterable[Any]]

MAX_SECONDS = 30.0  # the published models' limit of one pass
_PROBE_TOKENS = 24
_MAX_RUNGS = 6  # choices of recipes tried for one graph
# What error feedback leaves of the error that is predicted with each weight rounded for itself.
_FEEDBACK = 0.9
# What storing in 8 bits may cost, by graph: relative error of the audio embeddings, worst clip;
# mean change of a token's log-probability.
BUDGETS: Mapping[Graph, float] = {"audio": 0.03, "decoder": 0.005}
_COSTS: Mapping[Graph, str] = {
    "audio": "the audio embeddings of speech are off by",
    "decoder": "log-probabilities of tokens change on average by",
}
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
    source: str | None = None,
    precision: Precision = "int8",
    layout: LayoutName = "native",
    embedding: Literal["fp32", "fp16"] = "fp32",
    prune: bool = True,
    instruction: str = INSTRUCTION,
    probes: Sequence[tuple[str, F32]] = (),
    references: Mapping[str, str] | None = None,
    recipe: Asked = "auto",
    target: Target = "any",
    calibration: Sequence[tuple[str, F32]] = (),
    plan: Path | None = None,
    allow_degraded: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Turn a Hugging Face checkpoint into a package folder ``out``, which must not exist yet.

    ``name`` is for people (default: the checkpoint folder's), ``source`` says where the checkpoint
    is from (default: the same). ``layout`` is ours or, for upstream's
    readers and as a baseline, the published one. ``embedding`` is the type of the stored table;
    ``prune`` leaves out rows of table and head that can never be read or chosen. ``probes`` are
    further sounds to compare torch and the package on: names and waveforms ``[n]`` at 16 kHz.
    ``references`` are the words of some: name -> text.
    ``recipe`` is how INT8 stores the matrices, ``auto`` chooses for each by what ``calibration``
    (sounds, default: nine built-in clips) shows; ``target`` is the kind of CPU it may count on;
    ``plan``, the ``report.json`` of another package, gives its choices instead (:mod:`plans`).
    A package outside the limits of :mod:`verify` is refused, unless ``allow_degraded``: then its
    manifest says so. Raises :class:`ExportError`; whatever fails, ``out`` does not appear.
    """
    begin = time.perf_counter()
    track = progress or (lambda _, items: items)
    checkpoint = open_checkpoint(checkpoint_dir)
    text, tokens = open_text(checkpoint, instruction)
    n_values = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    require_space(export_need(n_values, checkpoint.config.decoder, precision, out.parent))
    chosen = LAYOUTS[layout]
    sizes = _sizes(checkpoint, tokens, prune=prune and layout == "native")
    sounds = _sounds(probes, checkpoint, sizes.max_seconds)
    heard = _cut(calibration or calibration_speech(), sizes.max_seconds)
    named = name or checkpoint_dir.resolve().name

    with write.staged(out) as staging:
        made = _provenance(checkpoint, source, instruction)
        facts = Facts(named, precision, embedding, sizes, tokens, made, files={}, target=target)
        network = load_network(
            checkpoint, sizes.max_positions, lambda names: track("read weights", names)
        )
        oracle = TorchEngine(checkpoint, network, text, tokens)
        clips = _hear(oracle, sounds, track, "torch reference")
        prefix = reference.prefix_caches(network, tokens) if chosen.prefix else []
        work = _Work(staging, clips, precision, layout, recipe, target, allow_degraded, track)
        fold: Fold = lambda _, tensor: tensor  # noqa: E731
        if precision == "int8" and layout == "native" and (recipe == "auto" or plan):
            listened = _hear(oracle, heard, track, "calibrate: torch reference")
            if not calibration:
                listened = [*clips[: len(clips) - len(probes)], *listened]
            work.listened = listened
            sites = smoothing.sites(checkpoint.config)
            if plan:
                work.planned = plans.read_plan(plan, sites)
            listener = calibrate.Listener(network, tokens, prefix, listened, sites, track)
            key = findings.key(made.source_sha256, checkpoint.side_files, listened)
            fold = _listen(work, listener, key)
            del listener
        write.write_cpu_check(staging)
        for graph in chosen.plans(checkpoint, network, clips, facts, prefix, fold):
            network.page_out()
            _make_graph(work, graph)
        if chosen.prefix:
            write.write_prefix(prefix, staging)
            work.found = _align(work, oracle, tokens, heard, references or {})
        if not any(RECIPES[matrix.recipe].exact_sums for matrix in work.matrices):
            (staging / contract.CPU_CHECK_FILE).unlink()
            facts = replace(facts, target="any")
        write.write_embedding(network.table[: sizes.n_embeddings], staging, embedding)
        (staging / contract.TOKENIZER_FILE).write_text(text.to_json(), encoding="utf-8")
        facts = replace(facts, files=write.list_files(staging))
        chosen.describe(staging, facts, checkpoint)
        report = _prove(work, facts)
        _judge(work, proof.shortfall(report))
        degraded = "; ".join(work.degraded)
        made = replace(made, recipe=_recipe(work), parity=_figures(work, report))
        facts = replace(facts, provenance=made, degraded=degraded)
        proved = proof.Proof(
            name=named,
            recipe=made.recipe,
            graphs=work.figures,
            report=report,
            matrices=tuple(work.matrices),
            files=facts.files,
            rungs=tuple(work.rungs),
            findings=tuple(f for c in work.calibrations.values() for f in c.findings),
            choices=tuple(work.choices),
            references={**builtin_references(), **(references or {})},
            heads=work.found,
            word_errors=work.word_errors,
            seconds=time.perf_counter() - begin,
        )
        facts = replace(facts, files={**facts.files, **proof.write(proved, staging)})
        chosen.describe(staging, facts, checkpoint)
    notes = (*network.notes, *work.notes, *([degraded] if degraded else []))
    return Exported(out, precision, made, notes)


def _listen(work: _Work, listener: calibrate.Listener, key: str) -> Fold:
    """Let speech say how the matrices are stored; how tensors are folded for that."""
    factors: dict[str, F32] = {}
    if not work.planned:
        found = work.calibrations = _findings(work, listener, key)
        factors = dict(ChainMap(*(one.factors for one in found.values())))
    work.examples = listener.examples(factors)
    return smoothing.folded(chain(*listener.sites.values()), factors, listener.orders())


def _findings(work: _Work, listener: calibrate.Listener, key: str) -> dict[Graph, Calibration]:
    """Those kept from an earlier export, or new ones, kept where that is possible."""
    kept = findings.place(key)
    found = kept and findings.read(kept, listener.sites)
    if not found:
        found = calibrate.calibrate(listener, work.track)
        try:
            if kept is None:
                raise OSError("the user has no home; XDG_CACHE_HOME may name a folder")
            findings.save(found, kept)
        except OSError as error:
            work.notes.append(f"the findings of calibration are not kept: {error}")
    return found


@dataclass
class _Work:
    """What the stages share, and the figures they collect."""

    directory: Path
    clips: list[Heard]
    precision: Precision
    layout: LayoutName
    recipe: Asked
    target: Target
    allow_degraded: bool
    track: Progress
    calibrations: dict[Graph, Calibration] = field(default_factory=dict)
    listened: list[Heard] = field(default_factory=list)  # what calibration listened to
    examples: dict[str, F32] = field(default_factory=dict)  # weight -> rows
    planned: dict[str, str] = field(default_factory=dict)  # weight -> recipe
    choices: list[choose.Choice] = field(default_factory=list)
    rungs: list[Rung] = field(default_factory=list)
    figures: dict[str, Parity] = field(default_factory=dict)
    matrices: list[quantize.Matrix] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: heads.Found | None = None  # how words are timed
    word_errors: heads.Errors | None = None  # of the package


def _align(
    work: _Work,
    oracle: TorchEngine,
    tokens: Tokens,
    heard: Sequence[tuple[str, F32]],
    references: Mapping[str, str],
) -> heads.Found:
    """Find the heads that tell the times of words, and write their graph, if there are any."""
    known = ((references.get(name, ""), waveform) for name, waveform in heard)
    words = [(text, waveform) for text, waveform in known if len(heads.plain(text)) == 1]
    found = heads.find(oracle, words, work.track)
    if found.heads:
        align.write(work.directory, found.heads, len(tokens.prefix))
    else:
        work.notes.append(f"the package cannot tell when words are said: {found.reason}")
    return found


def _make_graph(work: _Work, plan: GraphPlan) -> None:
    """Trace, compare with torch, and for INT8 quantise and compare again."""
    path = work.directory / plan.file
    for _ in work.track(f"trace {plan.file}", [plan.file]):
        plan.trace(path)
    parity.require_fp32(_compare(work, plan, "fp32"), plan.file)
    if work.precision == "int8":
        work.matrices += _quantise(work, plan, path)
        found = _compare(work, plan, "int8")
        _judge(work, parity.int8_shortfall(found, plan.file))


def _quantise(work: _Work, plan: GraphPlan, path: Path) -> list[quantize.Matrix]:
    """Replace the graph by the INT8 one; chosen recipes are chosen anew until the cost is right."""
    calibration = work.calibrations.get(plan.part) if plan.part else None
    scale = _FEEDBACK if work.examples and plan.part == "audio" else 1.0
    tried, chosen = dict[str, str](), None
    fixed = recipes.fixed(work.recipe, plan.part or "decoder", work.target)
    matrices: list[quantize.Matrix] = []
    for _ in range(_MAX_RUNGS):
        if plan.part and calibration:
            chosen = choose.choose(calibration, plan.part, work.target, BUDGETS[plan.part], scale)
            if chosen.recipes(calibration) == tried:
                scale *= 1.2
                continue
            tried = chosen.recipes(calibration)
        known = tried or work.planned
        stored = known.__getitem__ if known else lambda _: fixed
        progress = _labelled(work, f"quantise {plan.file}")
        matrices = plan.quantise(path, stored, progress, work.examples.get)
        if not plan.part or not plan.cost:
            return matrices
        cost = _cost(work, plan, path)
        n_bytes = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
        counts = Counter(matrix.recipe for matrix in matrices)
        predicted = chosen.predicted if chosen else None
        work.rungs.append(
            Rung(plan.file, dict(counts), predicted, cost, BUDGETS[plan.part], n_bytes)
        )
        if not chosen or cost <= BUDGETS[plan.part]:
            break
        scale *= max(cost / max(chosen.predicted, 1e-12), 1.05)
    if chosen and plan.part:
        work.choices += chosen.choices
        if (last := work.rungs[-1]).cost > last.budget:
            _judge(
                work, f"{plan.file}: {_COSTS[plan.part]} {last.cost:.3g} (budget {last.budget:g})"
            )
    return matrices


def _cost(work: _Work, plan: GraphPlan, path: Path) -> float:
    """What the INT8 graph costs speech."""
    assert plan.cost is not None
    found = 0.0
    for cost in work.track(f"weigh {plan.file}", [plan.cost]):
        found = cost(lambda: parity.session(_usable(path)), work.listened or work.clips)
    return found


def _hear(
    oracle: TorchEngine, sounds: Sequence[tuple[str, F32]], track: Progress, label: str
) -> list[Heard]:
    return [
        listen.hear(oracle, name, waveform, _PROBE_TOKENS)
        for name, waveform in track(label, sounds)
    ]


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
    found = plan.compare(lambda: parity.session(_usable(path), prepack=prepack), progress)
    work.figures[f"torch to {what}, {plan.file}"] = found
    return found


def _usable(path: Path) -> Path:
    """A graph, or the one beside it that this CPU needs."""
    narrow = path.with_name(contract.AUDIO_NARROW_FILE)
    if path.name != contract.AUDIO_FILE or not narrow.is_file():
        return path
    return path if adds_exactly(path.with_name(contract.CPU_CHECK_FILE)) else narrow


def _labelled(work: _Work, label: str) -> parity.Progress:
    return lambda items: work.track(label, list(items))


def _prove(work: _Work, facts: Facts) -> Report:
    """Open the package with the runtime and compare it with torch, clip by clip."""
    found = PackageEngine(work.directory)
    clips = [
        verify.compare_clip(found, clip, _PROBE_TOKENS)
        for clip in work.track("verify with the runtime", work.clips)
    ]
    if work.found and work.found.heads:
        work.word_errors = heads.measured(found)
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
    return [*_cut(builtin_speech(), longest), *probes]


def _cut(sounds: Sequence[tuple[str, F32]], longest: float) -> list[tuple[str, F32]]:
    return [(name, waveform[: int(longest * SAMPLE_RATE)]) for name, waveform in sounds]


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


def _provenance(checkpoint: Checkpoint, source: str | None, instruction: str) -> Provenance:
    tools = {name: metadata.version(name) for name in _TOOLS}
    return Provenance(
        exporter=f"ark-asr-onnx {ark_asr_onnx.__version__}",
        tools={"python": platform.python_version(), **tools},
        source=source or checkpoint.directory.resolve().name,
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
    counts = Counter((m.recipe, m.block) for m in work.matrices)
    return {
        "name": "plan" if work.planned else work.recipe,
        "target": work.target,
        "matrices": ", ".join(
            f"{n} {recipe}" + (f" in blocks of {block}" if block else "")
            for (recipe, block), n in sorted(counts.items())
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
