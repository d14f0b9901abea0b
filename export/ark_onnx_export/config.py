"""What ``config.json`` says about a checkpoint: every size of the network, and nothing else.

The decoder's keys stand at the top level (the published class derives from ``Qwen2Config``), the
encoder's in ``whisper_config``. Sizes come from here only; 0.6B, 3B and the tiny ones are the
same code.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ark_asr_onnx.errors import ExportError

# Constants of the published remote code, not config keys.
ENCODER_ROPE_THETA = 10000.0
ENCODER_ROPE_DIM = 32
LAYER_NORM_EPS = 1e-5

CONFIG_FILE = "config.json"
# What says, beside the weights, what a model is: sizes, ids, text, sound.
SIDE_FILES = (
    CONFIG_FILE, "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip

# Positions the decoder's RoPE tables cover: 30 s of audio are 385, the rest is for text.
MAX_POSITIONS = 4096

# Beyond these a number is damage, not a model.
_MAX_SIZE = 1 << 20
_MAX_SIZES = {
    "n_layers": 1024,
    "merge_factor": 1024,
    "max_frames": 1 << 17,
    "max_positions": 1 << 30,
}
_MAX_JSON_BYTES = 1 << 26

_ROPE = ("rope_scaling", "rope_parameters")  # where older and newer configurations describe it
_PLAIN_ROPE = (("factor", 1), ("partial_rotary_factor", 1))  # what may stand there besides


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """Sizes of the encoder and the adapter."""

    n_mels: int  # mel bands of the input
    d_model: int  # encoder width
    n_layers: int
    n_heads: int
    ffn_dim: int
    merge_factor: int  # encoder frames per audio token
    max_frames: int  # longest mel input, in 10 ms frames (twice the encoder positions)
    n_stored_positions: int  # rows of the positional table, which is stored in any case
    use_rope: bool = True  # False: the rows of the table are added to the frames instead

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def max_positions(self) -> int:
        """Longest encoder sequence, in 20 ms frames."""
        return self.max_frames // 2


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of the Qwen2 decoder."""

    vocab_size: int
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    tie_word_embeddings: bool


