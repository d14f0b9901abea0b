"""``config.json``: what is said in several ways is understood, what is not built is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import make_checkpoint as maker  # noqa: E402

from ark_asr_onnx.errors import ExportError  # noqa: E402
from ark_onnx_export.config import ArkConfig  # noqa: E402

PLAIN = {**maker._COMMON, **maker.SIZES["0.6B"]}
NAN, INFINITY = float("nan"), float("inf")


def read(tmp_path: Path, **changes: Any) -> ArkConfig:
    """The configuration with some keys changed; ``whisper`` changes the encoder's."""
    whisper = {**PLAIN["whisper_config"], **changes.pop("whisper", {})}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**PLAIN, "whisper_config": whisper, **changes}))
    return ArkConfig.read(path)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"rope_type": "default"},
        {"type": "default"},
        {"rope_type": None, "rope_theta": 1e6},
        {"rope_type": "default", "type": "default", "factor": 1.0},
        {"rope_type": "default", "rope_theta": 1000000, "partial_rotary_factor": 1.0},
    ],
    ids=str,
)
def test_plain_rope_is_understood_however_it_is_said(tmp_path: Path, key: str, value: Any) -> None:
    assert read(tmp_path, **{key: value}) == read(tmp_path)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "value",
    [
        {"type": "linear"},
        {"type": "linear", "factor": 2.0},
        {"rope_type": "dynamic"},
        {"rope_type": "default", "type": "yarn"},
        {"rope_type": "yarn", "type": "default"},
        {"type": "mrope", "mrope_section": [2, 3, 3]},
        {"rope_type": "default", "mrope_section": [2, 3, 3]},
        {"rope_type": "Default"},
        {"rope_type": ["default"]},
        {"rope_type": 1},
        {"factor": 4.0},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"full_attention": {"rope_type": "default"}},
        {"rope_theta": "1e6"},
        {"rope_theta": NAN},
        {"rope_theta": 5e5},  # the top level says 1e6
        "linear",
        "default",
        ["linear"],
        False,
        0,
        2.0,
    ],
    ids=str,
)
def test_other_rope_is_refused_in_one_line(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ExportError, match="rope") as caught:
        read(tmp_path, **{key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [{"type": "linear", "factor": 2.0}, "linear", [1]], ids=str)
def test_the_encoder_has_plain_rope_alone(tmp_path: Path, value: Any) -> None:
    assert read(tmp_path, whisper={"rope_scaling": {"type": "default"}}) == read(tmp_path)
    with pytest.raises(ExportError, match="whisper_config: rope_scaling is"):
        read(tmp_path, whisper={"rope_scaling": value})


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_the_base_of_rope_is_found_where_it_stands(tmp_path: Path, key: str) -> None:
    found = read(tmp_path, rope_theta=None, **{key: {"rope_type": "default", "rope_theta": 5e5}})
    assert found.decoder.rope_theta == 5e5
    assert read(tmp_path, rope_theta=None).decoder.rope_theta == 1e6


SIZES = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "intermediate_size", "vocab_size", "merge_factor", "max_whisper_length",
         "max_position_embeddings", "head_dim"]  # fmt: skip
NUMBERS = ["rms_norm_eps", "rope_theta"]
WHISPER = ["d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim",
           "num_mel_bins", "max_source_positions"]  # fmt: skip
ODD = [NAN, INFINITY, -INFINITY, -1, 0, 1 << 40, 10**400, 64.0, "64", True, [64], {"a": 64}]


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("key", [*SIZES, *NUMBERS, *WHISPER])
def test_what_is_no_size_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    if key in NUMBERS and value in (1 << 40, 64.0):
        return  # a number, if an odd one
    changes = {"whisper": {key: value}} if key in WHISPER else {key: value}
    with pytest.raises(ExportError) as caught:
        read(tmp_path, **changes)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400 + len(str(tmp_path))
    assert key in message or NAMES[key] in message


# What a size is called in here, where that is another word.
NAMES = {
    "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads", "intermediate_size": "ffn_dim",
    "max_whisper_length": "max_frames", "max_position_embeddings": "max_positions",
    "encoder_layers": "n_layers", "encoder_attention_heads": "n_heads",
    "encoder_ffn_dim": "ffn_dim", "num_mel_bins": "n_mels",
    "max_source_positions": "n_stored_positions",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"use_sliding_window": True, "sliding_window": 512}, "sliding-window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', expected bool"),
        ({"whisper_config": None}, "'whisper_config' is missing"),
        ({"whisper_config": [1]}, "whisper_config is"),
        ({"whisper": {"activation_function": ["gelu"]}}, "activation_function is"),
        ({"eos_token_id": [[1]]}, "names"),
        ({"pad_token_id": NAN}, "names nan"),
        ({"audio_token_id": 1.5}, "audio_token_id is 1.5, expected int"),
    ],
    ids=str,
)
def test_what_is_not_built_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        read(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_keys_without_a_value_count_as_missing(tmp_path: Path) -> None:
    nothing = dict.fromkeys(["head_dim", "merge_factor", "use_rope", "rms_norm_eps", "layer_types"])
    assert read(tmp_path, **nothing) == read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b'"a"', b"\xff\xfe", b"\x00" * 100, b'{"a": "\xff"}',
        b'{"a": ' + b"9" * 5000 + b"}", b'{"a": ' * 100_000, b"[" * 100_000,
        b" " * (1 << 26) + b"{}",
    ],
    ids=range(12),
)  # fmt: skip
def test_what_is_no_configuration_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"config\.json: ") as caught:
        ArkConfig.read(path)
    assert "\n" not in str(caught.value)


def test_a_folder_or_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.mkdir()
    with pytest.raises(ExportError, match="not a file"):
        ArkConfig.read(path)
    if hasattr(os, "mkfifo"):
        path.rmdir()
        os.mkfifo(path)
        with pytest.raises(ExportError, match="not a file"):
            ArkConfig.read(path)
