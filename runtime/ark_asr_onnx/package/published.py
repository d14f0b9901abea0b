"""The folder upstream publishes (``ark_asr_int8_onnx``), translated into a :class:`Manifest`.

Knows upstream's two JSON files, where their folders put things, and which variants were seen in
the wild. Sizes that stand in the graphs are read from the graphs, by ``layouts/published``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import PackageError
from .contract import PRECISIONS, SCHEMA, Manifest, Provenance, Sizes
from .text import Text
from .vocabulary import INSTRUCTION, decoding_tokens

RUNTIME_MANIFEST = "runtime_manifest.json"
MAX_SECONDS = 30.0  # what the published script hears at once
# The metadata names the published script looks for, in its order; then "<graph stem>.json".
METADATA_FILES = ("llm_kv_fp32_qwen_native.json", "llm_kv_fp32.json")

ENCODER = "encoder"
ADAPTER = "adapter"
DECODER = "decoder"
EMBEDDING = "embedding"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A translated folder."""

    manifest: Manifest
    paths: dict[str, Path]  # role -> file


def find(root: Path) -> Path | None:
    """The folder with ``runtime_manifest.json``: ``root`` itself, its ``model`` folder, or None."""
    for folder in (root, root / "model"):
        if (folder / RUNTIME_MANIFEST).is_file():
            return folder
    return None


def translate(root: Path, model_dir: Path) -> Upstream:
    """Read upstream's files; :class:`PackageError` names the file and what is wrong."""
    where = model_dir / RUNTIME_MANIFEST
    raw = _object(where)
    decoder = model_dir / _value(raw, "llm_default", str, where)
    metadata_path = _metadata_path(root, model_dir, decoder.stem)
    metadata = _object(metadata_path)
    if metadata.get("model_type", "arkasr") != "arkasr":
        raise PackageError(
            f"{metadata_path}: model_type is {metadata['model_type']!r}, expected 'arkasr'"
        )
    embedding = _embedding_path(model_dir, _value(raw, "embedding_default", str, where))
    hidden = _value(metadata, "hidden_size", int, metadata_path)
    n_heads = _value(metadata, "num_attention_heads", int, metadata_path)
    vocab_size = _rows(embedding, hidden)
    text = Text(model_dir)
    tokens = decoding_tokens(
        text,
        vocab_size,
        audio=_value(raw, "audio_token_id", int, where),
        eos=(_value(raw, "im_end_token_id", int, where),),
        stop=tuple(_value(raw, "stop_token_ids", list, where)),
    )
    manifest = Manifest(
        schema=SCHEMA,
        name=root.resolve().name,
        layout="published",
        model_type="arkasr",
        precision=next((p for p in reversed(decoder.stem.split("_")) if p in PRECISIONS), "fp32"),
        embedding="fp16" if "fp16" in embedding.stem else "fp32",
        target="any",
        min_onnxruntime="1.17.0",  # opset 17, IR 8
        sizes=Sizes(
            n_mels=_n_mels(model_dir),
            merge_factor=_value(raw, "audio_merge_factor", int, where),
            max_seconds=MAX_SECONDS,
            hidden_size=hidden,
            n_layers=_value(metadata, "num_layers", int, metadata_path),
            n_kv_heads=_value(metadata, "num_key_value_heads", int, metadata_path),
            head_dim=_value(metadata, "head_dim", int, metadata_path, hidden // n_heads),
            vocab_size=vocab_size,
            n_embeddings=vocab_size,
            n_logits=vocab_size,
            max_positions=_value(metadata, "max_total_len", int, metadata_path),
        ),
        tokens=tokens,
        files={},
        degraded="",
        provenance=Provenance(
            exporter="upstream",
            tools={},
            source=root.resolve().name,
            source_sha256={},
            instruction=INSTRUCTION,
            recipe={"weights": "as published"},
            parity={},
        ),
    )
    return Upstream(
        manifest,
        {
            ENCODER: _file(model_dir / _value(raw, "audio_encoder_default", str, where), where),
            ADAPTER: _file(model_dir / _value(raw, "audio_adapter_default", str, where), where),
            DECODER: _file(decoder, where),
            EMBEDDING: embedding,
            TOKENIZER: text.path,
        },
    )


def _n_mels(model_dir: Path) -> int:
    """Mel bands, which upstream's manifest leaves to the feature extractor's configuration."""
    path = model_dir / "preprocessor_config.json"
    return _value(_object(path), "feature_size", int, path) if path.is_file() else 128


def _metadata_path(root: Path, model_dir: Path, stem: str) -> Path:
    names = [f"{stem}.json", *METADATA_FILES]
    for folder in (model_dir, root / "build", model_dir.parent / "build"):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise PackageError(f"{root}: none of {', '.join(names)} here or in build/; download one")


def _embedding_path(model_dir: Path, graph: str) -> Path:
    """The blob beside the embedding graph, or a half-precision one where that is all there is."""
    candidates = [Path(graph).with_suffix(".data").name, "embedding_fp16.data"]
    for name in candidates:
        if (model_dir / name).is_file():
            return model_dir / name
    raise PackageError(f"{model_dir / candidates[0]}: missing; download it")


def _rows(blob: Path, hidden: int) -> int:
    """Vocabulary size from the blob's size; its name tells the width of a number."""
    width = 2 if "fp16" in blob.stem else 4
    n_bytes = blob.stat().st_size
    if n_bytes == 0 or n_bytes % (hidden * width):
        raise PackageError(
            f"{blob}: {n_bytes} bytes are no whole number of rows of {hidden} x {width} bytes; "
            "the download is incomplete"
        )
    return n_bytes // (hidden * width)


def _file(path: Path, where: Path) -> Path:
    if not path.is_file():
        raise PackageError(f"{path}: named by {where.name} but missing; download it")
    return path


def _object(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise PackageError(f"{path}: expected a JSON object")
    return cast("dict[str, Any]", raw)


def _value(raw: dict[str, Any], key: str, kind: type, where: Path, default: Any = None) -> Any:
    value = raw.get(key, default)
    if type(value) is not kind:
        problem = "is missing" if value is None else f"is {value!r}"
        raise PackageError(f"{where}: key {key!r} {problem}, expected {kind.__name__}")
    return value
