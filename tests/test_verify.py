"""``ark-onnx-export verify``: right packages pass, wrong ones do not, and the figures are true."""

from __future__ import annotations

import json
import math
import shutil
import signal
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
from ark_asr_onnx.audio.sources import read
from ark_onnx_export import cli, figures, verify
from ark_onnx_export.engines import PackageEngine
from ark_onnx_export.mask import blocked
from ark_onnx_export.oracle import TorchEngine

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
    status, report = run(
        tmp_path, "--package", package, "--ckpt", tiny_checkpoint, "--audio", *sounds
    )
    assert (status, report["failures"]) == (0, [])
    assert 1e-4 < report["totals"]["encoder_error"] < 0.1  # it is INT8


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
    assert report["totals"]["same_choices"] == 1


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


@pytest.mark.parametrize("stage", ["log_mel", "encode", "score"])
def test_an_error_in_one_stage_is_found(
    stage: str, tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(PackageEngine, stage)
    monkeypatch.setattr(
        PackageEngine, stage, lambda self, *inputs: right(self, *inputs) * np.float32(1.5)
    )
    status, report = run(
        tmp_path, "--package", DEMO, "--ckpt", DEMO / "checkpoint", "--audio", samples[0].path
    )
    assert status == 3
    key = {"log_mel": "mel_error", "encode": "encoder_error", "score": "mean_dlogp"}[stage]
    assert report["totals"][key] > verify.LIMITS["int8"].encoder


def test_torch_and_package_compute_every_stage_by_themselves(samples: list[Sample]) -> None:
    package = PackageEngine(DEMO)
    oracle = TorchEngine.open(DEMO / "checkpoint", package.manifest.provenance.instruction)
    waveform = read(samples[0].path)
    theirs, ours = oracle.log_mel(waveform), package.log_mel(waveform)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    decoded = oracle.decode(waveform, oracle.encode(theirs), 20)
    assert decoded.text == samples[0].text
    scored = package.score(package.encode(ours), decoded.token_ids)
    width = scored.shape[1]
    assert np.linalg.norm(scored - decoded.logits[:, :width]) < 0.1 * np.linalg.norm(scored)
    assert not np.array_equal(scored, decoded.logits[:, :width])


def altered(folder: Path, **tokens: Any) -> Path:
    """The demo with other ids in its manifest."""
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("checkpoint", "recipe", "samples"))
    path = folder / "ark_manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["tokens"].update(tokens)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.mark.parametrize("key", ["stop", "blocked", "suffix"])
def test_other_ids_are_refused(
    key: str, tmp_path: Path, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, Any] = {"stop": [5], "blocked": [[3, 9]], "suffix": [4, 5]}
    package = altered(tmp_path / "package", **{key: values[key]})
    status, _ = run(
        tmp_path, "--package", package, "--ckpt", DEMO / "checkpoint", "--audio", samples[0].path
    )
    assert status == 1
    assert key.removesuffix("ed").replace("block", "mask") in capsys.readouterr().err


