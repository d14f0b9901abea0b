"""The prompt: prefix ids, one placeholder per audio row, suffix ids; and the splice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...arrays import F32, I64
from ...package.contract import Tokens


def n_audio(n_frames: int, merge_factor: int) -> int:
    """Audio rows for ``n_frames`` mel frames: the encoder halves their number, then they merge."""
    return max(1, (n_frames + 1) // 2 // merge_factor)


def n_positions(tokens: Tokens, n_audio: int) -> int:
    """Positions of the prompt for ``n_audio`` audio rows."""
    return len(tokens.prefix) + n_audio + len(tokens.suffix)


def prompt_ids(tokens: Tokens, n_audio: int) -> I64:
    """Ids ``[L]`` of the prompt for ``n_audio`` audio rows."""
    return np.array([*tokens.prefix, *[tokens.audio] * n_audio, *tokens.suffix], np.int64)


def splice(
    tokens: Tokens, audio_embeds: F32, embed: Callable[[I64], F32], n_cached: int = 0
) -> F32:
    """``inputs_embeds [1, L, H]``: the embedded prompt with ``audio_embeds [1, N, H]`` in it.

    Equals embedding all ids and overwriting the rows of ``<|audio|>``, but the placeholder's
    embedding is never read. The first ``n_cached`` positions of the prefix are left out.
    """
    parts = (tokens.prefix[n_cached:], tokens.suffix)
    prefix, suffix = (embed(np.array(part, np.int64)) for part in parts)
    return np.concatenate((prefix, audio_embeds, suffix), axis=1)
