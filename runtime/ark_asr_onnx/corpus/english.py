"""Whisper's English normaliser, mended where it loses words that were spoken.

It writes numbers as digits ("forty eight" is 48). On the way it forgets the dollar of "one dollar",
the minus of "minus five dollars", the million of "five thousand million" and others, so that texts
with and without them are the same. Here a *break*, a word that is no number, keeps such words
apart, and is taken out afterwards; what was right comes out as before.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

_BREAK = "\ue000"  # in no text: for private use
_CURRENCIES = {"$": "dollars", "€": "euros", "£": "pounds", "¢": "cents"}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_THOUSANDS = ("thousand", "million", "billion", "trillion", "quadrillion", "quintillion",
    "sextillion", "septillion", "octillion", "nonillion", "decillion")  # fmt: skip


def normalizer() -> Callable[[str], str]:
    """``EnglishTextNormalizer`` with the mended numbers; :class:`ImportError` without it."""
    with warnings.catch_warnings():
        # 0.1.15 has a docstring with an invalid escape: a warning wherever it is compiled.
        warnings.simplefilter("ignore")
        from whisper_normalizer import english  # pyright: ignore[reportMissingTypeStubs]
    clean: Any = english.EnglishTextNormalizer()
    clean.standardize_numbers = _Numbers(clean.standardize_numbers)
    # Among the fillers that it leaves out are the millimetres of "5 mm".
    return lambda text: clean(re.sub(r"(\d)\s*mm\b", r"\1 millimeters", text, flags=re.IGNORECASE))


class _Numbers:
    """Words of numbers as digits, and no other word lost."""

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs
        self._words = cast("set[str]", theirs.words)
        self._signs = set(theirs.preceding_prefixers)
        self._money = set(theirs.following_prefixers)
        self._ordinals = {*theirs.ones_ordinal, *theirs.tens_ordinal}
        self._factors = {*theirs.multipliers, *theirs.multipliers_suffixed}
        self._inner = {*theirs.zeros, *theirs.ones, *theirs.tens, *theirs.multipliers}
        self._numbers = {*self._inner, *self._factors, *theirs.ones_suffixed, *theirs.tens_suffixed}

    def __call__(self, text: str) -> str:
        text = re.sub(r"([$€£¢])\s+(?=\d)", r"\1", text)  # a symbol alone is nothing to it
        text = re.sub(r"(?<![\d\s])\s*%|\s+%", " percent", text)
        text = re.sub(r"[$€£¢](?!\d)", lambda m: f" {_CURRENCIES[m[0]]} ", text)
        # A break in front: it forgets "and a half" at the beginning.
        words = self._theirs.preprocess(f"{_BREAK} {text}").split()
        figures = [part for word in words for part in _with_zeros(word)]
        found = self._theirs.process_words(list(self._broken(figures)))
        text = " ".join(word for word in found if word)
        return self._mended(re.sub(f"\\s*{_BREAK}\\s*", " ", text))

    def _broken(self, words: Sequence[str]) -> Iterator[str]:
        """The words, with breaks where it would forget one."""
        is_zero, before = False, ""  # whether all of the number so far is
        for i, word in enumerate(words):
            after = words[i + 1] if i + 1 < len(words) else ""
            if word == "0" and after in {*self._numbers, "point", "double", "triple"}:
                word = "zero"  # as a figure it would be added to the next word  # noqa: PLW2901
            is_inside = before in self._inner or before == "point"
            is_zero = word in self._theirs.zeros and (is_zero or not is_inside)
            yield word
            if self._needs_break(word, after, itertools.islice(words, i + 1, None), is_zero):
                yield _BREAK
            before = word

    def _needs_break(self, word: str, after: str, rest: Iterable[str], is_zero: bool) -> bool:
        """Whether this word or the next would be forgotten without a break between them."""
        if word == "point":
            return after in self._words and after not in self._theirs.decimals
        if word == "and":  # of "two hundred and five" it is no loss
            return after not in self._numbers
        if word in self._signs:  # the prefix makes way for that of the currency
            return after in self._signs or self._is_money(rest)
        if is_zero:  # nothing times anything
            number = itertools.takewhile(self._numbers.__contains__, rest)
            return not self._factors.isdisjoint(number)
        if after in self._ordinals:  # "one fifth" would be the fifteenth
            return word in self._theirs.ones or bool(re.fullmatch(r"\d*(0[1-9]|1\d)|[1-9]", word))
        # What is multiplied is what is left of a number below a thousand.
        return after in self._factors and bool(word in _THOUSANDS or re.fullmatch(r"\d*000", word))

    def _is_money(self, words: Iterable[str]) -> bool:
        """Whether a number comes first, and then a currency."""
        for word in words:
            if not (word in self._numbers or word in ("and", "point") or word[0].isdigit()):
                return word in self._money
        return False

    @staticmethod
    def _mended(text: str) -> str:
        """Its ``postprocess``, right: only a lone 1 is "one", and only cents are cents."""
        text = re.sub(r"([€£$])(\d+) (?:and )?¢(\d{1,2})\b", _with_cents, text)
        text = re.sub(r"([€£$¢])\.(\d)", r"\g<1>0.\2", text)  # it drops what no digit follows
        text = re.sub(r"\$0\.(\d\d)\b", lambda m: f"¢{int(m[1])}", text)
        return re.sub(r"(?<![-+.$¢€£\w])1(s?)\b(?![.%])", r"one\1", text)


def _with_zeros(word: str) -> Iterator[str]:
    """A number in parts, so that zeros at its ends stay: 007 is not 7, and 2.0 not 2."""
    if found := re.fullmatch(r"(\d+)\.(0+)", word):
        yield from (found[1], "point", *["zero"] * len(found[2]))
    elif re.fullmatch(r"0\d+", word):
        yield from (_BREAK, *(_DIGITS[int(digit)] for digit in word), _BREAK)
    else:
        yield word


def _with_cents(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}.{int(found[3]):02}"
