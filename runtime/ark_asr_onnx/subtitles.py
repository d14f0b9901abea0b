"""Makes readable cues from words with times.

Of all ways to divide the words into cues within the limits, dynamic programming finds the one with
the lowest cost: few cues, long enough to be read, that end at punctuation and pauses rather than
within a phrase. :mod:`ark_asr_onnx.writers` has the formats.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace

from . import values
from .transcript import Segment

# Times are whole milliseconds here, as in the formats, so that rounding breaks no limit.
_SHORTEST = 1000  # the shortest time in which a cue can be read
_LEAST_SECONDS = 0.1  # the lowest limit of a cue's length
_SPEED = 21.0  # columns that can be read in a second
_BORDER = 200  # a shorter silence between segments does not end a cue
_LONGEST_PAUSE = 2000  # within a cue
_CLEAR = 600  # silence at which a break costs nothing, as at a full stop

# Costs of a cue and of a line; only their proportions count.
_ONE_MORE = 1.0  # each cue
_WITHIN_A_PHRASE, _AT_A_COMMA = 3.0, 0.5  # its end is there
_TORN = 3.0  # in addition, before a letter that must not begin a line
_SILENT = 2.0  # each second of a pause within it
_SENTENCES = 1.0  # the end of a sentence within it
# It is too short, and each second of that: more than joining it with the next one can cost.
_SHORT, _SHORTER = 2.0, 10.0
_HASTY = 2.0  # nothing of it can be read in its time
_EMPTY = 0.5  # it uses nothing of its limits
_UNEVEN = 12.0  # a line uses its whole width; the sum is least for lines of equal length

# Wide forms are first converted to these narrow ones.
_FULL_STOPS, _COMMAS = frozenset(".!?。؟\u06d4।॥"), frozenset(",;:、،؛\u2013\u2014")
_BEGINS_NO_LINE = frozenset("ーｰぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ々〻ゝゞヽヾ")
_LINE_ENDS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class CueLayout:
    """The limits of a cue. A word that is wider than a line is alone in it."""

    max_line_width: int = 42  # columns; wide East Asian letters take two
    max_line_count: int = 2
    max_cue_seconds: float = 7.0

    def __post_init__(self) -> None:
        for name in ("max_line_width", "max_line_count"):
            object.__setattr__(self, name, values.whole(name, getattr(self, name)))
        seconds = values.positive("max_cue_seconds", self.max_cue_seconds)
        if seconds < _LEAST_SECONDS:
            raise ValueError(f"max_cue_seconds is {seconds:g}, must be at least {_LEAST_SECONDS}")
        object.__setattr__(self, "max_cue_seconds", seconds)


@dataclass(frozen=True, slots=True)
class Piece:
    """A word of a cue, with the spaces and the punctuation around it."""

    space: str  # before it: as in the text, or a line feed; "" at the beginning
    text: str
    start: float  # seconds from the beginning of the audio
    end: float


@dataclass(frozen=True, slots=True)
class Cue:
    """Text that is shown together."""

    start: float  # seconds from the beginning of the audio
    end: float
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """Its lines, joined by line feeds."""
        return "".join(piece.space + piece.text for piece in self.pieces)


def cues(segments: Iterable[Segment], layout: CueLayout | None) -> list[Cue]:
    """Cues with every word of the segments once, in order; without a layout, one per segment.

    Raises ``ValueError`` for a segment that has a text but no words.
    """
    spoken = [segment for segment in segments if segment.text.strip()]
    if layout is None:
        return [Cue(s.start, s.end, tuple(_pieces(s))) for s in spoken]
    runs = [_Run(run, layout) for run in _runs(spoken)]
    found: list[Cue] = []
    for run, following in itertools.zip_longest(runs, runs[1:]):
        limit = following.starts[0] if following else math.inf
        found += run.cues(limit, _milliseconds(found[-1].end) if found else 0)
    return found


def width(text: str) -> int:
    """Columns of a text: one for each letter, two for a wide one.

    >>> width("ab"), width("天気"), width("e\\u0301")
    (2, 4, 1)
    """
    return sum(map(_width, text))


def _width(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _pieces(segment: Segment) -> list[Piece]:
    """A segment's text as pieces, one per word, without spaces around the text."""
    if not segment.words:
        raise ValueError("this transcript has no times of words: transcribe with words=True")
    found: list[Piece] = []
    text = segment.text.rstrip()
    at = len(text) - len(text.lstrip())
    for i, word in enumerate(segment.words, 1):
        begin = text.find(word.text, at)
        if begin < 0:
            raise ValueError(f"the text of a segment does not have its word {word.text!r}")
        end = begin + len(word.text) if i < len(segment.words) else len(text)
        part = _LINE_ENDS.sub(" ", text[at:end])
        bare = part.lstrip()
        found.append(Piece(part[: len(part) - len(bare)], bare, word.start, word.end))
        at = end
    return found


def _runs(segments: Sequence[Segment]) -> Generator[list[Piece]]:
    """Runs of pieces without a long pause; a space separates segments, as in transcripts."""
    run: list[Piece] = []
    for segment in segments:
        for i, piece in enumerate(_pieces(segment)):
            if run:
                pause = _milliseconds(piece.start) - _milliseconds(run[-1].end)
                if pause >= (_LONGEST_PAUSE if i else _BORDER):
                    yield run
                    run = []
            run.append(piece if i else replace(piece, space=" "))
    if run:
        yield run


