"""The export: one straight line from a checkpoint folder to a checked package.

Each stage takes what the stages before it found and gives a value of its own; none changes what it
was given.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import ark_asr_onnx
from ark_asr_onnx.arrays import F32
from ark_asr_onnx.audio.mel import SAMPLE_RATE
from ark_asr_onnx.errors import ExportError
from ark_asr_onnx.model.cpu import adds_exactly
from ark_asr_onnx.package import contract
from ark_asr_onnx.package.contract import Provenance, Sizes, Tokens, file_sha256
from ark_asr_onnx.package.text import Text
from ark_asr_onnx.package.vocabulary import INSTRUCTION, open_end

from . import (
    align,
    budget,
    calibrate,
    findings,
    heads,
    listen,
    parity,
    plans,
    proof,
    recipes,
    reference,
    samples,
    smoothing,
    verify,
    write,
)
from .checkpoint import Checkpoint, Network, load_network, open_checkpoint, open_text
from .config import MAX_POSITIONS
from .engines import PackageEngine
from .findings import Calibration
from .forecast import Forecast, Job, Speed
from .layouts import LAYOUTS, Facts, GraphPlan, Written
from .listen import Heard
from .oracle import TorchEngine
from .parity import Parity
from .probes import PROBE_TOKENS, builtin_references, builtin_speech, calibration_speech
from .quantize import Examples, Matrix
from .recipes import EXACT_TARGETS, RECIPES, Asked, Graph, Target
from .shapes import Shapes
from .smoothing import Fold
from .space import export_bytes, export_need, free_memory, require_space
from .verify import Report, Totals

Precision = Literal["int8", "fp32"]
LayoutName = Literal["native", "published"]
Progress = Callable[[str, Sequence[Any]], Iterable[Any]]
Sound = tuple[str, F32]  # name and waveform [n] at 16 kHz

MAX_SECONDS = 30.0  # the published models' limit of one pass
_TOOLS = ("torch", "onnx", "onnxruntime", "onnxscript", "safetensors", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a package is made."""

    name: str | None = None  # for people; the checkpoint folder's by default
    source: str | None = None  # where the checkpoint is from; the checkpoint folder by default
    precision: Precision = "int8"
    layout: LayoutName = "native"  # or upstream's, for its readers and as a baseline
    embedding: Literal["fp32", "fp16"] = "fp32"  # type of the stored table
    prune: bool = True  # leave out rows of table and head that can never be read or chosen
    instruction: str = INSTRUCTION
    probes: Sequence[Sound] = ()  # further sounds to compare torch and the package on
    references: Mapping[str, str] = field(default_factory=dict[str, str])  # sound -> its words
    recipe: Asked = "auto"  # how INT8 stores the matrices; auto: for each what calibration shows
    target: Target = "any"  # the kind of CPU that the package may count on
    calibration: Sequence[Sound] = ()  # nine built-in clips by default
    plan: Path | None = None  # report.json of another package, whose choices are taken (plans.py)
    allow_degraded: bool = False  # publish a package outside its limits; its manifest says so


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
    settings: Settings = Settings(),
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Turn a Hugging Face checkpoint into a package folder ``out``, which must not exist yet.

    ``progress`` wraps the items of each stage, whose label it gets; ``tell`` gets one line before
    the work, with the time, the memory and the disk that it will take. A package outside the limits
    of :mod:`verify` is refused, unless the settings allow it.
    Raises :class:`ExportError`; whatever fails, ``out`` does not appear.
    """
    begin = time.perf_counter()
    track = progress or (lambda _, items: items)
    source = _read(checkpoint_dir, out, settings)
    with write.staged(out) as staging:
        _require_target(source, settings, staging)
        tell(_foretell(source, settings))
        bench = _Bench.of(source, settings, staging, track)
        clips = bench.hear(source.probes, "torch reference")
        has_prefix = LAYOUTS[settings.layout].prefix
        prefix = reference.prefix_caches(bench.network, source.tokens) if has_prefix else []
        with tempfile.TemporaryDirectory(prefix=".rows-", dir=staging) as rows:
            advice = _advise(bench, clips, prefix, Path(rows))
            graphs = _make_graphs(bench, clips, prefix, advice, Path(rows))
            advice = replace(advice, clips=(), examples=lambda _: None)  # their memory goes
        bench.network.page_out()
        found = _find_heads(bench) if settings.layout == "native" else None
        facts = _complete(bench, prefix, graphs)
        report, word_errors = _prove(bench, facts, clips, found)
        fitted = [graph.fitted for graph in graphs]
        missed = chain(*((graph.fitted.shortfall, graph.shortfall) for graph in graphs))
        degraded = _judge(settings, [*missed, proof.shortfall(report)])
        matrices = tuple(chain(*(one.matrices for one in fitted)))
        parities = {name: one for graph in graphs for name, one in graph.parities.items()}
        made = replace(
            facts.provenance, recipe=_recipe(settings, matrices), parity=_figures(parities, report)
        )
        proved = proof.Proof(
            name=facts.name,
            recipe=made.recipe,
            graphs=parities,
            report=report,
            matrices=matrices,
            files=facts.files,
            rungs=tuple(chain(*(one.rungs for one in fitted))),
            findings=tuple(chain(*(one.findings for one in advice.calibrations.values()))),
            choices=tuple(chain(*(one.choices for one in fitted))),
            references={**builtin_references(), **settings.references},
            heads=found,
            word_errors=word_errors,
            seconds=time.perf_counter() - begin,
        )
        files = {**facts.files, **proof.write(proved, staging)}
        final = replace(facts, provenance=made, degraded=degraded, files=files)
        LAYOUTS[settings.layout].describe(staging, final, source.checkpoint)
    notes = (*bench.network.notes, *filter(None, (advice.remark, _no_times(found), degraded)))
    return Exported(out, settings.precision, made, notes)


@dataclass(frozen=True, slots=True)
class _Source:
    """What is known before weights are read."""

    checkpoint: Checkpoint
    text: Text
    tokens: Tokens
    sizes: Sizes
    probes: list[Sound]
    calibration: list[Sound]
    sites: Mapping[Graph, Sequence[smoothing.Site]]
    planned: Mapping[str, str]  # weight -> recipe, by another package's choices


@dataclass(frozen=True, slots=True)
class _Bench:
    """What every stage works with."""

    settings: Settings
    source: _Source
    staging: Path
    network: Network
    oracle: TorchEngine
    provenance: Provenance  # as far as it is known before the export
    track: Progress

    @classmethod
    def of(cls, source: _Source, settings: Settings, staging: Path, track: Progress) -> _Bench:
        """Read the weights."""
        made = _provenance(source.checkpoint, settings)
        network = load_network(
            source.checkpoint,
            source.sizes.max_positions,
            lambda names: track("read weights", names),
        )
        oracle = TorchEngine(source.checkpoint, network, source.text, source.tokens)
        return cls(settings, source, staging, network, oracle, made, track)

    def once(self, label: str, work: Callable[[], Any]) -> Any:
        """A stage of one step."""
        (result,) = [work() for _ in self.track(label, [label])]
        return result

    def hear(self, sounds: Sequence[Sound], label: str) -> list[Heard]:
        """What torch makes of some sounds; one half of the network in memory at a time."""
        self.network.page_out()
        encoded = [
            listen.encode(self.oracle, name, waveform)
            for name, waveform in self.track(f"{label}, audio", sounds)
        ]
        self.network.page_out()
        return [
            listen.decode(self.oracle, one, PROBE_TOKENS)
            for one in self.track(f"{label}, text", encoded)
        ]


@dataclass(frozen=True, slots=True)
class _Advice:
    """What calibration found. Without calibration nothing is folded, and nothing is chosen."""

    fold: Fold = lambda _, tensor: tensor
    calibrations: Mapping[Graph, Calibration] = field(default_factory=dict[Graph, Calibration])
    examples: Examples = lambda _: None
    clips: Sequence[Heard] = ()  # what was listened to
    remark: str = ""


@dataclass(frozen=True, slots=True)
class _Made:
    """A graph in its file, and what was measured on it."""

    parities: dict[str, Parity]  # comparison -> figures
    fitted: budget.Fitted
    shortfall: str = ""  # by how much INT8 is too far from torch


def _read(checkpoint_dir: Path, out: Path, settings: Settings) -> _Source:
    """Read all but the weights. What is wrong is found here, before hours are spent."""
    checkpoint = open_checkpoint(checkpoint_dir)
    text, tokens = open_text(checkpoint, settings.instruction)
    require_space(export_need(_disk_bytes(Shapes.of(checkpoint.config), settings), out.parent))
    sizes = _sizes(checkpoint, tokens, prune=settings.prune and settings.layout == "native")
    calibration = settings.calibration or calibration_speech()
    sites = smoothing.sites(checkpoint.config)
    return _Source(
        checkpoint,
        text,
        tokens,
        sizes,
        _sounds(settings.probes, checkpoint, sizes.max_seconds),
        _cut(calibration, sizes.max_seconds),
        sites,
        plans.read_plan(settings.plan, sites, settings.target) if settings.plan else {},
    )


def _foretell(source: _Source, settings: Settings) -> str:
    """What the export will take, in one line."""
    shapes = Shapes.of(source.checkpoint.config)
    job = Job(
        shapes=shapes,
        graphs=LAYOUTS[settings.layout].graphs(settings.precision, shapes),
        probes=_seconds(source.probes),
        calibration=_seconds(source.calibration) if _is_calibrated(settings) else (),
        is_planned=settings.plan is not None,
        is_int8=settings.precision == "int8",
        is_native=settings.layout == "native",
    )
    n_bytes = _disk_bytes(shapes, settings)
    return Forecast.of(job, Speed.measured()).text(n_bytes, free_memory())


def _seconds(sounds: Sequence[Sound]) -> list[float]:
    return [len(waveform) / SAMPLE_RATE for _, waveform in sounds]


def _disk_bytes(shapes: Shapes, settings: Settings) -> int:
    return export_bytes(
        shapes,
        is_int8=settings.precision == "int8",
        is_calibrated=_is_calibrated(settings),
        is_half=settings.embedding == "fp16",
    )


def _is_calibrated(settings: Settings) -> bool:
    """Whether the network listens to calibration clips: to choose recipes, or to round by them."""
    is_chosen = settings.recipe == "auto" or settings.plan is not None
    return settings.precision == "int8" and settings.layout == "native" and is_chosen


def _require_target(source: _Source, settings: Settings, staging: Path) -> None:
    """Refuse what would be wrong on this CPU, so that nothing could be proved here."""
    write.write_cpu_check(staging)
    target = settings.target
    if settings.precision == "fp32" or target not in EXACT_TARGETS:
        return
    if source.planned:
        names = set(source.planned.values())
    elif settings.recipe == "auto":
        names = {name for name, recipe in RECIPES.items() if target in recipe.targets}
    else:
        names = {recipes.fixed(settings.recipe, graph, target) for graph in source.sites}
    is_exact = any(RECIPES[name].exact_sums for name in names)
    if is_exact and not adds_exactly(staging / contract.CPU_CHECK_FILE):
        raise ExportError(
            f"a package for {target} cannot be checked on this CPU, which adds products of bytes "
            "in 16 bits; export it on such a CPU, or take --target any"
        )


def _advise(bench: _Bench, clips: Sequence[Heard], prefix: Sequence[Any], rows: Path) -> _Advice:
    """Let the network listen to calibration clips, where recipes are chosen or planned.

    Rows that its products read are kept in the folder ``rows``.
    """
    settings, source, network = bench.settings, bench.source, bench.network
    if not _is_calibrated(settings):
        return _Advice()
    heard = bench.hear(source.calibration, "calibrate: torch reference")
    if not settings.calibration:
        heard = [*clips[: len(clips) - len(settings.probes)], *heard]
    sites, planned = source.sites, source.planned
    runner = calibrate.Runner(network, source.tokens, prefix)
    sampled: dict[Graph, dict[str, samples.Sample]] = {}

    def sample(graph: Graph) -> dict[str, samples.Sample]:
        network.page_out()
        return calibrate.collect(runner, graph, sites[graph], heard, rows / graph, bench.track)

    def calibrated(graph: Graph) -> Calibration:
        found = sampled[graph] = sample(graph)
        result = calibrate.calibrate(runner, graph, sites[graph], found, heard, bench.track)
        if graph != "audio":  # whose weights are rounded by what they are multiplied with
            shutil.rmtree(rows / graph)
        return result

    found, remark = ({}, "") if planned else _findings(bench, heard, sites, calibrated)
    audio = sampled.get("audio") or sample("audio")
    factors = {site: factor for one in found.values() for site, factor in one.factors.items()}
    return _Advice(
        fold=smoothing.folded(
            chain(*sites.values()), factors, samples.orders(sites["audio"], audio)
        ),
        calibrations=found,
        examples=samples.examples(sites["audio"], audio, factors),
        clips=heard,
        remark=remark,
    )


def _findings(
    bench: _Bench,
    heard: Sequence[Heard],
    sites: Mapping[Graph, Sequence[smoothing.Site]],
    calibrated: Callable[[Graph], Calibration],
) -> tuple[dict[Graph, Calibration], str]:
    """Those kept from an earlier export, or new ones, and why new ones are not kept."""
    weights = bench.provenance.source_sha256
    kept = findings.place(findings.key(weights, bench.source.checkpoint.side_files, heard))
    if kept and (again := findings.read(kept, sites)):
        return again, ""
    found: dict[Graph, Calibration] = {graph: calibrated(graph) for graph in sites}
    try:
        if kept is None:
            raise OSError("the user has no home; XDG_CACHE_HOME may name a folder")
        findings.save(found, kept)
    except OSError as error:
        return found, f"the findings of calibration are not kept: {error}"
    return found, ""


def _make_graphs(
    bench: _Bench, clips: Sequence[Heard], prefix: Sequence[Any], advice: _Advice, rows: Path
) -> list[_Made]:
    """Every graph of the layout, one after the other; its rows go when it is made."""
    source = bench.source
    layout = LAYOUTS[bench.settings.layout]
    facts = _facts(bench)
    to_make = layout.plans(source.checkpoint, bench.network, clips, facts, prefix, advice.fold)
    made: list[_Made] = []
    for plan in to_make:
        bench.network.page_out()
        made.append(_make_graph(bench, plan, advice, clips))
        if plan.part:
            shutil.rmtree(rows / plan.part, ignore_errors=True)
    return made


def _make_graph(bench: _Bench, plan: GraphPlan, advice: _Advice, clips: Sequence[Heard]) -> _Made:
    """Trace, compare with torch, and for INT8 quantise and compare again."""
    settings, path = bench.settings, bench.staging / plan.file
    traced = bench.once(f"trace {plan.file}", lambda: plan.trace(path))
    expected = plan.expect(_labelled(bench, f"torch for {plan.file}"))
    bench.network.page_out()
    exact = _compare(bench, plan, expected, "fp32")
    parity.require_fp32(exact, plan.file)
    parities = {f"torch to fp32, {plan.file}": exact}
    if settings.precision == "fp32":
        return _Made(parities, budget.Fitted())
    fitted = _quantise(bench, plan, traced, advice, clips)
    _judge(settings, [fitted.shortfall])  # before more time is spent
    found = _compare(bench, plan, expected, "int8")
    parities[f"torch to int8, {plan.file}"] = found
    shortfall = parity.int8_shortfall(found, plan.file)
    _judge(settings, [shortfall])
    return _Made(parities, fitted, shortfall)


def _quantise(
    bench: _Bench, plan: GraphPlan, traced: Any, advice: _Advice, clips: Sequence[Heard]
) -> budget.Fitted:
    """Replace the graph by the INT8 one: by the plan, by what was asked for, or by calibration."""
    settings, path, part = bench.settings, bench.staging / plan.file, plan.part

    def store(recipe: Callable[[str], str]) -> tuple[Matrix, ...]:
        progress = _labelled(bench, f"quantise {plan.file}")
        return tuple(plan.quantise(traced, path, recipe, progress, advice.examples))

    def attempt(recipe: Callable[[str], str]) -> budget.Trial:
        matrices, cost = store(recipe), plan.cost
        assert cost is not None
        bench.network.page_out()
        speech = advice.clips or clips
        found = bench.once(f"weigh {plan.file}", lambda: cost(Written(path), speech))
        return budget.Trial(matrices, found, _bytes_of(path))

    if part is None:
        return budget.Fitted(store(lambda _: ""))
    if part in advice.calibrations:
        calibration = advice.calibrations[part]
        return budget.fit(calibration, plan.file, part, settings.target, attempt)
    asked = recipes.fixed(settings.recipe, part, settings.target)
    planned = bench.source.planned
    trial = attempt(planned.__getitem__ if planned else lambda _: asked)
    return budget.Fitted(trial.matrices, (budget.rung(plan.file, part, trial),))


def _bytes_of(path: Path) -> int:
    """The size of a graph with its weights."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _compare(bench: _Bench, plan: GraphPlan, expected: Any, what: str) -> Parity:
    """Compare a written graph with torch."""
    graph = Written(bench.staging / plan.file, prepack=what == "int8")
    return plan.compare(graph, expected, _labelled(bench, f"compare {plan.file} {what}"))


