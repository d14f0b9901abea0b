"""How long until the demo can transcribe, and what does importing cost?

    python benchmarks/startup.py [--model models/demo] [--runs 9]

Every figure is the median over new interpreters: importing the runtime, opening the package, and
the whole process from its start to the text of a clip.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_PROBE = """
import sys, time
begin = time.perf_counter()
import ark_asr_onnx
imported = time.perf_counter()
transcriber = ark_asr_onnx.load(sys.argv[1])
opened = time.perf_counter()
transcriber.transcribe(sys.argv[2])
done = time.perf_counter()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(imported - begin, opened - imported, done - opened, int(peak) / 1024)
"""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Import, opening and process time of a package.")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    clip = next((ROOT / "models" / "demo" / "samples").glob("*.flac"))
    rows: list[list[float]] = []
    for _ in range(options.runs):
        start = time.perf_counter()
        output = subprocess.run(
            [sys.executable, "-c", _PROBE, options.model, clip],
            check=True, capture_output=True, text=True,
            env={"PYTHONPATH": str(ROOT / "runtime"), "PATH": "/usr/bin:/bin"},
        ).stdout  # fmt: skip
        rows.append([*map(float, output.split()), time.perf_counter() - start])
    names = ("import, s", "open, s", "transcribe, s", "peak memory, MB", "whole process, s")
    figures = {}
    for i, name in enumerate(names):
        values = [row[i] for row in rows]
        figures[name] = round(statistics.median(values), 3)
        print(f"{name:18} median {figures[name]:8.3f}   {min(values):.3f} to {max(values):.3f}")
    print(json.dumps({"runs": options.runs, "model": options.model.name, **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
