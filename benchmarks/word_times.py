"""How far are the starts and ends of words from the true times?

    python benchmarks/word_times.py [--speech DIR] [--model models/demo]
        [--sequences 100] [--minutes 30] [--peers-python PYTHON --wheels DIR]

**Spliced**: digits and command words of the dev speakers (``--speech``'s ``digits/dev`` and
``words/dev``), three to six of one speaker in a sequence, with pauses of 0, 50, 100 or 250 ms, so
that every border is known. Silence around each word is cut away first (more than 20 dB below its
loudest 25 ms). Misrecognised words are left out, and their number is printed. The figures of
sequences without an error, where no neighbour is missing, are printed as well.
**Sentences**: AN4 (``sentences/dev``) joined with silences of 0.8 to 2 s. The borders of words
within a sentence are unknown, so the figures are how many words lie within the speech of their
sentence, with a tolerance of 0.3 s, and how far its first start and last end are from the speech's.
With ``--peers-python`` (which has faster-whisper) and ``--wheels`` (with Whisper base, see
``models/real``), faster-whisper's times on the same spliced sequences are printed, too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import outside
import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "benchmarks")]
RATE = 16000
_GAPS = (0.0, 0.05, 0.1, 0.25)  # seconds
_ALLOWED = 0.3  # seconds around the speech of a sentence

F32 = npt.NDArray[np.float32]
Timed = tuple[str, float, float]  # a word, its start and its end

_PEER = """
import json, sys
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type="int8", cpu_threads=2)
for path in sys.argv[2:]:
    segments, _ = model.transcribe(path, language="en", beam_size=5, word_timestamps=True)
    print(json.dumps([(w.word, w.start, w.end) for s in segments for w in s.words]), flush=True)
"""


def spliced(speech: Path, n: int, seed: int = 0) -> list[tuple[F32, list[Timed]]]:
    """Sequences of single words of one speaker each, and the times of the words."""
    from ark_asr_onnx.audio import sources

    chance, noise = random.Random(seed), np.random.default_rng(seed)
    pools: dict[str, list[tuple[str, Path]]] = {}
    for kind in ("digits", "words"):
        for row in outside.rows(speech, f"{kind}/dev"):
            if len(row["text"]) > 1:  # no spelled letters
                pools.setdefault(row["speaker"], []).append((row["text"], row["path"]))
    found: list[tuple[F32, list[Timed]]] = []
    for _ in range(n):
        n_words = chance.randint(3, 6)
        speaker = chance.choice(sorted(name for name in pools if len(pools[name]) >= n_words))
        parts, said, at = [np.zeros(RATE // 5, np.float32)], list[Timed](), RATE // 5
        for text, path in chance.sample(pools[speaker], n_words):
            word = trimmed(sources.read(path))
            said.append((text, at / RATE, (at + len(word)) / RATE))
            gap = np.zeros(round(chance.choice(_GAPS) * RATE), np.float32)
            parts += [word, gap]
            at += len(word) + len(gap)
        waveform = np.concatenate([*parts, np.zeros(RATE // 5, np.float32)])
        found.append((waveform + noise.normal(0, 1e-4, len(waveform)).astype(np.float32), said))
    return found


def trimmed(waveform: F32) -> F32:
    """A waveform without the silence around it."""
    energy = np.convolve(np.square(waveform), np.ones(400) / 400, "same")
    loud = np.flatnonzero(energy > 0.01 * energy.max())
    return waveform[loud[0] : loud[-1] + 1]


def plain(text: str) -> str:
    """A word, normalised for comparison."""
    return "".join(c for c in text.lower() if c.isalnum() or c == "'")


def matched(found: Sequence[Timed], said: Sequence[Timed]) -> list[tuple[Timed, Timed]]:
    """Pairs of recognised words and the same words of the reference."""
    words = [[plain(word[0]) for word in side] for side in (found, said)]
    blocks = SequenceMatcher(None, *words, autojunk=False).get_matching_blocks()
    return [(found[b.a + i], said[b.b + i]) for b in blocks for i in range(b.size)]


def figures(off: Iterable[float]) -> dict[str, float]:
    """Median, and shares within 0.1 and 0.2 s."""
    size = np.abs(list(off))
    return {
        "median": float(np.median(size)),
        "within 0.1 s": float((size <= 0.1).mean()),
        "within 0.2 s": float((size <= 0.2).mean()),
    }


def judged(name: str, heard: Sequence[Sequence[Timed]], said: Sequence[Sequence[Timed]]) -> Any:
    """Errors of an engine's times: of all recognised words, and of sequences without an error."""
    for one in heard:
        assert all(start <= end for _, start, end in one), one
        assert all(a[2] <= b[1] + 1e-6 for a, b in itertools.pairwise(one)), one
    both = list(zip(heard, said, strict=True))
    whole = [(a, b) for a, b in both if [plain(x[0]) for x in a] == [x[0] for x in b]]
    return {
        "all": _judged(f"{name}, all words", both),
        "whole": _judged(f"{name}, {len(whole)} of {len(both)} sequences without an error", whole),
    }


