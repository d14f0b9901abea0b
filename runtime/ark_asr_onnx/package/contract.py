"""The package format that exporter and runtime share; ``runtime/PACKAGE.md`` describes it.

This module knows names and the manifest; it reads no graph and no weights. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PackageError
from .foreign import is_plain, parse_json, reason, shown, shown_name

_LARGEST = sys.float_info.max
# A number beyond these limits comes from damage, not from a model.
_MAX_SIZE = 1 << 24
_LIMITS = {
    **dict.fromkeys(("n_layers", "num_layers"), 1024),
    **dict.fromkeys(("vocab_size", "n_embeddings", "n_logits"), 1 << 20),
}
_MAX_PROMPT = 4096  # ids before and after the audio
_MAX_FILES = 100
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){1,3}")
SCHEMA = 1  # raised when a reader of the old schema would misread a new package

MANIFEST_FILE = "ark_manifest.json"
AUDIO_FILE = "audio.onnx"
DECODER_FILE = "decoder.onnx"
PREFILL_FILE = "prefill.onnx"  # only if the decoder's weights allow a faster one for prompts
ALIGN_FILE = "align.onnx"  # only if heads were found that give times of words
TOKENIZER_FILE = "tokenizer.json"
PREFIX_FILE = "prefix_fp32.data"
AUDIO_NARROW_FILE = "audio_narrow.onnx"  # the audio graph for CPUs that the check below finds
CPU_CHECK_FILE = "cpu_check.onnx"  # only if some CPUs would saturate sums of products of bytes

TARGETS = ("any", "vnni", "avx2", "arm64")
PRECISIONS = ("int8", "int4", "fp16", "fp32")
EMBEDDINGS = ("fp32", "fp16")

REMEDY = "copy the package or export it again"  # the end of most messages about a damaged package

# Graph inputs and outputs of the native layout.
LOG_MEL = "log_mel"
AUDIO_EMBEDS = "audio_embeds"
INPUTS_EMBEDS = "inputs_embeds"
SEQLENS_K = "seqlens_k"
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"
LOGITS = "logits"
POSITIONS = "positions"  # [T], one for each row of ``inputs_embeds``
AUDIO_END = "audio_end"  # [1] position after the last audio row
ATTENTION = "attention"  # [heads, T, N], from each position to the audio rows

# The check multiplies ``codes [16, 64]``, all 255, by weights of 127: a CPU that adds products of
# bytes in 16 bits gives less than this in ``sums [16, 16]``.
CODES = "codes"
SUMS = "sums"
CODES_SHAPE = (16, 64)
EXACT_SUM = 255 * 127 * 64


def past_names(n_layers: int) -> list[str]:
    """KV inputs of the decoder, layer by layer, key before value."""
    return [f"past_key_values.{i}.{part}" for i in range(n_layers) for part in ("key", "value")]


def present_names(n_layers: int) -> list[str]:
    """KV outputs of the decoder, in the order of :func:`past_names`."""
    return [f"present.{i}.{part}" for i in range(n_layers) for part in ("key", "value")]


def embedding_files(dtype: str) -> tuple[str, str]:
    """Graph and data file of the embedding table in ``fp32`` or ``fp16``."""
    return f"embedding_{dtype}.onnx", f"embedding_{dtype}.data"


def external_data_file(graph_file: str) -> str:
    """Name of the file that holds a graph's weights."""
    return graph_file + ".data"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that the runtime needs before it opens a graph."""

    n_mels: int  # mel bands
    merge_factor: int  # encoder frames per audio token
    max_seconds: float  # longest audio of one pass
    hidden_size: int  # width of an embedding row
    n_layers: int  # decoder layers
    n_kv_heads: int
    head_dim: int
    vocab_size: int  # ids of the tokenizer and of the blocked ranges
    n_embeddings: int  # rows of the embedding table: the lowest ids, up to the last one needed
    n_logits: int  # ids that the decoder scores: the lowest, up to the last that may be chosen
    max_positions: int  # the most positions that the decoder can hold


@dataclass(frozen=True, slots=True)
class Tokens:
    """The prompt and the two id sets that steer decoding.

    ``blocked`` and ``stop`` are different sets: an id may be in both (it is then never chosen,
    and would stop if it were). Only the ids in ``eos`` escape ``blocked`` and ``block_from_id``.
    """

    prefix: tuple[int, ...]  # prompt before the audio rows
    audio: int  # placeholder id, one per audio row
    suffix: tuple[int, ...]  # prompt after the audio rows
    eos: tuple[int, ...]  # end of turn
    stop: tuple[int, ...]  # ids that end decoding
    blocked: tuple[tuple[int, int], ...]  # inclusive ranges of ids never chosen
    block_from_id: int  # every id from here up is never chosen


@dataclass(frozen=True, slots=True)
class File:
    """One file of the package."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """How the package was made; for people and reports, never for decisions at runtime."""

    exporter: str  # "ark-asr-onnx 0.1.0"
    tools: dict[str, str]  # distribution -> version
    source: str  # checkpoint folder's name; "owner/name@commit" of the Hugging Face hub
    source_sha256: dict[str, str]  # checkpoint file -> checksum
    instruction: str  # the text between the audio and the assistant marker
    recipe: dict[str, str]  # how the weights are stored, and the worst error of one matrix
    parity: dict[str, dict[str, float]]  # comparison -> figure -> value


@dataclass(frozen=True, slots=True)
class Manifest:
    """``ark_manifest.json``: everything about a package but its weights."""

    schema: int
    name: str  # for people
    layout: str  # "native" or "published"
    model_type: str  # "arkasr"
    precision: str  # "int8" or "fp32"
    embedding: str  # "fp32" or "fp16"
    target: str  # kind of CPU on which the results are right; "any": all kinds
    min_onnxruntime: str  # oldest release that runs the graphs
    sizes: Sizes
    tokens: Tokens
    files: dict[str, File]  # every file but the manifest itself
    degraded: str  # why it was published outside its quality limits, "" if it is within them
    provenance: Provenance


def manifest_to_json(manifest: Manifest) -> str:
    """Canonical text of a manifest: two-space indent, UTF-8, final newline."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"


