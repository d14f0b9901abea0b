"""The times of the words of a text, from the decoder's attention to the audio.

The attention of a few heads gives the place of every token in the audio, to some 80 ms. A monotonic
path through the words and the silences between them gives each word its time; loudness puts the
borders in the right place.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import F32
from ..audio.mel import SAMPLE_RATE
from ..transcript import Word

_FRAME = 160  # samples of a step of the path, 10 ms
_LOUDNESS = 2 * _FRAME  # samples over which loudness is measured
_QUIETEST, _LOUDEST = 10, 95  # percentiles of loudness that count as silence and as speech
_RANGE = 20.0  # dB between the two, at least
_WEIGHT = 1.5  # of loudness, relative to attention
_EARLY = 0.04  # seconds by which attention is early
# Scripts without spaces, in which each letter is a word here, by the first word of the letters'
# names in Unicode.
_UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "THAI", "LAO", "KHMER", "MYANMAR"}


@dataclass(frozen=True, slots=True)
class Written:
    """A text, and the tokens that it was decoded from."""

    text: str
    tokens: Sequence[bytes]  # content of each; may begin before the text, and end after it
    logprobs: Sequence[float]


def timed(written: Written, attention: F32, waveform: F32, begin: float) -> tuple[Word, ...]:
    """The words of a text, with times in seconds.

    ``attention [heads, n_tokens, N]``: the attention of each head, for each token, to each of N
    equal parts of ``waveform [n]``, 16 kHz, which begins at ``begin`` seconds.
    """
    text, words = written.text, parts(written.text)
    if not words:
        return ()
    sets = tokens_of_words(written)
    units = _units(sets)
    n_frames = max(1, len(waveform) // _FRAME)
    tokens_of = [sorted({token for i in unit for token in sets[i]}) for unit in units]
    seen = _seen(attention, tokens_of)
    spans = path(_in_frames(seen, n_frames), loudness(waveform, n_frames))
    times = [time for unit, span in zip(units, spans, strict=True)
             for time in _shared(span, [len(words[i]) for i in unit])]  # fmt: skip
    scale = _FRAME / SAMPLE_RATE
    return tuple(
        Word(
            text[word.start : word.stop],
            round(begin + first * scale, 3),
            round(begin + last * scale, 3),
            math.exp(sum(written.logprobs[i] for i in tokens) / len(tokens)),
        )
        for word, tokens, (first, last) in zip(words, sets, times, strict=True)
    )


def tokens_of_words(written: Written) -> list[list[int]]:
    """The tokens of each word of a text; a token may belong to several words."""
    owners = _owners(written)
    return [_tokens_of(written.text, word, owners) for word in parts(written.text)]


def parts(text: str) -> list[range]:
    """The words of a text: between spaces, or single letters in scripts without spaces.

    Punctuation belongs to the word before it; opening punctuation, to the word after it.
    """
    found: list[range] = []
    begin, before = 0, ""  # of the word in progress, and the kind of its last letter
    for i, letter in enumerate(text):
        kind = _kind(letter)
        is_new = (kind == "alone" and before != "") or (
            before == "alone" and kind in ("run", "opening")
        )
        if (kind == "space" and before) or is_new:
            found.append(range(begin, i))
            begin, before = i, ""
        if kind == "space" and not before and not text[begin:i].strip():
            begin = i + 1
        elif kind in ("alone", "run"):
            before = kind
    if before:
        found.append(range(begin, len(text.rstrip())))
    elif found and text[begin:].strip():  # only punctuation is left
        found[-1] = range(found[-1].start, len(text.rstrip()))
    elif text[begin:].strip():
        found.append(range(begin, len(text.rstrip())))
    return found


def _kind(letter: str) -> str:
    if letter.isspace():
        return "space"
    category = unicodedata.category(letter)
    if category in ("Ps", "Pi") or letter in "¿¡":
        return "opening"
    if category[0] in "PSMC":  # also marks that combine with the letter before them
        return "closing"
    return "alone" if is_unspaced(letter) else "run"


def is_unspaced(letter: str) -> bool:
    """Whether a letter belongs to a script without spaces between words."""
    return unicodedata.name(letter, "").replace("-", " ").partition(" ")[0] in _UNSPACED


def _owners(written: Written) -> list[range]:
    """The tokens of each letter of the text."""
    content = b"".join(written.tokens)
    of_byte = [i for i, token in enumerate(written.tokens) for _ in token]
    decoded = content.decode("utf-8", "replace")
    whole: list[range] = []
    at = 0
    for letter in decoded:
        n = len(letter.encode()) if letter != "\ufffd" else _n_broken(content, at)
        whole.append(range(of_byte[at], of_byte[at + n - 1] + 1))
        at += n
    begin = decoded.rfind(written.text)
    if begin >= 0:
        return whole[begin : begin + len(written.text)]
    # The clean-up has removed something in the middle; the other letters are in order.
    owners: list[range] = []
    at = len(decoded)
    for letter in reversed(written.text):
        found = decoded.rfind(letter, 0, at)
        at = found if found >= 0 else at
        owners.append(whole[min(at, len(whole) - 1)])
    return owners[::-1]


def _n_broken(content: bytes, at: int) -> int:
    """How many bytes were decoded to one U+FFFD, whether replaced or in the text itself."""
    lengths = range(1, min(3, len(content) - at) + 1)
    return max(n for n in lengths if len(content[at : at + n].decode("utf-8", "replace")) == 1)


def _tokens_of(text: str, word: range, owners: Sequence[range]) -> list[int]:
    """The tokens of a word; those of its punctuation only if there are no others."""
    letters = [i for i in word if _kind(text[i]) in ("alone", "run")]
    return sorted({token for i in letters or word for token in owners[i]})


def _units(sets: Sequence[Sequence[int]]) -> list[list[int]]:
    """Groups of word numbers: words that share a token are in one group."""
    units = [[0]]
    for i in range(1, len(sets)):
        if sets[i][0] <= sets[i - 1][-1]:
            units[-1].append(i)
        else:
            units.append([i])
    return units


def _shared(span: tuple[float, float], sizes: Sequence[int]) -> list[tuple[float, float]]:
    """A span of time, cut into parts in proportion to ``sizes``."""
    whole, (first, last) = sum(sizes), span
    borders = [first + (last - first) * at / whole for at in itertools.accumulate(sizes, initial=0)]
    return list(itertools.pairwise(borders))


def _seen(attention: F32, units: Sequence[Sequence[int]]) -> F32:
    """The attention of each unit to each part of the audio, ``[units, N]``, at most 1."""
    least = np.finfo(np.float32).tiny
    heads = (attention / np.maximum(attention.max(axis=2, keepdims=True), least)).mean(axis=0)
    found = np.stack([heads[list(tokens)].max(axis=0) for tokens in units])
    return found / np.maximum(found.max(axis=1, keepdims=True), least)


def _in_frames(seen: F32, n_frames: int) -> F32:
    """``[units, N]``, interpolated to ``[units, n_frames]``."""
    seconds = n_frames * _FRAME / SAMPLE_RATE
    frames, places = (np.arange(n, dtype=np.float64) for n in (n_frames, seen.shape[1]))
    at = (frames + 0.5) * _FRAME / SAMPLE_RATE - _EARLY
    centres = (places + 0.5) * seconds / seen.shape[1]
    found = np.empty((len(seen), n_frames), np.float32)
    for unit, row in enumerate(seen):
        found[unit] = np.interp(at, centres, row)
    return found


def loudness(waveform: F32, n_frames: int) -> F32:
    """Loudness ``[n_frames]`` from 0, the quietest part, to 1, as loud as speech."""
    n = (n_frames - 1) * _FRAME + _LOUDNESS
    padded = np.zeros(n + _LOUDNESS, np.float32)
    used = waveform[: n - (_LOUDNESS - _FRAME) // 2]
    begin = (_LOUDNESS - _FRAME) // 2
    padded[begin : begin + len(used)] = used
    energy = np.concatenate(([0.0], np.cumsum(np.square(padded, dtype=np.float64))))
    first = np.arange(n_frames) * _FRAME
    level = 10 * np.log10((energy[first + _LOUDNESS] - energy[first]).clip(0) + 1e-10)
    at = np.array((_QUIETEST, _LOUDEST)) / 100 * (n_frames - 1)
    quiet, loud = np.interp(at, np.arange(n_frames), np.sort(level))
    quiet = min(quiet, loud - _RANGE)
    return np.clip((level - quiet) / (loud - quiet), 0, 1).astype(np.float32)


def path(seen: F32, loud: F32) -> list[tuple[float, float]]:
    """The best monotonic path: for each unit its first frame and the one after its last.

    ``seen [units, frames]``, ``loud [frames]``. Each unit has at least one frame; silence may be
    between two units.
    """
    n_units, n_frames = seen.shape
    if n_units > n_frames:  # impossible as speech; each unit still gets a share of the time
        return list(itertools.pairwise(i * n_frames / n_units for i in range(n_units + 1)))
    n = 2 * n_units + 1  # silence, the first unit, silence, the second …
    gain = np.empty((n_frames, n), np.float32)
    gain[:, 1::2] = (seen + _WEIGHT * loud).T
    gain[:, 0::2] = (_WEIGHT * (1 - loud))[:, None]
    total = np.full(n, -np.inf, np.float32)
    total[:2] = gain[0, :2]
    came = np.zeros((n_frames, n), np.int8)  # how many states back the best path came from
    ways = np.full((3, n), -np.inf, np.float32)
    for frame in range(1, n_frames):
        ways[0] = total
        ways[1, 1:] = total[:-1]
        ways[2, 3::2] = total[1:-2:2]  # silence may be skipped
        came[frame] = ways.argmax(axis=0)
        total = ways.max(axis=0) + gain[frame]
    state = n - 2 + int(total[n - 1] > total[n - 2])
    states = np.empty(n_frames, np.int64)
    for frame in reversed(range(n_frames)):
        states[frame] = state
        state -= int(came[frame, state])
    units = np.arange(1, n, 2, dtype=np.int64)
    firsts, lasts = (np.searchsorted(states, units, side) for side in ("left", "right"))
    return [(float(a), float(b)) for a, b in zip(firsts, lasts, strict=True)]