def test_a_runtime_that_does_not_follow_its_choices_is_found(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PackageEngine.transcribe
    monkeypatch.setattr(
        PackageEngine, "transcribe", lambda self, x, n: (right(self, x, n)[0][:-2], "other text")
    )
    status, report = run(
        tmp_path, "--package", DEMO, "--ckpt", DEMO / "checkpoint", "--audio", samples[0].path
    )
    assert status == 3
    assert report["totals"]["unexplained"] == 1
    assert report["totals"]["same_text"] == 0


def test_logits_that_are_no_numbers_are_outside_the_limits(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PackageEngine.score
    monkeypatch.setattr(PackageEngine, "score", lambda self, x, ids: right(self, x, ids) * np.nan)
    status, report = run(
        tmp_path, "--package", DEMO, "--ckpt", DEMO / "checkpoint", "--audio", samples[0].path
    )
    assert status == 3
    assert report["totals"]["mean_dlogp"] is None  # and the file is JSON
    assert report["clips"][0]["worst_margin"] is None


def test_log_probabilities_are_those_among_the_ids_that_may_be_chosen() -> None:
    tokens = ark_asr_onnx.load(DEMO).manifest.tokens
    logits = np.zeros((2, 545), np.float32)
    logits[:, tokens.prefix[0]] = 50  # blocked, and by far the largest
    logits[:, 7] = 3
    closed = blocked(tokens, 545)
    found = figures.log_softmax(logits, closed)
    assert found.argmax(axis=1).tolist() == [7, 7]
    n_open = int((~closed).sum())
    assert found[0, 7] == pytest.approx(3 - np.log(np.exp(3) + n_open - 1), abs=1e-5)
    assert np.exp(found).sum(axis=1) == pytest.approx(1, abs=1e-5)


GOOD = verify.Comparison(
    audio="a", seconds=1, mel_error=0, encoder_error=0, first_logits_error=0, dlogp=(0.0, 0.0, 0.0),
    same_choices=3, worst_margin=0, token_ids=(1, 2, 3), text="b", package_token_ids=(1, 2, 3),
    package_text="b", diverges_at=None, explained=True,
)  # fmt: skip


def report_of(
    *clips: verify.Comparison, failures: tuple[verify.Failure, ...] = ()
) -> verify.Report:
    return verify.Report("p", "r", "w", verify.LIMITS["int8"], clips, failures)


def test_totals_are_over_tokens_and_clips() -> None:
    other = replace(
        GOOD, dlogp=(0.0, -0.3, 0.1), same_choices=2, package_text="c", diverges_at=1,
        worst_margin=0.4,
    )  # fmt: skip
    totals = verify.Totals.of([GOOD, other])
    assert totals.mean_dlogp == pytest.approx(0.4 / 6)
    assert totals.worst_dlogp == pytest.approx(0.3)
    assert totals.same_choices == pytest.approx(5 / 6)
    assert (totals.clips, totals.same_tokens, totals.same_text) == (2, 1, 1)
    assert totals.worst_margin == 0.4


@pytest.mark.parametrize(
    "changes",
    [
        {"mel_error": math.nan}, {"mel_error": 0.1}, {"encoder_error": math.nan},
        {"encoder_error": 0.2}, {"dlogp": (math.nan,) * 3}, {"dlogp": (1.0,) * 3},
        {"worst_margin": math.nan}, {"worst_margin": 1.1}, {"explained": False},
    ],
    ids=str,
)  # fmt: skip
def test_every_limit_can_fail_a_package(changes: dict[str, Any]) -> None:
    assert report_of(GOOD).passed
    assert not report_of(replace(GOOD, **changes)).passed
    assert not report_of(GOOD, replace(GOOD, **changes)).passed


def test_the_share_of_same_choices_counts_from_200_tokens_on() -> None:
    many = replace(GOOD, dlogp=(0.0,) * 199, same_choices=150)
    assert report_of(many).passed
    assert not report_of(many, GOOD).passed
    assert report_of(replace(many, same_choices=199), GOOD).passed


def test_an_audio_that_fails_fails_the_verdict_but_not_the_others() -> None:
    assert not report_of(GOOD, failures=(verify.Failure("a", "b"),)).passed
    assert not report_of().passed


def test_int8_against_int8_is_judged_as_int8() -> None:
    assert verify.limits("fp32", "fp32") is verify.LIMITS["fp32"]
    for pair in (("int8", "fp32"), ("fp32", "int8"), ("int8", "int8")):
        assert verify.limits(*pair) is verify.LIMITS["int8"]


@pytest.mark.parametrize(("a", "b", "place"), [
    ([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1, 2], [1], 1), ([], [1], 0),
])  # fmt: skip
def test_the_first_difference(a: list[int], b: list[int], place: int | None) -> None:
    assert figures.first_difference(a, b) == place


def test_long_audio_is_compared_up_to_one_pass(tmp_path: Path, tiny_package: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, 0.1 * np.sin(np.arange(31 * RATE) / 7), RATE)
    status, report = run(
        tmp_path, "--package", tiny_package, "--against", tiny_package, "--audio", path
    )
    assert status == 0
    assert report["clips"][0]["seconds"] == 30


def test_more_tokens_than_there_is_room_for_are_not_asked_for(
    tmp_path: Path, tiny_checkpoint: Path, tiny_package: Path, sounds: list[str]
) -> None:
    path = tmp_path / "report.json"
    arguments = ["--package", tiny_package, "--ckpt", tiny_checkpoint, "--audio", sounds[0]]
    options = ["--report", path, "--quiet", "--max-new-tokens", "5000"]
    assert cli.main(["verify", *map(str, [*arguments, *options])]) in (0, 3)
    report = json.loads(path.read_text(encoding="utf-8"))
    positions = ark_asr_onnx.load(tiny_package).manifest.sizes.max_positions
    assert 20 < len(report["clips"][0]["token_ids"]) < positions
    assert report["failures"] == []


def test_an_unreadable_audio_is_reported_and_the_others_are_compared(
    tmp_path: Path, samples: list[Sample]
) -> None:
    short, text = tmp_path / "short.wav", tmp_path / "text.wav"
    soundfile.write(short, np.zeros(100), RATE)
    text.write_text("no audio")
    status, report = run(
        tmp_path, "--package", DEMO, "--against", DEMO, "--audio", short, samples[0].path, text
    )
    assert status == 3
    assert [clip["text"] for clip in report["clips"]] == [samples[0].text]
    assert [failure["audio"] for failure in report["failures"]] == [str(short), str(text)]
    assert "too short" in report["failures"][0]["reason"]


def test_ctrl_c_keeps_what_was_compared(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PackageEngine.log_mel
    calls: list[int] = []

    def log_mel(self: PackageEngine, waveform: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return right(self, waveform)

    monkeypatch.setattr(PackageEngine, "log_mel", log_mel)
    audio = [sample.path for sample in samples]
    status, report = run(tmp_path, "--package", DEMO, "--against", DEMO, "--audio", *audio)
    assert status == 130
    assert len(report["clips"]) == 1  # two engines ask for each clip's log-mel


def test_a_signal_keeps_what_was_compared_as_well(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PackageEngine.log_mel
    calls: list[int] = []

    def log_mel(self: PackageEngine, waveform: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) > 3:
            signal.raise_signal(signal.SIGTERM)
        return right(self, waveform)

    monkeypatch.setattr(PackageEngine, "log_mel", log_mel)
    audio = [sample.path for sample in samples]
    status, report = run(tmp_path, "--package", DEMO, "--against", DEMO, "--audio", *audio)
    assert status == 143
    assert len(report["clips"]) == 1


def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path,
    tiny_package: Path,
    tiny_checkpoint: Path,
    samples: list[Sample],
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged = altered(tmp_path / "damaged")
    (damaged / "decoder.onnx.data").write_bytes(b"short")
    cases: list[tuple[list[object], str]] = [
        (["--package", DEMO, "--ckpt", tiny_checkpoint, "--audio", samples[0].path], "same model"),
        (["--package", DEMO, "--against", tiny_package, "--audio", samples[0].path], "same model"),
        (["--package", DEMO, "--ckpt", tmp_path / "no", "--audio", samples[0].path], "no does"),
        (["--package", tmp_path, "--against", DEMO, "--audio", samples[0].path], "not a package"),
        (["--package", DEMO, "--against", DEMO, "--audio", tmp_path / "no.wav"], "no such file"),
        (["--package", DEMO, "--against", damaged, "--audio", samples[0].path], "data: 5 bytes"),
        (["--package", "owner/name", "--against", DEMO, "--audio", samples[0].path], "owner/name"),
    ]
    for arguments, words in cases:
        status, report = run(tmp_path, *arguments)
        message = capsys.readouterr().err
        assert (status, report) == (1, {}), message
        assert words in message
        assert message.startswith("error: ") and message.count("\n") == 1


def test_a_report_that_cannot_be_written_is_one_line(
    tmp_path: Path, sounds: list[str], tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--package", tiny_package, "--against", tiny_package, "--audio", sounds[0]]
    report = tmp_path / "missing folder" / "report.json"
    options = ["--report", str(report), "--quiet", "--max-new-tokens", "2"]
    assert cli.main(["verify", *map(str, arguments), *options]) == 1
    assert str(report) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing/report.json", "folder", "n" * 256, "file/report.json"])
def test_a_report_that_cannot_be_written_is_told_before_the_models_open(
    tmp_path: Path,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(PackageEngine, "__init__", refuse)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    arguments = ["--package", DEMO, "--against", DEMO, "--audio", samples[0].path]
    report = tmp_path / name
    assert cli.main(["verify", *map(str, arguments), "--report", str(report)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {report}: ") and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_an_older_report_stays_until_there_is_a_new_one(
    tmp_path: Path, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.wav").write_bytes(b"no audio")
    report = tmp_path / "report.json"
    report.write_text("old")
    arguments = [
        "--package",
        tmp_path,
        "--against",
        tiny_package,
        "--audio",
        tmp_path / "short.wav",
    ]
    assert cli.main(["verify", *map(str, arguments), "--report", str(report)]) == 1
    assert "not a package" in capsys.readouterr().err
    assert report.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_figures_that_cannot_be_written_in_the_end_are_printed(
    sounds: list[str], tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--package", tiny_package, "--against", tiny_package, "--audio", sounds[0]]
    options = ["--report", "/dev/full", "--quiet", "--max-new-tokens", "2"]
    assert cli.main(["verify", *map(str, [*arguments, *options])]) == 1
    out, err = capsys.readouterr()
    assert "cannot write /dev/full: No space left on device; it is printed instead" in err
    table, _, figures = out.partition("\n\n{")
    assert table.endswith("verdict: within limits")
    assert json.loads("{" + figures)["verdict"] == "within limits"


def test_something_to_compare_with_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--package", "a", "--audio", "b"], ["--ckpt", "a", "--audio", "b"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["verify", *arguments])
        assert stop.value.code == 2
        assert "required" in capsys.readouterr().err
