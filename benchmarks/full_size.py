"""Can this machine export and run the real size? Time, peak memory and disk of every step.

    python benchmarks/full_size.py [--size 0.6B] [--exporter CLONE] [--work DIR]
        [--set KEY=VALUE ...] [--tokenizer NAME] [OPTIONS OF ark-onnx-export]

Makes a checkpoint of random weights in the published format, exports it to INT8, opens the package
and transcribes 5 s of sound, 16 tokens at most. No speech is recognised, since the weights are
random. The exporter says at its beginning what it will take; what it took is printed behind it.
``--exporter`` names another clone of this repository, whose exporter is measured instead. Findings
of earlier calibrations are not used. The checksums of graphs and weights tell whether two exporters
make the same. Needs 9 GB of disk in DIR for 0.6B and 35 GB for 3B, freed at the end. Peak memory is
the largest resident set, mapped files included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ark_asr_onnx.package.contract import file_sha256

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


@dataclass(frozen=True)
class Taken:
    """What a command took."""

    seconds: float
    memory: int  # bytes, largest resident set
    disk: int  # bytes, most that its folder grew by


def run(label: str, command: list[str], folder: Path, clone: Path = ROOT) -> Taken:
    """Run a command, show its output and what it took; ``folder`` is where it writes."""
    print(f"\n$ {label}", flush=True)
    before, disk, memory = _bytes_in(folder), 0, 0
    start = time.perf_counter()
    # Findings of earlier calibrations are not for this one.
    env = {**os.environ, "PYTHONPATH": _path(clone), "XDG_CACHE_HOME": str(folder / "cache")}
    with subprocess.Popen(command, env=env) as process:
        while process.poll() is None:
            # The exporter resets its peak for each stage, so the kernel's final figure (wait4) is
            # only that of the last stage.
            memory = max(memory, _peak_kb(process.pid) * 1024)
            disk = max(disk, _bytes_in(folder) - before)
            time.sleep(0.2)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{label}: exit status {process.returncode}")
    print(
        f"{seconds:.1f} s, peak memory {memory / 1e9:.2f} GB, at most {disk / 1e9:.2f} GB of disk",
        flush=True,
    )
    return Taken(seconds, memory, disk)


def _peak_kb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:  # it has just ended
        return 0
    return next((int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM")), 0)


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # which passes over what has just been removed
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).lstat().st_blocks * 512
    return total


def _path(clone: Path) -> str:
    folders = [clone / "runtime", clone / "export", ROOT / "benchmarks"]
    return os.pathsep.join(str(folder) for folder in folders)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Export and run a model of the real size.",
        epilog="Further arguments are given to ark-onnx-export.",
    )
    parser.add_argument("--size", default="0.6B")
    parser.add_argument("--set", action="append", default=[], help="of make_checkpoint.py")
    parser.add_argument("--work", type=Path, help="scratch folder (default: a temporary one)")
    parser.add_argument("--exporter", type=Path, default=ROOT, metavar="CLONE")
    parser.add_argument("--tokenizer", default="", help="of make_checkpoint.py")
    options, passed = parser.parse_known_args()
    work = Path(tempfile.mkdtemp(prefix="ark-full-size-", dir=options.work))
    try:
        checkpoint, package = work / f"ark-{options.size}", work / "package"
        script = str(ROOT / "benchmarks" / "make_checkpoint.py")
        made = [sys.executable, script, str(checkpoint), "--size", options.size, "--shards", "2"]
        made += ["--tokenizer", options.tokenizer, *(f"--set={one}" for one in options.set)]
        export = [sys.executable, "-m", "ark_onnx_export", "--ckpt", str(checkpoint)]
        taken = {
            "make": run("make_checkpoint.py", made, work),
            "export": run(
                " ".join(["ark-onnx-export", *passed]),
                [*export, "--out", str(package), *passed],
                work,
                options.exporter.resolve(),
            ),
        }
        size = sum(path.stat().st_size for path in package.iterdir())
        print(f"package: {size / 1e9:.3f} GB")
        for path in sorted([*package.glob("*.onnx"), *package.glob("*.data")]):
            print(f"{file_sha256(path)[:16]}  {path.name}")
        command = [sys.executable, "-c", _TRANSCRIBE, str(package)]
        taken["transcribe"] = run("transcribe", command, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    figures = {"size": options.size, "options": passed, "package_bytes": size}
    machine = {"machine": platform.machine(), "cpus": os.cpu_count()}
    steps = {name: {k: round(v) for k, v in asdict(one).items()} for name, one in taken.items()}
    print(json.dumps({**figures, **steps, **machine}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
