"""Text and token ids: the tokenizer of a folder, and the clean-up of the model's output."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ..errors import PackageError
from .contract import REMEDY, TOKENIZER_FILE
from .foreign import check_memory, check_size, read_object, reason, shortage, shown, shown_name

# Qwen2's split: contractions, letters with one leading mark, single digits, punctuation, spaces.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The files that hold a tokenizer: tokenizer.json, or those of older folders.
TOKENIZER_FILES = ((TOKENIZER_FILE,), ("vocab.json", "merges.txt", "added_tokens.json"))

_MAX_BYTES = 16 << 20  # of each file of a tokenizer
_LONGEST_TOKEN = 10_000  # characters
_TIMES = 25  # bytes of memory for each byte of a tokenizer file
_MEMORY = 16 << 20  # bytes that any call may need

_TURN_ENDS = ("<|user|>", "<|assistant|>", "<|im_end|>")
_TEXT_STARTS = "<|text|>"
_MARKERS = re.compile(
    r"<\|bicodec_(?:semantic|global)_\d+\|>"
    r"|<\|(?:start|end)_(?:global_token|glm_token|semantic_token|content)\|>"
)
_LEADING = " \t\r\n\f\v,.;:!?-"


def _byte_characters() -> dict[str, int]:
    """The character for each byte in byte-level BPE: a printable one stands for itself.

    Source: ``bytes_to_unicode`` of GPT-2's encoder.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_characters()


class Text:
    """The tokenizer of a folder.

    Reads ``tokenizer.json``, or builds it from ``vocab.json``, ``merges.txt`` and
    ``added_tokens.json``, which older folders have instead. Raises :class:`PackageError`.
    """

    def __init__(self, directory: Path) -> None:
        fast, slow = ([directory / name for name in names] for names in TOKENIZER_FILES)
        has_fast = fast[0].is_file()
        self.files = fast if has_fast else slow
        self.path = self.files[0]
        self._tokenizer = _read(self.path) if has_fast else _build(directory)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with special tokens; bytes that are no UTF-8 become U+FFFD."""
        return _told(
            lambda: self._tokenizer.decode(list(ids), skip_special_tokens=False),
            self.path,
            "the tokenizer fails",
        )

    def token_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids; a token may be a part of a character."""
        return b"".join(map(self._bytes_of, ids))

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(self._tokenizer.get_added_tokens_decoder())

    def _bytes_of(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id) or ""
        if token_id in self._added_ids:
            return token.encode()
        try:
            return bytes(_BYTES[character] for character in token)
        except KeyError:
            return token.encode()

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text without additions; special tokens in the text are recognised."""
        encoding = _told(
            lambda: self._tokenizer.encode(text, add_special_tokens=False),
            self.path,
            "the tokenizer fails",
        )
        return tuple(encoding.ids)

    def id(self, token: str) -> int:
        """Id of one token. Raises :class:`PackageError` if there is none."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise PackageError(f"{self.path}: the tokenizer has no token {token}")
        return found

    @property
    def size(self) -> int:
        """Number of tokens, added ones included."""
        return self._tokenizer.get_vocab_size()

    def has(self, token_id: int) -> bool:
        """Whether an id stands for a token."""
        return self._tokenizer.id_to_token(token_id) is not None

    def added(self) -> dict[int, tuple[str, bool]]:
        """Added tokens: id to content and special flag."""
        tokens = self._tokenizer.get_added_tokens_decoder()
        return {i: (token.content, token.special) for i, token in tokens.items()}

    def to_json(self) -> str:
        """``tokenizer.json`` of this tokenizer."""
        return self._tokenizer.to_str()


def _told(read: Callable[[], Any], where: Path, what: str, n_bytes: int = 0) -> Any:
    """The result of a function of tokenizers that may need ``n_bytes`` of memory.

    Raises :class:`PackageError` for every error.
    """
    try:
        check_memory(n_bytes + _MEMORY)
        return read()
    except BaseException as error:
        # The library raises plain Exception, and a BaseException if its Rust code panics.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        found = shortage(error) or f"{what} ({reason(error)}); {REMEDY}"
        raise PackageError(f"{where}: {found}") from error


def _read(path: Path) -> Any:
    n_bytes = _size(path)
    kind = cast("Any", Tokenizer)

    def read() -> Any:
        text = path.read_text("utf-8").removeprefix("\ufeff")
        if max(map(len, text.split('"'))) > _LONGEST_TOKEN:  # the library would need minutes
            raise ValueError(f"a text of more than {_LONGEST_TOKEN} letters in it")
        return kind.from_str(text)

    return _told(read, path, "not a tokenizer file", _TIMES * n_bytes)


def _size(path: Path) -> int:
    """The size of a file. Raises :class:`PackageError` if it must not be read."""
    n_bytes = check_size(path, REMEDY, _MAX_BYTES)
    if not n_bytes:  # such files in /proc may block
        raise PackageError(f"{path}: not a tokenizer file (it is empty); {REMEDY}")
    return n_bytes


def _build(directory: Path) -> Any:
    """A Qwen2 tokenizer from ``vocab.json``, ``merges.txt`` and ``added_tokens.json``."""
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    n_bytes = 0
    for path in (vocab, merges):
        if not path.is_file():
            raise PackageError(
                f"{directory}: no {TOKENIZER_FILE}, and no {path.name} to build it from; "
                "copy the tokenizer files of the model into this folder"
            )
        n_bytes += _size(path)
    added = _added_tokens(directory)
    kind, bpe = cast("Any", Tokenizer), cast("Any", models.BPE)
    tokenizer = _told(
        lambda: kind(bpe.from_file(str(vocab), str(merges))),
        directory,
        "vocab.json or merges.txt is damaged",
        _TIMES * n_bytes,
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = sorted(added, key=added.__getitem__)
    tokenizer.add_tokens([AddedToken(n, special=_is_special(n), normalized=False) for n in names])
    for name in names:
        if (token_id := tokenizer.token_to_id(name)) != added[name]:
            raise PackageError(
                f"{directory}: added_tokens.json gives {shown_name(name)} the id {added[name]}, "
                f"which does not follow vocab.json (expected {token_id})"
            )
    return tokenizer


def _is_special(name: str) -> bool:
    return name.startswith("<|") and name.endswith("|>")


def _added_tokens(directory: Path) -> dict[str, int]:
    path = directory / "added_tokens.json"
    if not path.is_file():
        raise PackageError(
            f"{directory}: no added_tokens.json; without it the control tokens of the model are "
            "unknown; copy it from the model's folder"
        )
    added = read_object(path, REMEDY)
    for content, token_id in added.items():
        if type(token_id) is not int:
            raise PackageError(
                f"{path}: {shown(content)} has id {shown(token_id)}, expected a whole number; "
                f"{REMEDY}"
            )
    return cast("dict[str, int]", added)


def clean(raw: str) -> str:
    """The clean transcript of the raw decoded text.

    Source: the inference script of ``open-audio-opd``. Keeps the text before the first turn
    marker and after ``<|text|>``, deletes codec and content markers, collapses whitespace, drops
    leading punctuation.
    """
    ends = [at for at in map(raw.find, _TURN_ENDS) if at >= 0]
    text = raw[: min(ends)] if ends else raw
    text = text.strip().split(_TEXT_STARTS, 1)[-1]
    text = " ".join(_MARKERS.sub("", text).split())
    return text.lstrip(_LEADING).strip()