def manifest_from_json(text: str, where: str = MANIFEST_FILE) -> Manifest:
    """Parse a manifest.

    Raises :class:`PackageError`, which names the key that is missing, unknown or wrong.
    """
    try:
        raw = parse_json(text)
    except ValueError as error:
        raise PackageError(f"{where}: not valid JSON ({reason(error)}); {REMEDY}") from error
    schema = _decode(dict[str, object], raw, where).get("schema")
    if schema != SCHEMA:
        raise PackageError(
            f"{where}: package schema is {shown(schema)}, this version of ark-asr-onnx reads "
            f"{SCHEMA}; upgrade ark-asr-onnx or export the package again"
        )
    manifest = _decode(Manifest, raw, where)
    check_values(manifest, where)
    return manifest


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_limit(key: str, value: float, where: str) -> None:
    """Refuse a size that no model has."""
    limit = _LIMITS.get(key, _MAX_SIZE)
    if not 0 < value <= limit:
        raise PackageError(
            f"{where}: {key} is {value}, must be positive and at most {limit}; {REMEDY}"
        )


def check_values(manifest: Manifest, where: str) -> None:
    """Refuse sizes that no model has, and ids that the embedding table does not have."""
    sizes, tokens = manifest.sizes, manifest.tokens
    for key, value in dataclasses.asdict(sizes).items():
        check_limit(key, value, f"{where}: sizes")
    ids = {
        "prefix": tokens.prefix,
        "audio": (tokens.audio,),
        "suffix": tokens.suffix,
        "eos": tokens.eos,
        "stop": tokens.stop,
        "blocked": tuple(i for limits in tokens.blocked for i in limits),
    }
    for key, value in ids.items():
        for i in value:
            if not 0 <= i < sizes.vocab_size:
                raise PackageError(
                    f"{where}: tokens: {key} has id {i}, the vocabulary has {sizes.vocab_size}; "
                    f"{REMEDY}"
                )
    if not tokens.eos or not set(tokens.eos) <= set(tokens.stop):
        raise PackageError(
            f"{where}: tokens: eos is {shown(list(tokens.eos))} and stop {shown(list(tokens.stop))}"
            f", so that decoding would not end with the turn; {REMEDY}"
        )
    n_prompt = len(tokens.prefix) + len(tokens.suffix)
    if n_prompt >= min(_MAX_PROMPT, sizes.max_positions):
        raise PackageError(
            f"{where}: tokens: a prompt of {n_prompt} ids, the model holds {sizes.max_positions}; "
            f"{REMEDY}"
        )
    _check_files(manifest.files, where)
    odd = [f"blocked has {list(r)}" for r in tokens.blocked if r[0] > r[1]]
    if not 0 <= tokens.block_from_id <= sizes.vocab_size:
        odd.append(f"block_from_id is {tokens.block_from_id}")
    allowed = {
        "precision": PRECISIONS,
        "embedding": EMBEDDINGS,
        "target": TARGETS,
        "model_type": ("arkasr",),
    }
    for key, values in allowed.items():
        if getattr(manifest, key) not in values:
            odd.append(f"{key} is {shown(getattr(manifest, key))}")
    if not _VERSION.fullmatch(manifest.min_onnxruntime):
        odd.append(f"min_onnxruntime is {shown(manifest.min_onnxruntime)}")
    if odd:
        raise PackageError(f"{where}: {odd[0]}, which no package has; {REMEDY}")
    needed = max(*tokens.prefix, *tokens.suffix, *tokens.eos, sizes.n_logits - 1)
    if needed >= sizes.n_embeddings or max(tokens.eos) >= sizes.n_logits:
        raise PackageError(
            f"{where}: sizes: {sizes.n_embeddings} embeddings and {sizes.n_logits} logits do not "
            f"cover the ids of the prompt and of end of turn; {REMEDY}"
        )


