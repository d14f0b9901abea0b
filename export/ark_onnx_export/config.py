"""What ``config.json`` says about a checkpoint: every size of the network, and nothing else.

The decoder's keys stand at the top level (the published class derives from ``Qwen2Config``), the
encoder's in ``whisper_config``. Sizes come from here only; 0.6B, 3B and the tiny ones are the
same code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ark_asr_onnx.errors import ExportError

# Constants of the published remote code, not config keys.
ENCODER_ROPE_THETA = 10000.0
ENCODER_ROPE_DIM = 32
LAYER_NORM_EPS = 1e-5


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
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ExportError(
                f"{path.parent}: no config.json; --ckpt wants the folder of a Hugging Face "
                "checkpoint (config.json beside the .safetensors files)"
            ) from error
        except (OSError, ValueError) as error:
            raise ExportError(f"{path}: not readable as JSON ({error})") from error
        if not isinstance(raw, dict):
            raise ExportError(f"{path}: expected a JSON object, found {type(raw).__name__}")
        return cls.from_json(raw, str(path))

    @classmethod
    def from_json(cls, raw: dict[str, Any], where: str = "config.json") -> ArkConfig:
        """Build the configuration from the parsed ``config.json``."""
        if raw.get("model_type") != "arkasr":
            raise ExportError(
                f"{where}: model_type is {raw.get('model_type')!r}, this exporter reads 'arkasr'"
            )
        top = _Keys(raw, where)
        whisper = _Keys(top.get("whisper_config", dict), f"{where}: whisper_config")
        for key, only in (("adapter_type", "mlp"), ("hidden_act", "silu")):
            if raw.get(key, only) != only:
                raise ExportError(f"{where}: {key} is {raw[key]!r}, only {only!r} is supported")
        for keys, key in ((top, "mlp_adapter_act"), (whisper, "activation_function")):
            if keys.raw.get(key, "gelu") != "gelu":
                raise ExportError(f"{keys.where}: {key} is {keys.raw[key]!r}, only 'gelu' is known")
        _check_rope(raw, where)
        if raw.get("sliding_window") is not None and raw.get("use_sliding_window"):
            raise ExportError(f"{where}: sliding-window attention is not supported")

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
                "max_source_positions", int, raw.get("max_whisper_length", 1500)
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
            rope_theta=top.get("rope_theta", float, _rope_parameters(raw).get("rope_theta", 1e6)),
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
        value = self.raw.get(key, default)
        if value is None:
            raise ExportError(f"{self.where}: key {key!r} is missing")
        number = kind is float and isinstance(value, int)
        if not (isinstance(value, kind) or number) or (kind is int and isinstance(value, bool)):
            raise ExportError(f"{self.where}: {key} is {value!r}, expected {kind.__name__}")
        return kind(value)


def _ids(values: list[Any], decoder: DecoderConfig, where: str) -> tuple[int, ...]:
    """Token ids from the configuration, at least one."""
    for value in values or [None]:
        if type(value) is not int or not 0 <= value < decoder.vocab_size:
            raise ExportError(
                f"{where}: eos_token_id or pad_token_id names {value!r}, expected an id below "
                f"{decoder.vocab_size}"
            )
    return tuple(values)


def _rope_parameters(raw: dict[str, Any]) -> dict[str, Any]:
    """Where transformers 5 keeps what older versions keep at the top level."""
    return raw.get("rope_parameters") or {}


def _check_rope(raw: dict[str, Any], where: str) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        kind = (raw.get(key) or {}).get("rope_type", "default")
        if kind != "default":
            raise ExportError(f"{where}: {key} is of type {kind!r}, only 'default' is supported")


def _check_sizes(audio: AudioConfig, decoder: DecoderConfig, where: str) -> None:
    """Refuse sizes that no checkpoint can have, before torch meets them."""
    for part in (audio, decoder):
        for name in part.__slots__:
            value = getattr(part, name)
            if not isinstance(value, bool) and value <= 0:
                raise ExportError(f"{where}: {name} is {value}, must be positive")
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
