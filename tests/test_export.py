"""The exporter from the command line: what it makes, and what it says when it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
from conftest import babble, unguarded, without_rope

torch = pytest.importorskip("torch")

from make_checkpoint import make_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import ark_asr_onnx  # noqa: E402
from ark_asr_onnx.commands.cli import main  # noqa: E402
from ark_asr_onnx.errors import ExportError  # noqa: E402
from ark_asr_onnx.package import contract  # noqa: E402
from ark_onnx_export import cli, parity, pipeline, reference, write  # noqa: E402
from ark_onnx_export.checkpoint import load_network, open_checkpoint, open_text  # noqa: E402


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return make_checkpoint(tmp_path / "ckpt", seed=1, shards=2)


def export(checkpoint: Path, *more: str) -> tuple[int, Path]:
    out = checkpoint.parent / "out"
    return cli.main(["--ckpt", str(checkpoint), "--out", str(out), "--quiet", *more]), out


def test_the_package_holds_the_documented_files_and_no_others(tiny_package: Path) -> None:
    assert sorted(path.name for path in tiny_package.iterdir()) == [
        "REPORT.md", "ark_manifest.json", "audio.onnx", "audio.onnx.data", "audio_narrow.onnx",
        "cpu_check.onnx", "decoder.onnx", "decoder.onnx.data", "embedding_fp32.data",
        "embedding_fp32.onnx", "prefix_fp32.data", "report.json", "tokenizer.json",
    ]  # fmt: skip


def test_the_embedding_table_is_raw_float32_rows(tiny_checkpoint: Path, tiny_package: Path) -> None:
    expected = open_checkpoint(tiny_checkpoint).tensor("model.embed_tokens.weight").numpy()
    n_rows = ark_asr_onnx.load(tiny_package).manifest.sizes.n_embeddings
    data = (tiny_package / "embedding_fp32.data").read_bytes()
    np.testing.assert_array_equal(np.frombuffer(data, "<f4").reshape(n_rows, 64), expected[:n_rows])


def test_the_embedding_graph_gathers_rows(tiny_package: Path) -> None:
    graph = parity.session(tiny_package / "embedding_fp32.onnx")
    ids = np.array([[3, 0, 3]], np.int64)
    (rows,) = graph.run(None, {"input_ids": ids})
    table = np.fromfile(tiny_package / "embedding_fp32.data", "<f4").reshape(-1, 64)
    np.testing.assert_array_equal(rows, table[ids])


def test_the_fp32_package_chooses_torchs_tokens(
    tiny_checkpoint: Path, tiny_fp32_package: Path
) -> None:
    config = open_checkpoint(tiny_checkpoint)
    network = load_network(config, max_positions=1024)
    _, tokens = open_text(config, pipeline.INSTRUCTION)
    transcriber = ark_asr_onnx.load(tiny_fp32_package)
    options = unguarded(40)
    for waveform in babble():
        expected = reference.transcribe(network, tokens, waveform, 40)
        found = transcriber.transcribe(waveform, 16000, options=options)
        assert found.token_ids == expected.token_ids


@pytest.mark.parametrize("layout", ["native", "published"])
def test_an_encoder_with_stored_positions_chooses_torchs_tokens(
    tmp_path: Path, layout: Literal["native", "published"]
) -> None:
    folder = without_rope(tmp_path)
    config = open_checkpoint(folder)
    network = load_network(config, max_positions=1024)
    _, tokens = open_text(config, pipeline.INSTRUCTION)
    pipeline.export(
        folder, tmp_path / "package", pipeline.Settings(layout=layout, precision="fp32")
    )
    transcriber = ark_asr_onnx.load(tmp_path / "package")
    for waveform in babble():
        expected = reference.transcribe(network, tokens, waveform, 40)
        found = transcriber.transcribe(waveform, 16000, options=unguarded(40))
        assert found.token_ids == expected.token_ids


def test_rows_that_can_never_come_out_are_pruned_and_nothing_else_changes(
    tiny_checkpoint: Path, tiny_package: Path, tmp_path: Path
) -> None:
    pipeline.export(tiny_checkpoint, tmp_path / "whole", pipeline.Settings(prune=False))
    pruned, whole = (ark_asr_onnx.load(folder) for folder in (tiny_package, tmp_path / "whole"))
    tokens, sizes = pruned.manifest.tokens, pruned.manifest.sizes
    assert sizes.n_logits == max(tokens.eos) + 1  # the last id that may be chosen
    assert sizes.n_embeddings == max(*tokens.prefix, *tokens.suffix) + 1
    assert whole.manifest.sizes.n_logits == whole.manifest.sizes.n_embeddings == sizes.vocab_size
    assert whole.manifest.tokens == tokens
    options = unguarded(60)
    for waveform in babble():
        found, expected = (t.transcribe(waveform, 16000, options=options) for t in (pruned, whole))
        assert found.token_ids == expected.token_ids
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_a_half_precision_table_is_half_the_size(
    tiny_checkpoint: Path, tiny_package: Path, tmp_path: Path
) -> None:
    pipeline.export(tiny_checkpoint, tmp_path / "half", pipeline.Settings(embedding="fp16"))
    half = (tmp_path / "half" / "embedding_fp16.data").stat().st_size
    assert 2 * half == (tiny_package / "embedding_fp32.data").stat().st_size
    graph = parity.session(tmp_path / "half" / "embedding_fp16.onnx")
    (rows,) = graph.run(None, {"input_ids": np.array([[3, 0]], np.int64)})
    table = np.fromfile(tiny_package / "embedding_fp32.data", "<f4").reshape(-1, 64)
    np.testing.assert_array_equal(rows, table[[[3, 0]]].astype(np.float16).astype(np.float32))
    assert ark_asr_onnx.load(tmp_path / "half").manifest.embedding == "fp16"


def test_the_manifest_records_how_close_the_graphs_are(tiny_package: Path) -> None:
    made = ark_asr_onnx.load(tiny_package).manifest.provenance
    assert made.parity["torch to fp32, audio.onnx"]["max_error"] < 1e-4
    assert made.parity["torch to fp32, decoder.onnx"]["max_error"] < 1e-4
    assert 0 < made.parity["torch to int8, audio.onnx"]["rms_relative"] < 0.1
    assert made.parity["torch to package"]["probes"] == 6
    assert made.recipe["name"] == "auto"


def test_the_graphs_name_no_path_of_the_machine_that_made_them(tiny_package: Path) -> None:
    for name in (contract.AUDIO_FILE, contract.DECODER_FILE):
        data = (tiny_package / name).read_bytes()
        assert b"site-packages" not in data
        assert str(Path(__file__).parent.parent).encode() not in data


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_other_dtypes_and_a_single_file_are_read(tmp_path: Path, dtype: str) -> None:
    folder = make_checkpoint(tmp_path / dtype, seed=2, dtype=dtype)
    opened = open_checkpoint(folder)
    stored = load_file(folder / "model.safetensors")["model.norm.weight"]
    assert opened.tensor("model.norm.weight").dtype == torch.float32
    assert torch.equal(opened.tensor("model.norm.weight"), stored.float())


def test_the_export_word_may_be_given(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--ckpt", str(checkpoint / "absent"), "--quiet"]) == 1
    assert "does not exist" in capsys.readouterr().err


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def edit_shard(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model-00001-of-00002.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def truncate(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


INDEX = "model.safetensors.index.json"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config no json": (lambda f: write_bytes(f / "config.json", b"{"), "not readable as JSON"),
    "model type": (edit_config(model_type="whisper"), "model_type is 'whisper'"),
    "missing key": (edit_config(vocab_size=None), "'vocab_size' is missing"),
    "wrong type": (edit_config(vocab_size="many"), "expected int"),
    "eos no id": (edit_config(eos_token_id=["x"]), "names 'x'"),
    "no eos": (edit_config(eos_token_id=[]), "names None"),
    "eos outside": (edit_config(eos_token_id=5000), "names 5000"),
    "pad outside": (edit_config(pad_token_id=-7), "names -7"),
    "other rope": (edit_config(rope_scaling={"rope_type": "yarn"}), "type 'yarn'"),
    "rope no switch": (edit_config(use_rope="yes"), "use_rope is 'yes', expected bool"),
    "rope off, few positions": (
        edit_config(use_rope=False, max_whisper_length=1600), "positions are missing",
    ),
    "few positions": (edit_config(max_position_embeddings=64), "30 s of audio need"),
    "index no object": (lambda f: write_bytes(f / INDEX, b"[]"), "not a safetensors index"),
    "index no names": (
        lambda f: write_bytes(f / INDEX, b'{"weight_map": {"a": 1}}'), "not a safetensors index",
    ),
    "odd heads": (edit_config(num_key_value_heads=3), "does not divide"),
    "missing shard": (lambda f: (f / "model-00001-of-00002.safetensors").unlink(), "is missing"),
    "truncated": (truncate, "not a whole safetensors file"),
    "unknown tensor": (
        edit_shard(lambda t: t.update({"extra.weight": torch.zeros(3, 5)})),
        r"unknown extra.weight \[3, 5\]",
    ),
    "missing tensor": (
        edit_shard(lambda t: t.pop("audio_encoder.adapting.0.bias")),
        r"missing audio_encoder.adapting.0.bias \[128\]",
    ),
    "wrong shape": (
        edit_shard(lambda t: t.update({"audio_encoder.adapting.0.bias": torch.zeros(7)})),
        r"audio_encoder.adapting.0.bias has shape \[7\], expected \[128\]",
    ),
    "wrong dtype": (
        edit_shard(lambda t: t.update({"audio_encoder.adapting.0.bias": torch.zeros(128).long()})),
        "dtype I64",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors.index.json").unlink(), "no model.safetensors",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "bad tokenizer": (lambda f: write_bytes(f / "tokenizer.json", b"{}"), "not a tokenizer"),
    "other tokenizer": (edit_config(audio_token_id=5), "configuration says audio_token_id 5"),
}  # fmt: skip


def write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@pytest.mark.parametrize("case", DAMAGE)
def test_a_bad_checkpoint_gives_one_clear_line_and_leaves_nothing(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    damage, expected = DAMAGE[case]
    damage(checkpoint)
    status, out = export(checkpoint)
    error = capsys.readouterr().err
    assert status == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(error)
    assert sorted(path.name for path in out.parent.iterdir()) == ["ckpt"]


def test_a_config_written_by_transformers_5_keeps_its_rope_base(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    del config["rope_theta"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    path.write_text(json.dumps(config))
    assert open_checkpoint(checkpoint).config.decoder.rope_theta == 5e5


def test_a_failed_export_leaves_no_new_folders(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_graph", full)
    out = checkpoint.parent / "a" / "b" / "c"
    assert cli.main(["--ckpt", str(checkpoint), "--out", str(out), "--quiet"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in checkpoint.parent.iterdir()] == ["ckpt"]


def test_a_probe_longer_than_the_model_hears_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(31 * 16000, np.float32), 16000)
    status, out = export(checkpoint, "--probe", str(tmp_path / "long.wav"))
    assert status == 1
    assert "long.wav: 31.00 s long, at most 30 s" in capsys.readouterr().err
    assert not out.exists()


def test_a_probe_is_compared_and_progress_goes_to_stderr(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "probe.wav", babble()[1], 16000)
    out = checkpoint.parent / "out"
    command = ["--ckpt", str(checkpoint), "--out", str(out), "--probe", str(tmp_path / "probe.wav")]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    for stage in ("read weights", "trace audio.onnx", "quantise decoder.onnx", "compare", "verify"):
        assert stage in captured.err
    figures = ark_asr_onnx.open_package(out).manifest.provenance.parity
    assert figures["torch to package"]["probes"] == 7


def test_an_existing_output_folder_is_not_touched(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = checkpoint.parent / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    assert export(checkpoint)[0] == 1
    assert "exists" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_refused_before_work_begins(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(checkpoint)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert export(checkpoint)[0] == 1
    assert "GB free" in capsys.readouterr().err


def test_a_disk_that_fills_up_leaves_nothing_behind(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_graph", full)
    status, out = export(checkpoint)
    assert status == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in out.parent.iterdir()) == ["ckpt"]


def test_ctrl_c_leaves_nothing_behind(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "write_embedding", interrupted)
    monkeypatch.setattr(parity, "compare", lambda *_: GOOD)
    monkeypatch.setattr(parity, "compare_decoder", lambda *_, **__: GOOD)
    status, out = export(checkpoint)
    assert status == 130
    assert "interrupted" in capsys.readouterr().err
    assert sorted(path.name for path in out.parent.iterdir()) == ["ckpt"]


GOOD = parity.Parity(0.0, 0.0, 0.0, 1.0)


def test_a_graph_that_is_not_the_network_is_refused() -> None:
    with pytest.raises(ExportError, match="differs from torch"):
        parity.require_fp32(parity.Parity(1.0, 0.5, 0.5, 0.1), "audio.onnx")
    with pytest.raises(ExportError, match="differs from torch"):
        parity.require_fp32(parity.Parity(1.0, float("nan"), 0.5, 0.1), "audio.onnx")
    assert "50.0%" in parity.int8_shortfall(parity.Parity(1.0, 0.5, 0.5, 0.1), "audio.onnx")
    assert parity.int8_shortfall(GOOD, "audio.onnx") == ""


def worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch be sure of tokens that no package will choose."""
    truth = reference.decode

    def wrong(*arguments: Any) -> reference.Reference:
        found = truth(*arguments)
        ids = (*found.token_ids[:-1], (found.token_ids[-1] + 1) % 299)
        logits = found.logits.copy()
        logits[-1, ids[-1]] += 50
        return reference.Reference(ids, logits)

    monkeypatch.setattr(reference, "decode", wrong)
    monkeypatch.setattr(parity, "compare", lambda *_: GOOD)
    monkeypatch.setattr(parity, "compare_decoder", lambda *_, **__: GOOD)


