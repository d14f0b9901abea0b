"""Do sounds beside the speech change its words? Clicks, bursts and silence around real clips.

    python benchmarks/robust.py [--model models/demo] [--clips 10] [--speech DIR]

INT8 activations need scales. If a whole tensor shares one scale, a loud click coarsens the speech
beside it. This package has scales for each row of each product. Three tests show the effect, the
first two on clips with a disturbance before or after the speech: their words, INT8 against an fp32
package of the same checkpoint; the error of the speech's audio embeddings (root mean square,
relative to fp32 of the same sound), beside that of Optimum's dynamic recipe with one scale per
tensor; and the products themselves, with a quiet row alone and beside a row that is a thousand
times louder (tests/test_quantize.py runs this one every time).
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
from outside import add_speech

import ark_asr_onnx
from ark_asr_onnx.audio.mel import log_mel
from ark_asr_onnx.audio.sources import read
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


def beside(sound: Callable[[F32], F32], place: str) -> Callable[[F32], F32]:
    """A function that puts the sound before or after speech."""

    def disturbed(speech: F32) -> F32:
        parts = [sound(speech), speech] if place == "before" else [speech, sound(speech)]
        return np.concatenate(parts)

    return disturbed


def error(
    found: ark_asr_onnx.Transcriber,
    expected: ark_asr_onnx.Transcriber,
    speeches: list[F32],
    change: Callable[[F32], F32],
    own: slice,
) -> float:
    """Mean relative error of the audio embeddings ``own`` of changed speech."""
    ratios: list[float] = []
    for speech in speeches:
        mel = log_mel(change(speech), expected.manifest.sizes.n_mels)
        a, b = (t.model.encode(mel)[0, own] for t in (expected, found))
        ratios.append(float(np.linalg.norm(a - b) / np.linalg.norm(a)))
    return float(np.mean(ratios))


SOUNDS: tuple[Callable[[F32], F32], ...] = (click, burst, silence)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Clicks, bursts and silence beside speech.")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models" / "demo" / "checkpoint")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo")
    parser.add_argument("--clips", type=int, default=10)
    add_speech(parser, "sentences/dev")
    options = parser.parse_args()
    paths = dev_clips(options.speech, options.clips)
    with tempfile.TemporaryDirectory() as scratch:
        fp32_dir = pipeline.export(
            options.checkpoint, Path(scratch) / "fp32", pipeline.Settings(precision="fp32")
        ).directory
        dynamic_dir = pipeline.export(
            options.checkpoint,
            Path(scratch) / "dynamic",
            pipeline.Settings(recipe="dynamic", allow_degraded=True),
        ).directory
        folders = (options.model, fp32_dir, dynamic_dir)
        int8, fp32, dynamic = (ark_asr_onnx.load(folder) for folder in folders)
        speeches = [read(path) for path in paths]
        clean = [[t.transcribe(x, RATE).text for t in (int8, fp32)] for x in speeches]
        calm = [error(t, fp32, speeches, lambda x: x, slice(None)) for t in (int8, dynamic)]
        print(
            f"error of the embeddings without disturbance: {calm[0]:.4f}, dynamic {calm[1]:.4f}\n"
        )
        print("| disturbance | place | INT8 text = fp32 text | INT8 text as without | fp32 too "
              "| error of the speech's embeddings | dynamic |")  # fmt: skip
        print("| --- | --- | --: | --: | --: | --: | --: |")
        for sound in SOUNDS:
            for place in ("before", "after"):
                same = unchanged = unchanged_fp32 = 0
                for speech, (clean_a, clean_b) in zip(speeches, clean, strict=True):
                    disturbed = beside(sound, place)(speech)
                    a, b = (t.transcribe(disturbed, RATE).text for t in (int8, fp32))
                    same += a == b
                    unchanged += a == clean_a
                    unchanged_fp32 += b == clean_b
                own = slice(8, None) if place == "before" else slice(None, 16)
                if sound is silence and place == "before":
                    own = slice(64, None)  # 5 s are 62 embeddings
                errors = [
                    error(t, fp32, speeches, beside(sound, place), own) for t in (int8, dynamic)
                ]
                print(f"| {sound.__name__} | {place} | {same}/{len(paths)} | "
                      f"{unchanged}/{len(paths)} | {unchanged_fp32}/{len(paths)} | "
                      f"{errors[0]:.4f} | {errors[1]:.4f} |", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