def _labelled(bench: _Bench, label: str) -> parity.Progress:
    return lambda items: bench.track(label, list(items))


def _find_heads(bench: _Bench) -> heads.Found:
    """Find the heads that tell the times of words, and write their graph, if there are any."""
    known = [
        (bench.settings.references.get(name, ""), waveform)
        for name, waveform in bench.source.calibration
    ]
    words = [(text, waveform) for text, waveform in known if len(heads.plain(text)) == 1]
    found = heads.find(bench.oracle, words, bench.track)
    if found.heads:
        align.write(bench.staging, found.heads, len(bench.source.tokens.prefix))
    return found


def _no_times(found: heads.Found | None) -> str:
    """Why the package has no times of words, if it could have them."""
    if found is None or found.heads:
        return ""
    return f"the package cannot tell when words are said: {found.reason}"


def _facts(bench: _Bench) -> Facts:
    settings, source = bench.settings, bench.source
    return Facts(
        name=settings.name or source.checkpoint.directory.resolve().name,
        precision=settings.precision,
        embedding=settings.embedding,
        sizes=source.sizes,
        tokens=source.tokens,
        provenance=bench.provenance,
        files={},
        target=settings.target,
    )


def _complete(bench: _Bench, prefix: Sequence[Any], graphs: Sequence[_Made]) -> Facts:
    """Write what is no graph of the network, so that the runtime can open the package."""
    settings, source, staging = bench.settings, bench.source, bench.staging
    layout, target = LAYOUTS[settings.layout], settings.target
    if layout.prefix:
        write.write_prefix(prefix, staging)
    if not any(RECIPES[m.recipe].exact_sums for graph in graphs for m in graph.fitted.matrices):
        (staging / contract.CPU_CHECK_FILE).unlink()
        target = "any"
    write.write_embedding(
        bench.network.table[: source.sizes.n_embeddings], staging, settings.embedding
    )
    (staging / contract.TOKENIZER_FILE).write_text(source.text.to_json(), encoding="utf-8")
    facts = replace(_facts(bench), target=target, files=write.list_files(staging))
    layout.describe(staging, facts, source.checkpoint)
    return facts


