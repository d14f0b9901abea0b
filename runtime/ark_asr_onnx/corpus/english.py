"""Whisper's English normaliser, corrected where it loses spoken words.

It writes numbers as digits ("forty eight" is 48). It loses the dollar of "one dollar", the minus of
"minus five dollars", the million of "five thousand million" and others, so that texts with and
without them become equal. This module separates such words by a *break*, a word that is no number,
and removes it afterwards; texts that were normalised rightly give the same result as before.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

_BREAK = "\ue000"  # a private character, which no text contains
_CURRENCIES = {"$": "dollars", "€": "euros", "£": "pounds", "¢": "cents"}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_THOUSANDS = ("thousand", "million", "billion", "trillion", "quadrillion", "quintillion",
    "sextillion", "septillion", "octillion", "nonillion", "decillion")  # fmt: skip


def normalizer() -> Callable[[str], str]:
    """``EnglishTextNormalizer`` with corrected numbers. Raises ``ImportError`` without it."""
    with warnings.catch_warnings():
        # 0.1.15 has a docstring with an invalid escape, which gives a warning when it is compiled.
        warnings.simplefilter("ignore")
        from whisper_normalizer import english  # pyright: ignore[reportMissingTypeStubs]
    clean: Any = english.EnglishTextNormalizer()
    clean.standardize_numbers = _Numbers(clean.standardize_numbers)
    # It takes "mm" for a filler and would remove the millimetres of "5 mm".
    return lambda text: clean(re.sub(r"(\d)\s*mm\b", r"\1 millimeters", text, flags=re.IGNORECASE))


class _Numbers:
    """Writes number words as digits, without losing other words."""

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
        text = re.sub(r"([$€£¢])\s+(?=\d)", r"\1", text)  # it would lose a symbol that stands alone
        text = re.sub(r"(?<![\d\s])\s*%|\s+%", " percent", text)
        text = re.sub(r"[$€£¢](?!\d)", lambda m: f" {_CURRENCIES[m[0]]} ", text)
        # With a break in front, since it loses "and a half" at the beginning.
        words = self._theirs.preprocess(f"{_BREAK} {text}").split()
        figures = [part for word in words for part in _with_zeros(word)]
        found = self._theirs.process_words(list(self._broken(figures)))
        text = " ".join(word for word in found if word)
        return self._mended(re.sub(f"\\s*{_BREAK}\\s*", " ", text))

    def _broken(self, words: Sequence[str]) -> Iterator[str]:
        """The words, with breaks where it would lose one."""
        is_zero, before = False, ""  # whether the number up to here is zero
        for i, word in enumerate(words):
            after = words[i + 1] if i + 1 < len(words) else ""
            if word == "0" and after in {*self._numbers, "point", "double", "triple"}:
                word = "zero"  # as a digit it would join the next word  # noqa: PLW2901
            is_inside = before in self._inner or before == "point"
            is_zero = word in self._theirs.zeros and (is_zero or not is_inside)
            yield word
            if self._needs_break(word, after, itertools.islice(words, i + 1, None), is_zero):
                yield _BREAK
            before = word

    def _needs_break(self, word: str, after: str, rest: Iterable[str], is_zero: bool) -> bool:
        """Whether this word or the next would be lost without a break between them."""
        if word == "point":
            return after in self._words and after not in self._theirs.decimals
        if word == "and":  # in "two hundred and five" it may be lost
            return after not in self._numbers
        if word in self._signs:  # the currency's prefix replaces this one
            return after in self._signs or self._is_money(rest)
        if is_zero:  # zero times a factor stays zero
            number = itertools.takewhile(self._numbers.__contains__, rest)
            return not self._factors.isdisjoint(number)
        if after in self._ordinals:  # "one fifth" would be the fifteenth
            return word in self._theirs.ones or bool(re.fullmatch(r"\d*(0[1-9]|1\d)|[1-9]", word))
        # A factor multiplies only the part of a number below a thousand, which is zero here.
        return after in self._factors and bool(word in _THOUSANDS or re.fullmatch(r"\d*000", word))

    def _is_money(self, words: Iterable[str]) -> bool:
        """Whether the words begin with a number and then a currency."""
        for word in words:
            if not (word in self._numbers or word in ("and", "point") or word[0].isdigit()):
                return word in self._money
        return False

    @staticmethod
    def _mended(text: str) -> str:
        """Its ``postprocess``, corrected: only a lone 1 becomes "one", and only cents are cents."""
        text = re.sub(r"([€£$])(\d+) (?:and )?¢(\d{1,2})\b", _with_cents, text)
        text = re.sub(r"([€£$¢])\.(\d)", r"\g<1>0.\2", text)  # it loses a symbol without a digit
        text = re.sub(r"\$0\.(\d\d)\b", lambda m: f"¢{int(m[1])}", text)
        return re.sub(r"(?<![-+.$¢€£\w])1(s?)\b(?![.%])", r"one\1", text)


def _with_zeros(word: str) -> Iterator[str]:
    """A number in parts, which keeps zeros at its ends: 007 is not 7, and 2.0 is not 2."""
    if found := re.fullmatch(r"(\d+)\.(0+)", word):
        yield from (found[1], "point", *["zero"] * len(found[2]))
    elif re.fullmatch(r"0\d+", word):
        yield from (_BREAK, *(_DIGITS[int(digit)] for digit in word), _BREAK)
    else:
        yield word


def _with_cents(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}.{int(found[3]):02}"
