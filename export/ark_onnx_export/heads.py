"""Which heads of a decoder look at the word that is being written; found by trying all of them.

Single spoken words, joined with pauses, are sequences in which every border is known. The
checkpoint writes them down; the heads that look at the word that it writes are those that tell its
time (:mod:`ark_asr_onnx.decoding.words`), and borders show how well. No labels are needed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from ark_asr_onnx.arrays import F32
from ark_asr_onnx.audio.mel import SAMPLE_RATE
from ark_asr_onnx.audio.sources import read
from ark_asr_onnx.decoding.words import Written, parts, timed, tokens_of_words
from ark_asr_onnx.transcript import Word

from .align import Head
from .engines import PackageEngine
from .oracle import TorchEngine

Pool = Sequence[tuple[str, F32]]  # words of one speaker, and their waveforms

_FOLDER = Path(__file__).parent / "spoken"
SEQUENCES = 16  # of each half of the speakers
_ENOUGH = 15  # words of each half that must have been understood
_WORDS = range(3, 6)  # in a sequence
_GAPS = (0.0, 0.05, 0.1, 0.25)  # seconds between two words
_ENDS = 0.2  # seconds of silence before the first and after the last
_NOISE = 1e-4
_LONGEST = 2.0  # seconds of a clip that can be a single word
_MOST_TOKENS = 5  # for a word
_HOPELESS = 24  # words of which none was understood
_MOST_HEADS = 8
_AS_GOOD = 0.7  # of the best head's share: others that look at the word as much are taken, too
_AROUND = 0.04  # seconds around a word that count as it: half a part of the audio
_ASIDE = 0.08  # seconds; a head that looks so far before or after the middle of words is left out
_NEAR, _CLOSE = 0.2, 0.1  # seconds
_LEAST = 0.8  # of borders within _NEAR; with fewer a package has no times


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
    ranking: tuple[tuple[int, int, float], ...]  # layer, head, share on the word; the best ones
    errors: Errors | None  # of the chosen ones, on other speakers
    understood: int  # words of all that were spoken
    spoken: int

    def to_record(self) -> dict[str, Any]:
        """For ``report.json``."""
        return asdict(self)


def find(
    oracle: TorchEngine,
    added: Iterable[tuple[str, F32]],
    track: Callable[[str, Sequence[Any]], Iterable[Any]],
) -> Found:
    """Rank all heads by how much of their attention is on the word, and choose the best.

    ``added`` are further words. Half of the speakers choose, the others judge.
    """
    pools = spoken_words()
    if extra := [(text, wave) for text, wave in added if len(wave) <= _LONGEST * SAMPLE_RATE]:
        pools.append(extra)
    heard: list[list[_Heard]] = [[], []]
    sequences = [(half, one) for half in (0, 1) for one in spliced(pools[half::2], seed=half)]
    encoded = [
        oracle.encode(oracle.log_mel(sequence.waveform))
        for _, sequence in track("single words, audio", sequences)
    ]
    oracle.page_out()
    n_spoken = 0
    pairs = list(zip(sequences, encoded, strict=True))
    for (half, sequence), audio_embeds in track("single words, text", pairs):
        if heard[0] or n_spoken < _HOPELESS:
            n_spoken += len(sequence.words)
            heard[half] += _hear(oracle, sequence, audio_embeds)
    understood = [sum(len(one.pairs) for one in half) for half in heard]
    if min(understood) < _ENOUGH:
        reason = (
            f"of {n_spoken} single words the checkpoint understood {sum(understood)}, too few to "
            "find out"
        )
        return Found((), reason, (), None, sum(understood), n_spoken)
    on_word, aside = (
        np.concatenate(some, axis=2) for some in zip(*map(_looks, heard[0]), strict=True)
    )
    shares, asides = on_word.mean(axis=2), np.abs(np.median(aside, axis=2))
    ranking = sorted(np.ndindex(*shares.shape), key=lambda head: -shares[head])
    near = [head for head in ranking if asides[head] <= _ASIDE] or ranking[:1]
    chosen = [head for head in near[:_MOST_HEADS] if shares[head] >= _AS_GOOD * shares[near[0]]]
    found = Errors.of(_offsets(heard[1], chosen))
    reason = ""
    if found.within_200_ms < _LEAST:
        reason = (
            f"the best heads put {found.within_200_ms:.0%} of the borders within {_NEAR} s, "
            f"{_LEAST:.0%} are needed"
        )
    return Found(
        () if reason else tuple((layer, head) for layer, head in chosen),
        reason,
        tuple((layer, head, round(float(shares[layer, head]), 4)) for layer, head in ranking[:10]),
        found,
        sum(understood),
        n_spoken,
    )


def spoken_words() -> list[Pool]:
    """The built-in words, speaker by speaker."""
    pools: list[Pool] = []
    for line in (_FOLDER / "spoken.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        whole = read(_FOLDER / row["audio"])
        pools.append([(word["text"], whole[word["begin"] : word["end"]]) for word in row["words"]])
    return pools


def spliced(pools: Sequence[Pool], seed: int, n: int = SEQUENCES) -> Iterator[Spliced]:
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


def matched(texts: Sequence[str], spoken: Sequence[Word]) -> list[tuple[int, int]]:
    """Which words of a transcript are which of those that were spoken: both numbers."""
    written = [" ".join(plain(text)) for text in texts]
    same = SequenceMatcher(None, written, [word.text for word in spoken], autojunk=False)
    return [
        (block.a + i, block.b + i)
        for block in same.get_matching_blocks()
        for i in range(block.size)
    ]


def measured(package: PackageEngine) -> Errors | None:
    """How far a package is off, on the speakers that did not choose its heads."""
    found: list[float] = []
    for sequence in spliced(spoken_words()[1::2], seed=1):
        words = package.words(sequence.waveform)
        pairs = matched([word.text for word in words], sequence.words)
        found += _off(words, sequence.words, pairs)
    return Errors.of(found) if found else None


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a checkpoint made of a sequence, and where every head looked."""

    sequence: Spliced
    written: Written
    pairs: list[tuple[int, int]]  # words of the text and of the sequence that are the same
    attention: F32  # [layers, heads, tokens, N]


