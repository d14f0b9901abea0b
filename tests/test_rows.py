"""Places, segments and rounding with feedback: the arithmetic of the recipes ``rows``."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from ark_onnx_export.feedback import round_weights
from ark_onnx_export.recipes import RECIPES, Levels, Recipe, Target
from ark_onnx_export.rows import further, offsets, parts, places, store

GENERATOR = np.random.default_rng(0)


def examples(n: int, n_in: int) -> np.ndarray:
    return GENERATOR.standard_normal((n, n_in)).astype(np.float32)


def test_a_large_channel_is_given_many_places_and_all_are_used() -> None:
    x = examples(200, 320)
    x[:, 17] *= 8
    counts = places(x, RECIPES["rows8+10"], unsigned=False)
    assert counts.sum() == 320 + 32
    assert counts.argmax() == 17
    assert counts[17] >= 3
    assert places(x, RECIPES["rows8"], unsigned=False).max() == 1


def test_places_without_any_signal_are_handed_out_all_the_same() -> None:
    counts = places(np.zeros((3, 64), np.float32), RECIPES["rows7+25"], unsigned=True)
    assert counts.sum() == 64 + 16


def test_codes_of_all_places_add_up_to_the_value_rounded_once() -> None:
    counts = np.array([1, 2, 3, 4, 7])
    inputs, turns = further(counts)
    assert inputs.tolist() == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4]
    assert turns.tolist() == [1, 1, 2, 1, 2, 3, 1, 2, 3, 4, 5, 6]
    lifts = offsets(counts)
    assert np.abs(lifts).max() <= 0.5
    share = GENERATOR.uniform(-100, 100, (1000, 5))
    total = np.rint(share)
    np.add.at(total.T, inputs, (np.rint(share[:, inputs] + lifts) - lifts).T)
    assert np.abs(total - share * counts).max() < 1.01


def test_weights_in_several_places_are_as_many_times_as_fine() -> None:
    weight = examples(64, 24)
    counts = np.where(np.arange(64) == 5, 4, 1)
    ((codes, scales),), restored = store(weight, RECIPES["rows8+10"], counts, None)
    assert codes.shape == (64 + 3, 24)
    assert np.abs(codes).max() == 127
    errors = np.abs(weight - restored)
    assert (errors[5] <= scales / 8 + 1e-7).all()
    assert (np.delete(errors, 5, axis=0) <= scales / 2 + 1e-7).all()
    inputs, _ = further(counts)
    places_of = np.concatenate((np.arange(64), inputs))
    summed = np.zeros((64, 24))
    np.add.at(summed, places_of, codes.astype(float))
    np.testing.assert_allclose(summed * scales / counts[:, None], restored, atol=1e-6)


def test_segments_are_whole_and_have_scales_of_their_own() -> None:
    assert [(p.start, p.stop) for p in parts(10, RECIPES["rows8/4"])] == [
        (0, 2), (2, 5), (5, 8), (8, 10),
    ]  # fmt: skip
    assert len(parts(3, RECIPES["rows8/8"])) == 3
    weight = examples(96, 8)
    weight[:24] *= 50
    stored, restored = store(weight, RECIPES["rows8/4"], np.ones(96, np.int64), None)
    assert len(stored) == 4
    quiet = slice(24, None)
    error = np.linalg.norm((weight - restored)[quiet]) / np.linalg.norm(weight[quiet])
    assert error < 0.01


@pytest.mark.parametrize(("n_rows", "share"), [(64, 0.97), (400, 0.9)])
def test_feedback_errs_less_on_rows_that_it_has_not_seen(n_rows: int, share: float) -> None:
    mixing = examples(64, 64) * np.linspace(0.1, 2, 64, dtype=np.float32)
    seen, unseen = examples(n_rows, 64) @ mixing, examples(500, 64) @ mixing
    weight = examples(64, 32)
    steps = np.abs(weight).max(axis=0) / np.float32(7)
    limits = np.full(64, 7, np.float32)
    found = {}
    for name, rows_seen in (("plain", None), ("feedback", seen)):
        codes = round_weights(weight, steps, limits, rows_seen)
        assert (codes == np.rint(codes)).all()
        assert np.abs(codes).max() <= 7
        found[name] = np.linalg.norm(unseen @ (codes * steps - weight))
    assert found["feedback"] < share * found["plain"]


def test_feedback_stays_within_the_limits_of_each_input() -> None:
    x = examples(100, 16)
    x[:, 1] = x[:, 0]  # what one rounding errs, the other would have to mend
    weight = np.ones((16, 3), np.float32)
    weight[0] = 3.49
    codes = round_weights(weight, np.ones(3, np.float32), np.full(16, 3, np.float32), x)
    assert np.abs(codes).max() <= 3


def test_every_form_has_a_name_that_says_what_it_is() -> None:
    narrow = Levels(90, 91)
    wide: tuple[Target, ...] = ("any", "vnni", "arm64")
    assert RECIPES["rows7+25"] == Recipe("rows7+25", "rows", ("avx2",), narrow, extra=0.25)
    assert RECIPES["rows8"] == Recipe("rows8", "rows", wide, exact_sums=True)
    assert RECIPES["rows8/8"] == Recipe("rows8/8", "rows", wide, exact_sums=True, segments=8)
