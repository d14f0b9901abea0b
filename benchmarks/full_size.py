"""Can this machine export and run the real size? Peak memory and time of every step.

    python benchmarks/full_size.py [--size 0.6B] [--layout native] [--embedding fp32] [--work DIR]
        [--tokenizer NAME]

Makes a checkpoint of random weights in the published format, exports it to INT8, opens the package
and transcribes 5 s of sound, 16 tokens at most. Needs 8 GB of disk in DIR for 0.6B and 35 GB for
3B, freed at the end. No speech is recognised, since the weights are random. Peak memory is the
largest resident set, mapped files included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_TRANSCRIBE = """
import sys, time
import numpy as np
begin = time.perf_counter()
import ark_asr_onnx
transcriber = ark_asr_onnx.load(sys.argv[1])
opened = time.perf_counter()
sound = np.random.default_rng(0).standard_normal(5 * 16000).astype(np.float32) * 0.1
options = ark_asr_onnx.Options(16, max_repeats=None, retry=False)  # the weights are random
result = [transcriber.transcribe(sound, 16000, options=options) for _ in range(3)][-1]
t, n = result.timings, len(result.token_ids)
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(f"opened in {opened - begin:.2f} s (import included); 5 s of sound, warm: "
      f"encode {t.encode:.2f} s, prefill {t.prefill:.2f} s, "
      f"decode {1000 * t.decode / max(n - 1, 1):.1f} ms/token, {n} tokens; "
      f"anonymous memory at the end {int(status['RssAnon'].split()[0]) * 1024 / 1e6:.0f} MB")
"""


def run(label: str, command: list[str]) -> float:
    """Run a command, show its output, print its time and return its peak memory in MB."""
    print(f"\n$ {label}", flush=True)
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": _path()}) as process:
        while process.poll() is None:
            # The exporter resets its peak for each stage, so the kernel's final figure (wait4) is
            # only that of the last stage.
            peak = max(peak, _peak_kb(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{label}: exit status {process.returncode}")
    megabytes = peak * 1024 / 1e6
    print(f"{time.perf_counter() - start:.1f} s, peak memory {megabytes:.0f} MB", flush=True)
    return megabytes


def _peak_kb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:  # it has just ended
        return 0
    return next((int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM")), 0)


def _path() -> str:
    return os.pathsep.join(str(ROOT / name) for name in ("runtime", "export", "benchmarks"))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Export and run a model of the real size.")
    parser.add_argument("--size", default="0.6B")
    parser.add_argument("--work", type=Path, help="scratch folder (default: a temporary one)")
    parser.add_argument("--layout", default="native")
    parser.add_argument("--embedding", default="fp32")
    parser.add_argument("--tokenizer", default="", help="of make_checkpoint.py")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="ark-full-size-", dir=options.work))
    try:
        checkpoint, package = work / f"ark-{options.size}", work / "package"
        script = str(ROOT / "benchmarks" / "make_checkpoint.py")
        peaks = {
            "make": run("make_checkpoint.py", [
                sys.executable, script, str(checkpoint), "--size", options.size, "--shards", "2",
                "--tokenizer", options.tokenizer,
            ]),
            "export": run("ark-onnx-export", [
                sys.executable, "-m", "ark_onnx_export", "--ckpt", str(checkpoint),
                "--out", str(package), "--layout", options.layout,
                "--embedding", options.embedding,
            ]),
        }  # fmt: skip
        size = sum(path.stat().st_size for path in package.iterdir())
        print(f"package: {size / 1e9:.3f} GB")
        command = [sys.executable, "-c", _TRANSCRIBE, str(package)]
        peaks["transcribe"] = run("transcribe", command)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    figures = {"size": options.size, "layout": options.layout, "package_bytes": size}
    peak_mb = {f"peak_mb_{name}": round(peak) for name, peak in peaks.items()}
    print(json.dumps({**figures, **peak_mb, "machine": platform.machine(), "cpus": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
