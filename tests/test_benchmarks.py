"""The comparison of engines runs from nothing and says the same words; never how fast."""

from __future__ import annotations

import ast
import json
import math
import platform
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import ROOT, SPEECH

for _name in ("torch", "transformers", "librosa", "matplotlib"):
    pytest.importorskip(_name)


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks" / script, *arguments]
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not SPEECH.is_dir(), reason="the speech corpus is not here")
def test_int8_on_a_network_is_a_table_of_closeness_and_time(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    packages = ("auto", "rows7", "published")
    done = run(
        "real_int8.py", "--checkpoint", tiny_checkpoint, "--work", tmp_path, "--speech", SPEECH,
        "--clips", 3, "--rounds", 1, "--packages", *packages,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures["closeness"]) == set(packages)
    assert set(figures["ms"]) == {"auto", "rows7"}
    assert all(0 < f["median error"] < 0.1 for f in figures["closeness"].values())
    assert figures["closeness"]["auto"]["same choices"] > 0.9


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_every_question_is_answered_and_drawn(tmp_path: Path) -> None:
    record_file = tmp_path / "record.json"
    options = ("--size", "small", "--rounds", 1, "--work", tmp_path / "work")
    done = run("compare.py", *options, "--out", record_file)
    assert done.returncode == 0, done.stderr
    assert "| what | ours | other |" in done.stdout
    printed = json.loads(done.stdout.splitlines()[-1])
    record = json.loads(record_file.read_text())
    assert printed["rows"] == record["rows"]
    # Without the peers: they are of the true size only.
    assert {row["what"].partition(",")[0] for row in record["rows"]} == {
        "decode step", "prefill", "encoder", "whole clip", "cold start", "imports alone",
        "peak resident memory", "anonymous memory", "CPU time while waiting", "8 slots against 1",
    }  # fmt: skip
    for row in record["rows"]:
        assert math.isfinite(row["ratio"])
        assert row["ours"] > 0
        assert row["verdict"] in (("held", "MISSED") if row["target"] else ("",))
    tokens = record["findings"]["tokens"]
    assert len(tokens["native"]) == len(tokens["published"]) == 8
    assert tokens["native"] == tokens["unprepared"]
    if shutil.which("cc") and platform.machine() == "x86_64":
        done = run("profile_encoder.py", *options)
        assert done.returncode == 0, done.stderr
        shares = [row["what"] for row in json.loads(done.stdout.splitlines()[-1])["rows"]]
        for seconds in (30, 5):
            found = [float(w.split(": ")[1][:-1]) for w in shares if f" {seconds} s" in w]
            assert len(found) == 6
            assert sum(found) == pytest.approx(100, abs=0.5)
    assert run("plots.py", record_file, "--out", tmp_path).returncode == 0
    for name in ("bars", "lengths", "memory"):
        assert ET.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")


def test_a_missed_target_is_told_and_is_the_exit_status() -> None:
    code = (
        "import sys; from types import SimpleNamespace as S; import lab; lab.checksum = str;"
        "rows = [lab.smaller('a', 1, 2, '<= 0.5', 's')];"
        "rows += [lab.faster('b', [1, 2], [3, 6], '>= 4', 's')];"
        "sys.exit(lab.report(S(threads=1, native='x', findings={}), rows[:int(sys.argv[1])], 0))"
    )
    for n, status in ((1, 0), (2, 1)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(n)], cwd=ROOT / "benchmarks", check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert "| a | 1 | 2 | s | 0.50 | <= 0.5 | held |" in done.stdout
        assert ("| b | 1.5 | 4.5 | s | 3.00 | >= 4 | MISSED |" in done.stdout) == (n == 2)


@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="a shell script stands for Python")
def test_a_subject_may_complain_at_any_length(tmp_path: Path) -> None:
    import lab

    script = tmp_path / "python"
    script.write_text("""#!/bin/sh
head -c 1000000 /dev/zero | tr '\\0' w >&2
echo '"ready"'
read question
echo 5
read question
echo the last word >&2
""")
    script.chmod(0o755)
    subject = lab.Subject("native", {}, str(script))
    assert subject("anything") == 5
    with pytest.raises(SystemExit, match=r"a subject ended: w+the last word"):
        subject("anything")
    subject.close()


def test_native_and_emulated_runs_are_compared(own_speech: Path) -> None:
    done = run(
        "haswell.py", "--emulator", sys.executable, "--speech", own_speech, "--clips", 2
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "same tokens: 2 of 2 clips" in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_nothing_imports_onnxruntime_before_its_telemetry_is_off(path: Path) -> None:
    names: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    if "onnxruntime" in names:
        assert "ark_asr_onnx.model.ort" in names[: names.index("onnxruntime")]
