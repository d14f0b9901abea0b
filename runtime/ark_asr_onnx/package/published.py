"""The folder that the makers of ARK-ASR publish (``ark_asr_int8_onnx``): its contract.

The reader, the hub and the exporter take file names, JSON keys, graph inputs and outputs, and the
structure of the folder from here. Fields that are read from JSON have the names of their keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from ..errors import PackageError
from .contract import PRECISIONS, SCHEMA, Manifest, Provenance, Sizes, check_limit, check_values
from .foreign import is_plain, read_object, shown
from .text import Text
from .vocabulary import INSTRUCTION, decoding_tokens

RUNTIME_MANIFEST = "runtime_manifest.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
MODEL_FOLDER = "model/"  # may hold all files but those in build/
# Places of the folder in repositories.
REPOSITORY_FOLDERS = ("", MODEL_FOLDER, "ark_asr_int8_onnx/", f"ark_asr_int8_onnx/{MODEL_FOLDER}")
# The decoder's sizes are in "<decoder>.json", or in a file that the published script reads.
DECODER_FILES = ("llm_kv_fp32_qwen_native.json", "llm_kv_fp32.json")
_BUILD_FOLDERS = ("", "build/", "../build/")  # of the decoder's sizes, from the model folder
_HALF_EMBEDDING = "embedding_fp16.data"
EMBEDDING_GRAPH = "embedding_fp32.onnx"

MAX_SECONDS = 30.0  # the longest audio that the published script reads
_N_MELS = 128  # if there is no preprocessor file
_MODEL_TYPE = "arkasr"
_REMEDY = "fetch it again"

# The roles of the files.
ENCODER = "encoder"
ADAPTER = "adapter"
DECODER = "decoder"
EMBEDDING = "embedding"
DECODER_SIZES = "decoder sizes"
GRAPHS = (ENCODER, ADAPTER, DECODER)

# Inputs and outputs of the graphs.
AUDIOS, ENCODED = "audios", "encoded_audio_features"
MERGED, AUDIO_EMBEDS = "merged_audio_features", "audio_embeddings"
EMBEDS, MASK, POSITIONS = "inputs_embeds", "attention_mask", "cache_position"
LOGITS = "logits"
_T = TypeVar("_T")


def cache_names(n_layers: int) -> list[str]:
    """The decoder's cache inputs, layer by layer, key before value."""
    return [f"cache_{part}_{i}" for i in range(n_layers) for part in ("key", "value")]


def delta_names(n_layers: int) -> list[str]:
    """The decoder's outputs with new cache rows, in the order of :func:`cache_names`."""
    return [f"{part}_delta_{i}" for i in range(n_layers) for part in ("key", "value")]


def past_names(n_layers: int) -> list[str]:
    """The cache inputs of another export that is in use, in the same order."""
    return [f"past_{part}_{i}" for i in range(n_layers) for part in ("key", "value")]


def present_names(n_layers: int) -> list[str]:
    """The cache outputs of that export, in the same order."""
    return [f"present_{part}_{i}" for i in range(n_layers) for part in ("key", "value")]


