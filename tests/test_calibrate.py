"""Calibration: what it finds on planted outliers, and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from conftest import require_exact_sums
from make_checkpoint import make_checkpoint

import ark_asr_onnx
from ark_asr_onnx.audio import mel, sources
from ark_asr_onnx.errors import PackageError
from ark_asr_onnx.package import contract
from ark_onnx_export import calibrate, pipeline, smoothing
from ark_onnx_export.checkpoint import load_network, open_checkpoint, open_text
from ark_onnx_export.cli import main
from ark_onnx_export.engines import Decoded
from ark_onnx_export.figures import relative
from ark_onnx_export.listen import Heard
from ark_onnx_export.recipes import Asked


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with outlier channels, gains and a sink; its INT8 package beside it."""
    folder = tmp_path_factory.mktemp("planted")
    checkpoint = make_checkpoint(folder / "checkpoint", seed=3, outliers=1.0)
    arguments = ["--ckpt", str(checkpoint), "--out", str(folder / "package"), "--quiet"]
    assert main([*arguments, "--allow-degraded"]) == 0
    return folder


@pytest.fixture(scope="module")
def record(planted: Path) -> dict[str, Any]:
    return json.loads((planted / "package" / "report.json").read_text())


def test_planted_outliers_are_found_where_they_are(record: dict[str, Any]) -> None:
    found = {finding["site"]: finding for finding in record["calibration"]}
    wild = [site for site, finding in found.items() if finding["outlier_channels"]]
    assert any(".layers." in site and site.endswith(("qkv", "fc1")) for site in wild)
    assert any(site.endswith("qkv_proj") for site in wild)
    assert not found["audio_encoder.whisper.conv1"]["outlier_channels"]  # nothing planted there
    assert all(finding["rows"] > 100 for finding in record["calibration"][:5])


def test_smoothing_helps_where_outliers_are(record: dict[str, Any]) -> None:
    assert sum(finding["strength"] is not None for finding in record["calibration"]) >= 4


def test_the_ladder_ends_within_the_budgets(record: dict[str, Any]) -> None:
    last = {rung["graph"]: rung for rung in record["ladder"]}
    assert sorted(last) == ["audio.onnx", "decoder.onnx"]
    for graph, rung in last.items():
        assert rung["cost"] <= rung["budget"], graph
        # Independent errors: the prediction is of the right size.
        assert 0.3 * rung["cost"] <= rung["predicted"] <= 3 * rung["cost"]


def test_the_choices_are_what_the_graphs_hold(record: dict[str, Any]) -> None:
    weights = {f["site"]: f["weights"] for f in record["calibration"]}
    chosen = {w: c["recipe"] for c in record["choices"] for w in weights[c["site"]]}
    assert {m["name"]: m["recipe"] for m in record["matrices"]} == chosen


def test_one_recipe_for_all_costs_planted_outliers_more(
    planted: Path, record: dict[str, Any], tmp_path: Path
) -> None:
    pipeline.export(
        planted / "checkpoint",
        tmp_path / "out",
        pipeline.Settings(recipe="blocks8", allow_degraded=True),
    )
    plain = json.loads((tmp_path / "out" / "report.json").read_text())
    cost = {rung["graph"]: rung["cost"] for rung in plain["ladder"]}
    chosen = {rung["graph"]: rung["cost"] for rung in record["ladder"]}
    assert cost["audio.onnx"] > chosen["audio.onnx"]
    assert cost["decoder.onnx"] > chosen["decoder.onnx"]
    assert not plain["choices"]


def test_what_comes_before_a_change_is_the_same_for_all(tiny_checkpoint: Path) -> None:
    import torch

    opened = open_checkpoint(tiny_checkpoint)
    network = load_network(opened, 64)
    _, tokens = open_text(opened, pipeline.INSTRUCTION)
    n_mels = opened.config.audio.n_mels
    mels = [np.random.default_rng(i).random((1, n_mels, 90 + i), np.float32) for i in (0, 1)]
    nothing, decoded = np.zeros(1, np.float32), Decoded((1,), np.zeros((1, 1), np.float32), "")
    clips = [Heard("clip", nothing, mel, nothing, tokens, decoded) for mel in mels]
    sites = smoothing.audio_sites(opened.config)
    runner = calibrate.Runner(network, tokens, ())
    with torch.inference_mode():
        found = calibrate._at_output(
            runner, "audio", sites, {s.name: (None, None) for s in sites}, clips, lambda _, x: x
        )
        for site in sites:
            changed = [(runner.module(name), calibrate._changed(0, None, None))
                       for name in site.modules]  # fmt: skip
            exact = [network.tower(torch.from_numpy(mel)).numpy() for mel in mels]
            with calibrate._hooks(changed):
                outputs = [network.tower(torch.from_numpy(mel)).numpy() for mel in mels]
            expected = [relative(a, b) for a, b in zip(exact, outputs, strict=True)]
            assert found[site.name] == pytest.approx(expected, rel=1e-3), site.name
            assert min(expected) > 1e-5


