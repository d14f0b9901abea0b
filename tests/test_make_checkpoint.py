"""The maker of checkpoints: what it writes is the published format, to the byte where known."""

from __future__ import annotations

import fnmatch
import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from ark_asr_onnx import PackageError
from ark_asr_onnx.model.layouts.prompt import prompt_ids
from ark_asr_onnx.package.text import Text
from ark_asr_onnx.package.vocabulary import decoding_tokens

torch = pytest.importorskip("torch")

import make_checkpoint as maker  # noqa: E402
import make_tokenizer  # noqa: E402
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


# What a checkpoint of the real vocabulary is besides, small enough to be made here.
SMALL = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "whisper_config.d_model": 8, "whisper_config.encoder_layers": 1,
    "whisper_config.encoder_attention_heads": 2, "whisper_config.encoder_ffn_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def of_the_real_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "checkpoint"
    return maker.make_checkpoint(folder, size="0.6B", overrides=SMALL)


def config_of(size: str) -> dict[str, Any]:
    return {**maker._COMMON, **maker.SIZES[size]}


def test_the_tokenizer_that_is_made_has_the_real_arrangement(of_the_real_vocabulary: Path) -> None:
    text = Text(of_the_real_vocabulary)
    assert text.size == 163958
    ids = {text.id(name): name for name in ("<|im_end|>", "<|audio|>", "<|user|>", "<|system|>")}
    assert list(ids) == [151645, 151663, 151665, 151669]
    assert text.id("<|bicodec_semantic_8191|>") == 163957
    tokens = decoding_tokens(text, 163958, audio=151663, eos=(151645,), stop=(151645,))
    assert tokens.block_from_id == 151643
    assert len(prompt_ids(tokens, 375)) == 385  # as with the real one
    said = "Ärger, 4 ½ months of quick brown foxes 🦙\n"
    assert text.decode(text.encode(said)) == said


def test_the_3b_tokenizer_has_no_codes() -> None:
    tokenizer = make_tokenizer.full_tokenizer(config_of("3B")["vocab_size"])
    assert tokenizer.get_vocab_size() == 151670
    assert tokenizer.token_to_id("<|system|>") == 151669


def test_transformers_reads_the_tokenizer_as_qwen2s(
    of_the_real_vocabulary: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "tokenizer.json").symlink_to(of_the_real_vocabulary / "tokenizer.json")
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    said = "Please transcribe this audio.<|im_end|>"
    assert read.encode(said) == list(Text(of_the_real_vocabulary).encode(said))


def test_a_tokenizer_is_taken_from_a_checkpoint_without_codes_where_there_is_no_room(
    of_the_real_vocabulary: Path, tmp_path: Path
) -> None:
    name = str(of_the_real_vocabulary)
    whole = maker.make_checkpoint(tmp_path / "0.6B", size="0.6B", overrides=SMALL, tokenizer=name)
    for file in ("tokenizer.json", "config.json"):
        assert (whole / file).read_bytes() == (of_the_real_vocabulary / file).read_bytes()
    less = maker.make_checkpoint(tmp_path / "3B", size="3B", overrides=SMALL, tokenizer=name)
    assert Text(less).size == 151670


@pytest.mark.parametrize("size", ["0.6B", "3B"])
def test_a_tokenizer_in_old_files_is_taken(
    of_the_real_vocabulary: Path, tmp_path: Path, size: str
) -> None:
    old, out = tmp_path / "old", tmp_path / "out"
    old.mkdir()
    out.mkdir()
    state = json.loads((of_the_real_vocabulary / "tokenizer.json").read_text(encoding="utf-8"))
    (old / "vocab.json").write_text(json.dumps(state["model"]["vocab"]))
    merges = [" ".join(pair) for pair in state["model"]["merges"]]
    (old / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    added = {token["content"]: token["id"] for token in state["added_tokens"]}
    (old / "added_tokens.json").write_text(json.dumps(added))
    make_tokenizer.take_tokenizer(str(old), out, config_of(size))
    assert Text(out).size == {"0.6B": 163958, "3B": 151670}[size]


def test_a_tokenizer_is_taken_from_the_hub(
    of_the_real_vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(of_the_real_vocabulary)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    make_tokenizer.take_tokenizer("owner/name", tmp_path, config_of("0.6B"))
    assert Text(tmp_path).size == 163958
    ((name, patterns),) = asked
    assert name == "owner/name"
    assert not any(fnmatch.fnmatch("model.safetensors", pattern) for pattern in patterns)


def test_a_tokenizer_that_cannot_be_had_or_used_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(*_: object, **__: object) -> str:
        raise FileNotFoundError("the hub cannot be reached\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    tiny = maker.make_checkpoint(tmp_path / "tiny")
    out = tmp_path / "out"
    for size, name, complaint in (
        ("0.6B", str(tiny), "the tokenizer belongs to another model"),
        ("0.6B", "owner/name", "neither a folder nor a repository that can be had (the hub cannot"),
        ("tiny", str(tiny), "tiny has a tokenizer of its own"),
    ):
        options = [str(out), "--size", size, "--tokenizer", name]
        monkeypatch.setattr(sys, "argv", ["make_checkpoint.py", *options])
        assert maker.main() == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert complaint in line
        assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    with pytest.raises(PackageError, match="another model"):
        maker.make_checkpoint(out, size="3B", tokenizer=str(tiny))
