"""The example for clusters: its files hold what ``ark-asr batch`` writes."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import DEMO, ROOT

import ark_asr_onnx
from ark_asr_onnx.corpus.batch import run_batch

# Not imported: Ray warns, logs and leaves threads, which are no business of the other tests.
if importlib.util.find_spec("ray") is None:
    pytest.skip("needs the extra ray", allow_module_level=True)

SCRIPT = ROOT / "examples" / "ray_batch.py"
# A cluster of two CPUs on this machine, which ends with the process.
RUN = """
import runpy, sys
import ray

folder, script, *sys.argv[1:] = sys.argv[1:]
ray.init(
    num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder,
    object_store_memory=100 << 20,
)
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture
def ray_batch() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs the example with its own arguments."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets need a short path
    # Its own secret, or Ray writes one into the user's home.
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, **secret, "RAY_USAGE_STATS_ENABLED": "0"}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", RUN, folder, SCRIPT, *arguments],
            env={**environment, "PYTHONPATH": str(ROOT / "runtime")},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    yield run
    shutil.rmtree(folder, ignore_errors=True)


def test_actors_write_the_rows_of_a_batch_in_order(
    ray_batch: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    rows = [json.loads(x) for x in (DEMO / "samples" / "samples.jsonl").read_text().splitlines()]
    manifest, expected, output = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "out"))
    lines = [{**row, "audio": str(DEMO / "samples" / row["audio"])} for row in rows]
    # Metadata of different shapes, and one that fails.
    lines[1:1] = [{"audio": "none.flac", "speaker": {"id": [1, None]}, "ä": 1.5}]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    opens = functools.partial(ark_asr_onnx.load, DEMO, threads=1)
    assert run_batch(opens, manifest, expected).n_failed == 1

    done = ray_batch(
        "--model", DEMO, "--input", manifest, "--output", output, "--batch-size", "2"
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    files = sorted(output.iterdir())
    assert len(files) > 1
    assert b"".join(path.read_bytes() for path in files) == expected.read_bytes()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "in.jsonl"
    manifest.touch()
    refused = subprocess.run(
        [sys.executable, SCRIPT, "--model=x", f"--input={manifest}", f"--output={tmp_path}"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert refused.stderr == f"error: {tmp_path}: is not empty, give a new folder\n"