def _prove(
    bench: _Bench, facts: Facts, clips: Sequence[Heard], found: heads.Found | None
) -> tuple[Report, heads.Errors | None]:
    """Open the package with the runtime and compare it with torch, clip by clip."""
    bench.network.page_out()
    package = PackageEngine(bench.staging)
    compared = [
        verify.compare_clip(package, clip, PROBE_TOKENS)
        for clip in bench.track("verify with the runtime", clips)
    ]
    settings = bench.settings
    report = Report(
        package=f"{facts.name} ({settings.layout} {settings.precision})",
        reference=f"{facts.provenance.source} (torch fp32)",
        weights="exported from the reference",
        limits=verify.limits(settings.precision, "fp32"),
        clips=tuple(compared),
    )
    return report, heads.measured(package) if found and found.heads else None


def _judge(settings: Settings, shortfalls: Iterable[str]) -> str:
    """What is outside its limits, or a refusal; upstream's recipe is what it is."""
    found = "; ".join(filter(None, shortfalls))
    if not found or settings.layout == "published":
        return ""
    if not settings.allow_degraded:
        raise ExportError(
            f"the package was not published: {found}; --allow-degraded publishes it all the "
            "same, --precision fp32 may be within the limits"
        )
    return found


def _sounds(probes: Sequence[Sound], checkpoint: Checkpoint, longest: float) -> list[Sound]:
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


