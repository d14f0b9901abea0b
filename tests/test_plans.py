"""A package's choices carried over to another network, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from make_checkpoint import make_checkpoint

from ark_asr_onnx.errors import ExportError
from ark_onnx_export import cli, smoothing
from ark_onnx_export.checkpoint import open_checkpoint
from ark_onnx_export.plans import answers, read_plan
from ark_onnx_export.recipes import Target

DEEPER = {"whisper_config.encoder_layers": 5, "num_hidden_layers": 3}


@pytest.fixture
def deeper(tmp_path: Path) -> Path:
    """A checkpoint with more layers than the tiny one's two."""
    return make_checkpoint(tmp_path / "deeper", seed=5, overrides=DEEPER)


def write(path: Path, choices: list[dict[str, str]]) -> Path:
    path.write_text(json.dumps({"choices": choices}))
    return path


def choices(checkpoint: Path, recipe: str = "blocks8", **others: str) -> list[dict[str, str]]:
    sites = smoothing.sites(open_checkpoint(checkpoint).config)
    names = [site.name for some in sites.values() for site in some]
    return [{"site": name, "recipe": others.get(name.split(".")[-1], recipe)} for name in names]


def test_layers_answer_each_other_by_depth(
    tiny_checkpoint: Path, deeper: Path, tmp_path: Path
) -> None:
    stated = choices(tiny_checkpoint, fc1="rows8+5", conv1="fp32", lm_head="fine8")
    for choice in stated:
        if ".layers.1." in choice["site"]:
            choice["recipe"] = "fine8"
    plan = write(tmp_path / "report.json", stated)
    sites = smoothing.sites(open_checkpoint(deeper).config)
    found = read_plan(plan, sites)
    assert set(found) == {w for some in sites.values() for site in some for w in site.weights}
    fc1 = [found[f"audio_encoder.whisper.layers.{i}.fc1.weight"] for i in range(5)]
    assert fc1 == ["rows8+5", "rows8+5", "rows8+5", "fine8", "fine8"]
    down = [found[f"model.layers.{i}.mlp.down_proj.weight"] for i in range(3)]
    assert down == ["blocks8", "blocks8", "fine8"]
    assert found["audio_encoder.whisper.conv1.weight"] == "fp32"
    assert found["lm_head.weight"] == "fine8"


@pytest.mark.parametrize(
    ("source", "depth", "expected"),
    [
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (6, 10, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]),
        (6, 4, [0, 1, 3, 5]),
        (2, 5, [0, 0, 0, 1, 1]),
        (6, 1, [0]),
    ],
)
def test_the_ends_answer_the_ends(source: int, depth: int, expected: list[int]) -> None:
    assert answers(source, depth) == expected


def test_a_package_is_stored_by_the_plan(
    tiny_package: Path, deeper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--ckpt", str(deeper), "--out", str(out), "--quiet", "--allow-degraded"]
    assert cli.main([*arguments, "--plan", str(tiny_package / "report.json")]) == 0
    report = json.loads((out / "report.json").read_text())
    sites = smoothing.sites(open_checkpoint(deeper).config)
    planned = read_plan(tiny_package / "report.json", sites)
    assert {m["name"]: m["recipe"] for m in report["matrices"]} == planned
    assert report["recipe"]["name"] == "plan"
    capsys.readouterr()
    more = ["--plan", str(tiny_package / "report.json"), "--recipe", "blocks8"]
    assert cli.main([*arguments, *more]) == 1
    assert "leave one of them out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "no plan"),
        ("[]", "no plan"),
        ('{"choices": [{"site": 1}]}', "no plan"),
        ('{"choices": []}', "no known recipe for audio_encoder.whisper.conv1"),
    ],
)
def test_what_is_no_plan_is_one_clear_line(
    tiny_checkpoint: Path, tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "report.json").write_text(text)
    sites = smoothing.sites(open_checkpoint(tiny_checkpoint).config)
    with pytest.raises(ExportError, match=expected):
        read_plan(tmp_path / "report.json", sites)
    with pytest.raises(ExportError, match="no plan"):
        read_plan(tmp_path / "absent.json", sites)


@pytest.mark.parametrize(("recipe", "target"), [("rows8+5", "avx2"), ("columns8", "any")])
def test_a_recipe_that_is_wrong_on_the_target_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, recipe: str, target: Target
) -> None:
    sites = smoothing.sites(open_checkpoint(tiny_checkpoint).config)
    path = write(tmp_path / "report.json", choices(tiny_checkpoint, recipe))
    with pytest.raises(ExportError, match="take another --target"):
        read_plan(path, sites, target)
    assert set(read_plan(path, sites, "vnni").values()) == {recipe}


def test_a_recipe_that_does_not_exist_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plan = write(tmp_path / "report.json", choices(tiny_checkpoint, conv2="rows9"))
    sites = smoothing.sites(open_checkpoint(tiny_checkpoint).config)
    with pytest.raises(ExportError, match=r"conv2 \('rows9'\)"):
        read_plan(plan, sites)
