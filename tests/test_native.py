"""The native decoder's slots: utterances decoded together are decoded as if alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ark_asr_onnx import DecodeError, open_package
from ark_asr_onnx.layouts import native
from ark_asr_onnx.model import Model


@pytest.fixture(scope="module")
def model(demo_package: Path) -> Model:
    return native.build(open_package(demo_package), 1)


def prompts(model: Model) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [model.embed(generator.integers(0, 500, n)) for n in (5, 17, 30)]


def test_slots_of_different_lengths_equal_single_decodings(model: Model) -> None:
    parts = prompts(model)
    following = [np.array([[7], [8], [9]]), np.array([[10], [11], [12]])]
    together = model.decoder.start(3, 40)
    first = [together.prefill(slot, part).copy() for slot, part in enumerate(parts)]
    steps = [
        together.step(np.concatenate([model.embed(i) for i in ids])).copy() for ids in following
    ]
    for slot, part in enumerate(parts):
        alone = model.decoder.start(1, 40)
        np.testing.assert_array_equal(alone.prefill(0, part), first[slot])
        for ids, logits in zip(following, steps, strict=True):
            expected = alone.step(model.embed(ids[slot]))[0]
            np.testing.assert_allclose(logits[slot], expected, atol=1e-5)


def test_a_slot_can_be_used_again(model: Model) -> None:
    short, long, _ = prompts(model)
    decoding = model.decoder.start(1, 40)
    expected = decoding.prefill(0, short).copy()
    decoding.prefill(0, long)
    np.testing.assert_array_equal(decoding.prefill(0, short), expected)


def test_a_full_cache_is_an_error(model: Model) -> None:
    part = prompts(model)[0]
    decoding = model.decoder.start(1, 6)
    decoding.prefill(0, part)
    decoding.step(model.embed(np.array([3])))
    with pytest.raises(DecodeError, match="cache of 6 positions is full"):
        decoding.step(model.embed(np.array([3])))


def test_a_prompt_longer_than_the_cache_is_an_error(model: Model) -> None:
    with pytest.raises(DecodeError, match="prompt of 17 positions, the cache holds 6"):
        model.decoder.start(1, 6).prefill(0, prompts(model)[1])


def test_more_positions_than_the_model_knows_are_refused(model: Model) -> None:
    with pytest.raises(DecodeError, match="this model holds"):
        model.decoder.start(1, model.decoder.capacity + 1)


def test_a_step_before_the_prefill_is_refused(model: Model) -> None:
    decoding = model.decoder.start(2, 40)
    decoding.prefill(0, prompts(model)[0])
    with pytest.raises(DecodeError, match="slot 1 has no prompt"):
        decoding.step(np.concatenate([model.embed(np.array([3]))] * 2))
