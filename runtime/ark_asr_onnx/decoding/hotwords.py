"""Hotwords, which are expected in the audio: their spellings as a trie of tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from ..arrays import F32, I64
from ..package.contract import Tokens
from ..package.text import Text
from .words import is_unspaced

MAX_PHRASES = 1000
MAX_CHARACTERS = 100  # of a phrase
MAX_ALL_CHARACTERS = 20_000  # of all phrases: a character takes some kB, in all spellings
MAX_STRENGTH = 20.0  # nats: with more, a text is nothing but hotwords
_SHORT = 5  # characters of a phrase that may be an abbreviation
_HALF = "\ufffd"  # decoded from a token that is a part of a character
_UNSPACED_LEADS = range(0xE3, 0xEA)  # first bytes of Chinese and Japanese characters
_HANGUL_LEADS = range(0xEA, 0xEE)  # and of Korean ones


def checked(phrases: object) -> tuple[str, ...]:
    """Normalised phrases: one space between words, without duplicates.

    A set is sorted. Raises ``ValueError`` for a value that is no phrase, for a phrase that is too
    long, and for too many phrases.
    """
    if isinstance(phrases, (str, bytes)) or not isinstance(phrases, Iterable):
        raise ValueError(f"hotwords is one {type(phrases).__name__}, must be a list of phrases")
    found: dict[str, None] = {}
    if isinstance(phrases, (set, frozenset)):
        phrases = sorted(cast("Iterable[object]", phrases), key=repr)  # same in all processes
    for phrase in cast("Iterable[object]", phrases):
        found[_checked(phrase)] = None
    if len(found) > MAX_PHRASES:
        raise ValueError(
            f"hotwords has {len(found)} phrases, may have {MAX_PHRASES}; keep those that are "
            "misheard most"
        )
    if (n := sum(map(len, found))) > MAX_ALL_CHARACTERS:
        raise ValueError(
            f"hotwords has {n} characters in all, may have {MAX_ALL_CHARACTERS}; keep those that "
            "are misheard most"
        )
    return tuple(found)


def _checked(phrase: object) -> str:
    if not isinstance(phrase, str):
        raise ValueError(f"hotwords has {phrase!r}, must have words and phrases")
    words = " ".join(phrase.split())
    if len(words) <= 4 * MAX_CHARACTERS:  # for longer texts normalising may take seconds
        words = unicodedata.normalize("NFC", words)
    if len(words) > MAX_CHARACTERS:
        raise ValueError(
            f"hotwords has a phrase of {len(words)} characters ({words[:20]!r}…), may have "
            f"{MAX_CHARACTERS}; give the words that are misheard"
        )
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in words):
        raise ValueError(f"hotwords has {words!r}, which is no text; leave it out")
    if not any(letter.isalnum() for letter in words):
        raise ValueError(f"hotwords has {phrase[:20]!r}, which has no letters; leave it out")
    return words


def spellings(phrase: str) -> tuple[str, ...]:
    """The ways to write a phrase: with or without a space before it, in the usual cases."""
    small = phrase.lower()
    cases = [phrase, small, *map(_begun, (phrase, small)), *map(_titled, (phrase, small))]
    if len(phrase) <= _SHORT:
        cases.append(phrase.upper())
    return tuple(dict.fromkeys(space + case for case in cases for space in (" ", "")))


def _begun(phrase: str) -> str:
    return phrase[:1].title() + phrase[1:]


def _titled(phrase: str) -> str:
    return "".join(map(_begun, re.split("([ -])", phrase)))


@dataclass(eq=False, slots=True)
class Node:
    """A node of the trie, reached by a sequence of tokens; ``children`` by token."""

    n_words: int = 0  # words up to here; the last one may be incomplete
    is_end: bool = False  # a phrase ends here
    children: dict[int, Node] = field(default_factory=dict[int, "Node"])


@dataclass(frozen=True, slots=True)
class Found:
    """A phrase in a text: its tokens from ``begin`` up to ``end``."""

    begin: int
    end: int
    n_words: int


class Hotwords:
    """A trie of the spellings of phrases, for a tokenizer and a mask of tokens.

    A phrase is made of whole words: it does not begin or end in the middle of one, except that
    Korean particles may follow it. Raises ``ValueError`` for a phrase that the mask does not allow
    in any spelling.
    """

    def __init__(self, phrases: Sequence[str], text: Text, tokens: Tokens, mask: F32) -> None:
        self._text = text
        self._edges: dict[int, _Edge] = {}
        self._root = Node()
        allowed = set(np.flatnonzero(np.isfinite(mask)).tolist()) - {*tokens.stop, *tokens.eos}
        for phrase in phrases:
            ways = [text.encode(spelling) for spelling in spellings(phrase)]
            usable = [ids for ids in ways if ids and allowed.issuperset(ids)]
            if not usable:
                raise ValueError(
                    f"hotwords has {phrase!r}, which this model may not write; leave it out"
                )
            for ids in usable:
                self._add(ids)
        self.firsts: I64 = np.array(sorted(self._root.children), np.int64)

    def _add(self, ids: Sequence[int]) -> None:
        node = self._root
        for i, token in enumerate(ids):
            if token not in node.children:
                is_new = i == 0 or self._text.token_bytes([token])[:1] == b" "
                node.children[token] = Node(node.n_words + is_new)
            node = node.children[token]
        node.is_end = True

    def first(self, token: int) -> Node:
        """The node of a first token, one of :attr:`firsts`."""
        return self._root.children[token]

    def joins(self, before: int | None, after: int) -> bool:
        """Whether a token continues the word of the token before it."""
        return before is not None and self._edge(before).ends and self._edge(after).begins

    def is_over(self, last: int, after: int) -> bool:
        """Whether a phrase may end between two tokens; Korean particles may follow it."""
        return self._edge(after).is_hangul or not self.joins(last, after)

    def follow(self, nodes: Iterable[Node], before: int | None, token: int) -> tuple[Node, ...]:
        """The nodes that a token leads to: from each node, and from the root if a word begins."""
        starts = () if self.joins(before, token) else (self._root,)
        children = (node.children.get(token) for node in (*nodes, *starts))
        return tuple(child for child in children if child is not None)

    def found(self, ids: Sequence[int]) -> list[Found]:
        """The phrases in a text, from left to right; the longest one at each place."""
        found: list[Found] = []
        i = 0
        while i < len(ids):
            longest = self._longest(ids, i)
            if longest is not None:
                found.append(longest)
            i = i + 1 if longest is None else longest.end
        return found

    def _longest(self, ids: Sequence[int], begin: int) -> Found | None:
        node, found = self._root, None
        if begin and self.joins(ids[begin - 1], ids[begin]):
            return None
        for i in range(begin, len(ids)):
            child = node.children.get(ids[i])
            if child is None:
                break
            node = child
            if node.is_end and (i + 1 == len(ids) or self.is_over(ids[i], ids[i + 1])):
                found = Found(begin, i + 1, node.n_words)
        return found

    def _edge(self, token: int) -> _Edge:
        if token not in self._edges:
            self._edges[token] = _edge(self._text.token_bytes([token]))
        return self._edges[token]


@dataclass(frozen=True, slots=True)
class _Edge:
    """Whether a token begins, and ends, with a letter of a script with spaces between words."""

    begins: bool
    ends: bool
    is_hangul: bool  # whether it begins with a Korean character


def _edge(content: bytes) -> _Edge:
    written = content.decode("utf-8", "replace")
    first = content[0] if written.startswith(_HALF) else 0
    begins = _is_joined(written[:1]) and first not in _UNSPACED_LEADS
    is_hangul = unicodedata.name(written[:1] or " ", "").startswith("HANGUL")
    return _Edge(begins, _is_joined(written[-1:]), is_hangul or first in _HANGUL_LEADS)


def _is_joined(letter: str) -> bool:
    if letter in ("", _HALF):
        return letter == _HALF
    is_of_word = letter.isalnum() or unicodedata.category(letter)[0] == "M"
    return is_of_word and not is_unspaced(letter)
