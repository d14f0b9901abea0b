"""The maker of checkpoints: what it writes is the published format, to the byte where known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import make_checkpoint as maker  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def file_size(size: str) -> tuple[int, int, int]:
    """Bytes of a single-file checkpoint, number of tensors, number of values; nothing is made."""
    config = {**maker._COMMON, **maker.SIZES[size]}
    shapes = maker.tensor_shapes(config)
    n_values = sum(torch.Size(shape).numel() for shape in shapes.values())
    header = maker.safetensors_header(shapes, torch.bfloat16)
    return len(header) + 2 * n_values, len(shapes), n_values


def test_the_06b_file_has_the_published_size_to_the_byte() -> None:
    assert file_size("0.6B") == (2_599_020_680, 782, 1_299_463_168)


def test_the_3b_model_has_the_published_number_of_tensors_and_values() -> None:
    assert file_size("3B")[1:] == (926, 4_063_438_848)


def test_the_header_is_the_one_safetensors_writes(tmp_path: Path) -> None:
    folder = maker.make_checkpoint(tmp_path / "made", seed=3)
    written = (folder / "model.safetensors").read_bytes()
    save_file(load_file(folder / "model.safetensors"), tmp_path / "again", {"format": "pt"})
    assert written == (tmp_path / "again").read_bytes()


def test_the_side_file_known_to_the_byte_has_its_size(tmp_path: Path) -> None:
    maker._write_side_files(tmp_path, 128)
    assert (tmp_path / "preprocessor_config.json").stat().st_size == 434


def test_the_same_seed_gives_the_same_weights_however_they_are_sharded(tmp_path: Path) -> None:
    one = load_file(maker.make_checkpoint(tmp_path / "one", seed=5) / "model.safetensors")
    many = maker.make_checkpoint(tmp_path / "many", seed=5, shards=3)
    index = json.loads((many / "model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(index) == sorted(one)
    for name, file in index.items():
        assert torch.equal(load_file(many / file)[name], one[name])
    other = load_file(maker.make_checkpoint(tmp_path / "other", seed=6) / "model.safetensors")
    assert not torch.equal(other["model.norm.weight"], one["model.norm.weight"])


def test_outliers_stand_far_out(tmp_path: Path) -> None:
    plain = load_file(maker.make_checkpoint(tmp_path / "plain", seed=1) / "model.safetensors")
    folder = maker.make_checkpoint(tmp_path / "wild", seed=1, outliers=1.0)
    wild = load_file(folder / "model.safetensors")
    for name, factor in (
        ("model.layers.1.mlp.down_proj.weight", 50),
        ("audio_encoder.whisper.layers.0.self_attn.out_proj.weight", 50),
        ("model.layers.0.input_layernorm.weight", 30),
    ):
        ratio = (wild[name].float() / plain[name].float()).abs()
        assert ratio.max() == pytest.approx(factor, rel=0.02)
        assert (ratio > 2).float().mean() < 0.06


def test_settings_override_the_configuration(tmp_path: Path) -> None:
    folder = maker.make_checkpoint(
        tmp_path / "custom", overrides={"num_hidden_layers": 1, "whisper_config.encoder_layers": 3}
    )
    tensors = load_file(folder / "model.safetensors")
    assert "model.layers.1.mlp.up_proj.weight" not in tensors
    assert "audio_encoder.whisper.layers.2.fc1.weight" in tensors
