"""``kill -9`` at any moment of an export: the next one is right, and nothing is left."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

# Moments of an export, by what is on the disk.
MOMENTS: dict[str, Callable[[Path], object]] = {
    "with a folder": lambda base: list(base.glob("out/.ark-asr-*/new")),
    "with findings": lambda base: list(base.glob("cache/ark-onnx-export/*.npz")),
    "with a graph": lambda base: list(base.glob("out/.ark-asr-*/new/decoder.onnx")),
}


def test_an_export_that_was_killed_is_right_the_next_time(
    tiny_checkpoint: Path, tiny_package: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "package"
    command = [sys.executable, "-m", "ark_onnx_export", "--quiet", "--ckpt", str(tiny_checkpoint)]
    command += ["--out", str(out)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    generator = random.Random(0)
    for has_come in MOMENTS.values():
        child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while not has_come(tmp_path):
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.3))
        child.kill()
        child.wait()
        assert not out.exists() or len(list(out.iterdir())) == len(list(tiny_package.iterdir()))
        shutil.rmtree(out, ignore_errors=True)
    for left in tmp_path.glob("*/.ark-asr-*"):
        os.utime(left, (0, 0))
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in tiny_package.iterdir():
        if path.suffix in (".onnx", ".data"):
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    assert [path.name for path in out.parent.iterdir()] == ["package"]
    kept = list((tmp_path / "cache" / "ark-onnx-export").iterdir())
    assert [path.suffix for path in kept] == [".npz"]
