"""Do sounds beside the speech change its words? Clicks, bursts and silence around real clips.

    python benchmarks/robust.py [--model models/demo] [--clips 10] [--speech ../shared/speech]

INT8 activations need scales. Where one scale serves a whole tensor, a loud click takes the digits
that the speech needed. Here each row of each product has scales of its own. Shown twice: by the
words of clips with a disturbance before or after the speech, INT8 against an fp32 package made from
the same checkpoint; and by the audio graph's products themselves, fed a quiet row alone and beside
a row a thousand times louder (tests/test_quantize.py does that on every run).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from dev_clips import dev_clips

import ark_asr_onnx
from ark_asr_onnx.audio import read
from ark_onnx_export import pipeline

F32 = npt.NDArray[np.float32]
ROOT = Path(__file__).resolve().parent.parent
RATE = 16000


def click(_: F32) -> F32:
    """A click of full scale, 2 ms, in half a second of silence."""
    sound = np.zeros(RATE // 2, np.float32)
    sound[4000:4032] = 1.0
    return sound


def burst(speech: F32) -> F32:
    """0.3 s of the speech itself, amplified until it clips hard, and a pause."""
    loud = np.clip(speech[: 3 * RATE // 10] * 1000, -1, 1)
    return np.concatenate([loud, np.zeros(RATE // 5, np.float32)])


def silence(_: F32) -> F32:
    """5 s of digital silence."""
    return np.zeros(5 * RATE, np.float32)


SOUNDS: tuple[Callable[[F32], F32], ...] = (click, burst, silence)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Clicks, bursts and silence beside speech.")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models" / "demo" / "checkpoint")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--speech", type=Path, default=ROOT.parent / "shared" / "speech")
    options = parser.parse_args()
    paths = dev_clips(options.speech, options.clips)
    with tempfile.TemporaryDirectory() as scratch:
        fp32_dir = pipeline.export(
            options.checkpoint, Path(scratch) / "fp32", precision="fp32"
        ).directory
        int8, fp32 = (ark_asr_onnx.load(folder) for folder in (options.model, fp32_dir))
        speeches = [read(path) for path in paths]
        clean = [[t.transcribe(x, RATE).text for t in (int8, fp32)] for x in speeches]
        print("| disturbance | place | INT8 text = fp32 text | INT8 text as without | fp32 too |")
        print("| --- | --- | --: | --: | --: |")
        for sound in SOUNDS:
            for place in ("before", "after"):
                same = unchanged = unchanged_fp32 = 0
                for speech, (clean_a, clean_b) in zip(speeches, clean, strict=True):
                    extra = sound(speech)
                    parts = [extra, speech] if place == "before" else [speech, extra]
                    disturbed = np.concatenate(parts)
                    a, b = (t.transcribe(disturbed, RATE).text for t in (int8, fp32))
                    same += a == b
                    unchanged += a == clean_a
                    unchanged_fp32 += b == clean_b
                print(f"| {sound.__name__} | {place} | {same}/{len(paths)} | "
                      f"{unchanged}/{len(paths)} | {unchanged_fp32}/{len(paths)} |")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
