"""Hours of audio: are they recognised as well as single clips, in constant memory, and how fast?

python benchmarks/long_form.py [--speech DIR] [--minutes 30] [--hours 3] [--rounds 3]

Sentences of AN4 (``--speech``'s ``sentences/dev``), joined with silences of 0.8 to 2 s, are
transcribed by the demo. Measured are the word error rate against the same clips one by one, the
distance between the segments' times and the speech, one slot against eight, and the memory for a
long file against that for a minute. Then the same sentences without pauses are split into windows
of several lengths. ``--work`` is the folder of ``compare.py``: with it, slots are compared at 0.6B
too (random weights, 40 tokens per window).

Loudness in the single clips gives the begin and the end of speech: frames of 10 ms that are at
least 10 dB above the quiet tenth and within 30 dB of the loud twentieth. A sound that is 100 ms
apart from the rest and at least 12 dB below it is breath.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from outside import add_speech, rows

ROOT = Path(__file__).resolve().parent.parent
RATE = 16000
WINDOWS = (5, 10, 15, 20, 30)

F32 = npt.NDArray[np.float32]

_MEMORY = """
import sys
sys.path.insert(0, sys.argv[1])
import ark_asr_onnx
stream = ark_asr_onnx.load(sys.argv[2], threads=1).stream(sys.argv[3])
n = sum(1 for _ in stream)
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(n, int(status["VmHWM"].split()[0]) * 1024 / 1e6)
"""


@dataclass(frozen=True)
class Sentence:
    """A clip, its words, and the times of its speech."""

    waveform: F32
    text: str
    begin: float  # seconds
    end: float


def sentences(speech: Path) -> list[Sentence]:
    """The dev split of AN4."""
    from ark_asr_onnx.audio import sources

    found: list[Sentence] = []
    for row in rows(speech, "sentences/dev"):
        waveform = sources.read(row["path"])
        found.append(Sentence(waveform, row["text"], *bounds(waveform)))
    return found


def bounds(waveform: F32) -> tuple[float, float]:
    """Begin and end of speech in a clip in seconds, by its loudness."""
    n = len(waveform) // 160
    energy = np.square(waveform[: n * 160].reshape(n, 160), dtype=float).mean(1)
    levels = np.convolve(np.pad(10 * np.log10(energy + 1e-10), 1, "edge"), np.ones(3) / 3, "valid")
    loud = np.percentile(levels, 95)
    frames = np.flatnonzero(levels > max(np.percentile(levels, 10) + 10, loud - 30))
    islands = np.split(frames, np.flatnonzero(np.diff(frames) > 10) + 1)
    spoken = [i for i in islands if np.percentile(levels[i], 90) >= loud - 12]
    return float(spoken[0][0]) / 100, float(spoken[-1][-1] + 1) / 100


def joined(
    clips: Sequence[Sentence], minutes: float, gaps: tuple[float, float], seed: int = 0
) -> tuple[F32, list[Sentence]]:
    """``minutes`` of clips in random order, and the sentences with their times."""
    generator = np.random.default_rng(seed)
    parts: list[F32] = []
    said: list[Sentence] = []
    at = 0
    while at < minutes * 60 * RATE:
        clip = clips[int(generator.integers(len(clips)))]
        n_quiet = round(generator.uniform(*gaps) * RATE)
        quiet = (1e-4 * generator.standard_normal(n_quiet)).astype(np.float32)
        begin = at / RATE
        said.append(Sentence(clip.waveform, clip.text, begin + clip.begin, begin + clip.end))
        parts += [clip.waveform, quiet]
        at += len(clip.waveform) + n_quiet
    return np.concatenate(parts), said


def rates(said: Sequence[Sentence], segments: Sequence[Any]) -> dict[str, float]:
    """Word error rate, and shares of begins and ends within 0.3 s of a segment's."""
    import jiwer

    words = " ".join(s.text for s in said), " ".join(s.text for s in segments)
    starts, ends = (np.array([getattr(s, name) for s in segments]) for name in ("start", "end"))
    near = [np.abs(starts - s.begin).min() <= 0.3 for s in said]
    near_end = [np.abs(ends - s.end).min() <= 0.3 for s in said]
    return {
        "wer": jiwer.wer(*words),
        "starts": float(np.mean(near)),
        "ends": float(np.mean(near_end)),
    }


def peak_memory(package: Path, audio: Path) -> float:
    """Largest resident memory, in MB, of a process that transcribes a file."""
    command = [sys.executable, "-c", _MEMORY, str(ROOT / "runtime"), str(package), str(audio)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[1])


