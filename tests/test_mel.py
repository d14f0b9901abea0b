"""The log-mel spectrogram against Whisper's own, and at the edges."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ark_asr_onnx import AudioError
from ark_asr_onnx.audio import mel

F32 = npt.NDArray[np.float32]
Extractor = Callable[[F32, int], F32]

# Between transformers' torch path (float32) and its numpy path (float64) lie 5e-5 already: near
# the floor, eight decades below the maximum, a float32 transform has few digits left.
TOLERANCE = 1e-4


def noise(n: int, seed: int = 0) -> F32:
    """Noise ``[n]`` whose level rises tenfold, so that frames differ."""
    levels = np.logspace(-2, -1, n)
    return (levels * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def a440() -> F32:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)).astype(np.float32)


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    """transformers' ``WhisperFeatureExtractor`` for a single clip of natural length."""
    transformers: Any = pytest.importorskip("transformers")

    def extract(waveform: F32, n_mels: int) -> F32:
        oracle = transformers.WhisperFeatureExtractor(feature_size=n_mels)
        features = oracle(
            waveform,
            sampling_rate=16000,
            padding="longest",
            truncation=False,
            return_tensors="np",
        )
        return features["input_features"]

    return extract


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize(
    "n_samples",
    # One sample more than the reflection; a window, a hop and a second, each one more and less.
    [201, 319, 320, 321, 399, 400, 401, 480, 12345, 15999, 16000, 16001],
)
def test_log_mel_is_that_of_whisper(extractor: Extractor, n_samples: int, n_mels: int) -> None:
    waveform = noise(n_samples)
    expected = extractor(waveform, n_mels)
    np.testing.assert_allclose(mel.log_mel(waveform, n_mels), expected, rtol=0, atol=TOLERANCE)


def test_log_mel_of_40_seconds_shows_no_seam(extractor: Extractor) -> None:
    waveform = noise(40 * 16000)  # 4000 frames, computed 3000 at a time
    found = mel.log_mel(waveform, 128)
    assert found.shape == (1, 128, 4000)
    np.testing.assert_allclose(found, extractor(waveform, 128), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("n_frames", [1, 7, 99, 100, 101])
def test_the_size_of_a_block_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, n_frames: int
) -> None:
    expected = mel.log_mel(noise(16000), 80)
    monkeypatch.setattr(mel, "_FRAMES_PER_BLOCK", n_frames)
    # Matrix products of another height may add up in another order.
    np.testing.assert_allclose(mel.log_mel(noise(16000), 80), expected, rtol=0, atol=1e-5)


def test_a_tone_has_its_golden_spectrogram() -> None:
    # transformers 4.57.3, WhisperFeatureExtractor(feature_size=128), a single clip, padding
    # "longest". The edge frames show the reflection, the minimum the floor of the clip.
    found = mel.log_mel(a440(), 128)
    assert found.shape == (1, 128, 100)
    assert found.min() == pytest.approx(-0.51465, abs=TOLERANCE)
    assert found.max() == pytest.approx(1.48535, abs=TOLERANCE)
    assert found.mean() == pytest.approx(-0.42414, abs=TOLERANCE)
    assert found.std() == pytest.approx(0.37930, abs=TOLERANCE)
    golden = {
        (0, 0): 0.90752,
        (10, 0): 0.98581,
        (17, 50): 1.33749,
        (18, 50): 1.48535,
        (19, 50): 1.27524,
        (40, 50): -0.51465,
        (64, 99): -0.08869,
        (100, 99): -0.43788,
        (127, 0): -0.08216,
        (127, 99): -0.51465,
    }
    for (band, frame), value in golden.items():
        assert found[0, band, frame] == pytest.approx(value, abs=TOLERANCE), (band, frame)
    loudest = found[0].argmax(axis=0)
    assert loudest[0] == 16
    assert (loudest[25:] == 18).all()


def test_the_filterbank_is_the_one_whisper_stores() -> None:
    filters = mel.mel_filters(128)
    assert filters.shape == (201, 128)
    assert filters.dtype == np.float32
    assert filters.sum() == pytest.approx(3.19099, abs=1e-5)
    assert np.unravel_index(filters.argmax(), filters.shape) == (7, 11)
    assert filters.max() == pytest.approx(0.0416817, abs=1e-7)
    assert np.count_nonzero(filters > 1e-9) == 394  # older numpy leaves a rounding error
    assert filters.any(axis=0).all()
    for band in (0, 1):
        assert np.flatnonzero(filters[:, band]).tolist() == [1]


@pytest.mark.parametrize("n_mels", [40, 80, 128])
def test_the_filterbank_is_that_of_librosa(n_mels: int) -> None:
    librosa: Any = pytest.importorskip("librosa")
    expected = librosa.filters.mel(sr=16000, n_fft=400, n_mels=n_mels, norm="slaney").T
    # Both in float64, then rounded to float32.
    np.testing.assert_allclose(mel.mel_filters(n_mels), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("n_samples", [201, 16000])
def test_silence_is_minus_one_and_a_half(n_samples: int) -> None:
    found = mel.log_mel(np.zeros(n_samples, np.float32), 128)
    assert found.shape == (1, 128, n_samples // 160)
    np.testing.assert_allclose(found, -1.5, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gain", [0.1, 10.0])
def test_ten_times_louder_is_half_higher_everywhere(gain: float) -> None:
    # Power grows 100 times, its logarithm by 2, a quarter of that is 0.5: the floor moves along.
    waveform = noise(16000)
    louder = mel.log_mel((gain * waveform).astype(np.float32), 80)
    expected = mel.log_mel(waveform, 80) + np.log10(gain) / 2
    np.testing.assert_allclose(louder, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "n_samples", [201, 319, 320, 321, 479, 480, 481, 30 * 16000 - 1, 30 * 16000, 30 * 16000 + 1]
)
def test_there_is_one_frame_for_each_whole_hop(n_samples: int) -> None:
    found = mel.log_mel(np.zeros(n_samples, np.float32), 80)
    assert found.shape == (1, 80, n_samples // 160)
    assert found.dtype == np.float32


@pytest.mark.parametrize("n_samples", [0, 1, 160, 200])
def test_audio_shorter_than_the_reflection_is_refused(n_samples: int) -> None:
    message = rf"too short: {n_samples} samples at 16 kHz, at least 201 \(0\.013 s\)"
    with pytest.raises(AudioError, match=message):
        mel.log_mel(np.zeros(n_samples, np.float32), 80)


def test_the_waveform_is_left_as_it_was() -> None:
    waveform = noise(1600)
    mel.log_mel(waveform, 80)
    np.testing.assert_array_equal(waveform, noise(1600))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_one_thread_does_the_work() -> None:
    code = """
import os, pathlib, time
import numpy as np
from ark_asr_onnx.audio import mel

def spent():
    found = {}
    for task in pathlib.Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[int(task.name)] = int(fields[11]) + int(fields[12])
    return found

np.ones((500, 500)) @ np.ones((500, 500))  # the threads of BLAS are there
before = None
while before != spent():  # and no longer wait for more with busy loops
    before = spent()
    time.sleep(0.2)
waveform = np.random.default_rng(0).normal(0, 0.1, 30 * 16000).astype(np.float32)
for _ in range(20):
    mel.log_mel(waveform, 128)
print(sum(n - before.get(task, 0) for task, n in spent().items() if task != os.getpid()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 2  # hundredths of a second
