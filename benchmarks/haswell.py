"""Does a package give the same tokens on a CPU without VNNI? The runtime under qemu's Haswell.

    python benchmarks/haswell.py [--model models/demo] [--seconds 0] [--emulator COMMAND]
        [--speech DIR] [--clips 10]

Products of unsigned and signed bytes saturate on x86 with AVX2 and no VNNI, in some recipes. This
script transcribes real clips natively and under emulation, and compares tokens and
log-probabilities. ``--seconds`` joins clips to that length: prompts of more than 96 positions (8 s)
use the prefill graph. Needs qemu-x86_64 (Debian: qemu-user) and an x86-64 machine. COMMAND is a
Python on another CPU, for example that of benchmarks/results/trusted_int8.md on aarch64.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from dev_clips import dev_clips
from outside import add_speech

ROOT = Path(__file__).resolve().parent.parent


def transcribe(python: list[str], model: Path, paths: list[Path]) -> list[dict[str, object]]:
    """One JSON object for each clip, from the runtime in another process."""
    command = [
        *python, "-m", "ark_asr_onnx", "transcribe", "--model", str(model),
        "--threads", "1", "--format", "json", *map(str, paths),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    start = time.perf_counter()
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in result.stderr.splitlines() if "doesn't support requested" not in line]
    if result.returncode:  # qemu warns of each feature of Haswell that it lacks, thread by thread
        raise SystemExit("\n".join(lines))
    print(f"{' '.join(python)}: {time.perf_counter() - start:.1f} s", flush=True)
    return [json.loads(line)["segments"][0] for line in result.stdout.splitlines()]


def joined(paths: list[Path], seconds: float, directory: Path) -> list[Path]:
    """Each clip, followed by the next ones until it is long enough."""
    waveforms = [soundfile.read(path, dtype="float32")[0] for path in paths]
    found: list[Path] = []
    for i in range(len(paths)):
        whole, n = waveforms[i], i
        while len(whole) < seconds * 16000:
            n = (n + 1) % len(paths)
            whole = np.concatenate([whole, waveforms[n]])
        found.append(directory / f"{i}.wav")
        soundfile.write(found[-1], whole, 16000)
    return found


def main() -> int:
    """Command line; exit status 1 if a token differs."""
    parser = argparse.ArgumentParser(description="Native against emulated CPU.")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--emulator", default=f"qemu-x86_64 -cpu Haswell {sys.executable}")
    add_speech(parser, "sentences/dev")
    options = parser.parse_args()
    emulator = shlex.split(options.emulator)
    if not shutil.which(emulator[0]):
        raise SystemExit(f"{emulator[0]} is missing; for qemu: apt install qemu-user")
    paths = dev_clips(options.speech, options.clips)
    with tempfile.TemporaryDirectory() as scratch:
        if options.seconds:
            paths = joined(paths, options.seconds, Path(scratch))
        native = transcribe([sys.executable], options.model, paths)
        emulated = transcribe(emulator, options.model, paths)
    same = sum(a["tokens"] == b["tokens"] for a, b in zip(native, emulated, strict=True))
    n_tokens = sum(len(a["tokens"]) for a in native)  # pyright: ignore[reportArgumentType]
    worst = max(
        abs(x - y)
        for a, b in zip(native, emulated, strict=True)
        for x, y in zip(a["logprobs"], b["logprobs"], strict=False)  # pyright: ignore
    )
    print(f"same tokens: {same} of {len(paths)} clips, {n_tokens} tokens; "
          f"largest difference of a log-probability: {worst:.2e}")  # fmt: skip
    return 0 if same == len(paths) else 1


if __name__ == "__main__":
    sys.exit(main())
