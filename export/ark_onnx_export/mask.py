"""Which ids may never be chosen: the runtime's rule, written anew to check it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ark_asr_onnx.package.contract import Tokens


def blocked(tokens: Tokens, vocab_size: int) -> npt.NDArray[np.bool_]:
    """``[vocab_size]``: true for what is blocked; only end of turn escapes."""
    ids = np.arange(vocab_size)
    closed = ids >= tokens.block_from_id
    for first, last in tokens.blocked:
        closed |= (ids >= first) & (ids <= last)
    closed[[i for i in tokens.eos if i < vocab_size]] = False
    return closed
