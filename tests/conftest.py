"""Models for the tests: a tiny random checkpoint, exported once a run, and the demo package."""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import outside
import pytest

from ark_asr_onnx import Options
from ark_asr_onnx.model import cpu

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo"
# How far log-probabilities may differ between steps of one slot and of several: on CPUs without
# VNNI one row has a kernel of its own, whose last bits may move an activation to the next code.
SLOTS_DIFFER = 5e-3
SPEECH = outside.speech("")  # recorded speech; absent from a plain clone


@functools.cache
def _adds_exactly() -> bool:
    return cpu.adds_exactly(DEMO / "cpu_check.onnx")


def require_exact_sums(recipe: str) -> None:
    """Skip what only CPUs compute that add products of bytes in 32 bits: those with VNNI, ARM's."""
    from ark_onnx_export.recipes import RECIPES

    if RECIPES[recipe].exact_sums and not _adds_exactly():
        pytest.skip(f"{recipe} is not for this CPU")


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Findings of calibrations are not kept between runs of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def ctrl_c_counts() -> Iterator[None]:
    """Children hear SIGINT also where the tests run in the background, ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of the true architecture, bf16 in three shards. Read only."""
    pytest.importorskip("torch")
    from make_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", seed=0, shards=3)


def without_rope(folder: Path) -> Path:
    """A random checkpoint whose encoder adds stored positions instead of turning by RoPE."""
    from make_checkpoint import make_checkpoint

    return make_checkpoint(folder / "checkpoint", seed=4, overrides={"use_rope": False})


def near(found: Any) -> Any:
    """What equals JSON that was heard with other numbers of slots."""
    if isinstance(found, dict):
        return {key: near(value) for key, value in found.items()}
    if isinstance(found, list):
        return [near(value) for value in found]
    return pytest.approx(found, abs=SLOTS_DIFFER) if isinstance(found, float) else found


def unguarded(max_new_tokens: int) -> Options:
    """For random weights, which repeat themselves and never end."""
    return Options(max_new_tokens, max_tokens_per_second=None, max_repeats=None, retry=False)


def export_tiny(checkpoint: Path, precision: str, layout: str = "native") -> Path:
    """Export beside the checkpoint, by the command."""
    from ark_onnx_export.cli import main

    out = checkpoint.parent / f"{layout}-{precision}"
    options = ["--precision", precision, "--layout", layout, "--quiet"]
    assert main(["--ckpt", str(checkpoint), "--out", str(out), *options]) == 0
    return out


@pytest.fixture(scope="session")
def tiny_package(tiny_checkpoint: Path) -> Path:
    """The INT8 package of :func:`tiny_checkpoint`. Read only."""
    return export_tiny(tiny_checkpoint, "int8")


@pytest.fixture(scope="session")
def tiny_fp32_package(tiny_checkpoint: Path) -> Path:
    """The fp32 package of :func:`tiny_checkpoint`. Read only."""
    return export_tiny(tiny_checkpoint, "fp32")


@pytest.fixture(scope="session")
def tiny_published_package(tiny_checkpoint: Path) -> Path:
    """The same checkpoint in upstream's layout and INT8 recipe. Read only."""
    return export_tiny(tiny_checkpoint, "int8", layout="published")


@pytest.fixture(scope="session")
def demo_package() -> Path:
    """The embedded demo package."""
    return DEMO


@pytest.fixture(scope="session")
def demo_published_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's checkpoint in upstream's layout and INT8 recipe. Read only."""
    pytest.importorskip("torch")
    checkpoint = tmp_path_factory.mktemp("demo") / "checkpoint"
    checkpoint.symlink_to(DEMO / "checkpoint")
    return export_tiny(checkpoint, "int8", layout="published")


@pytest.fixture(scope="session", params=["native", "published"])
def demo_package_of_each_layout(request: pytest.FixtureRequest) -> Path:
    """The demo in both layouts; without torch in ours alone."""
    name = "demo_package" if request.param == "native" else "demo_published_package"
    return request.getfixturevalue(name)


def babble() -> list[np.ndarray]:
    """Three speech-like sounds of 0.5 s, 2.0 s and 5.03 s, always the same, 16 kHz.

    A gliding voice with harmonics and syllables, over faint noise.
    """
    sounds: list[np.ndarray] = []
    for seed, seconds in enumerate((0.5, 2.0, 5.03)):
        time = np.arange(round(seconds * 16000)) / 16000
        pitch = 110 + 40 * np.sin(4.4 * time + seed) + 25 * np.sin(14.45 * time)
        phase = 2 * np.pi * np.cumsum(pitch) / 16000
        formant = 900 + 600 * np.sin(11.94 * time)
        voice = sum(
            np.sin(k * phase) * np.exp(-(((k * pitch - formant) / 500) ** 2)) for k in range(1, 30)
        )
        noise = 0.003 * np.random.default_rng(seed).standard_normal(len(time))
        sounds.append((0.2 * voice * np.clip(np.sin(19.5 * time), 0, 1) + noise).astype("f4"))
    return sounds


@dataclass(frozen=True)
class Sample:
    """A real clip that ships with the demo, and what its speaker says."""

    path: Path
    text: str


@pytest.fixture(scope="session")
def own_speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's sample clips as a folder of speech, made as CONTRIBUTING.md says."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^```sh\n(mkdir .*?)^```$", text, re.MULTILINE | re.DOTALL)
    folder = tmp_path_factory.mktemp("speech") / "own"
    samples, own = str(DEMO / "samples"), str(folder)
    command = command.replace("models/demo/samples", samples).replace("OWN", own)
    subprocess.run(["sh", "-euc", command], check=True)
    return folder


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """The demo's sample clips."""
    lines = (DEMO / "samples" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Sample(DEMO / "samples" / row["audio"], row["text"]) for row in rows]
