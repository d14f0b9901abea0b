"""Greedy decoding: which ids may be chosen, which end the text, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .contract import Tokens
from .errors import DecodeError
from .mel import F32
from .model import Decoding
from .prompt import I64

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Options:
    """How to decode. Override with ``dataclasses.replace``."""

    max_new_tokens: int = 256  # most tokens of one pass, the end-of-turn token included
    block_from_id: int | None = None  # every id from here up is blocked; None: the package's

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, must be at least 1")
        if self.block_from_id is not None and self.block_from_id < 0:
            raise ValueError(f"block_from_id is {self.block_from_id}, must not be negative")


@dataclass(frozen=True, slots=True)
class Token:
    """A chosen token."""

    id: int
    logprob: float  # natural log of its probability among the ids that may be chosen
    finish_reason: FinishReason | None  # set on the last token


def token_mask(tokens: Tokens, n_logits: int, block_from_id: int | None = None) -> F32:
    """``[n_logits]``: 0 for ids that may be chosen, -inf for the others.

    Only end of turn escapes: an id that stops decoding but is blocked stays blocked. (On plain
    speech the raw first choice of this model is often ``<|user|>``, itself a stop id.)
    """
    mask = np.zeros(n_logits, np.float32)
    for first, last in tokens.blocked:
        mask[first : last + 1] = -np.inf
    mask[tokens.block_from_id if block_from_id is None else block_from_id :] = -np.inf
    mask[list(tokens.eos)] = 0.0
    return mask


def choose(logits: F32, mask: F32) -> tuple[int, float]:
    """The likeliest id that may be chosen, lowest first among equals, and its log-probability."""
    masked = logits + mask
    best = int(masked.argmax())  # the first NaN, if there is one
    if not np.isfinite(masked[best]):
        raise DecodeError(
            f"the model gave {logits[best]} for id {best}; check the package with "
            "ark-asr inspect --verify"
        )
    return best, -float(np.log(np.exp(masked - masked[best]).sum(dtype=np.float64)))


def decode(
    decoding: Decoding,
    inputs_embeds: F32,
    embed: Callable[[I64], F32],
    tokens: Tokens,
    mask: F32,
    max_new_tokens: int,
) -> Iterator[Token]:
    """Tokens of one utterance in slot 0, from its prompt ``[1, L, H]`` on.

    Ends with a stop id or after ``max_new_tokens``; closing the iterator cancels.
    """
    logits = decoding.prefill(0, inputs_embeds)
    for n_chosen in range(1, max_new_tokens + 1):
        token_id, logprob = choose(logits, mask)
        if token_id in tokens.stop or n_chosen == max_new_tokens:
            yield Token(token_id, logprob, "stop" if token_id in tokens.stop else "length")
            return
        yield Token(token_id, logprob, None)
        logits = decoding.step(embed(np.array([token_id])))[0]