def write_long(path: Path, waveform: F32, seconds: float) -> None:
    """Write the waveform repeatedly, up to ``seconds``."""
    left = round(seconds * RATE)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16", format="WAV") as file:
        while left > 0:
            file.write(waveform[:left])
            left -= len(waveform)


def compare_slots(transcriber: Any, waveform: F32, rounds: int, **options: Any) -> dict[str, Any]:
    """One slot against eight, alternating: seconds in total and for decoding."""
    found: dict[str, list[float]] = {"1": [], "8": [], "1 decode": [], "8 decode": []}
    for i in range(rounds + 1):
        for slots in (1, 8):
            begin = time.perf_counter()
            transcript = transcriber.transcribe(waveform, RATE, slots=slots, **options)
            if i:
                found[f"{slots}"].append(time.perf_counter() - begin)
                found[f"{slots} decode"].append(transcript.timings.decode)
    ratios = {
        name: statistics.median(
            a / b for a, b in zip(found[f"1{name}"], found[f"8{name}"], strict=True)
        )
        for name in ("", " decode")
    }
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {"medians": medians, "whole": ratios[""], "decode": ratios[" decode"]}


def main() -> int:
    """Command line."""
    sys.path[:0] = [str(ROOT / "runtime")]
    import jiwer

    import ark_asr_onnx

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_speech(parser, "sentences/dev")
    add("--model", type=Path, default=ROOT / "models" / "demo")
    add("--minutes", type=float, default=30)
    add("--hours", type=float, default=3)
    add("--rounds", type=int, default=3)
    add("--work", type=Path, help="folder of compare.py's 0.6B packages")
    options = parser.parse_args()
    transcriber = ark_asr_onnx.load(options.model)
    clips = sentences(options.speech)
    alone = jiwer.wer(
        [c.text for c in clips], [transcriber.transcribe(c.waveform, RATE).text for c in clips]
    )
    waveform, said = joined(clips, options.minutes, (0.8, 2.0))
    texts = {id(c.waveform): transcriber.transcribe(c.waveform, RATE).text for c in said}
    same = jiwer.wer(" ".join(s.text for s in said), " ".join(texts[id(s.waveform)] for s in said))
    transcript = transcriber.transcribe(waveform, RATE)
    found: dict[str, Any] = {"alone": alone, "same clips alone": same}
    found["joined"] = rates(said, transcript.segments)
    print(f"{len(clips)} clips one by one: WER {100 * alone:.2f} %")
    print(
        f"{len(waveform) / RATE / 60:.1f} minutes, {len(said)} sentences, "
        f"{len(transcript.segments)} segments: WER {100 * found['joined']['wer']:.2f} %, its clips "
        f"one by one {100 * same:.2f} %; within 0.3 s: {100 * found['joined']['starts']:.1f} % of "
        f"the beginnings, {100 * found['joined']['ends']:.1f} % of the ends; "
        f"RTFx {transcript.rtfx:.0f}; {transcript.covered_seconds:.0f} of "
        f"{transcript.speech_seconds:.0f} s of speech covered"
    )
    found["slots"] = compare_slots(transcriber, waveform, options.rounds)
    print(f"demo, 8 slots against 1: {found['slots']}")
    if options.work:
        large = ark_asr_onnx.load(options.work / "native", prepared_dir=options.work / "prepared")
        forced = ark_asr_onnx.Options(40, max_tokens_per_second=None, max_repeats=None, retry=False)
        found["slots 0.6B"] = compare_slots(large, waveform[: 120 * RATE], 1, options=forced)
        print(f"0.6B, 8 slots against 1, 2 minutes: {found['slots 0.6B']}")
    for label, gaps in (("pauses of 0.8 to 2 s", (0.8, 2.0)), ("no pauses", (0.0, 0.05))):
        sound, words = joined(clips, 10, gaps, seed=1)
        for seconds in WINDOWS:
            cut = ark_asr_onnx.Splitting(window_seconds=seconds)
            heard = transcriber.transcribe(sound, RATE, splitting=cut)
            wer = rates(words, heard.segments)["wer"]
            found[f"{label}, {seconds} s"] = {"wer": wer, "rtfx": heard.rtfx}
            print(
                f"10 minutes, {label}, windows of {seconds} s: WER {100 * wer:.2f} %, "
                f"RTFx {heard.rtfx:.0f}"
            )
    with tempfile.TemporaryDirectory() as folder:
        for label, seconds in (("1 minute", 60.0), (f"{options.hours:g} h", 3600 * options.hours)):
            path = Path(folder) / "long.wav"
            write_long(path, waveform, seconds)
            found[f"memory, {label}"] = peak_memory(options.model, path)
            print(f"peak memory, {label}: {found[f'memory, {label}']:.0f} MB")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
