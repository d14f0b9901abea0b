"""Soft speech and speech around an offset are heard; sound without speech is said."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from conftest import DEMO

import ark_asr_onnx
from ark_asr_onnx import AudioWarning, EmptyAudioError, Splitting, Transcriber
from ark_asr_onnx.audio import level, split, vad

RATE = 16000
F32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def demo() -> Transcriber:
    return ark_asr_onnx.load(DEMO, threads=1)


def clip(name: str = "an68-meht-b") -> F32:
    return soundfile.read(DEMO / "samples" / f"{name}.flac", dtype="float32")[0].astype(np.float32)


def quantised(waveform: F32) -> F32:
    return (np.round(waveform * 32768) / 32768).astype(np.float32)


@pytest.mark.parametrize("decibels", [-40, -60, -80, -96])
def test_soft_speech_is_heard(demo: Transcriber, decibels: int) -> None:
    expected = demo.transcribe(clip(), RATE).text
    soft = clip() * np.float32(10 ** (decibels / 20))
    assert demo.transcribe(soft, RATE).text == expected
    silence = np.zeros(2 * RATE, np.float32)
    long = np.concatenate([soft, silence, soft, silence, soft])
    windows = [segment.text for segment in demo.transcribe(
        long, RATE, splitting=Splitting(split_short=True)).segments]  # fmt: skip
    assert windows == [expected] * 3


def test_soft_speech_in_16_bits_is_heard(demo: Transcriber) -> None:
    soft = quantised(clip() * np.float32(0.01))
    assert demo.transcribe(soft, RATE).text == demo.transcribe(clip(), RATE).text


@pytest.mark.parametrize("offset", [0.3, -0.7])
@pytest.mark.parametrize("loudness", [1.0, 0.01])
def test_speech_around_an_offset_is_heard(
    demo: Transcriber, offset: float, loudness: float
) -> None:
    expected = demo.transcribe(clip(), RATE).text
    moved = np.float32(loudness) * clip() + np.float32(offset)
    for splitting in (Splitting(), Splitting(split_short=True)):
        assert demo.transcribe(moved, RATE, splitting=splitting).text == expected


def test_sound_of_a_usual_level_stays_as_it_is() -> None:
    waveform = clip()
    ear = level.Ear()
    chunks = waveform[: len(waveform) // 512 * 512].reshape(-1, 512)
    for chunk in chunks[10:]:
        if np.abs(chunk).max() >= 0.05:
            np.testing.assert_array_equal(ear(chunk), chunk)
    assert level.levelled(waveform) is waveform
    (window,) = split.windows([waveform], Splitting(), 30.0)
    np.testing.assert_array_equal(window.waveform, waveform)


@pytest.mark.parametrize("decibels", [0, -40, -80])
@pytest.mark.parametrize("kind", ["white", "brown", "hum", "clicks"])
def test_soft_noise_does_not_become_speech(kind: str, decibels: int) -> None:
    n = 30 * RATE
    noise = np.random.default_rng(0).standard_normal(n)
    sound = {
        "white": noise / 5,
        "brown": np.cumsum(noise - noise.mean()) / 500,
        "hum": np.sin(2 * np.pi * 50 * np.arange(n) / RATE),
        "clicks": np.where(np.arange(n) % 8000 < 30, 0.9, 0.0),
    }[kind]
    sound = (sound * 10 ** (decibels / 20)).astype(np.float32)
    assert vad.speech_seconds(sound, vad.silero()) < 0.5


@pytest.mark.parametrize("seconds", [3, 40])
def test_sound_in_which_no_speech_is_found_is_said(demo: Transcriber, seconds: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, seconds * RATE).astype(np.float32)
    splitting = Splitting(split_short=True)
    transcript = demo.transcribe(noise, RATE, splitting=splitting)
    assert transcript.text == ""
    (warning,) = transcript.warnings
    assert warning.kind == "no speech"
    assert "dB below full scale, but no speech was found in it" in warning.message
    for quiet in (noise * np.float32(0.01), np.zeros_like(noise)):
        assert demo.transcribe(quiet, RATE, splitting=splitting).warnings == ()
    without = dataclasses.replace(splitting, vad=None, window_seconds=10)
    assert demo.transcribe(noise, RATE, splitting=without).warnings == ()


@pytest.mark.parametrize(("before", "after"), [(8.0, 0.0), (0.0, 8.0), (5.0, 5.0)])
def test_the_silence_around_a_short_clip_is_no_part_of_it(
    demo: Transcriber, before: float, after: float
) -> None:
    pieces = [np.zeros(round(before * RATE)), clip(), np.zeros(round(after * RATE))]
    transcript = demo.transcribe(np.concatenate(pieces).astype(np.float32), RATE)
    (segment,) = transcript.segments
    assert segment.text == demo.transcribe(clip(), RATE).text
    assert before <= segment.start < before + 0.6
    assert before + len(clip()) / RATE - 0.6 < segment.end <= before + len(clip()) / RATE
    assert transcript.duration == pytest.approx(before + len(clip()) / RATE + after, abs=0.01)


def test_live_sound_without_speech_and_sound_that_is_too_short_are_said(demo: Transcriber) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)
    told: list[AudioWarning] = []
    assert list(demo.listen([noise], RATE, on_warning=told.append)) == []
    assert [warning.kind for warning in told] == ["no speech"]
    told.clear()
    assert list(demo.listen([clip()], RATE, on_warning=told.append))
    assert told == []
    with pytest.raises(EmptyAudioError, match="audio stream: too short, 40 samples"):
        list(demo.listen([clip()[:40]], RATE))
