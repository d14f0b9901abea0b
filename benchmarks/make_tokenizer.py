"""Tokenizers for random checkpoints: a tiny one, one of the real size, or a named one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import count, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from outside import TOKENIZER_FILES
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from ark_asr_onnx import PackageError
from ark_asr_onnx.package.text import QWEN2_SPLIT, Text
from ark_asr_onnx.package.vocabulary import decoding_tokens

# Added tokens of the tiny tokenizer, after its BPE vocabulary. Their ids differ from the 0.6B
# model's, so that no code can rely on those. Markers are added but not special, as published.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<tool_call>", "<|audio|>")
PROMPT = ("<|user|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|assistant|>", "<|system|>")
CODES = tuple(f"<|bicodec_global_{i}|>" for i in range(8))
_SAMPLE = "Please transcribe this audio. The quick brown fox reads zero one two three letters."

# The published arrangement: Qwen2's byte pairs, its added tokens, ARK's, and those of the codec.
N_BYTE_PAIRS = 151643
QWEN2_SPECIAL = (
    *SPECIAL, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
QWEN2_MARKERS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|audio|>", "<|file_sep|>",
)  # fmt: skip
N_COMMON = N_BYTE_PAIRS + len(QWEN2_SPECIAL) + len(QWEN2_MARKERS) + len(PROMPT)  # 3B has no others
QWEN2_CODES = (
    *(f"<|bicodec_global_{i}|>" for i in range(4096)),
    *(f"<|bicodec_semantic_{i}|>" for i in range(8192)),
)
# Qwen2 writes "transcribe" as two tokens: the prompt is as long as the real one.
_INSTRUCTION = ("Please trans", "cribe", " this audio.")


def small_tokenizer() -> Tokenizer:
    """A byte-level BPE of about 300 entries in Qwen2's arrangement, with ARK's added tokens."""
    tokenizer = _byte_pairs([_SAMPLE] * 2, 300)
    for token in (*SPECIAL, *MARKERS, *PROMPT, *CODES):
        special = token not in (*MARKERS, *CODES)
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer


def full_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer of the real size, with the added tokens at their ids; the others are invented.

    The instruction and the added tokens give the real number of ids; tokens of other text have one
    to four letters. The codec's tokens are included if the vocabulary has room for them.
    """
    state = json.loads(_byte_pairs(_INSTRUCTION, N_BYTE_PAIRS).to_str())
    vocab: dict[str, int] = state["model"]["vocab"]
    merges: list[list[str]] = state["model"]["merges"]
    for token in _letters():
        if len(vocab) == N_BYTE_PAIRS:
            break
        if token not in vocab:
            vocab[token] = len(vocab)
            merges.append([token[:-1], token[-1]])
    tokenizer = Tokenizer.from_str(json.dumps(state))
    for tokens, special in ((QWEN2_SPECIAL, True), (QWEN2_MARKERS, False), (PROMPT, True)):
        tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in tokens])
    if vocab_size >= N_COMMON + len(QWEN2_CODES):
        tokenizer.add_tokens([AddedToken(t, special=False, normalized=True) for t in QWEN2_CODES])
    return tokenizer


def take_tokenizer(named: str, out: Path, config: dict[str, Any]) -> None:
    """Copy the tokenizer of a checkpoint, a folder or a Hugging Face id, into a folder.

    The codec's tokens are left out if the model has no rows for them. Raises
    :class:`PackageError` for a tokenizer that cannot be fetched or fits another model.
    """
    source = _folder(named)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    text = Text(out)
    if max(text.added(), default=0) >= config["vocab_size"]:
        _leave_out_codes(out)
        text = Text(out)
    decoding_tokens(
        text, config["vocab_size"], audio=config["audio_token_id"], eos=(config["eos_token_id"],),
        stop=(),
    )  # fmt: skip


def _byte_pairs(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A BPE trained on texts, until each word is one token or the vocabulary is full."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _letters() -> Iterator[str]:
    """Strings of two letters, then three, …; each begins with an earlier string."""
    for length in count(2):
        yield from map("".join, product(ascii_lowercase, repeat=length))


def _folder(named: str) -> Path:
    if Path(named).is_dir():
        return Path(named)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(named, allow_patterns=list(TOKENIZER_FILES)))
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PackageError(
            f"tokenizer {named}: neither a folder nor a repository that can be had ({reason})"
        ) from error


def _leave_out_codes(out: Path) -> None:
    """Remove the tokens that only the 0.6B model has from a tokenizer."""
    path = out / "tokenizer.json"
    if path.is_file():
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        added = tokenizer["added_tokens"]
        tokenizer["added_tokens"] = [token for token in added if token["id"] < N_COMMON]
        path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    path = out / "added_tokens.json"
    if path.is_file():
        ids = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: i for name, i in ids.items() if i < N_COMMON}
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
