"""What the matrix products of a graph read while speech runs through it; the rows lie in files.

A network reads some gigabytes of rows. Only the ranges of all rows and the places of some of them
stay in memory; one site's rows at a time are read back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ark_asr_onnx.arrays import F32

from .smoothing import Order, Site
from .space import MAX_ROWS


class Sample:
    """The inputs of one site: the ranges of all rows ``[n_in]``, and some rows, drawn at random."""

    def __init__(self, path: Path) -> None:
        self.seen = 0  # rows
        self.largest = torch.empty(0)  # magnitude of each channel
        self._path = path
        self._keys, self._places = torch.empty(0), torch.empty(0, dtype=torch.long)
        self._generator = torch.Generator().manual_seed(0)

    def add(self, rows: Tensor) -> None:
        """Take in rows ``[n, n_in]``; the loudest of them is kept before all others."""
        largest = rows.abs().amax(dim=0)
        self.largest = torch.maximum(self.largest, largest) if self.seen else largest
        self.seen += len(rows)
        keys = torch.rand(len(rows), generator=self._generator)
        keys[rows.abs().amax(dim=1).argmax()] = 2
        keys, n_old = torch.cat((self._keys, keys)), len(self._keys)
        kept = keys.topk(min(MAX_ROWS, len(keys))).indices
        places = torch.cat((self._places, torch.full((len(rows),), -1)))[kept]
        new = (places < 0).nonzero()[:, 0]
        taken = set(places.tolist())
        free = [place for place in range(MAX_ROWS) if place not in taken][: len(new)]
        places[new] = torch.tensor(free, dtype=torch.long)
        self._write(free, rows[kept[new] - n_old].float().numpy())
        self._keys, self._places = keys[kept], places

    def rows(self, n: int = MAX_ROWS) -> Tensor:
        """At most ``n`` of the rows that were kept ``[n, n_in]``, fp32; the loudest come first."""
        stored = np.fromfile(self._path, np.float32).reshape(-1, len(self.largest))
        return torch.from_numpy(stored[self._places[:n].numpy()])

    def _write(self, places: Sequence[int], rows: F32) -> None:
        with self._path.open("r+b" if self._path.exists() else "wb") as stream:
            for place, row in zip(places, rows, strict=True):
                stream.seek(place * row.nbytes)
                stream.write(row.tobytes())

    def order(self, site: Site) -> Order | None:
        """The site's channels from the largest to the smallest, where they can be moved."""
        return self.largest.argsort(descending=True).numpy() if site.movers else None


def fold_rows(rows: Tensor, factor: F32 | None, order: Order | None) -> Tensor:
    """Rows, or weights ``[n_out, n_in]``, with channels in order and divided by their factors."""
    if order is not None:
        rows = rows[..., torch.from_numpy(order)]
    if factor is not None:
        rows = rows / torch.from_numpy(factor).repeat(rows.shape[-1] // len(factor))
    return rows


def orders(sites: Sequence[Site], samples: Mapping[str, Sample]) -> dict[str, Order]:
    """The order of channels of each site that has one."""
    found = {site.name: samples[site.name].order(site) for site in sites}
    return {name: order for name, order in found.items() if order is not None}


def examples(
    sites: Sequence[Site], samples: Mapping[str, Sample], factors: Mapping[str, F32]
) -> Callable[[str], F32 | None]:
    """Weight name -> rows that the graph multiplies it with, read when they are asked for."""
    readers = {weight: site for site in sites for weight in site.weights}

    def read(weight: str) -> F32 | None:
        site = readers.get(weight)
        if site is None:
            return None
        sample = samples[site.name]
        return fold_rows(sample.rows(), factors.get(site.name), sample.order(site)).numpy()

    return read
