"""Numbers that callers give: what means the same is taken, the rest refused as it was given."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conftest import DEMO

import ark_asr_onnx
from ark_asr_onnx import Clip, Options, Splitting, Transcriber, values

TONE = (0.1 * np.sin(np.arange(16000) * 0.1)).astype(np.float32)
ODD = ["2", b"2", None, float("nan"), float("inf"), -1, 2.5, [2], 1j, True, 10**400]


@pytest.mark.parametrize("value", [2, 2.0, np.int8(2), np.float64(2), Fraction(4, 2)])
def test_a_whole_number_of_any_type_is_one(value: Any) -> None:
    assert values.whole("n", value) == 2
    assert type(values.whole("n", value)) is int
    assert values.positive("n", value) == values.seconds("n", value) == 2


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_what_is_no_number_is_refused_as_it_was_given(value: Any) -> None:
    checks: list[Callable[[str, object], float]] = [values.whole, values.positive, values.seconds]
    for check in checks[: 1 if value == 2.5 else 3]:
        with pytest.raises(ValueError, match=r"^n is ") as raised:
            check("n", value)
        assert repr(value) in str(raised.value)


@pytest.fixture(scope="module")
def demo() -> Transcriber:
    return ark_asr_onnx.load(DEMO, threads=np.int64(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["2", float("nan"), -1, [2], True], ids=repr)
def test_every_argument_of_the_api_is_checked(demo: Transcriber, value: Any) -> None:
    calls: dict[str, Callable[[], object]] = {
        "threads": lambda: ark_asr_onnx.load(DEMO, threads=value),
        "idle_unload_seconds": lambda: ark_asr_onnx.load(DEMO, idle_unload_seconds=value),
        "max_waiting": lambda: ark_asr_onnx.load(DEMO, max_waiting=value),
        "slots": lambda: demo.transcribe(TONE, 16000, slots=value),
        "max_seconds": lambda: demo.transcribe(TONE, 16000, max_seconds=value),
        "begin_seconds": lambda: demo.transcribe(TONE, 16000, begin_seconds=value),
        "end_seconds": lambda: demo.transcribe(TONE, 16000, end_seconds=value),
        "partial_seconds": lambda: demo.listen([TONE], 16000, partial_seconds=value),
        "max_new_tokens": lambda: Options(max_new_tokens=value),
        "block_from_id": lambda: Options(block_from_id=value),
        "max_tokens_per_second": lambda: Options(max_tokens_per_second=value),
        "max_repeats": lambda: Options(max_repeats=value),
        "window_seconds": lambda: Splitting(window_seconds=value),
        "threshold": lambda: Splitting(threshold=value),
        "pause_seconds": lambda: Splitting(pause_seconds=value),
        "min_speech_seconds": lambda: Splitting(min_speech_seconds=value),
        "pad_seconds": lambda: Splitting(pad_seconds=value),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{name} is ") as raised:
            call()
        assert repr(value) in str(raised.value)


def test_what_means_the_same_gives_the_same(demo: Transcriber) -> None:
    clip = DEMO / "samples" / "an68-meht-b.flac"
    expected = demo.transcribe(clip, end_seconds=2.0).text
    options = Options(max_new_tokens=np.float32(256))  # type: ignore[arg-type]
    found = demo.transcribe(clip, end_seconds=np.float32(2), slots=2.0, options=options)  # type: ignore[arg-type]
    assert found.text == expected


def test_of_many_clips_an_odd_one_fails_alone(demo: Transcriber) -> None:
    path = DEMO / "samples" / "an68-meht-b.flac"
    expected = demo.transcribe(path).text
    odd = [None, 3, {"array": TONE}, TONE, (TONE, 16000), Clip(TONE), Clip(path, begin_seconds="1")]  # type: ignore[arg-type]
    good = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), Clip(path)]
    results = list(demo.transcribe_many([*odd, *good, *odd, path]))  # type: ignore[list-item]
    for result, clip in zip(results, [*odd, *good, *odd, path], strict=True):
        if isinstance(result, ark_asr_onnx.Transcript):
            assert result.text == expected
            assert any(clip is one for one in good)
        else:
            assert isinstance(result, ark_asr_onnx.AudioError)
            assert any(clip is one for one in odd)


@pytest.mark.parametrize("clips", ["a.wav", b"RIFF", Clip("a.wav")], ids=repr)
def test_one_clip_is_not_several(demo: Transcriber, clips: Any) -> None:
    with pytest.raises(ValueError, match="must be a list of clips"):
        demo.transcribe_many(clips)
