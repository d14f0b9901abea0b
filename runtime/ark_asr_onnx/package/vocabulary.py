"""Derives from a tokenizer: the ids of the prompt, the stop set and the blocked set."""

from __future__ import annotations

import re

from ..errors import PackageError
from .contract import Tokens
from .text import Text

INSTRUCTION = "Please transcribe this audio."  # the trained wording
_MARKER = re.compile(r"^<.*>$", re.DOTALL)


def decoding_tokens(
    text: Text,
    vocab_size: int,
    *,
    audio: int,
    eos: tuple[int, ...],
    stop: tuple[int, ...],
    instruction: str = INSTRUCTION,
) -> Tokens:
    """Prompt ids and id sets of a model with ``vocab_size`` logits.

    All special tokens, all added tokens of the form ``<…>`` and all ids without a token are
    blocked, except end of turn. Source of the rule: the published inference script and model
    card. Raises :class:`PackageError` if tokenizer and model do not belong together.
    """
    if text.size > vocab_size:
        raise PackageError(
            f"{text.path}: {text.size} tokens, the model has {vocab_size}; the tokenizer belongs "
            "to another model"
        )
    user, begin, end, assistant = (
        text.id(f"<|{name}|>") for name in ("user", "begin_of_audio", "end_of_audio", "assistant")
    )
    if text.id("<|audio|>") != audio:
        raise PackageError(
            f"{text.path}: <|audio|> is id {text.id('<|audio|>')}, the model's configuration says "
            f"audio_token_id {audio}; the tokenizer belongs to another model"
        )
    for token_id in (*eos, *stop):
        if not 0 <= token_id < vocab_size:
            raise PackageError(
                f"{text.path}: the model's configuration names id {token_id} as end of text, "
                f"outside the vocabulary of {vocab_size}"
            )
    added = text.added().items()
    blocked = {i for i, (content, special) in added if special or _MARKER.match(content)}
    blocked |= {i for i in range(vocab_size) if not text.has(i)}
    return Tokens(
        prefix=(user, begin),
        audio=audio,
        suffix=(end, *text.encode(instruction), assistant),
        eos=eos,
        stop=tuple(dict.fromkeys((*eos, *stop, user))),
        blocked=_ranges(blocked - set(eos)),
        block_from_id=open_end(blocked, vocab_size),
    )


def open_end(blocked: set[int], size: int) -> int:
    """The lowest id that is blocked together with all higher ids."""
    first = size
    while first - 1 in blocked:
        first -= 1
    return first


def _ranges(ids: set[int]) -> tuple[tuple[int, int], ...]:
    """Inclusive ranges that cover the ids."""
    ranges: list[tuple[int, int]] = []
    for i in sorted(ids):
        if ranges and ranges[-1][1] == i - 1:
            ranges[-1] = (ranges[-1][0], i)
        else:
            ranges.append((i, i))
    return tuple(ranges)
