"""Models for the tests: a tiny random checkpoint, exported once a run, and the demo package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo"
SPEECH = ROOT.parent / "shared" / "speech"  # real speech; absent from a plain clone


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of the true architecture, bf16 in three shards. Read only."""
    pytest.importorskip("torch")
    from make_checkpoint import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", seed=0, shards=3)


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


@dataclass(frozen=True)
class Sample:
    """A real clip that ships with the demo, and what its speaker says."""

    path: Path
    text: str


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """The demo's sample clips."""
    lines = (DEMO / "samples" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Sample(DEMO / "samples" / row["audio"], row["text"]) for row in rows]