@dataclass(frozen=True, slots=True)
class RuntimeManifest:
    """The keys of ``runtime_manifest.json`` that are read."""

    audio_encoder_default: str  # file names
    audio_adapter_default: str
    llm_default: str
    embedding_default: str  # the graph; its data file is beside it
    audio_merge_factor: int
    audio_token_id: int
    im_end_token_id: int
    stop_token_ids: list[int]

    @property
    def decoder_stem(self) -> str:
        """The decoder's file name without its suffix."""
        return PurePosixPath(self.llm_default).stem

    def wanted(self) -> dict[str, tuple[str, ...]]:
        """The files that a folder must hold: for each role the possible paths, best first.

        Paths are relative to the manifest. A tokenizer is needed as well, see :class:`Text`.
        """
        embedding = PurePosixPath(self.embedding_default).with_suffix(".data").name
        names = [f"{self.decoder_stem}.json", *DECODER_FILES]
        return {
            ENCODER: (self.audio_encoder_default,),
            ADAPTER: (self.audio_adapter_default,),
            DECODER: (self.llm_default,),
            EMBEDDING: (embedding, _HALF_EMBEDDING),
            DECODER_SIZES: tuple(folder + name for folder in _BUILD_FOLDERS for name in names),
        }


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """The keys of ``llm_kv_*.json`` that are read."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_total_len: int
    head_dim: int | None = None  # None: hidden_size / num_attention_heads


def find(root: Path) -> Path | None:
    """The folder with ``runtime_manifest.json``: ``root`` itself, its ``model`` folder, or None."""
    for folder in (root, root / MODEL_FOLDER):
        if (folder / RUNTIME_MANIFEST).is_file():
            return folder
    return None


def read_manifest(path: Path) -> RuntimeManifest:
    """``runtime_manifest.json``. Raises :class:`PackageError`, which names the wrong key."""
    found = _fields(RuntimeManifest, read_object(path, _REMEDY), path)
    names = (found.audio_encoder_default, found.audio_adapter_default, found.llm_default)
    for name in (*names, found.embedding_default):
        if not is_plain(name) or "/" in name:
            raise PackageError(f"{path}: names {shown(name)}, expected a file of this folder")
    return found


def translate(root: Path, model_dir: Path) -> tuple[Manifest, dict[str, Path]]:
    """A folder's manifest, and its files by role.

    Raises :class:`PackageError`, which names the file and the problem.
    """
    where = model_dir / RUNTIME_MANIFEST
    raw = read_manifest(where)
    paths = {what: _first(model_dir, names, where) for what, names in raw.wanted().items()}
    sizes_path = paths.pop(DECODER_SIZES)
    decoder, head_dim = _decoder_sizes(sizes_path)
    vocab_size = _rows(paths[EMBEDDING], decoder.hidden_size)
    check_limit("vocab_size", vocab_size, str(paths[EMBEDDING]))
    text = Text(model_dir)
    name = root.resolve().name.encode(errors="replace").decode()
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        layout="published",
        model_type=_MODEL_TYPE,
        precision=next(
            (p for p in reversed(raw.decoder_stem.split("_")) if p in PRECISIONS), "fp32"
        ),
        embedding="fp16" if "fp16" in paths[EMBEDDING].stem else "fp32",
        target="any",
        min_onnxruntime="1.17.0",  # opset 17, IR 8
        sizes=Sizes(
            n_mels=_n_mels(model_dir),
            merge_factor=raw.audio_merge_factor,
            max_seconds=MAX_SECONDS,
            hidden_size=decoder.hidden_size,
            n_layers=decoder.num_layers,
            n_kv_heads=decoder.num_key_value_heads,
            head_dim=head_dim,
            vocab_size=vocab_size,
            n_embeddings=vocab_size,
            n_logits=vocab_size,
            max_positions=decoder.max_total_len,
        ),
        tokens=decoding_tokens(
            text,
            vocab_size,
            audio=raw.audio_token_id,
            eos=(raw.im_end_token_id,),
            stop=tuple(raw.stop_token_ids),
        ),
        files={},
        degraded="",
        provenance=Provenance(
            exporter="the makers of ARK-ASR",
            tools={},
            source=name,
            source_sha256={},
            instruction=INSTRUCTION,
            recipe={"weights": "as published"},
            parity={},
        ),
    )
    check_values(manifest, str(where))
    return manifest, {**paths, **{file.name: file for file in text.files}}


def _decoder_sizes(path: Path) -> tuple[DecoderSizes, int]:
    """The decoder's sizes, and its ``head_dim``."""
    raw = read_object(path, _REMEDY)
    if raw.get("model_type", _MODEL_TYPE) != _MODEL_TYPE:
        kind = shown(raw["model_type"])
        raise PackageError(f"{path}: model_type is {kind}, expected {_MODEL_TYPE!r}")
    found = _fields(DecoderSizes, raw, path)
    for key, value in dataclasses.asdict(found).items():
        if value is not None:
            check_limit(key, value, str(path))
    return found, found.head_dim or found.hidden_size // found.num_attention_heads


def _n_mels(model_dir: Path) -> int:
    """Number of mel bands, from the feature extractor's configuration."""
    path = model_dir / PREPROCESSOR_FILE
    value = read_object(path, _REMEDY).get("feature_size") if path.is_file() else _N_MELS
    return cast("int", _typed(value, "int", path, "feature_size"))


def _first(model_dir: Path, names: tuple[str, ...], where: Path) -> Path:
    for name in names:
        if (model_dir / name).is_file():
            return (model_dir / name).resolve() if ".." in name else model_dir / name
    others = f" (or {', '.join(names[1:])})" if names[1:] else ""
    raise PackageError(
        f"{model_dir / names[0]}: missing, {where.name} needs it{others}; download it"
    )


def _rows(blob: Path, hidden: int) -> int:
    """Vocabulary size, from the size of the embedding file; its name gives the number's width."""
    width = 2 if "fp16" in blob.stem else 4
    n_bytes = blob.stat().st_size
    if n_bytes == 0 or n_bytes % (hidden * width):
        raise PackageError(
            f"{blob}: {n_bytes} bytes are no whole number of rows of {hidden} x {width} bytes; "
            "the download is incomplete"
        )
    return n_bytes // (hidden * width)


def _fields(kind: type[_T], raw: Mapping[str, Any], where: Path) -> _T:
    """A dataclass from JSON; every key must have the type of its field."""
    fields = dataclasses.fields(cast("Any", kind))
    given = [f for f in fields if raw.get(f.name) is not None or f.default is dataclasses.MISSING]
    return kind(**{f.name: _typed(raw.get(f.name), str(f.type), where, f.name) for f in given})


def _typed(value: object, kind: str, where: Path, key: str) -> object:
    """A value from JSON, checked against the type of a dataclass field."""
    if isinstance(value, list):
        items = cast("list[object]", value)
        is_right = kind == "list[int]" and all(type(item) is int for item in items)
    else:
        is_right = type(value).__name__ in kind.split(" | ")
    if not is_right:
        problem = "is missing" if value is None else f"is {shown(value)}"
        raise PackageError(f"{where}: key {key!r} {problem}, expected {kind}")
    return cast("object", value)
