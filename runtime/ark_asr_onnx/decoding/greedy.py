"""Greedy decoding: which ids may be chosen, and when a text ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import values
from ..arrays import F32
from ..errors import DecodeError
from ..package.contract import Tokens
from ..transcript import FinishReason
from .hotwords import MAX_STRENGTH, checked

_FREE_TOKENS = 10  # allowed in addition to max_tokens_per_second
_LOOP_TOKENS = 16  # fewer tokens are never a loop


@dataclass(frozen=True, slots=True)
class Options:
    """How to decode. Override with ``dataclasses.replace``."""

    max_new_tokens: int = 256  # most tokens of one pass, the end-of-turn token included
    block_from_id: int | None = None  # every id from here up is blocked; None: the package's
    max_tokens_per_second: float | None = 25.0  # of audio, beyond 10 tokens; None: no such limit
    max_repeats: int | None = 5  # of the same ids (any n-gram) in a row; None: no limit
    retry: bool = True  # again if a text ended by length or loop, or is empty on speech
    words: bool = False  # also the times of each word
    hotwords: tuple[str, ...] = ()  # words and phrases that are expected
    hotword_strength: float = 2.0  # nats per word by which a hotword may be less likely

    def __post_init__(self) -> None:
        object.__setattr__(self, "hotwords", checked(self.hotwords))
        strength = values.positive("hotword_strength", self.hotword_strength)
        if strength > MAX_STRENGTH:
            raise ValueError(
                f"hotword_strength is {strength:g}, may be at most {MAX_STRENGTH:g}; with more, a "
                "text is nothing but hotwords"
            )
        object.__setattr__(self, "hotword_strength", strength)
        for name, least in (("max_new_tokens", 1), ("block_from_id", 0), ("max_repeats", 1)):
            if (value := getattr(self, name)) is not None or name == "max_new_tokens":
                object.__setattr__(self, name, values.whole(name, value, least))
        if self.max_tokens_per_second is not None:
            values.positive("max_tokens_per_second", self.max_tokens_per_second)

    def max_tokens(self, seconds: float) -> int:
        """The most tokens for audio of this many seconds."""
        if self.max_tokens_per_second is None:
            return self.max_new_tokens
        return min(self.max_new_tokens, _FREE_TOKENS + int(self.max_tokens_per_second * seconds))


def token_mask(tokens: Tokens, n_logits: int, block_from_id: int | None = None) -> F32:
    """``[n_logits]``: 0 for ids that may be chosen, -inf for the others.

    Of the blocked ids, only end of turn may be chosen: another stop id stays blocked. (On plain
    speech the raw first choice of this model is often ``<|user|>``, which is a stop id.)
    """
    mask = np.zeros(n_logits, np.float32)
    for first, last in tokens.blocked:
        mask[first : last + 1] = -np.inf
    mask[tokens.block_from_id if block_from_id is None else block_from_id :] = -np.inf
    mask[list(tokens.eos)] = 0.0
    return mask


def choose(logits: F32, mask: F32) -> tuple[int, float]:
    """The likeliest allowed id (of equals the lowest), and its log-probability.

    Raises :class:`DecodeError` if the logits are not numbers.
    """
    masked = logits + mask
    best = int(masked.argmax())  # the first NaN if there is any
    if not np.isfinite(masked[best]):
        raise DecodeError(
            f"the model gave {logits[best]} for id {best}; check the package with "
            "ark-asr inspect --verify"
        )
    return best, -float(np.log(np.exp(masked - masked[best]).sum(dtype=np.float64)))


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for the text of one utterance.

    ``mask`` is that of :func:`token_mask`. ``forbid_empty``: the first token is not end of turn,
    unless no other id may be chosen.
    """

    tokens: Tokens
    mask: F32
    max_new_tokens: int
    max_repeats: int | None = None
    forbid_empty: bool = False

    def mask_at(self, n: int) -> F32:
        """The mask for the id at position ``n`` of the text."""
        if n or not self.forbid_empty:
            return self.mask
        others = self.mask.copy()
        others[list(self.tokens.eos)] = -np.inf
        return others if np.isfinite(others).any() else self.mask

    def ending(self, ids: Sequence[int]) -> tuple[FinishReason | None, int]:
        """Why a text has ended, or None; and the number of its ids before the repeats of a loop."""
        if ids[-1] in self.tokens.stop:
            return "stop", len(ids)
        if self.max_repeats is not None and (n := loop(ids, self.max_repeats)):
            return "loop", len(ids) - n
        return ("length" if len(ids) == self.max_new_tokens else None), len(ids)


class Utterance:
    """The tokens of one utterance so far, and whether it has ended."""

    def __init__(self, rules: Rules) -> None:
        self.ids: list[int] = []
        self.logprobs: list[float] = []  # natural logarithm, among the allowed ids
        self.finish_reason: FinishReason | None = None
        self.n_kept = 0  # ids before the repeats of a loop
        self._rules = rules

    @property
    def n_back(self) -> int:
        """How many ids must be removed from its slot before the next step."""
        return 0

    @property
    def next_id(self) -> int:
        """The id for the next step of its slot."""
        return self.ids[-1]

    def choose(self, logits: F32) -> None:
        """Append the likeliest id for the logits ``[V]``."""
        token_id, logprob = choose(logits, self._rules.mask_at(len(self.ids)))
        self.ids.append(token_id)
        self.logprobs.append(logprob)
        self.finish_reason, self.n_kept = self._rules.ending(self.ids)


def loop(ids: Sequence[int], max_repeats: int) -> int:
    """The number of ids at the end that only repeat the ids before them; 0 without a loop.

    A loop is an n-gram more than ``max_repeats`` times in a row, over 16 ids or more.
    """
    for n in range(1, len(ids) // (max_repeats + 1) + 1):
        n_repeats = max(max_repeats, math.ceil(_LOOP_TOKENS / n) - 1)
        span = n * n_repeats
        if len(ids) >= span + n and ids[-span:] == ids[-span - n : -n]:
            return span
    return 0