def test_other_audio_is_calibrated_on(
    tiny_checkpoint: Path, samples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[list[str]] = []
    original = calibrate.calibrate

    def listen(*arguments: Any) -> Any:
        heard.append([clip.name for clip in arguments[4]])
        return original(*arguments)

    monkeypatch.setattr(calibrate, "calibrate", listen)
    paths = [str(sample.path) for sample in samples[:2]]
    out = tmp_path / "out"
    arguments = ["--ckpt", str(tiny_checkpoint), "--out", str(out), "--quiet", "--calib", *paths]
    assert main(arguments) == 0
    assert heard == [paths, paths]  # for each graph


def test_a_package_for_some_cpus_checks_the_one_it_is_on(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_exact_sums("rows8")
    out = tmp_path / "vnni"
    made = pipeline.export(tiny_checkpoint, out, pipeline.Settings(target="vnni", recipe="rows"))
    assert "rows8" in made.provenance.recipe["matrices"]
    assert (out / contract.CPU_CHECK_FILE).is_file()
    monkeypatch.setattr(contract, "EXACT_SUM", contract.EXACT_SUM + 1)  # as if it had saturated
    with pytest.raises(PackageError, match="made for CPUs of kind 'vnni'"):
        ark_asr_onnx.load(out)


@pytest.mark.parametrize("target", ["vnni", "arm64"])
def test_a_package_that_cannot_be_checked_on_this_cpu_is_refused_at_once(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    target: str,
) -> None:
    monkeypatch.setattr(contract, "EXACT_SUM", contract.EXACT_SUM + 1)  # as if it had saturated
    monkeypatch.setattr(pipeline, "load_network", None)  # weights are not read
    out = tmp_path / "out"
    arguments = ["--ckpt", str(tiny_checkpoint), "--out", str(out), "--quiet", "--target", target]
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: a package for {target} cannot be checked on this CPU")
    assert "--target any" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["blocks8", "fine8"])
def test_a_package_without_such_sums_is_made_on_any_cpu(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Asked
) -> None:
    monkeypatch.setattr(contract, "EXACT_SUM", contract.EXACT_SUM + 1)  # as if it had saturated
    settings = pipeline.Settings(target="vnni", recipe=recipe)
    out = pipeline.export(tiny_checkpoint, tmp_path / "out", settings).directory
    assert ark_asr_onnx.load(out).manifest.target == "any"


def test_a_package_for_any_cpu_has_graphs_that_do_not_saturate(tiny_package: Path) -> None:
    manifest = ark_asr_onnx.load(tiny_package).manifest
    assert manifest.target == "any"
    record = json.loads((tiny_package / "report.json").read_text())
    recipes = {m["name"]: m["recipe"] for m in record["matrices"]}
    audio = {recipe for name, recipe in recipes.items() if name.startswith("audio_encoder")}
    assert any(recipe.startswith("rows8") for recipe in audio)
    assert contract.AUDIO_NARROW_FILE in manifest.files
    others = {recipe for name, recipe in recipes.items() if not name.startswith("audio_encoder")}
    assert not any(recipe.startswith(("rows", "columns8")) for recipe in others)


def test_a_cpu_that_saturates_is_given_the_narrow_graph_and_hears_the_same(
    tiny_package: Path, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_exact_sums("rows8")
    wide = ark_asr_onnx.load(tiny_package)
    monkeypatch.setattr(contract, "EXACT_SUM", contract.EXACT_SUM + 1)  # as if it had saturated
    narrow = ark_asr_onnx.load(tiny_package)
    log_mel = mel.log_mel(sources.read(samples[0].path), 80)
    found, expected = (t.model.encode(log_mel) for t in (narrow, wide))
    # Sums in another order, a few codes rounded the other way: less than half of what INT8 costs.
    assert 0 < np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


@pytest.mark.parametrize("target", ["any", "arm64"])
def test_optimums_preset_is_a_recipe_of_its_own(
    tiny_checkpoint: Path, tmp_path: Path, target: str
) -> None:
    pytest.importorskip("optimum.onnxruntime")
    require_exact_sums(f"dynamic-{target}")
    import onnx

    out = tmp_path / "dynamic"
    arguments = ["--ckpt", str(tiny_checkpoint), "--out", str(out), "--quiet", "--allow-degraded"]
    assert main([*arguments, "--recipe", "dynamic", "--target", target]) == 0
    record = json.loads((out / "report.json").read_text())
    assert {m["recipe"] for m in record["matrices"]} == {f"dynamic-{target}"}
    assert all(0 < m["error"] < 0.05 for m in record["matrices"])
    kinds = [
        n.op_type for n in onnx.load(str(out / "audio.onnx"), load_external_data=False).graph.node
    ]
    assert "MatMulInteger" in kinds and "DynamicQuantizeLinear" in kinds
    assert "MatMul" not in kinds
    assert not list(out.glob(".*"))


def test_word_error_rates_are_in_the_report_where_words_are_known(
    tiny_checkpoint: Path, samples: Any, tmp_path: Path
) -> None:
    references = tmp_path / "words.jsonl"
    rows = [{"audio": samples[0].path.name, "text": "Enter, nine!"}]
    references.write_text("\n".join(json.dumps(row) for row in rows))
    out = tmp_path / "out"
    arguments = [
        "--ckpt",
        str(tiny_checkpoint),
        "--out",
        str(out),
        "--quiet",
        "--recipe",
        "blocks8",
    ]
    probe = ["--probe", str(samples[0].path), "--references", str(references)]
    assert main([*arguments, *probe]) == 0
    record = json.loads((out / "report.json").read_text())
    assert record["word_error_rate"]["clips"] == 7
    assert "Word error rate on 7 clips" in (out / "REPORT.md").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--recipe", "rows", "--precision", "fp32"],
        ["--target", "vnni", "--layout", "published"],
        ["--recipe", "blocks8", "--calib", "{clip}"],
        ["--calib", "no such file.wav"],
    ],
    ids=" ".join,
)
def test_options_that_would_do_nothing_are_refused(
    tiny_checkpoint: Path,
    samples: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    arguments = ["--ckpt", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--quiet"]
    options = [option.replace("{clip}", str(samples[0].path)) for option in options]
    assert main([*arguments, *options]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_references_that_are_none_are_refused_before_any_work(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "words.jsonl"
    path.write_text("nonsense")
    arguments = ["--ckpt", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*arguments, "--references", str(path)]) == 1
    assert "not a JSONL file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
