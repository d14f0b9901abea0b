"""How long does a process take from its start to the text of a clip, and what do imports cost?

python benchmarks/cold_start.py [--size 0.6B] [--rounds 5]

The clip has 5 s and 16 tokens, and files are in the page cache. Compared are our command, with and
without prepared graphs, and the published script. Imports alone are measured in new interpreters,
the size on disk once in new environments.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab import ROOT, Lab, Row, alternate, main, say, smaller, spread

_IMPORTS = {
    "native": "import ark_asr_onnx",
    "published": "import librosa, numpy, onnxruntime, torch, transformers; "
    "from transformers import AutoProcessor, AutoTokenizer, WhisperFeatureExtractor",
}
_STATUS = "; print(next(x.split()[1] for x in open('/proc/self/status') if x.startswith('VmRSS')))"
_INSTALLS = {
    "native": [str(ROOT)],
    "published": ["torch==2.13.0", "transformers>=4.57,<5", "librosa", "onnxruntime"],
}


def measure(lab: Lab) -> list[Row]:
    """Rows for start, imports and installation."""
    commands = lab.commands(5, 16)
    texts: dict[str, str] = {}

    def start(name: str) -> float:
        command, environment = commands[name]
        begin = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        texts[name] = done.stdout
        return time.perf_counter() - begin

    started = alternate(lab.rounds, {name: lambda n=name: start(n) for name in commands})
    lab.findings["cold_start_s"] = started
    for name, times in started.items():
        say(f"  {name}: process to text in {spread(times)} s")
    assert texts["native"] == texts["unprepared"]
    median = {name: statistics.median(times) for name, times in started.items()}
    what = "cold start, 5 s clip"
    rows = [
        smaller(f"{what}, prepared", median["native"], median["published"], "<= 0.2", "s"),
        smaller(f"{what}, unprepared", median["unprepared"], median["published"], "", "s"),
    ]
    memory: dict[str, float] = {}

    def imported(name: str) -> float:
        command = [sys.executable, "-c", _IMPORTS[name] + _STATUS]
        begin = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=commands[name][1]
        )
        memory[name] = int(done.stdout) / 1e3
        return time.perf_counter() - begin

    times = alternate(lab.rounds, {name: lambda n=name: imported(n) for name in _IMPORTS})
    lab.findings["imports_s"], lab.findings["imports_mb"] = times, memory
    ours, theirs = (statistics.median(times[name]) for name in ("native", "published"))
    rows += [
        smaller("imports alone, time", ours, theirs, "<= 0.1", "s"),
        smaller("imports alone, memory", memory["native"], memory["published"], "<= 0.2", "MB"),
    ]
    if lab.size == "small":  # installing takes minutes
        return rows
    sizes = lab.findings["install"] = _installed(lab)
    for i, (kind, target) in enumerate((("MB", "<= 0.2"), ("distributions", "<= 0.5"))):
        ours, theirs = sizes["native"][i], sizes["published"][i]
        rows.append(smaller("installation", ours, theirs, target, kind))
    return rows


def _installed(lab: Lab) -> dict[str, list[float]]:
    """Megabytes and number of distributions in new environments, without pip."""
    record = lab.work / "install.json"
    if record.exists():
        return json.loads(record.read_text())
    found: dict[str, list[float]] = {}
    for name, wanted in _INSTALLS.items():
        with tempfile.TemporaryDirectory(dir=lab.work) as scratch:
            say(f"installing {name} in a fresh environment, once")
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", scratch], check=True)
            python = next(Path(scratch).glob("*/python"))
            pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
            subprocess.run([*pip, *wanted], check=True, capture_output=True)
            packages = next(Path(scratch).rglob("site-packages"))
            size = sum(p.stat().st_size for p in packages.rglob("*") if p.is_file())
            found[name] = [round(size / 1e6), len(list(packages.glob("*.dist-info")))]
    record.write_text(json.dumps(found))
    return found


if __name__ == "__main__":
    sys.exit(main(measure, __doc__))
