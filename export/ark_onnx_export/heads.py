"""Which heads of a decoder look at the word that is being written; found by trying all of them.

Single spoken words, joined with pauses, are sequences in which every border is known. The
checkpoint writes them down, and the borders that the path over a head's attention gives
(:mod:`ark_asr_onnx.decoding.words`) are compared with the true ones. No labels are needed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ark_asr_onnx.audio.mel import SAMPLE_RATE
from ark_asr_onnx.audio.sources import read
from ark_asr_onnx.decoding.words import Written, parts, timed
from ark_asr_onnx.transcript import Word

from .align import Head
from .engines import PackageEngine
from .oracle import TorchEngine

F32 = npt.NDArray[np.float32]
Pool = Sequence[tuple[str, F32]]  # words of one speaker, and their waveforms

_FOLDER = Path(__file__).parent / "spoken"
_SEQUENCES = 16  # of each half of the speakers, that are tried at most
_WANTED, _ENOUGH = 8, 4  # of them that are understood; and that must be
_WORDS = range(3, 6)  # in a sequence
_GAPS = (0.0, 0.05, 0.1, 0.25)  # seconds between two words
_ENDS = 0.2  # seconds of silence before the first and after the last
_NOISE = 1e-4
_LONGEST = 2.0  # seconds of a clip that can be a single word
_MOST_TOKENS = 40
_MOST_HEADS = 6
_FAR = 0.5  # seconds; a border that is off by more is as wrong
_NEAR, _CLOSE = 0.2, 0.1  # seconds
_SHARE = 0.8  # of borders within _NEAR; with fewer a package has no times


@dataclass(frozen=True, slots=True)
class Spliced:
    """Words one after the other."""

    waveform: F32
    words: tuple[Word, ...]  # as they were spoken


@dataclass(frozen=True, slots=True)
class Errors:
    """How far borders of words are off, both starts and ends."""

    borders: int
    median: float  # seconds
    within_100_ms: float  # share
    within_200_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Errors:
        """Of at least one border."""
        off = np.abs(seconds)
        return cls(
            len(off),
            float(np.median(off)),
            float((off <= _CLOSE).mean()),
            float((off <= _NEAR).mean()),
        )


@dataclass(frozen=True, slots=True)
class Found:
    """The heads that tell the times of words, and how well they do."""

    heads: tuple[Head, ...]  # none: no times
    reason: str  # why there are none
    ranking: tuple[tuple[int, int, float], ...]  # layer, head, mean error; the best ones
    errors: Errors | None  # of the chosen ones, on other speakers
    understood: int  # sequences of all that were tried
    tried: int

    def to_record(self) -> dict[str, Any]:
        """For ``report.json``."""
        return asdict(self)


def find(
    oracle: TorchEngine,
    added: Iterable[tuple[str, F32]],
    track: Callable[[str, Sequence[Any]], Iterable[Any]],
) -> Found:
    """Rank all heads, and choose those that do best together; ``added`` are further words."""
    pools = spoken_words()
    if extra := [(text, wave) for text, wave in added if len(wave) <= _LONGEST * SAMPLE_RATE]:
        pools.append(extra)
    halves = [pools[0::2], pools[1::2]]
    heard: list[list[_Heard]] = [[], []]
    sequences = [
        (half, sequence) for half in (0, 1) for sequence in spliced(halves[half], seed=half)
    ]
    n_tried = 0
    for half, sequence in track("listen to single words", sequences):
        if len(heard[half]) < _WANTED:
            n_tried += 1
            heard[half] += _hear(oracle, sequence)
    n_understood = sum(map(len, heard))
    if min(map(len, heard)) < _ENOUGH:
        reason = (
            f"of {n_tried} sequences of single words the checkpoint understood {n_understood}, "
            "too few to find out"
        )
        return Found((), reason, (), None, n_understood, n_tried)
    n_layers, n_heads = heard[0][0].attention.shape[:2]
    every = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    errors = {head: _error(heard[0], [head]) for head in track("rank heads", every)}
    ranking = sorted(errors, key=errors.__getitem__)
    chosen = _chosen(heard[0], ranking, errors)
    found = Errors.of(_offsets(heard[1], chosen))
    best = tuple((layer, head, round(errors[layer, head], 4)) for layer, head in ranking[:10])
    reason = ""
    if found.within_200_ms < _SHARE:
        reason = (
            f"the best heads put {found.within_200_ms:.0%} of the borders within {_NEAR} s, "
            f"{_SHARE:.0%} are needed"
        )
    return Found(() if reason else tuple(chosen), reason, best, found, n_understood, n_tried)


def spoken_words() -> list[Pool]:
    """The built-in words, speaker by speaker."""
    pools: list[Pool] = []
    for line in (_FOLDER / "spoken.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        whole = read(_FOLDER / row["audio"])
        pools.append([(word["text"], whole[word["begin"] : word["end"]]) for word in row["words"]])
    return pools


def spliced(pools: Sequence[Pool], seed: int, n: int = _SEQUENCES) -> Iterator[Spliced]:
    """Sequences of words of one speaker each, the same ones for the same seed."""
    chance = random.Random(seed)
    noise = np.random.default_rng(seed)
    for _ in range(n):
        pool = chance.choice(pools)
        picked = chance.sample(pool, min(len(pool), chance.choice(_WORDS)))
        at, words = _ENDS, list[Word]()
        for text, wave in picked:
            words.append(Word(text, at, at + len(wave) / SAMPLE_RATE, 1.0))
            at = words[-1].end + chance.choice(_GAPS)
        length = round((words[-1].end + _ENDS) * SAMPLE_RATE)
        waveform = noise.normal(0, _NOISE, length).astype(np.float32)
        for word, (_, wave) in zip(words, picked, strict=True):
            first = round(word.start * SAMPLE_RATE)
            waveform[first : first + len(wave)] += wave
        yield Spliced(waveform, tuple(words))


def plain(text: str) -> list[str]:
    """Words of a text, to compare them."""
    return re.sub(r"[^\w\s']", " ", text.lower()).split()


def offsets(found: Sequence[Word], true: Sequence[Word]) -> list[float]:
    """Seconds by which starts and ends are off."""
    pairs = zip(found, true, strict=True)
    return [off for a, b in pairs for off in (a.start - b.start, a.end - b.end)]


@dataclass(frozen=True, slots=True)
class _Heard:
    """A sequence that was understood, and where every head looked."""

    sequence: Spliced
    written: Written
    attention: F32  # [layers, heads, tokens, N]


def _hear(oracle: TorchEngine, sequence: Spliced) -> list[_Heard]:
    """The sequence as it was heard, if it was understood."""
    audio_embeds = oracle.encode(oracle.log_mel(sequence.waveform))
    decoded = oracle.decode(sequence.waveform, audio_embeds, _MOST_TOKENS)
    wanted = [word.text for word in sequence.words]
    if plain(decoded.text) != wanted or len(parts(decoded.text)) != len(wanted):
        return []
    ids = [i for i in decoded.token_ids if i not in oracle.tokens.stop]
    written = Written(decoded.text, [oracle.text.token_bytes([i]) for i in ids], [0.0] * len(ids))
    return [_Heard(sequence, written, oracle.attention(audio_embeds, ids))]


def _error(heard: Sequence[_Heard], heads: Sequence[Head]) -> float:
    """Mean seconds by which borders are off, each at most so far."""
    return float(np.minimum(np.abs(_offsets(heard, heads)), _FAR).mean())


def _offsets(heard: Sequence[_Heard], heads: Sequence[Head]) -> list[float]:
    layers, numbers = zip(*sorted(heads), strict=True)
    found: list[float] = []
    for one in heard:
        attention = one.attention[list(layers), list(numbers)].astype(np.float32)
        words = timed(one.written, attention, one.sequence.waveform, 0.0)
        found += offsets(words, one.sequence.words)
    return found


def measured(package: PackageEngine) -> Errors | None:
    """How far a package is off, on the speakers with which no heads were chosen."""
    found: list[float] = []
    for sequence in spliced(spoken_words()[1::2], seed=1):
        words = package.words(sequence.waveform)
        if plain(" ".join(word.text for word in words)) == [w.text for w in sequence.words]:
            found += offsets(words, sequence.words)
    return Errors.of(found) if found else None


def _chosen(
    heard: Sequence[_Heard], ranking: Sequence[Head], errors: Mapping[Head, float]
) -> list[Head]:
    """The best head, and those of the next best that make it better."""
    chosen, least = [ranking[0]], errors[ranking[0]]
    for head in ranking[1 : 2 * _MOST_HEADS]:
        error = _error(heard, [*chosen, head])
        if error < least and len(chosen) < _MOST_HEADS:
            chosen, least = [*chosen, head], error
    return chosen
