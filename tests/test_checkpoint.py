"""Checkpoints as trainers leave them: what is harmless is taken and said, the rest is named."""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from make_checkpoint import make_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from ark_asr_onnx.errors import ExportError  # noqa: E402
from ark_onnx_export import cli  # noqa: E402
from ark_onnx_export.checkpoint import Checkpoint, load_network, open_checkpoint  # noqa: E402

NORM = "model.norm.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ONE_OF_ONE = "model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with nothing unusual, in one file. Read only."""
    return make_checkpoint(tmp_path_factory.mktemp("whole") / "checkpoint", seed=1)


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file(change(load_file(folder / SINGLE)), folder / SINGLE)


def is_same(folder: Path, whole: Path) -> Checkpoint:
    """The checkpoint, whose network is that of another."""
    expected = load_network(open_checkpoint(whole), max_positions=8)
    opened = open_checkpoint(folder)
    found = load_network(opened, max_positions=8)
    for ours, theirs in ((found.tower, expected.tower), (found.decoder, expected.decoder)):
        for (name, a), (_, b) in zip(
            ours.named_parameters(), theirs.named_parameters(), strict=True
        ):
            assert torch.equal(a, b), name
    assert set(opened.notes) <= set(found.notes)
    return opened


def test_a_plain_checkpoint_has_nothing_to_note(whole: Path) -> None:
    assert is_same(whole, whole).notes == ()


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("model.layers.", "model._orig_mod.layers."),
        lambda name: name.replace("whisper.", "whisper._fsdp_wrapped_module."),
    ],
)  # fmt: skip
def test_names_of_wrappers_are_taken(
    checkpoint: Path, whole: Path, wrapped: Callable[[str], str]
) -> None:
    weights(checkpoint, lambda stored: {wrapped(name): t for name, t in stored.items()})
    (note,) = is_same(checkpoint, whole).notes
    assert "those of a wrapper" in note


def test_a_tensor_that_is_there_with_and_without_a_wrapper_is_refused(checkpoint: Path) -> None:
    weights(checkpoint, lambda stored: {**stored, f"module.{NORM}": stored[NORM] + 1})
    with pytest.raises(ExportError, match=rf"{NORM} is also in model.safetensors, as "):
        open_checkpoint(checkpoint)


def frequencies(theta: float, width: int) -> Any:
    return theta ** -(torch.arange(0, width, 2) / width)


def test_what_is_computed_anyway_may_be_stored(checkpoint: Path, whole: Path) -> None:
    stored = {
        "model.rotary_emb.inv_freq": frequencies(1e6, 16),
        "model.layers.0.self_attn.rotary_emb.inv_freq": frequencies(1e6, 16).bfloat16(),
        "audio_encoder.whisper.layers.1.self_attn.rotary.inv_freq": frequencies(1e4, 32),
        "audio_encoder.whisper.position_ids": torch.arange(1500)[None],
    }
    weights(checkpoint, lambda tensors: {**tensors, **stored})
    (note,) = is_same(checkpoint, whole).notes
    assert note.startswith("4 tensors are computed, not trained: ")


def test_a_name_that_only_ends_like_one_of_those_is_a_surplus_tensor(checkpoint: Path) -> None:
    weights(checkpoint, lambda stored: {**stored, "model.my_inv_freq": frequencies(1e6, 16)})
    with pytest.raises(ExportError, match=r"model\.my_inv_freq"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_frequencies_that_the_configuration_does_not_give_are_refused(
    checkpoint: Path, theta: float
) -> None:
    added = {"model.rotary_emb.inv_freq": frequencies(theta, 16)}
    weights(checkpoint, lambda stored: {**stored, **added})
    with pytest.raises(ExportError, match=r"rotary_emb\.inv_freq has other frequencies than"):
        open_checkpoint(checkpoint)


def test_one_numbered_shard_is_taken_with_and_without_an_index(
    checkpoint: Path, whole: Path
) -> None:
    (checkpoint / SINGLE).rename(checkpoint / ONE_OF_ONE)
    (note,) = is_same(checkpoint, whole).notes
    assert note == f"no {INDEX}; {ONE_OF_ONE} is read"
    names = load_file(checkpoint / ONE_OF_ONE)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, ONE_OF_ONE)}
    (checkpoint / INDEX).write_text(json.dumps(index))
    assert is_same(checkpoint, whole).notes == ()


def test_several_shards_need_their_index(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", seed=1, shards=2)
    (folder / INDEX).unlink()
    with pytest.raises(ExportError, match=r"no model.safetensors .*found: model-00001-of-00002"):
        open_checkpoint(folder)


def test_two_sets_of_weights_are_refused(checkpoint: Path, whole: Path) -> None:
    index = {"weight_map": dict.fromkeys(load_file(checkpoint / SINGLE), SINGLE)}
    (checkpoint / INDEX).write_text(json.dumps(index))
    assert is_same(checkpoint, whole).notes == ()
    index = {"weight_map": dict.fromkeys(index["weight_map"], ONE_OF_ONE)}
    (checkpoint / INDEX).write_text(json.dumps(index))
    shutil.copyfile(checkpoint / SINGLE, checkpoint / ONE_OF_ONE)
    with pytest.raises(ExportError, match="are two sets of weights"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16"]
)  # Windows' editors and shells write both
def test_byte_order_marks_are_no_reason_to_refuse(
    checkpoint: Path, whole: Path, encoding: str
) -> None:
    index = {"weight_map": dict.fromkeys(load_file(checkpoint / SINGLE), SINGLE)}
    (checkpoint / INDEX).write_text(json.dumps(index))
    for name in ("config.json", INDEX):
        text = (checkpoint / name).read_text(encoding="utf-8")
        (checkpoint / name).write_text(text, encoding=encoding)
        assert (checkpoint / name).read_bytes()[:2] in (codecs.BOM_UTF8[:2], codecs.BOM_UTF16)
    assert is_same(checkpoint, whole).notes == ()


def test_a_package_for_upstream_has_no_byte_order_marks(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        text = (checkpoint / name).read_text() if (checkpoint / name).exists() else "{}"
        (checkpoint / name).write_text(text, encoding="utf-8-sig")
    arguments = ["--ckpt", str(checkpoint), "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.main([*arguments, "--layout", "published", "--precision", "fp32"]) == 0
    for path in (tmp_path / "out").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


def test_what_a_trainer_leaves_beside_the_weights_is_not_read_and_said(
    checkpoint: Path, whole: Path
) -> None:
    for name in ("optimizer.pt", "training_args.bin", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).write_bytes(b"pickled")
    (checkpoint / "trainer_state.json").write_text("{")
    (checkpoint / "global_step10").mkdir()
    (note,) = is_same(checkpoint, whole).notes
    assert note == "not read: optimizer.pt, rng_state.pth, scheduler.pt, training_args.bin"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("preprocessor_config.json", "hop_length", 320),
        ("preprocessor_config.json", "feature_size", 128),
        ("preprocessor_config.json", "sampling_rate", "16000"),
        ("processor_config.json", "merge_factor", 2),
    ],
)
def test_sound_that_is_described_otherwise_is_refused(
    checkpoint: Path, whole: Path, name: str, key: str, value: object
) -> None:
    described = json.loads((checkpoint / name).read_text())
    (checkpoint / name).write_text(json.dumps({**described, key: None, "new": 1}))
    assert is_same(checkpoint, whole).notes == ()
    (checkpoint / name).write_text(json.dumps({**described, key: value}))
    with pytest.raises(ExportError, match=rf"{name}: {key} is {value!r}, expected"):
        open_checkpoint(checkpoint)
    (checkpoint / name).unlink()
    assert is_same(checkpoint, whole).notes == ()


def test_notes_reach_the_terminal(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights(checkpoint, lambda stored: {f"module.{name}": t for name, t in stored.items()})
    (checkpoint / "optimizer.pt").write_bytes(b"pickled")
    arguments = ["--ckpt", str(checkpoint), "--out", str(tmp_path / "out"), "--precision", "fp32"]
    assert cli.main([*arguments, "--quiet"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 3  # the last: random weights tell no times
    assert "optimizer.pt" in notes[0] and "module." in notes[1] and "words" in notes[2]


HARMFUL: dict[str, tuple[Callable[[Path], object], str]] = {
    "an adapter": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b""), "adapter.* merge it",
    ),
    "an adapter by its description": (
        lambda f: (f / "adapter_config.json").write_text("{}"), r"adapter_config\.json: an adapter",
    ),
    "only pickles": (
        lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"),
        r"only safetensors are read \(found: pytorch_model\.bin\)",
    ),
    "an index of other folders": (
        lambda f: (f / INDEX).write_text('{"weight_map": {"a": "../model.safetensors"}}'),
        r"names '\.\./model\.safetensors', which is no file in its folder",
    ),
    "an index of another system's folders": (
        lambda f: (f / INDEX).write_text('{"weight_map": {"a": "..\\\\\\\\model.safetensors"}}'),
        "which is no file in its folder",
    ),
    "a quantised model": (
        lambda f: edit(f, quantization_config={"quant_method": "gptq"}), "quantised already",
    ),
    "diverged weights": (
        lambda f: weights(f, lambda t: {**t, NORM: t[NORM] * torch.nan}),
        r"model\.norm\.weight holds values that are no finite numbers",
    ),
    "an overflow in the table": (
        lambda f: weights(f, overflow), r"embed_tokens\.weight holds values that are no finite",
    ),
}  # fmt: skip


def overflow(stored: dict[str, Any]) -> dict[str, Any]:
    stored["model.embed_tokens.weight"][3, 5] = torch.inf
    return stored


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("case", HARMFUL)
def test_what_is_harmful_is_refused_by_name_in_one_line(checkpoint: Path, case: str) -> None:
    damage, expected = HARMFUL[case]
    damage(checkpoint)
    with pytest.raises(ExportError, match=expected) as caught:
        load_network(open_checkpoint(checkpoint), max_positions=8)
    assert "\n" not in str(caught.value)
