"""A second look at a decoded text, for hotwords.

Greedy decoding never takes a token back: if it preferred hotwords while decoding, a word that only
begins like one would stay wrong. So the text is first decoded as usual. Then, from left to right,
each place where a hotword may be is examined: the model reads the hotword there, token by token,
and decodes on behind it until both texts agree again. The hotword replaces the words there if the
new text is at most ``strength`` nats less likely per word of the hotword than the old text;
hotwords in the old text count in the same way. Log-probabilities are always those of the model.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ..arrays import F32
from ..package.contract import Manifest
from ..package.text import Text
from . import greedy
from .greedy import Rules, Utterance
from .hotwords import Hotwords, Node

# A phrase is examined even if its tokens alone are too unlikely by this many nats: the tokens after
# it may be likelier than those after the other text.
_MARGIN = 1.0
_OFFERS = 20  # the most offers examined at a place, likeliest first
_MEETING = 2  # common tokens after a phrase at which two texts agree again
_STEPS, _FREE_STEPS = 4, 20  # the most steps: for each token of the text, and in addition

Wish: TypeAlias = tuple[int, int]  # ids to remove from the slot, and the id to step with


def expected(
    phrases: Sequence[str], block_from_id: int | None, text: Text, manifest: Manifest
) -> Hotwords:
    """Expected phrases in the tokens of a model.

    Raises ``ValueError`` for a phrase that the model may not write.
    """
    mask = greedy.token_mask(manifest.tokens, manifest.sizes.n_logits, block_from_id)
    return Hotwords(phrases, text, manifest.tokens, mask)


@dataclass(frozen=True, slots=True)
class Offer:
    """A token that continues a phrase, and its lag: nats by which the likeliest token is ahead."""

    lag: float
    token: int
    logprob: float
    node: Node


@dataclass(slots=True)
class Path:
    """A text in progress. ``offers``: tokens of phrases that may replace each token."""

    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    offers: list[list[Offer]] = field(default_factory=list[list[Offer]])
    nodes: list[tuple[Node, ...]] = field(default_factory=lambda: [()])  # before each token

    def until(self, n: int) -> Path:
        """The path of its first ``n`` tokens."""
        return Path(self.ids[:n], self.logprobs[:n], self.offers[:n], self.nodes[: n + 1])


class HotwordUtterance(Utterance):
    """An utterance in which phrases are expected; see :class:`.greedy.Utterance`."""

    def __init__(self, rules: Rules, hotwords: Hotwords, strength: float) -> None:
        super().__init__(rules)
        self._hotwords, self._strength = hotwords, strength
        self._read: list[int] = []  # ids in the slot
        self._n_left = 0  # steps left for the second look
        self._work = self._decode()
        self._wish = next(self._work)

    @property
    def n_back(self) -> int:
        """See :class:`.greedy.Utterance`."""
        return self._wish[0]

    @property
    def next_id(self) -> int:
        """See :class:`.greedy.Utterance`."""
        return self._wish[1]

    def choose(self, logits: F32) -> None:
        """Take the logits ``[V]`` of the last step; sets the text when the utterance has ended."""
        try:
            self._wish = self._work.send(logits)
        except StopIteration as end:
            path: Path = end.value
            self.ids, self.logprobs = path.ids, path.logprobs
            self.finish_reason, self.n_kept = self._rules.ending(path.ids)

    def _decode(self) -> Generator[Wish, F32, Path]:
        logits = yield 0, 0  # the logits of the prompt come without a step
        text = Path()
        yield from self._finish(text, logits)
        if self._rules.ending(text.ids)[0] != "stop":
            return text  # a doubtful text is not examined but retried
        self._n_left = _STEPS * len(text.ids) + _FREE_STEPS
        place = 0
        while place < len(text.ids):
            found = yield from self._better(text, place)
            text, place = found or (text, place + 1)
        return text

    def _finish(self, path: Path, logits: F32) -> Generator[Wish, F32, None]:
        """Append the likeliest tokens until the text ends; ``logits`` are for the first."""
        self._append(path, logits)
        while self._rules.ending(path.ids)[0] is None:
            logits = yield from self._logits_after(path.ids)
            self._append(path, logits)

    def _logits_after(self, ids: Sequence[int]) -> Generator[Wish, F32, F32]:
        """The logits after some ids; steps with those that are not yet in the slot."""
        pairs = zip(self._read, ids[:-1], strict=False)
        n_same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        n_back = len(self._read) - n_same
        for token in ids[n_same:-1]:
            yield n_back, token
            n_back = 0
        self._n_left -= len(ids) - n_same
        self._read = list(ids)
        return (yield n_back, ids[-1])

    def _append(self, path: Path, logits: F32) -> None:
        """Append the likeliest token, with the offers of phrases in its place."""
        best, logprob = greedy.choose(logits, self._rules.mask_at(len(path.ids)))
        before = path.ids[-1] if path.ids else None
        firsts = self._hotwords.firsts
        is_near = logits[best] - logits[firsts] <= self._bound(1)
        starts: dict[int, Node] = {
            token: self._hotwords.first(token)
            for token in firsts[is_near].tolist()
            if not self._hotwords.joins(before, token)
        }
        ways = [starts, *(node.children for node in path.nodes[-1])]
        items = [item for way in ways for item in way.items() if item[0] != best]
        offers = self._offers(logits, best, logprob, items)
        offers.sort(key=lambda offer: offer.lag)
        self._extend(path, best, logprob, offers[:_OFFERS])

    def _offers(
        self, logits: F32, best: int, logprob: float, items: Iterable[tuple[int, Node]]
    ) -> list[Offer]:
        """Offers for tokens near the likeliest one, ``best``, whose log-probability is given."""
        lags = ((float(logits[best] - logits[token]), token, node) for token, node in items)
        return [
            Offer(lag, token, logprob - lag, node)
            for lag, token, node in lags
            if lag <= self._bound(node.n_words)
        ]

    def _bound(self, n_words: int) -> float:
        return self._strength * n_words + _MARGIN

    def _extend(self, path: Path, token: int, logprob: float, offers: list[Offer]) -> None:
        before = path.ids[-1] if path.ids else None
        path.nodes.append(self._hotwords.follow(path.nodes[-1], before, token))
        path.ids.append(token)
        path.logprobs.append(logprob)
        path.offers.append(offers)

    def _better(self, text: Path, place: int) -> Generator[Wish, F32, tuple[Path, int] | None]:
        """The text with a phrase at a place, and the end of the phrase; None to keep the text."""
        numbers = itertools.count()
        tries = [(one.lag, next(numbers), [one]) for one in text.offers[place]]
        while tries and self._n_left > 0:
            lag, _, offers = heapq.heappop(tries)
            path, node = text.until(place), offers[-1].node
            for one in offers:
                self._extend(path, one.token, one.logprob, [])
            end = len(path.ids)
            if end >= self._rules.max_new_tokens:
                continue
            logits = yield from self._logits_after(path.ids)
            self._append(path, logits)
            best, logprob = path.ids[end], path.logprobs[end]
            for one in self._offers(logits, best, logprob, node.children.items()):
                if lag + one.lag <= self._bound(one.node.n_words):
                    heapq.heappush(tries, (lag + one.lag, next(numbers), [*offers, one]))
            is_whole = node.is_end and self._hotwords.is_over(path.ids[end - 1], best)
            if is_whole and (yield from self._wins(path, end, text, place)):
                return path, end
        return None

    def _wins(self, path: Path, end: int, text: Path, place: int) -> Generator[Wish, F32, bool]:
        """Whether a path, with a phrase from ``place`` up to ``end``, is better than the text.

        If it is, the path has been decoded to its end.
        """
        whole = sum(text.logprobs[place:])
        n_words = self._n_words(text.ids)
        while True:
            reason = self._rules.ending(path.ids)[0]
            if reason is None:
                meeting = _meeting(path.ids, end, text.ids, place)
            elif reason == "stop":
                meeting = len(text.ids)
            else:
                return False
            said = sum(path.logprobs[place:])
            if meeting is not None:
                n_more = self._n_words(path.ids) - self._n_words(text.ids[:meeting])
                if said + self._strength * n_more < sum(text.logprobs[place:meeting]):
                    return False
                if reason is None:
                    logits = yield from self._logits_after(path.ids)
                    yield from self._finish(path, logits)
                is_whole = self._rules.ending(path.ids)[0] == "stop"
                return is_whole and self._score(path) >= self._score(text)
            most = self._strength * (self._n_words(path.ids) + n_words)
            if said + most < whole or self._n_left <= 0:
                return False
            logits = yield from self._logits_after(path.ids)
            self._append(path, logits)

    def _score(self, path: Path) -> float:
        return sum(path.logprobs) + self._strength * self._n_words(path.ids)

    def _n_words(self, ids: Sequence[int]) -> int:
        """Number of words in the phrases of a text."""
        return sum(found.n_words for found in self._hotwords.found(ids))


def _meeting(ids: Sequence[int], end: int, others: Sequence[int], begin: int) -> int | None:
    """The end of the last tokens of ``ids`` in ``others`` after ``begin``; None if not in there.

    Only tokens of ``ids`` after ``end`` count.
    """
    if len(ids) - end < _MEETING:
        return None
    last = list(ids[-_MEETING:])
    stops = range(begin + _MEETING, len(others) + 1)
    return next((stop for stop in stops if list(others[stop - _MEETING : stop]) == last), None)