class _Run:
    """The words between two long pauses, and the best way to divide them into cues."""

    def __init__(self, pieces: Sequence[Piece], layout: CueLayout) -> None:
        self._pieces, self._layout = pieces, layout
        self._longest = round(1000 * layout.max_cue_seconds)
        self.starts = [_milliseconds(piece.start) for piece in pieces]
        self._ends = [_milliseconds(piece.end) for piece in pieces]
        self._pauses = [0, *(b - a for a, b in zip(self._ends, self.starts[1:], strict=False))]
        self._widths = [width(piece.text) for piece in pieces]
        self._spaces = [width(piece.space) for piece in pieces]
        texts = [piece.text for piece in pieces]
        self._tears = [0.0, *map(_tear, texts, texts[1:])]  # cost of a break before each

    def cues(self, limit: float, last: int) -> Generator[Cue]:
        """Its cues, which begin at ``last`` or later and end by ``limit``, both in milliseconds."""
        for first, end in self._breaks(limit):
            n_columns = sum(self._widths[first:end]) + sum(self._spaces[first + 1 : end])
            start = max(self.starts[first], last)
            until = self.starts[end] if end < len(self.starts) else limit
            stop = max(self._ends[end - 1], start + _reading(n_columns))
            last = max(round(min(stop, until, start + self._longest)), start + 1)
            yield Cue(start / 1000, last / 1000, self._in_lines(first, end))

    def _breaks(self, limit: float) -> list[tuple[int, int]]:
        """For each cue, the number of its first word and of the word after its last."""
        n = len(self._pieces)
        best = [0.0, *[math.inf] * n]
        came = [0] * (n + 1)
        for first in range(n):
            for end, n_columns, inner in self._candidates(first):
                cost = best[first] + inner + self._cost(first, end, n_columns, limit)
                if cost < best[end]:
                    best[end], came[end] = cost, first
        found: list[tuple[int, int]] = []
        end = n
        while end:
            found.append((came[end], end))
            end = came[end]
        return found[::-1]

    def _candidates(self, first: int) -> Generator[tuple[int, int, float]]:
        """Possible ends of a cue: number of the next word, columns, cost of pauses within it."""
        layout = self._layout
        in_line = n_columns = self._widths[first]
        n_lines, inner = 1, 0.0
        yield first + 1, n_columns, inner
        for i in range(first + 1, len(self._pieces)):
            in_line += self._spaces[i] + self._widths[i]
            if in_line > layout.max_line_width:
                n_lines, in_line = n_lines + 1, self._widths[i]
            is_long = self._ends[i] - self.starts[first] > self._longest
            if is_long or n_lines > layout.max_line_count:
                return
            n_columns += self._spaces[i] + self._widths[i]
            inner += _SILENT * max(0, self._pauses[i] - _BORDER) / 1000
            inner += 0.0 if self._tears[i] else _SENTENCES
            yield i + 1, n_columns, inner

    def _cost(self, first: int, end: int, n_columns: int, limit: float) -> float:
        """The other costs of a cue."""
        layout, is_last = self._layout, end == len(self._pieces)
        available = min(
            (limit if is_last else self.starts[end]) - self.starts[first], self._longest
        )
        cost = _ONE_MORE + _HASTY * max(0.0, 1 - available / _reading(n_columns))
        if (missing := min(_SHORTEST, self._longest) - available) > 0:
            cost += _SHORT + _SHORTER * missing / 1000
        if not is_last:
            cost += self._tears[end] * max(0.0, 1 - self._pauses[end] / _CLEAR)
        room = layout.max_line_width * layout.max_line_count
        spoken = self._ends[end - 1] - self.starts[first]
        use = max(n_columns / room, spoken / self._longest)
        return cost + _EMPTY * max(0.0, 1 - use) ** 2

    def _in_lines(self, first: int, end: int) -> tuple[Piece, ...]:
        """A cue's words in the smallest number of lines, of about equal length."""
        begins = set(self._lines(first, end))
        return tuple(
            replace(piece, space="\n" if i in begins else piece.space if i > first else "")
            for i, piece in enumerate(self._pieces[first:end], first)
        )

    def _lines(self, first: int, end: int) -> tuple[int, ...]:
        """The numbers of the words that begin the second line, the third …"""
        most = self._layout.max_line_width
        best: dict[int, tuple[float, tuple[int, ...]]] = {first: (0.0, ())}  # by next word
        while end not in best:
            longer: dict[int, tuple[float, tuple[int, ...]]] = {}
            for begin, (before, breaks) in best.items():
                n_columns = -self._spaces[begin]
                for i in range(begin, end):
                    n_columns += self._spaces[i] + self._widths[i]
                    if n_columns > most and i > begin:
                        break
                    cost = before + _UNEVEN * (n_columns / most) ** 2
                    cost += self._tears[i + 1] if i + 1 < end else 0.0
                    way = cost, (*breaks, i + 1)
                    longer[i + 1] = min(way, longer.get(i + 1, way))
            best = longer
        return best[end][1][:-1]


def _tear(before: str, after: str) -> float:
    """The cost of a break between two words, without their pause."""
    torn = _TORN if after[:1] in _BEGINS_NO_LINE else 0.0
    if (mark := _last_mark(before)) in _FULL_STOPS:
        return torn
    is_opening = any(unicodedata.category(letter) in ("Ps", "Pi") for letter in after[:1])
    return torn + (_AT_A_COMMA if is_opening or mark in _COMMAS else _WITHIN_A_PHRASE)


def _last_mark(word: str) -> str:
    """The last character of a word, without closing brackets and quotation marks."""
    letters = reversed(unicodedata.normalize("NFKC", word))
    closing = ("Pe", "Pf")
    rest = (c for c in letters if c not in "\"'" and unicodedata.category(c) not in closing)
    return next(rest, "")


def _reading(n_columns: int) -> float:
    """Milliseconds in which ``n_columns`` can be read."""
    return max(_SHORTEST, 1000 * n_columns / _SPEED)


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
