"""The embedding table as a memory map: rows are read when an id is looked up, never the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .contract import REMEDY
from .errors import PackageError
from .mel import F32
from .prompt import I64


class Embedding:
    """Table ``[n_rows, hidden]`` of float32, row-major from offset 0 of its file."""

    def __init__(self, path: Path, n_rows: int, hidden_size: int) -> None:
        expected = n_rows * hidden_size * np.dtype(np.float32).itemsize
        if path.stat().st_size != expected:
            raise PackageError(
                f"{path}: {path.stat().st_size} bytes, expected {expected} for "
                f"{n_rows} x {hidden_size} float32; {REMEDY}"
            )
        self._table: F32 = np.memmap(path, np.float32, mode="r", shape=(n_rows, hidden_size))

    def __call__(self, ids: I64) -> F32:
        """Rows ``[1, L, hidden]`` for ids ``[L]``; a copy the caller owns."""
        return np.asarray(self._table[ids])[None]
