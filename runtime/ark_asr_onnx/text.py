"""Token ids to text: decoding and the clean-up rules. Encoding is only needed to make a package."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from .contract import REMEDY
from .errors import PackageError

_TURN_ENDS = ("<|user|>", "<|assistant|>", "<|im_end|>")
_TEXT_STARTS = "<|text|>"
_MARKERS = re.compile(
    r"<\|bicodec_(?:semantic|global)_\d+\|>"
    r"|<\|(?:start|end)_(?:global_token|glm_token|semantic_token|content)\|>"
)
_LEADING = " \t\r\n\f\v,.;:!?-"


class Text:
    """The package's tokenizer, for decoding."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = cast("Any", Tokenizer).from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower than Exception
            raise PackageError(f"{path}: not a tokenizer file ({error}); {REMEDY}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text with special tokens kept; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def clean(raw: str) -> str:
    """Transcript as a reader wants it, from the raw decoded text.

    Source: the inference script of ``open-audio-opd``. Keep what stands before the first turn
    marker and after ``<|text|>``, delete codec and content markers, collapse whitespace, drop
    leading punctuation.
    """
    ends = [at for at in map(raw.find, _TURN_ENDS) if at >= 0]
    text = raw[: min(ends)] if ends else raw
    text = text.strip().split(_TEXT_STARTS, 1)[-1]
    text = " ".join(_MARKERS.sub("", text).split())
    return text.lstrip(_LEADING).strip()
