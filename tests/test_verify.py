"""``ark-onnx-export verify``: right packages pass, wrong ones do not, and the figures are true."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import DEMO, Sample

pytest.importorskip("torch")

from make_checkpoint import make_checkpoint

import ark_asr_onnx
from ark_asr_onnx.audio import read
from ark_onnx_export import cli, verify
from ark_onnx_export.engines import PackageEngine, TorchEngine

RATE = 16000


@pytest.fixture
def sounds(tmp_path: Path) -> list[str]:
    """Two short sounds for models of random weights."""
    generator = np.random.default_rng(0)
    paths: list[str] = []
    for i, n_samples in enumerate((8000, 20011)):
        path = tmp_path / f"sound{i}.wav"
        soundfile.write(path, 0.1 * generator.standard_normal(n_samples), RATE)
        paths.append(str(path))
    return paths


def run(tmp_path: Path, *arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit status and report of ``verify``, at most 20 tokens a clip."""
    path = tmp_path / "report.json"
    options = ["--report", str(path), "--quiet", "--max-new-tokens", "20"]
    status = cli.main(["verify", *map(str, arguments), *options])
    return status, json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def test_the_demo_is_its_checkpoint(
    tmp_path: Path, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    audio = [sample.path for sample in samples]
    status, report = run(
        tmp_path, "--package", DEMO, "--ckpt", DEMO / "checkpoint", "--audio", *audio
    )
    assert status == 0
    assert report["verdict"] == "within limits"
    assert "made from these files" in report["weights"]
    assert [clip["text"] for clip in report["clips"]] == [sample.text for sample in samples]
    totals = report["totals"]
    assert totals["same_tokens"] == totals["clips"] == len(samples)
    assert 0 < totals["mel_error"] < 1e-4  # two independent computations
    assert 0 < totals["mean_dlogp"] <= totals["p99_dlogp"] <= totals["worst_dlogp"] < 0.1
    shown = capsys.readouterr().out
    assert shown.rstrip().endswith("verdict: within limits")
    assert all(sample.path.name in shown for sample in samples)


@pytest.mark.parametrize("layout", ["native", "published"])
def test_an_int8_package_of_random_weights_is_within_limits(
    layout: str,
    tmp_path: Path,
    tiny_checkpoint: Path,
    sounds: list[str],
    request: pytest.FixtureRequest,
) -> None:
    name = "tiny_package" if layout == "native" else "tiny_published_package"
    package = request.getfixturevalue(name)
    _, report = run(tmp_path, "--package", package, "--ckpt", tiny_checkpoint, "--audio", *sounds)
    assert report["totals"]["encoder_error"] < 0.1
    assert report["totals"]["mel_error"] < 1e-4
    assert report["totals"]["tokens"] == sum(len(clip["token_ids"]) for clip in report["clips"])


def test_an_fp32_package_has_the_tokens_of_torch(
    tmp_path: Path, tiny_checkpoint: Path, tiny_fp32_package: Path, sounds: list[str]
) -> None:
    status, report = run(
        tmp_path, "--package", tiny_fp32_package, "--ckpt", tiny_checkpoint, "--audio", *sounds
    )
    assert status == 0
    assert report["totals"]["worst_dlogp"] < 1e-3
    assert report["limits"]["encoder"] < 0.01


def test_a_package_against_itself_differs_by_nothing(
    tmp_path: Path, tiny_package: Path, sounds: list[str]
) -> None:
    status, report = run(
        tmp_path, "--package", tiny_package, "--against", tiny_package, "--audio", *sounds
    )
    assert status == 0
    for key in ("mel_error", "encoder_error", "first_logits_error", "worst_dlogp", "worst_margin"):
        assert report["totals"][key] == 0
    assert report["totals"]["top1"] == 1


def test_other_weights_are_outside_the_limits(
    tmp_path: Path, tiny_package: Path, sounds: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_checkpoint(tmp_path / "other", seed=1)
    status, report = run(tmp_path, "--package", tiny_package, "--ckpt", other, "--audio", *sounds)
    assert status == 3
    assert report["verdict"] == "outside limits"
    assert "OTHER files" in report["weights"]
    clip = report["clips"][0]
    assert clip["diverges_at"] is not None
    assert clip["token_ids"] != clip["package_token_ids"]
    shown = capsys.readouterr().out
    assert "OUTSIDE LIMITS" in shown
    assert "reference: " in shown  # both texts, where they differ


@pytest.mark.parametrize("stage", ["log_mel", "encode"])
def test_an_error_in_one_stage_is_found(
    stage: str, tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(PackageEngine, stage)
    monkeypatch.setattr(PackageEngine, stage, lambda self, x: right(self, x) * np.float32(1.2))
    status, report = run(
        tmp_path, "--package", DEMO, "--ckpt", DEMO / "checkpoint", "--audio", samples[0].path
    )
    assert status == 3
    key = "mel_error" if stage == "log_mel" else "encoder_error"
    assert report["totals"][key] > 0.1


def test_torch_and_package_compute_every_stage_by_themselves(samples: list[Sample]) -> None:
    package = PackageEngine(DEMO)
    torch_engine = TorchEngine(DEMO / "checkpoint", package.instruction)
    waveform = read(samples[0].path)
    theirs, ours = torch_engine.log_mel(waveform), package.log_mel(waveform)
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    decoded = torch_engine.decode(torch_engine.encode(theirs), 20)
    assert torch_engine.words(decoded.token_ids) == samples[0].text
    forced = package.decode(package.encode(ours), 20, decoded.token_ids)
    assert forced.token_ids == decoded.token_ids
    assert len(forced.logits) == len(decoded.token_ids)


def test_log_probabilities_are_compared_among_the_ids_that_may_be_chosen() -> None:
    tokens = ark_asr_onnx.load(DEMO).manifest.tokens
    clip = verify.Clip(
        audio="a", seconds=1, mel_error=0, encoder_error=0, first_logits_error=0,
        dlogp=(0.0, -0.3, 0.1), same_choices=2, token_ids=(1, 2, 3), package_token_ids=(1, 4),
        diverges_at=1, margin=0.4, text="b", package_text="c",
    )  # fmt: skip
    report = verify.Report("p", "r", "w", verify.LIMITS["int8"], (clip,))
    totals = report.totals()
    assert totals["mean_dlogp"] == pytest.approx(0.4 / 3)
    assert totals["worst_dlogp"] == pytest.approx(0.3)
    assert totals["top1"] == pytest.approx(2 / 3)
    assert (totals["same_tokens"], totals["same_text"], totals["worst_margin"]) == (0, 0, 0.4)
    assert not report.passed
    assert tokens.eos[0] not in tokens.prefix


@pytest.mark.parametrize(
    "broken", ["mel_error", "encoder_error", "dlogp", "margin", "same_choices"]
)
def test_every_limit_can_fail_a_package(broken: str) -> None:
    good = verify.Clip(
        audio="a", seconds=1, mel_error=0, encoder_error=0, first_logits_error=0, dlogp=(0.0,),
        same_choices=1, token_ids=(1,), package_token_ids=(1,), diverges_at=None, margin=None,
        text="", package_text="",
    )  # fmt: skip

    def passed(clip: verify.Clip) -> bool:
        return verify.Report("p", "r", "w", verify.LIMITS["int8"], (clip,)).passed

    assert passed(good)
    values: list[Any] = [math.nan, 10.0]
    if broken == "dlogp":
        values = [(math.nan,), (10.0,)]
    elif broken == "same_choices":
        values = [0]
    for value in values:
        assert not passed(replace(good, **{broken: value}))


def test_long_audio_is_compared_up_to_one_pass_and_said_so(
    tmp_path: Path, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, 0.1 * np.sin(np.arange(31 * RATE) / 7), RATE)
    status, report = run(
        tmp_path, "--package", tiny_package, "--against", tiny_package, "--audio", path
    )
    assert status == 0
    assert report["clips"][0]["seconds"] == 30
    assert "of 1 files only the first 30 s were compared" in capsys.readouterr().err


def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path,
    tiny_package: Path,
    tiny_checkpoint: Path,
    samples: list[Sample],
    sounds: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(100), RATE)
    cases: list[tuple[list[object], str]] = [
        (["--package", DEMO, "--ckpt", tiny_checkpoint, "--audio", samples[0].path], "same model"),
        (["--package", DEMO, "--against", tiny_package, "--audio", samples[0].path], "same model"),
        (["--package", DEMO, "--ckpt", tmp_path / "no", "--audio", samples[0].path], "no does not"),
        (["--package", tmp_path, "--against", DEMO, "--audio", samples[0].path], "not a package"),
        (["--package", DEMO, "--against", DEMO, "--audio", tmp_path / "no.wav"], "no such file"),
        (["--package", DEMO, "--against", DEMO, "--audio", short], "too short"),
    ]
    for arguments, words in cases:
        status, report = run(tmp_path, *arguments)
        message = capsys.readouterr().err
        assert (status, report) == (1, {}), message
        assert words in message
        assert message.startswith("error: ") and message.count("\n") == 1
    assert len(sounds) == 2


def test_a_report_that_cannot_be_written_is_one_line(
    tmp_path: Path, sounds: list[str], tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--package", tiny_package, "--against", tiny_package, "--audio", sounds[0]]
    report = tmp_path / "missing folder" / "report.json"
    options = ["--report", str(report), "--quiet", "--max-new-tokens", "2"]
    assert cli.main(["verify", *map(str, arguments), *options]) == 1
    assert str(report) in capsys.readouterr().err


def test_something_to_compare_with_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--package", "a", "--audio", "b"], ["--ckpt", "a", "--audio", "b"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["verify", *arguments])
        assert stop.value.code == 2
        assert "required" in capsys.readouterr().err