def _check_files(files: dict[str, File], where: str) -> None:
    """Refuse names that lead out of the folder on any system, and more files than a package has."""
    for name in files:
        if not is_plain(name):
            raise PackageError(
                f"{where}: the manifest names {shown(name)}, outside the package; {REMEDY}"
            )
    if len(files) > _MAX_FILES:
        raise PackageError(f"{where}: {len(files)} files, which no package has; {REMEDY}")


def _decode(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as the type ``kind``; refuses any other type and any unknown key."""
    if kind is float and type(value) in (int, float) and abs(value) <= _LARGEST:
        return float(value)
    if kind is object or (type(value) is kind and kind is not float):
        return value
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        found = _decode(dict[str, object], value, where)
        odd = {key: "missing" for key in hints if key not in found}
        odd |= {key: "unknown" for key in found if key not in hints}
        for key, problem in odd.items():
            raise PackageError(f"{where}: {problem} key {shown(key)}; {REMEDY}")
        parts = {key: _decode(hint, found[key], f"{where}: {key}") for key, hint in hints.items()}
        return typing.cast("Any", kind)(**parts)
    if origin is dict and isinstance(value, dict):
        items = typing.cast("dict[str, object]", value).items()
        return {k: _decode(args[1], item, f"{where}: {shown_name(k)}") for k, item in items}
    if origin is tuple and isinstance(value, list):
        items = typing.cast("list[object]", value)
        if args[-1] is Ellipsis:
            return tuple(_decode(args[0], item, where) for item in items)
        if len(items) == len(args):
            return tuple(_decode(k, item, where) for k, item in zip(args, items, strict=True))
    name = kind.__name__ if isinstance(kind, type) and not args else str(kind)
    raise PackageError(f"{where}: expected {name}, found {shown(value)}; {REMEDY}")
