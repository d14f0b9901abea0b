"""What an export is said to take, before it starts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from ark_onnx_export import cli, pipeline
from ark_onnx_export.checkpoint import open_checkpoint
from ark_onnx_export.config import ArkConfig
from ark_onnx_export.forecast import Forecast, Job, Speed
from ark_onnx_export.shapes import Shapes, count

SPEED = Speed(weight=1.25e-9, product=2.1e-11)  # of two slow cores
MEASURED_SECONDS, MEASURED_MEMORY = 2572, 4.06e9
SETTINGS = {
    "default": pipeline.Settings(),
    "fp32": pipeline.Settings(precision="fp32"),
    "one recipe": pipeline.Settings(recipe="blocks8"),
    "published": pipeline.Settings(layout="published"),
}


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were asked about, at a speed that is always the same."""
    asked: list[Job] = []
    of: Callable[[Job, Speed], Forecast] = Forecast.of

    def watched(job: Job, speed: Speed) -> Forecast:
        asked.append(job)
        return of(job, speed)

    monkeypatch.setattr(Forecast, "of", watched)
    monkeypatch.setattr(Speed, "measured", lambda: SPEED)
    return asked


def test_every_matrix_of_a_checkpoint_is_counted(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    shapes = Shapes.of(checkpoint.config)
    matrices = [
        shape
        for name, shape in checkpoint.shapes.items()
        if len(shape) > 1 and "embed" not in name and not name.startswith("lm_head")
    ]
    head = math.prod(shapes.table)
    assert count(shapes.audio) + count(shapes.decoder) - head == sum(map(math.prod, matrices))
    assert shapes.table == checkpoint.shapes["model.embed_tokens.weight"]


@pytest.mark.parametrize("name", [*SETTINGS, "plan"])
def test_the_stages_are_those_of_an_export(
    name: str, tiny_checkpoint: Path, tiny_package: Path, tmp_path: Path, jobs: list[Job]
) -> None:
    labels: list[str] = []

    def progress(label: str, items: Sequence[Any]) -> Iterable[Any]:
        labels.append(label)
        return items

    ((_, clip), *_) = pipeline.builtin_speech()
    planned = pipeline.Settings(plan=tiny_package / "report.json")
    settings = replace(SETTINGS.get(name, planned), calibration=[("own", clip[:-1])])
    pipeline.export(tiny_checkpoint, tmp_path / "out", settings, progress)
    (job,) = jobs
    stages = Forecast.of(job, SPEED).stages
    assert list(dict.fromkeys(labels)) == [label for label, _ in stages]
    assert all(seconds > 0 for _, seconds in stages)


def test_a_line_before_the_work_says_what_it_takes(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: list[Job]
) -> None:
    arguments = ["--ckpt", str(tiny_checkpoint), "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, "--precision", "fp32"]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert re.fullmatch(
        r"this export takes about (a minute|\d+ minutes), 0\.[67] GB of memory and \d+ MB of disk"
        r"(; [\d.]+ GB of memory are free: close other programs)?",
        first,
    )
    assert jobs
    assert cli.main([*arguments[:-1], str(tmp_path / "quiet"), "--quiet"]) == 0
    assert "this export" not in capsys.readouterr().err


def published_size(tiny_checkpoint: Path) -> Shapes:
    """The matrices of ARK-ASR-0.6B."""
    tiny = ArkConfig.read(tiny_checkpoint / "config.json")
    audio = replace(tiny.audio, n_mels=128, d_model=1280, n_layers=32, n_heads=20, ffn_dim=5120)
    decoder = replace(
        tiny.decoder, vocab_size=163958, hidden_size=896, n_layers=24, n_heads=14, n_kv_heads=2,
        head_dim=64, ffn_dim=4864,
    )  # fmt: skip
    return Shapes.of(replace(tiny, audio=audio, decoder=decoder))


def default_job(shapes: Shapes, **changes: Any) -> Job:
    """What ``ark-onnx-export --ckpt CKPT`` does."""
    job = Job(
        shapes=shapes,
        graphs=[("audio.onnx", shapes.audio), ("decoder.onnx", shapes.decoder)],
        probes=[2.3, 2.1, 3.8, 2.3, 2.7, 2.1],
        calibration=[4.3, 11.0, 14.8],
        is_planned=False,
        is_int8=True,
        is_native=True,
    )
    return replace(job, **changes)


def test_the_time_of_0_6b_is_near_what_was_measured(tiny_checkpoint: Path) -> None:
    """``benchmarks/results/full_size.md``; SPEED was measured on the same machine."""
    told = Forecast.of(default_job(published_size(tiny_checkpoint)), SPEED)
    assert 1 / 1.5 < told.seconds / MEASURED_SECONDS < 1.5
    assert 1 / 1.5 < told.memory / MEASURED_MEMORY < 1.5


def test_what_is_not_done_takes_no_time(tiny_checkpoint: Path) -> None:
    shapes = published_size(tiny_checkpoint)
    whole = Forecast.of(default_job(shapes), SPEED)
    planned = Forecast.of(default_job(shapes, is_planned=True), SPEED)
    fixed = Forecast.of(default_job(shapes, calibration=[]), SPEED)
    exact = Forecast.of(default_job(shapes, calibration=[], is_int8=False), SPEED)
    assert whole.seconds > planned.seconds > fixed.seconds > exact.seconds
    twice = Forecast.of(default_job(shapes), Speed(SPEED.weight / 2, SPEED.product / 2))
    assert twice.seconds < 0.6 * whole.seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "a minute"), (119, "2 minutes"), (5900, "98 minutes"), (7300, "2 hours")],
)
def test_times_are_told_as_people_say_them(seconds: float, text: str) -> None:
    told = Forecast((("calibrate: x", seconds),), memory=3_900_000_000)
    assert Forecast((), 0).seconds < 60  # what begins and ends every export
    line = told.text(disk=4_000_000, free=None)
    assert line.startswith("this export takes about ")
    assert line.endswith(", 3.9 GB of memory and 4 MB of disk")
    assert (f"(calibration: {text})" in line) == (seconds > 60)


def test_too_little_free_memory_is_told() -> None:
    told = Forecast((), memory=3_900_000_000)
    assert "free" not in told.text(disk=1, free=4_000_000_000)
    assert told.text(disk=1, free=2_100_000_000).endswith(
        "; 2.1 GB of memory are free: close other programs"
    )