def _judged(name: str, both: Sequence[tuple[Sequence[Timed], Sequence[Timed]]]) -> Any:
    pairs = [pair for a, b in both for pair in matched(a, b)]
    n_said = sum(len(said) for _, said in both)
    offsets = [(found[1] - true[1], found[2] - true[2]) for found, true in pairs]
    starts, ends = (figures(off[i] for off in offsets) for i in (0, 1))
    borders = figures(off for both in offsets for off in both)
    print(f"{name}: {len(pairs)} of {n_said} words heard rightly")
    for what, found in (("starts and ends", borders), ("starts", starts), ("ends", ends)):
        print(f"  {what}: median {1000 * found['median']:.0f} ms, {found['within 0.1 s']:.1%} "
              f"within 0.1 s, {found['within 0.2 s']:.1%} within 0.2 s")  # fmt: skip
    return {"words": len(pairs), "both": borders, "starts": starts, "ends": ends}


def timed(transcript: Any) -> list[Timed]:
    """Words of a transcript."""
    return [(w.text, w.start, w.end) for segment in transcript.segments for w in segment.words]


def sentences(transcriber: Any, speech: Path, minutes: float) -> dict[str, float]:
    """The share of words within the speech of their sentence, and of exact starts and ends."""
    import long_form

    waveform, said = long_form.joined(long_form.sentences(speech), minutes, (0.8, 2.0))
    heard = timed(transcriber.transcribe(waveform, RATE, words=True))
    true = [(word, s.begin, s.end) for s in said for word in s.text.split()]
    pairs = matched(heard, true)
    inside = [s - _ALLOWED <= a and b <= e + _ALLOWED for (_, a, b), (_, s, e) in pairs]
    starts = np.array([word[1] for word in heard])
    ends = np.array([word[2] for word in heard])
    found = {
        "words": len(pairs),
        "inside": float(np.mean(inside)),
        "first starts": float(np.mean([np.abs(starts - s.begin).min() <= _ALLOWED for s in said])),
        "last ends": float(np.mean([np.abs(ends - s.end).min() <= _ALLOWED for s in said])),
    }
    print(
        f"{len(waveform) / RATE / 60:.1f} minutes of sentences: {len(pairs)} of {len(true)} words "
        f"heard rightly, {found['inside']:.1%} of them within their sentence ({_ALLOWED} s "
        f"allowed); a word begins within {_ALLOWED} s of {found['first starts']:.1%} of the "
        f"beginnings of speech, one ends so near to {found['last ends']:.1%} of the ends"
    )
    return found


def peer(python: Path, model: Path, waveforms: Sequence[F32]) -> list[list[Timed]]:
    """The times of words from faster-whisper."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.wav" for i in range(len(waveforms))]
        for path, waveform in zip(paths, waveforms, strict=True):
            soundfile.write(path, waveform, RATE)
        command = [str(python), "-c", _PEER, str(model), *map(str, paths)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [[(w, a, b) for w, a, b in json.loads(line)] for line in done.stdout.splitlines()]


def main() -> int:
    """Command line."""
    import ark_asr_onnx

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    outside.add_speech(parser, "digits/dev", "words/dev", "sentences/dev")
    add("--model", type=Path, default=ROOT / "models" / "demo")
    add("--sequences", type=int, default=100)
    add("--minutes", type=float, default=30)
    add("--peers-python", type=Path, help="a Python with faster-whisper")
    add("--wheels", type=Path, help="folder with the two wheels of Whisper base")
    options = parser.parse_args()
    transcriber = ark_asr_onnx.load(options.model)
    clips = spliced(options.speech, options.sequences)
    waveforms, said = [clip[0] for clip in clips], [clip[1] for clip in clips]
    heard = [timed(transcriber.transcribe(w, RATE, words=True)) for w in waveforms]
    found = {"spliced": judged(transcriber.manifest.name, heard, said)}
    if options.minutes:
        found["sentences"] = sentences(transcriber, options.speech, options.minutes)
    if options.peers_python:
        import real_peers

        model = real_peers.whisper_folder(
            options.wheels, real_peers.work_folder("real") / "whisper-base"
        )
        other = peer(options.peers_python, model, waveforms)
        found["faster-whisper"] = judged("faster-whisper, Whisper base", other, said)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