@dataclass(frozen=True, slots=True)
class ArkConfig:
    """A whole ``arkasr`` checkpoint: audio side, decoder, and the ids named in the config."""

    audio: AudioConfig
    decoder: DecoderConfig
    audio_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @classmethod
    def read(cls, path: Path) -> ArkConfig:
        """Parse ``config.json`` at ``path``; :class:`ExportError` names the key that is wrong."""
        if not os.path.lexists(path):
            raise ExportError(
                f"{path.parent}: no config.json; --ckpt wants the folder of a Hugging Face "
                "checkpoint (config.json beside the .safetensors files)"
            )
        raw = read_object(path)
        return cls.from_json(raw, str(path))

    @classmethod
    def from_json(cls, raw: dict[str, Any], where: str = "config.json") -> ArkConfig:
        """Build the configuration from the parsed ``config.json``."""
        if raw.get("model_type") != "arkasr":
            raise ExportError(
                f"{where}: model_type is {reprlib.repr(raw.get('model_type'))}, this exporter "
                "reads 'arkasr'"
            )
        top = _Keys(raw, where)
        whisper = _Keys(top.get("whisper_config", dict), f"{where}: whisper_config")
        for key, only in (("adapter_type", "mlp"), ("hidden_act", "silu")):
            if raw.get(key, only) != only:
                raise ExportError(
                    f"{where}: {key} is {reprlib.repr(raw[key])}, only {only!r} is supported"
                )
        for keys, key in ((top, "mlp_adapter_act"), (whisper, "activation_function")):
            if keys.raw.get(key, "gelu") != "gelu":
                raise ExportError(
                    f"{keys.where}: {key} is {reprlib.repr(keys.raw[key])}, only 'gelu' is known"
                )
        for keys in (top, whisper):
            _check_rope(keys)
        _check_plain(raw, where)

        n_heads = top.get("num_attention_heads", int)
        hidden_size = top.get("hidden_size", int)
        # WhisperConfig maps hidden_size to d_model; some writers store the former.
        d_model = whisper.get("d_model" if "d_model" in whisper.raw else "hidden_size", int)
        audio = AudioConfig(
            n_mels=whisper.get("num_mel_bins", int),
            d_model=d_model,
            n_layers=whisper.get("encoder_layers", int),
            n_heads=whisper.get("encoder_attention_heads", int),
            ffn_dim=whisper.get("encoder_ffn_dim", int),
            merge_factor=top.get("merge_factor", int, 4),
            max_frames=2 * top.get("max_whisper_length", int, 1500),
            n_stored_positions=whisper.get(
                "max_source_positions", int, top.get("max_whisper_length", int, 1500)
            ),
            use_rope=top.get("use_rope", bool, True),
        )
        decoder = DecoderConfig(
            vocab_size=top.get("vocab_size", int),
            hidden_size=hidden_size,
            n_layers=top.get("num_hidden_layers", int),
            n_heads=n_heads,
            n_kv_heads=top.get("num_key_value_heads", int),
            head_dim=top.get("head_dim", int, hidden_size // max(n_heads, 1)),
            ffn_dim=top.get("intermediate_size", int),
            rms_norm_eps=top.get("rms_norm_eps", float, 1e-6),
            rope_theta=_rope_theta(top),
            max_positions=top.get("max_position_embeddings", int, 32768),
            tie_word_embeddings=top.get("tie_word_embeddings", bool, True),
        )
        _check_sizes(audio, decoder, where)
        eos = raw.get("eos_token_id")
        pad = raw.get("pad_token_id")
        return cls(
            audio=audio,
            decoder=decoder,
            audio_token_id=top.get("audio_token_id", int),
            eos_token_ids=_ids(eos if isinstance(eos, list) else [eos], decoder, where),
            pad_token_id=None if pad in (None, -1) else _ids([pad], decoder, where)[0],
        )


class _Keys:
    """Typed look-up in a JSON object, with the file's name in every error."""

    def __init__(self, raw: dict[str, Any], where: str) -> None:
        self.raw, self.where = raw, where

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of a kind, numbers finite; a key without a value counts as missing."""
        value = self.raw.get(key)
        value = default if value is None else value
        if value is None:
            raise ExportError(f"{self.where}: key {key!r} is missing")
        kinds = (int, float) if kind is float else (kind,)
        if type(value) not in kinds or (kind is float and not _is_finite(value)):
            raise ExportError(
                f"{self.where}: {key} is {reprlib.repr(value)}, expected {kind.__name__}"
            )
        return kind(value)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, with or without a byte order mark; else :class:`ExportError`."""
    try:
        if path.exists() and not path.is_file():
            raise ExportError(f"{path}: not a file")
        with path.open("rb") as stream:
            content = stream.read(_MAX_JSON_BYTES + 1)
        if len(content) > _MAX_JSON_BYTES:
            raise ExportError(f"{path}: larger than {_MAX_JSON_BYTES >> 20} MB, not a description")
        raw = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ExportError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return cast("dict[str, Any]", raw)


def require_text(path: Path) -> None:
    """Refuse a path that is no UTF-8: neither safetensors nor onnxruntime opens files there."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ExportError(f"{path}: the name is not UTF-8; rename it or give another") from error


def shown(text: str, most: int = 500) -> str:
    """A text out of a file in one line, as much as fits, without what a terminal would obey."""
    cut = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _ids(values: list[Any], decoder: DecoderConfig, where: str) -> tuple[int, ...]:
    """Token ids from the configuration, at least one."""
    for value in values or [None]:
        if type(value) is not int or not 0 <= value < decoder.vocab_size:
            raise ExportError(
                f"{where}: eos_token_id or pad_token_id names {reprlib.repr(value)}, expected an "
                f"id below {decoder.vocab_size}"
            )
    return tuple(values)


def _rope_theta(top: _Keys) -> float:
    """The base of the decoder's RoPE, which transformers 5 keeps in ``rope_parameters``."""
    objects = [top, *(_Keys(top.raw.get(key) or {}, f"{top.where}: {key}") for key in _ROPE)]
    said = (keys for keys in objects if keys.raw.get("rope_theta") is not None)
    found = {keys.get("rope_theta", float) for keys in said}
    if len(found) > 1:
        raise ExportError(f"{top.where}: rope_theta is {' and '.join(map(str, sorted(found)))}")
    return found.pop() if found else 1e6


def _check_rope(keys: _Keys) -> None:
    """Refuse all RoPE but the plain one, however a file says so."""
    for key in _ROPE:
        value = keys.raw.get(key)
        where = f"{keys.where}: {key}"
        if value is None or value == {}:
            continue
        if not isinstance(value, dict):
            raise ExportError(f"{where} is {reprlib.repr(value)}, expected an object or null")
        said = {k: v for k, v in cast("dict[str, Any]", value).items() if v is not None}
        for kind in [said.pop(name) for name in ("rope_type", "type") if name in said]:
            if kind != "default":
                raise ExportError(
                    f"{where} is of type {reprlib.repr(kind)}, only 'default' is supported"
                )
        for name, other in said.items():
            if name != "rope_theta" and (name, other) not in _PLAIN_ROPE:
                raise ExportError(f"{where}: {name} is {reprlib.repr(other)}, which is not built")
    share = keys.raw.get("partial_rotary_factor")
    if share not in (None, 1):
        raise ExportError(
            f"{keys.where}: partial_rotary_factor is {reprlib.repr(share)}, only 1 is supported"
        )


def _check_plain(raw: dict[str, Any], where: str) -> None:
    """Refuse what would change the numbers and is not built."""
    kinds = raw.get("layer_types") or []
    windows = raw.get("sliding_window") is not None and raw.get("use_sliding_window")
    if windows or (isinstance(kinds, list) and "sliding_attention" in kinds):
        raise ExportError(f"{where}: sliding-window attention is not supported")
    if raw.get("quantization_config"):
        raise ExportError(
            f"{where}: quantization_config: the weights are quantised already; export the "
            "checkpoint that they were made from"
        )


def _check_sizes(audio: AudioConfig, decoder: DecoderConfig, where: str) -> None:
    """Refuse sizes that no checkpoint can have, before torch meets them."""
    for part in (audio, decoder):
        for name in part.__slots__:
            value = getattr(part, name)
            limit = math.inf if isinstance(value, float) else _MAX_SIZES.get(name, _MAX_SIZE)
            if not isinstance(value, bool) and not 0 < value <= limit:
                raise ExportError(
                    f"{where}: {name} is {reprlib.repr(value)}, must be positive and at most "
                    f"{limit}"
                )
    checks = (
        (audio.d_model % audio.n_heads == 0, "encoder width is not a multiple of its heads"),
        (
            not audio.use_rope or audio.head_dim >= ENCODER_ROPE_DIM,
            f"encoder heads are narrower than {ENCODER_ROPE_DIM}",
        ),
        (
            audio.use_rope or audio.n_stored_positions >= audio.max_positions,
            f"use_rope is false and max_source_positions is {audio.n_stored_positions}, "
            f"max_whisper_length is {audio.max_positions}: positions are missing",
        ),
        (decoder.n_heads % decoder.n_kv_heads == 0, "num_key_value_heads does not divide heads"),
        (decoder.head_dim % 2 == 0, "decoder head_dim is odd"),
    )
    for fine, problem in checks:
        if not fine:
            raise ExportError(f"{where}: {problem}")
