"""Rows that products read, kept in files: which ones, in what order, and from where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from ark_onnx_export import samples
from ark_onnx_export.samples import Sample, examples, fold_rows
from ark_onnx_export.smoothing import Site


def batches(n: int, width: int = 8) -> list[torch.Tensor]:
    """Rows of several clips; the number in the first column tells them apart."""
    generator = torch.Generator().manual_seed(1)
    found = [torch.randn(20 + i, width, generator=generator) for i in range(n)]
    for i, batch in enumerate(found):
        batch[:, 0] = torch.arange(len(batch)) / 1000 + i
    return found


def in_memory(rows: list[torch.Tensor], n_kept: int) -> torch.Tensor:
    """The same draw, with all rows at hand."""
    generator = torch.Generator().manual_seed(0)
    kept, keys = rows[0][:0], torch.empty(0)
    for batch in rows:
        drawn = torch.rand(len(batch), generator=generator)
        drawn[batch.abs().amax(dim=1).argmax()] = 2
        kept, keys = torch.cat((kept, batch)), torch.cat((keys, drawn))
        best = keys.topk(min(n_kept, len(keys))).indices
        kept, keys = kept[best], keys[best]
    return kept


@pytest.mark.parametrize("n", [1, 3, 7])
@pytest.mark.parametrize("n_kept", [5, 30, 1000])
def test_the_rows_of_a_file_are_those_of_one_draw_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, n_kept: int
) -> None:
    monkeypatch.setattr(samples, "MAX_ROWS", n_kept)
    rows, sample = batches(n), Sample(tmp_path / "site.rows")
    for batch in rows:
        sample.add(batch)
    expected = in_memory(rows, n_kept)
    torch.testing.assert_close(sample.rows(n_kept), expected, rtol=0, atol=0)
    torch.testing.assert_close(sample.rows(3), expected[:3], rtol=0, atol=0)
    assert (tmp_path / "site.rows").stat().st_size <= n_kept * 8 * 4


def test_the_loudest_row_of_every_clip_stays_and_all_ranges_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MAX_ROWS", 4)
    sample, rows = Sample(tmp_path / "site.rows"), batches(4)
    for i, batch in enumerate(rows):
        batch[7, i] = 100 + i
        sample.add(batch)
    assert sorted(sample.rows().abs().amax(dim=1).tolist()) == [100, 101, 102, 103]
    assert sample.seen == sum(map(len, rows))
    torch.testing.assert_close(sample.largest, torch.cat(rows).abs().amax(dim=0))


def test_examples_are_read_when_asked_for_as_the_graph_has_them(tmp_path: Path) -> None:
    moved = Site("a", ("a",), ("a.weight", "b.weight"), movers=("w",))
    plain = Site("c", ("c",), ("c.weight",))
    found = {site.name: Sample(tmp_path / site.name) for site in (moved, plain)}
    x = torch.tensor([[1.0, -9.0, 3.0], [2.0, 5.0, 0.0]])
    for sample in found.values():
        sample.add(x)
    read = examples([moved, plain], found, {"a": np.array([2, 4, 8], np.float32)})
    a, b, c = read("a.weight"), read("b.weight"), read("c.weight")
    assert a is not None and b is not None and c is not None
    rows = found["c"].rows()
    np.testing.assert_array_equal(a, rows[:, [1, 2, 0]].numpy() / np.array([2, 4, 8]))
    np.testing.assert_array_equal(b, a)
    np.testing.assert_array_equal(c, rows.numpy())
    assert read("decoder.weight") is None


def test_factors_are_repeated_where_inputs_stand_side_by_side() -> None:
    rows = torch.arange(8.0).view(2, 4)
    found = fold_rows(rows, np.array([1, 2], np.float32), None)
    torch.testing.assert_close(found, rows / torch.tensor([1.0, 2.0, 1.0, 2.0]))
