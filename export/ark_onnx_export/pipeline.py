"""The export: one straight line from a checkpoint folder to a checked package."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

import ark_asr_onnx
from ark_asr_onnx import contract
from ark_asr_onnx.contract import Manifest, Provenance, Sizes, file_sha256
from ark_asr_onnx.errors import ExportError

from . import parity, quantize, reference, trace, write
from .checkpoint import Checkpoint, Network, load_network, open_checkpoint
from .parity import Parity
from .probes import F32, SAMPLE_RATE, probe_waveforms
from .reference import Reference
from .vocabulary import INSTRUCTION, decoding_tokens, open_vocabulary

Precision = Literal["int8", "fp32"]
Progress = Callable[[str, Sequence[Any]], Iterable[Any]]

# Positions the decoder's RoPE tables cover: 30 s of audio are 385, the rest is for text.
MAX_POSITIONS = 4096
MAX_SECONDS = 30.0  # the published models' limit of one pass
_PROBE_TOKENS = 24
# Where INT8 or fp32 choose another token than torch, torch must have been this undecided. (In
# logits; a wrong graph is wrong by several.)
_NEAR_TIE = {"fp32": 0.02, "int8": 1.0}
_TOOLS = ("torch", "onnx", "onnxruntime", "onnxscript", "safetensors", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    directory: Path
    manifest: Manifest
    notes: tuple[str, ...]  # remarks for the log


def export(
    checkpoint_dir: Path,
    out: Path,
    *,
    name: str | None = None,
    precision: Precision = "int8",
    instruction: str = INSTRUCTION,
    probes: Sequence[F32] = (),
    progress: Progress | None = None,
) -> Exported:
    """Turn a Hugging Face checkpoint into a package folder ``out``, which must not exist yet.

    ``name`` is for people (default: the checkpoint folder's). ``probes`` are further waveforms
    ``[n]`` at 16 kHz to compare torch and the package on. Raises :class:`ExportError`; whatever
    fails, ``out`` does not appear.
    """
    track = progress or (lambda _, items: items)
    checkpoint = open_checkpoint(checkpoint_dir)
    vocabulary = open_vocabulary(checkpoint_dir)
    tokens = decoding_tokens(vocabulary, checkpoint.config, instruction)
    write.require_space(out.parent, _needed_bytes(checkpoint, precision))
    max_positions = min(checkpoint.config.decoder.max_positions, MAX_POSITIONS)

    with write.published(out) as staging:
        network = load_network(
            checkpoint, max_positions, lambda names: track("read weights", names)
        )
        waveforms = [*probe_waveforms(), *probes]
        references = [
            reference.transcribe(network, tokens, waveform, _PROBE_TOKENS)
            for waveform in track("torch reference", waveforms)
        ]
        work = _Work(staging, network, references, precision, track)
        _make_graph(work, contract.AUDIO_FILE, lambda: trace.trace_audio(network.tower))
        _make_graph(work, contract.DECODER_FILE, lambda: trace.trace_decoder(network.decoder))
        write.write_embedding(network.table, staging)
        write.copy_file(vocabulary.path, staging / contract.TOKENIZER_FILE)
        manifest = Manifest(
            schema=contract.SCHEMA,
            name=name or checkpoint_dir.resolve().name,
            layout="native",
            model_type="arkasr",
            precision=precision,
            min_onnxruntime=trace.MIN_ONNXRUNTIME,
            sizes=_sizes(checkpoint, max_positions),
            tokens=tokens,
            files=write.list_files(staging),
            provenance=_provenance(checkpoint, instruction, work),
        )
        write.write_manifest(manifest, staging)
        agreement, notes = _verify(work, waveforms)
        parity_figures = {**manifest.provenance.parity, "torch to package, greedy": agreement}
        provenance = replace(manifest.provenance, parity=parity_figures)
        manifest = replace(manifest, provenance=provenance)
        write.write_manifest(manifest, staging)
    return Exported(out, manifest, (*network.notes, *notes))


@dataclass
class _Work:
    """What the stages share, and the figures they collect."""

    directory: Path
    network: Network
    references: list[Reference]
    precision: Precision
    track: Progress
    figures: dict[str, Parity] = field(default_factory=dict)
    matrices: list[quantize.Matrix] = field(default_factory=list)


def _make_graph(work: _Work, file: str, make: Callable[[], ir.Model]) -> None:
    """Trace, compare with torch, and for INT8 quantise and compare again."""
    (model,) = (make() for _ in work.track(f"trace {file}", [file]))
    _write(work, model, file)
    found = _compare(work, file, "fp32")
    parity.require_fp32(found, file)
    if work.precision == "int8":
        nodes = quantize.matrix_nodes(model)
        for node in work.track(f"quantise {file}", nodes):
            work.matrices.append(quantize.blocks8(model, node))
        _write(work, model, file)
        parity.require_int8(_compare(work, file, "int8"), file)


def _write(work: _Work, model: ir.Model, file: str) -> None:
    for _ in work.track(f"write {file}", [file]):
        write.write_graph(model, work.directory / file)


def _compare(work: _Work, file: str, what: str) -> Parity:
    """Compare a written graph with torch and note the figures."""

    def counted(items: Iterable[Any]) -> Iterable[Any]:
        return work.track(f"compare {file} {what}", list(items))

    path = work.directory / file
    if file == contract.AUDIO_FILE:
        found = parity.compare_audio(work.network, path, counted)
    else:
        found = parity.compare_decoder(work.network, path, work.references, counted)
    work.figures[f"torch to {what}, {file}"] = found
    return found


def _verify(work: _Work, waveforms: Sequence[F32]) -> tuple[dict[str, float], list[str]]:
    """Open the package with the runtime and compare its greedy tokens with torch's."""
    transcriber = ark_asr_onnx.load(work.directory, verify=True)
    options = ark_asr_onnx.Options(max_new_tokens=_PROBE_TOKENS)
    same, notes = 0, []
    for i, waveform in enumerate(work.track("verify with the runtime", list(waveforms))):
        ours = transcriber.transcribe(waveform, SAMPLE_RATE, options=options).token_ids
        divergence = parity.first_divergence(work.references[i], ours)
        if divergence is None:
            same += 1
            continue
        step, margin = divergence
        if margin > _NEAR_TIE[work.precision]:
            raise ExportError(
                f"probe {i}: the package leaves torch's tokens at step {step}, where torch was "
                f"sure by {margin:.2f}; the package was not published"
            )
        notes.append(
            f"probe {i}: another token than torch at step {step}, a near tie (margin {margin:.3f})"
        )
    return {"probes": len(waveforms), "same_tokens": same}, notes


def _sizes(checkpoint: Checkpoint, max_positions: int) -> Sizes:
    audio, decoder = checkpoint.config.audio, checkpoint.config.decoder
    return Sizes(
        n_mels=audio.n_mels,
        merge_factor=audio.merge_factor,
        max_seconds=min(MAX_SECONDS, audio.max_frames / 100),
        hidden_size=decoder.hidden_size,
        n_layers=decoder.n_layers,
        n_kv_heads=decoder.n_kv_heads,
        head_dim=decoder.head_dim,
        vocab_size=decoder.vocab_size,
        max_positions=max_positions,
    )


def _provenance(checkpoint: Checkpoint, instruction: str, work: _Work) -> Provenance:
    worst = max(work.matrices, key=lambda m: m.error, default=None)
    recipe = {"weights": "fp32"}
    if worst is not None:
        recipe = {
            "name": "blocks8",
            "matrices": str(len(work.matrices)),
            "worst weight error": f"{worst.error:.2e} ({worst.name})",
        }
    tools = {name: metadata.version(name) for name in _TOOLS}
    return Provenance(
        exporter=f"ark-asr-onnx {ark_asr_onnx.__version__}",
        tools={"python": platform.python_version(), **tools},
        source=checkpoint.directory.resolve().name,
        source_sha256={path.name: file_sha256(path) for path in checkpoint.files},
        instruction=instruction,
        recipe=recipe,
        parity={name: found.figures() for name, found in work.figures.items()},
    )


def _needed_bytes(checkpoint: Checkpoint, precision: Precision) -> int:
    """Disk needed at the worst moment: the table, and the larger graph once in fp32."""
    n_values = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    return int(n_values * (4.0 if precision == "fp32" else 3.0)) + (1 << 20)