def _cut(sounds: Sequence[Sound], longest: float) -> list[Sound]:
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


def _provenance(checkpoint: Checkpoint, settings: Settings) -> Provenance:
    tools = {name: metadata.version(name) for name in _TOOLS}
    return Provenance(
        exporter=f"ark-asr-onnx {ark_asr_onnx.__version__}",
        tools={"python": platform.python_version(), **tools},
        source=settings.source or checkpoint.directory.resolve().name,
        source_sha256={path.name: file_sha256(path) for path in checkpoint.files},
        instruction=settings.instruction,
        recipe={},
        parity={},
    )


def _recipe(settings: Settings, matrices: Sequence[Matrix]) -> dict[str, str]:
    """How the weights are stored."""
    if settings.precision == "fp32":
        return {"weights": "fp32"}
    if not matrices:
        return {"name": "dynamic, unsigned 8 bits per channel (upstream's)"}
    worst = max(matrices, key=lambda m: m.error)
    counts = Counter((m.recipe, m.block) for m in matrices)
    return {
        "name": "plan" if settings.plan else settings.recipe,
        "target": settings.target,
        "matrices": ", ".join(
            f"{n} {recipe}" + (f" in blocks of {block}" if block else "")
            for (recipe, block), n in sorted(counts.items())
        ),
        "worst weight error": f"{worst.error:.2e} ({worst.name})",
    }


def _figures(graphs: Mapping[str, Parity], report: Report) -> dict[str, dict[str, float]]:
    totals = Totals.of(report.clips)
    package = {
        "probes": totals.clips,
        "same_tokens": totals.same_tokens,
        "mean_dlogp": round(totals.mean_dlogp, 9),
        "worst_dlogp": round(totals.worst_dlogp, 9),
    }
    named = {name: found.figures() for name, found in graphs.items()}
    return {**named, "torch to package": package}
