"""The embedding table as a memory map: only the rows of the looked-up ids are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...arrays import F32, I64
from ...errors import PackageError
from ...package.contract import REMEDY
from ...package.foreign import reason, shortage


class Embedding:
    """Table ``[n_rows, hidden]``, float32 or float16, row-major from offset 0 of its file."""

    def __init__(self, path: Path, n_rows: int, hidden_size: int) -> None:
        n_values = n_rows * hidden_size
        try:
            n_bytes = path.stat().st_size
        except OSError as error:
            raise PackageError(f"{path}: cannot be read ({reason(error)}); {REMEDY}") from error
        types = {n_values * np.dtype(kind).itemsize: kind for kind in (np.float32, np.float16)}
        if n_bytes not in types:
            raise PackageError(
                f"{path}: {n_bytes} bytes, expected {4 * n_values} for {n_rows} x {hidden_size} "
                f"float32, or half of that for float16; {REMEDY}"
            )
        shape = (n_rows, hidden_size)
        try:
            self._table = np.memmap(path, types[n_bytes], mode="r", shape=shape)
        except OSError as error:
            found = shortage(error) or f"{reason(error)}; {REMEDY}"
            raise PackageError(f"{path}: cannot be mapped: {found}") from error

    def __call__(self, ids: I64) -> F32:
        """Rows ``[1, L, hidden]`` float32 for ids ``[L]``; a copy that the caller owns."""
        return self._table[ids].astype(np.float32)[None]