def test_a_package_outside_its_limits_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse(monkeypatch)
    with pytest.raises(ExportError, match=r"not published: .*largest margin lost is .*allowed 1"):
        pipeline.export(tiny_checkpoint, tmp_path / "out", pipeline.Settings(recipe="blocks8"))
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_no_choice_of_recipes_keeps_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "decoder_cost", lambda *_, **__: 0.5)
    with pytest.raises(ExportError, match=r"decoder\.onnx: log-prob.* 0\.5 \(budget 0\.005\)"):
        pipeline.export(tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_degraded_package_says_so_wherever_it_is_used(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worse(monkeypatch)
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match="outside its quality limits: .*margin"):
        # Nobody has been told yet when the exporter opens it, but everybody from then on.
        assert export_degraded(tiny_checkpoint, out) == 0
        ark_asr_onnx.load(out)
    assert "margin" in capsys.readouterr().err
    manifest = ark_asr_onnx.open_package(out).manifest
    assert "largest margin lost" in manifest.degraded
    assert "OUTSIDE LIMITS" in (out / "REPORT.md").read_text(encoding="utf-8")
    soundfile.write(tmp_path / "a.wav", babble()[0], 16000)
    assert main(["transcribe", "--model", str(out), str(tmp_path / "a.wav")]) == 0
    assert "warning: " in (shown := capsys.readouterr().err)
    assert "outside its quality limits" in shown
    assert main(["inspect", "--model", str(out)]) == 0
    assert "largest margin lost" in capsys.readouterr().out


def export_degraded(checkpoint: Path, out: Path) -> int:
    command = ["--ckpt", str(checkpoint), "--out", str(out), "--quiet", "--allow-degraded"]
    return cli.main(command)


def test_the_report_holds_what_was_measured(tiny_package: Path) -> None:
    record = json.loads((tiny_package / "report.json").read_text(encoding="utf-8"))
    assert record["speech"]["verdict"] == "within limits"
    assert len(record["speech"]["clips"]) == 6
    assert record["graphs"]["torch to int8, audio.onnx"]["rms_relative"] > 0
    assert any(m["name"] == "lm_head.weight" for m in record["matrices"])
    layers = [m["name"] for m in record["layers"]]
    assert len([n for n in layers if n.startswith("model.layers.1.")]) == 1
    for name, size in record["bytes"].items():
        assert (tiny_package / name).stat().st_size == size
    page = (tiny_package / "REPORT.md").read_text(encoding="utf-8")
    assert "verdict: within limits" in page
    manifest = ark_asr_onnx.open_package(tiny_package, verify=True).manifest
    assert {"report.json", "REPORT.md"} <= set(manifest.files)
    assert manifest.degraded == ""


def test_an_untied_head_is_used_and_mentioned(checkpoint: Path) -> None:
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    path = checkpoint / index["weight_map"]["lm_head.weight"]
    tensors = load_file(path)
    tensors["lm_head.weight"] = -tensors["lm_head.weight"]
    save_file(tensors, path)
    network = load_network(open_checkpoint(checkpoint), max_positions=64)
    assert torch.equal(network.decoder.lm_head.weight, -network.table)
    assert "differs" in network.notes[0]


def test_missing_torch_names_the_extra(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    assert export(checkpoint)[0] == 2
    assert "pip install 'ark-asr-onnx[export]'" in capsys.readouterr().err


def test_weights_that_were_paged_out_are_read_again(tiny_checkpoint: Path) -> None:
    network = load_network(open_checkpoint(tiny_checkpoint), max_positions=64)
    before = {name: p.clone() for name, p in network.decoder.named_parameters()}
    network.page_out()
    for name, parameter in network.decoder.named_parameters():
        assert torch.equal(parameter, before[name]), name
