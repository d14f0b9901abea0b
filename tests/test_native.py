"""The native decoder's slots: utterances decoded together are decoded as if alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import SLOTS_DIFFER

from ark_asr_onnx import DecodeError, PackageError, open_package
from ark_asr_onnx.model.layouts import native
from ark_asr_onnx.model.layouts.prompted import PromptedModel as Model


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
            np.testing.assert_allclose(logits[slot], expected, atol=SLOTS_DIFFER)


def test_a_slot_can_be_used_again(model: Model) -> None:
    short, long, _ = prompts(model)
    decoding = model.decoder.start(1, 40)
    expected = decoding.prefill(0, short).copy()
    decoding.prefill(0, long)
    np.testing.assert_array_equal(decoding.prefill(0, short), expected)


def test_a_full_cache_is_an_error(model: Model) -> None:
    part = prompts(model)[0]
    decoding = model.decoder.start(1, 8)
    decoding.prefill(0, part)
    decoding.step(model.embed(np.array([3])))
    with pytest.raises(DecodeError, match="cache of 8 positions is full"):
        decoding.step(model.embed(np.array([3])))


def test_a_prompt_longer_than_the_cache_is_an_error(model: Model) -> None:
    with pytest.raises(DecodeError, match="prompt of 19 positions, the cache holds 8"):
        model.decoder.start(1, 8).prefill(0, prompts(model)[1])


def test_more_positions_than_the_model_knows_are_refused(model: Model) -> None:
    with pytest.raises(DecodeError, match="this model holds"):
        model.decoder.start(1, model.decoder.capacity + 1)


def test_a_step_before_the_prefill_is_refused(model: Model) -> None:
    decoding = model.decoder.start(2, 40)
    decoding.prefill(0, prompts(model)[0])
    with pytest.raises(DecodeError, match="slot 1 has no prompt"):
        decoding.step(np.concatenate([model.embed(np.array([3]))] * 2))


def test_a_prompt_after_the_cached_prefix_equals_the_whole_prompt(demo_package: Path) -> None:
    package = open_package(demo_package)
    with_prefix = native.build(package, 1)
    tokens = package.manifest.tokens
    ids = [*tokens.prefix, 3, 9, 27, *tokens.suffix]
    whole = native.NativeDecoder(
        with_prefix.decoder.graph,  # pyright: ignore[reportAttributeAccessIssue]
        None,
        None,
        package.manifest.sizes,
        np.zeros((1, 1, 0, 1), np.float32),  # no prefix
    )
    expected = whole.start(1, 40).prefill(0, with_prefix.embed(np.array(ids))).copy()
    rest = with_prefix.embed(np.array(ids[with_prefix.n_cached :]))
    found = with_prefix.decoder.start(1, 40).prefill(0, rest)
    assert with_prefix.n_cached == len(tokens.prefix) == 2
    # The prefix is fp32 there and has gone through INT8 here.
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
    assert not np.array_equal(found, expected)


@pytest.mark.parametrize("change", [b"more", None])
def test_a_prefix_of_another_size_is_refused(
    demo_package: Path, tmp_path: Path, change: bytes | None
) -> None:
    package = open_package(demo_package)
    content = package.path("prefix_fp32.data").read_bytes()
    path = tmp_path / "prefix_fp32.data"
    path.write_bytes(content + change if change else content[:-4])
    package.paths["prefix_fp32.data"] = path
    with pytest.raises(PackageError, match=r"prefix_fp32\.data: 76[79] numbers, expected"):
        native.build(package, 1)