def _hear(oracle: TorchEngine, sequence: Spliced, audio_embeds: F32) -> list[_Heard]:
    """The sequence as it was heard, if any of it was understood."""
    n_most = _MOST_TOKENS * len(sequence.words)
    decoded = oracle.decode(sequence.waveform, audio_embeds, n_most)
    ids = [i for i in decoded.token_ids if i not in oracle.tokens.stop]
    written = Written(decoded.text, [oracle.text.token_bytes([i]) for i in ids], [0.0] * len(ids))
    texts = [written.text[part.start : part.stop] for part in parts(written.text)]
    if not (pairs := matched(texts, sequence.words)):
        return []
    return [_Heard(sequence, written, pairs, oracle.attention(audio_embeds, ids))]


def _looks(heard: _Heard) -> tuple[F32, F32]:
    """Where each head looks for each understood word, ``[layers, heads, n]`` both.

    How much of its attention is on the word, and how many seconds after the word's middle it is.
    """
    n_audio = heard.attention.shape[3]
    seconds = len(heard.sequence.waveform) / SAMPLE_RATE
    centres = (np.arange(n_audio) + 0.5) * seconds / max(n_audio, 1)
    shares, asides = list[F32](), list[F32]()
    tokens = tokens_of_words(heard.written)
    for text, spoken in heard.pairs:
        word = heard.sequence.words[spoken]
        is_in = (centres > word.start - _AROUND) & (centres < word.end + _AROUND)
        rows = heard.attention[:, :, tokens[text]].astype(np.float32).mean(axis=2)
        shares.append(rows[..., is_in].sum(axis=2))
        asides.append((rows * centres).sum(axis=2) - (word.start + word.end) / 2)
    return np.stack(shares, axis=2), np.stack(asides, axis=2)


def _offsets(heard: Sequence[_Heard], heads: Sequence[Head]) -> list[float]:
    """Seconds by which borders are off."""
    layers, numbers = zip(*sorted(heads), strict=True)
    found: list[float] = []
    for one in heard:
        attention = one.attention[list(layers), list(numbers)].astype(np.float32)
        words = timed(one.written, attention, one.sequence.waveform, 0.0)
        found += _off(words, one.sequence.words, one.pairs)
    return found


def _off(
    found: Sequence[Word], true: Sequence[Word], pairs: Iterable[tuple[int, int]]
) -> list[float]:
    return [
        off
        for a, b in pairs
        for off in (found[a].start - true[b].start, found[a].end - true[b].end)
    ]
