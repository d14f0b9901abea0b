"""What the tokenizer says about decoding: the prompt's ids, the stop set and the block set."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from ark_asr_onnx.contract import Tokens
from ark_asr_onnx.errors import ExportError

from .config import ArkConfig

INSTRUCTION = "Please transcribe this audio."  # the trained wording
_MARKER = re.compile(r"^<.*>$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer of a checkpoint, and the file that is shipped."""

    path: Path
    tokenizer: Tokenizer


def open_vocabulary(directory: Path) -> Vocabulary:
    """Read ``tokenizer.json``; :class:`ExportError` when it is absent or damaged."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ExportError(f"{directory}: no tokenizer.json beside the weights")
    try:
        return Vocabulary(path, Tokenizer.from_file(str(path)))
    except Exception as error:  # tokenizers raises nothing narrower than Exception
        raise ExportError(f"{path}: not a tokenizer file ({error})") from error


def decoding_tokens(vocabulary: Vocabulary, config: ArkConfig, instruction: str) -> Tokens:
    """Prompt ids and id sets of a checkpoint.

    Blocked are all special tokens, all added tokens of the shape ``<…>`` and all ids without a
    token; only end of turn escapes. Source of the rule: the published inference script and model
    card. Stopping follows the published manifest: end of turn, padding and ``<|user|>``.
    """
    tokenizer = vocabulary.tokenizer
    size = config.decoder.vocab_size
    if tokenizer.get_vocab_size() > size:
        raise ExportError(
            f"{vocabulary.path}: {tokenizer.get_vocab_size()} tokens, config.json says "
            f"vocab_size {size}; the tokenizer belongs to another checkpoint"
        )
    user, begin, end, assistant = (
        _id(vocabulary, f"<|{name}|>")
        for name in ("user", "begin_of_audio", "end_of_audio", "assistant")
    )
    if _id(vocabulary, "<|audio|>") != config.audio_token_id:
        raise ExportError(
            f"{vocabulary.path}: <|audio|> is id {_id(vocabulary, '<|audio|>')}, config.json says "
            f"audio_token_id {config.audio_token_id}"
        )
    eos = config.eos_token_ids
    for token_id in eos:
        if not 0 <= token_id < size:
            raise ExportError(f"eos_token_id {token_id} is outside the vocabulary of {size}")
    added = tokenizer.get_added_tokens_decoder()
    blocked = {i for i, token in added.items() if token.special or _MARKER.match(token.content)}
    blocked |= {i for i in range(size) if tokenizer.id_to_token(i) is None}
    block_from_id = _open_end(blocked, size)
    stop = [*eos, *([] if config.pad_token_id is None else [config.pad_token_id]), user]
    return Tokens(
        prefix=(user, begin),
        audio=config.audio_token_id,
        suffix=(end, *tokenizer.encode(instruction, add_special_tokens=False).ids, assistant),
        eos=eos,
        stop=tuple(dict.fromkeys(stop)),
        blocked=_ranges(blocked - set(eos)),
        block_from_id=block_from_id,
    )


def _id(vocabulary: Vocabulary, token: str) -> int:
    found = vocabulary.tokenizer.token_to_id(token)
    if found is None:
        raise ExportError(f"{vocabulary.path}: the tokenizer has no token {token}")
    return found


def _open_end(blocked: set[int], size: int) -> int:
    """The lowest id from which on every id is blocked."""
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
