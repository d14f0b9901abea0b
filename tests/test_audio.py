"""What ``sources.read`` makes of files, bytes, streams and arrays, and what it refuses."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr

from ark_asr_onnx import AudioError, AudioWarning
from ark_asr_onnx.audio import sources

Samples = npt.NDArray[np.floating]
F32 = npt.NDArray[np.float32]

RATE = 16000


def tone(hz: float, n: int, rate: int = RATE, amplitude: float = 0.5) -> F32:
    """A sine ``[n]`` at ``rate``."""
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(n) / rate)).astype(np.float32)


def swell(n: int = RATE, rate: int = RATE) -> F32:
    """Three tones that fade in and out, so that encoders with a memory can follow."""
    tones = tone(220, n, rate, 0.3) + tone(550, n, rate, 0.15) + tone(1100, n, rate, 0.1)
    return (tones * np.hanning(n)).astype(np.float32)


def encoded(
    samples: Samples, rate: int = RATE, kind: str = "WAV", subtype: str | None = "PCM_16"
) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def wav(samples: Samples, rate: int = RATE) -> bytes:
    """A WAV of 32-bit floats, which changes nothing."""
    return encoded(samples, rate, subtype="FLOAT")


class Pipe(io.RawIOBase):
    """A stream that can only be read forwards, a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part, self._left = self._left[:100], self._left[100:]
        buffer[: len(part)] = part
        return len(part)


# Encodings ---------------------------------------------------------------------------------------

# Largest error of a sample after a round trip through the encoding, for swell().
WAV_ENCODINGS = {
    "PCM_U8": 1 / 2**7,  # one step
    "PCM_16": 1 / 2**15,
    "PCM_24": 1 / 2**23,
    "PCM_32": 1 / 2**24,  # more than float32 can tell apart
    "FLOAT": 0.0,
    "DOUBLE": 0.0,
    "ULAW": 1 / 64,  # one step of its coarsest segment below 0.5
    "ALAW": 1 / 64,
    "IMA_ADPCM": 0.02,  # 4 bits a sample
    "MS_ADPCM": 0.02,
    "G721_32": 0.01,
    "NMS_ADPCM_32": 0.01,
    "NMS_ADPCM_24": 0.02,  # 3 bits
    "NMS_ADPCM_16": 0.1,  # 2 bits
    "GSM610": 0.15,  # a telephone codec: 1.6 bits a sample, made for speech at 8 kHz
}


@pytest.mark.parametrize(("subtype", "tolerance"), WAV_ENCODINGS.items())
def test_every_wav_encoding_is_read(subtype: str, tolerance: float) -> None:
    original = swell()
    waveform = sources.read(encoded(original, subtype=subtype))
    assert waveform.dtype == np.float32
    # Block codecs fill their last block.
    assert len(original) <= len(waveform) < len(original) + 512
    assert np.abs(waveform[: len(original)] - original).max() <= tolerance


def test_no_wav_encoding_is_forgotten() -> None:
    cannot_be_written = {"MPEG_LAYER_III"}
    assert set(soundfile.available_subtypes("WAV")) - cannot_be_written <= set(WAV_ENCODINGS)


@pytest.mark.parametrize("kind", ["FLAC", "AIFF", "AU", "CAF", "W64", "RF64"])
def test_containers_of_16_bit_samples_are_read_exactly(kind: str) -> None:
    exact = np.round(swell() * 2**15).astype(np.float32) / 2**15
    np.testing.assert_array_equal(sources.read(encoded(exact, kind=kind)), exact)


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
@pytest.mark.parametrize(
    ("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
)
def test_lossy_encodings_are_read(kind: str, subtype: str, rate: int) -> None:
    # They promise the sound, not the samples: same length, level and shape.
    waveform = sources.read(encoded(swell(2 * rate, rate), rate, kind, subtype))
    original = swell(2 * RATE)
    assert abs(len(waveform) - len(original)) <= 1
    n = min(len(waveform), len(original))
    assert np.corrcoef(waveform[:n], original[:n])[0, 1] > 0.995
    assert np.square(waveform).sum() == pytest.approx(np.square(original).sum(), rel=0.05)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really_a_wav.mp3"
    path.write_bytes(wav(swell()))
    np.testing.assert_array_equal(sources.read(path), swell())


# Rates and channels ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4321, 30000])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_a_sine_of_any_rate_stays_the_same_sine(rate: int, n: int) -> None:
    waveform = sources.read(wav(tone(440, n, rate), rate))
    assert abs(len(waveform) - round(n * RATE / rate)) <= 1
    middle = slice(320, -320)  # resampling rings 20 ms into both ends, where the tone is cut
    expected = tone(440, len(waveform))
    # soxr's HQ keeps 20 bits of the pass band.
    np.testing.assert_allclose(waveform[middle], expected[middle], rtol=0, atol=2**-19)


def test_what_16_khz_cannot_hold_is_removed() -> None:
    waveform = sources.read(tone(10000, 44100, 44100), 44100)
    assert np.abs(waveform[320:-320]).max() < 2**-19


@pytest.mark.parametrize("n_channels", [2, 6])
def test_channels_are_averaged(n_channels: int) -> None:
    channels = np.stack([tone(200 * (i + 1), 4000) for i in range(n_channels)], axis=1)
    expected = channels.mean(axis=1)
    np.testing.assert_allclose(sources.read(wav(channels)), expected, atol=1e-7)
    np.testing.assert_allclose(sources.read(channels, RATE), expected, atol=1e-7)


@pytest.mark.parametrize("other", [-1.0, -0.9, -0.8])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_of_channels_that_cancel_one_is_heard(other: float, rate: int) -> None:
    left = tone(440, rate, rate)
    told: list[AudioWarning] = []
    waveform = sources.read(np.stack([other * left, left], 1), rate, on_warning=told.append)
    np.testing.assert_allclose(np.abs(waveform), np.abs(sources.read(left, rate)), atol=1e-6)
    (warning,) = told
    assert warning.kind == "channels"
    assert f"from 0.0 s on channel {1 if other == -1 else 2} is heard alone" in warning.message


def test_channels_that_do_not_cancel_are_averaged() -> None:
    first, second = np.random.default_rng(0).normal(0, 0.1, (2, 3 * RATE)).astype(np.float32)
    silent = np.zeros_like(first)
    for columns in ([first, second], [first, first], [first, silent], [first, second, silent]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            waveform = sources.read(np.stack(columns, axis=1), RATE)
        np.testing.assert_allclose(waveform, np.mean(columns, axis=0), atol=1e-7)


# Sources -----------------------------------------------------------------------------------------


def test_a_path_a_string_bytes_and_a_stream_are_the_same_audio(tmp_path: Path) -> None:
    data = wav(swell())
    path = tmp_path / "clip.wav"
    path.write_bytes(data)
    for source in (path, str(path), data, io.BytesIO(data)):
        np.testing.assert_array_equal(sources.read(source), swell())
    with path.open("rb") as stream:
        np.testing.assert_array_equal(sources.read(stream), swell())


def test_bytes_of_every_type_are_the_same_audio() -> None:
    data = wav(swell())
    for source in (bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(sources.read(source), swell())


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("call", range(8))
def test_what_a_stream_raises_is_raised_wherever_it_does(kind: str, call: int) -> None:
    class Breaking(io.BytesIO):
        error: BaseException = KeyboardInterrupt()
        n_left = 10**9

        def read(self, n: int | None = -1) -> bytes:
            self.n_left -= 1
            if self.n_left < 0:
                raise self.error
            return super().read(n)

    data = encoded(swell(), kind=kind, subtype=None)
    for error, expected in (
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ConnectionResetError(104, "Connection reset by peer"), AudioError),
    ):
        stream = Breaking(data)
        stream.error, stream.n_left = error, call
        with pytest.raises(expected) as raised:
            sources.read(stream)
        assert expected is KeyboardInterrupt or "Connection reset" in str(raised.value)


def test_a_stream_that_cannot_seek_is_read() -> None:
    pipe = io.BufferedReader(Pipe(wav(swell())))
    assert not pipe.seekable()
    np.testing.assert_array_equal(sources.read(pipe), swell())


def test_a_stream_is_read_from_its_beginning_and_left_open() -> None:
    stream = io.BytesIO(wav(swell()))
    stream.seek(1000)
    np.testing.assert_array_equal(sources.read(stream), swell())
    assert not stream.closed


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([-(2**15), -1, 0, 2**14], np.int16), [-1, -1 / 2**15, 0, 0.5]),
        (np.array([-(2**31), 0, 2**30], np.int32), [-1, 0, 0.5]),
        (np.array([0, 64, 128, 255], np.uint8), [-1, -0.5, 0, 127 / 128]),
        (np.array([-128, 0, 64], np.int8), [-1, 0, 0.5]),
        (np.array([-1, 0.25, 1], np.float64), [-1, 0.25, 1]),
        (np.array([-1, 0.25, 1], np.float16), [-1, 0.25, 1]),
        (np.array([[-1, 1], [1, 0.5]], np.float32), [0, 0.75]),
        (np.array([[-(2**15), 0], [2**14, 2**14]], np.int16), [-0.5, 0.5]),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else "",
)
def test_arrays_are_scaled_by_the_range_of_their_type(
    array: npt.NDArray[Any], expected: list[float]
) -> None:
    np.testing.assert_array_equal(sources.read(array, RATE), np.array(expected, np.float32))


def test_the_waveform_belongs_to_the_reader() -> None:
    array = swell()
    waveform = sources.read(array, RATE)
    waveform[:] = 0
    np.testing.assert_array_equal(array, swell())


# A part of the audio -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "end", "part"),
    [
        (None, None, slice(None)),
        (0.0, 0.5, slice(0, 8000)),
        (0.25, 0.5, slice(4000, 8000)),
        (0.25, None, slice(4000, None)),
        (0.75, 9.0, slice(12000, None)),  # an end past the end is the end
        (0.0, 1 / RATE, slice(0, 1)),
    ],
)
def test_begin_and_end_select_a_part(
    tmp_path: Path, begin: float | None, end: float | None, part: slice
) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(swell()))
    from_file = sources.read(path, begin_seconds=begin, end_seconds=end)
    from_array = sources.read(swell(), RATE, begin_seconds=begin, end_seconds=end)
    np.testing.assert_array_equal(from_file, swell()[part])
    np.testing.assert_array_equal(from_array, swell()[part])


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("WAV", "GSM610"),  # this one and the next cannot be sought
        ("WAV", "G721_32"),
        ("WAV", "IMA_ADPCM"),
        ("WAV", "MS_ADPCM"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_a_part_of_a_compressed_file_is_the_part_of_the_whole(kind: str, subtype: str) -> None:
    data = encoded(swell(), kind=kind, subtype=subtype)
    part = sources.read(data, begin_seconds=0.25, end_seconds=0.5)
    # Exact but for MP3, whose decoder starts in the middle with another rounding.
    np.testing.assert_allclose(part, sources.read(data)[4000:8000], rtol=0, atol=1e-6)


def test_times_are_those_of_the_source_and_not_of_its_rate() -> None:
    clip = np.concatenate([tone(440, 24000, 48000), np.zeros(24000, np.float32)])
    silent = sources.read(wav(clip, 48000), 48000, begin_seconds=0.5)
    assert len(silent) == 8000
    assert not silent.any()


@pytest.mark.parametrize("begin", [1.0, 5.0])
def test_a_part_past_the_end_is_refused(begin: float) -> None:
    for source, rate in ((swell(), RATE), (wav(swell()), None)):
        with pytest.raises(AudioError, match=rf"no samples from {begin} s on"):
            sources.read(source, rate, begin_seconds=begin)


@pytest.mark.parametrize(("begin", "end"), [(-1.0, None), (0.5, 0.5), (0.5, 0.2), (None, 0.0)])
def test_a_part_that_ends_before_it_begins_is_refused(
    begin: float | None, end: float | None
) -> None:
    with pytest.raises(AudioError, match=r"begin_seconds is|begin must be"):
        sources.read(swell(), RATE, begin_seconds=begin, end_seconds=end)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_times_must_be_finite(odd: float) -> None:
    for source in (swell(), wav(swell())):
        with pytest.raises(AudioError, match=f"_seconds is {odd}, must be"):
            sources.read(source, RATE, begin_seconds=odd)
        with pytest.raises(AudioError, match=f"_seconds is {odd}, must be"):
            sources.read(source, RATE, end_seconds=odd)


# Files that are no audio -------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"gone\.wav: no such file"):
        sources.read(tmp_path / "gone.wav")


def test_a_folder_is_no_audio(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="is a folder, expected an audio file"):
        sources.read(tmp_path)


def test_an_impossible_path_is_refused() -> None:
    with pytest.raises(AudioError, match="cannot be opened"):
        sources.read("clip\0.wav")


NO_AUDIO = {
    "empty": (b"", r"the file is empty \(0 bytes\)"),
    "without_samples": (wav(np.zeros(0, np.float32)), "no samples; the audio is empty"),
    "cut_in_the_header": (wav(swell())[:20], "not readable as audio .*; .*ffmpeg"),
    "text": (b"These are words, not samples.\n" * 40, "not readable as audio .*; .*ffmpeg"),
    "zeros": (bytes(4096), "not readable as audio .*; .*ffmpeg"),
}


@pytest.mark.parametrize("case", NO_AUDIO)
def test_a_file_that_holds_no_audio_is_refused_by_name(tmp_path: Path, case: str) -> None:
    data, message = NO_AUDIO[case]
    path = tmp_path / f"{case}.wav"
    path.write_bytes(data)
    with pytest.raises(AudioError, match=rf"{case}\.wav: {message}"):
        sources.read(path)
    with pytest.raises(AudioError, match=f"audio bytes: {message}"):
        sources.read(data)
    with pytest.raises(AudioError, match=f"audio stream: {message}"):
        sources.read(io.BytesIO(data))


def test_a_raw_file_is_refused_because_it_does_not_know_its_rate(tmp_path: Path) -> None:
    path = tmp_path / "clip.raw"
    path.write_bytes((swell() * 2**15).astype("<i2").tobytes())
    with pytest.raises(AudioError, match=r"clip\.raw: not readable as audio"):
        sources.read(path)


@pytest.mark.filterwarnings("ignore:.*cut off")
def test_a_wav_cut_short_gives_the_samples_that_are_there() -> None:
    data = encoded(swell())  # a header of 44 bytes, then 2 bytes a sample
    whole = sources.read(data)
    np.testing.assert_array_equal(sources.read(data[: 44 + 2000]), whole[:1000])
    np.testing.assert_array_equal(sources.read(data[: 44 + 2001]), whole[:1000])


@pytest.mark.parametrize("kind", ["WAV", "OGG"])
def test_a_file_that_was_cut_off_says_so(kind: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 10 * RATE)
    data = encoded(noise, kind=kind, subtype=None)
    with pytest.warns(UserWarning, match="audio bytes: cut off"):
        assert len(sources.read(data[: len(data) // 2])) < 6 * RATE
    sources.read(data[: len(data) // 2], end_seconds=0.5)  # of no concern in a part that is there


def test_a_file_that_is_damaged_says_where() -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 20 * RATE)
    data = bytearray(encoded(noise, kind="FLAC"))
    data[len(data) // 2 : len(data) // 2 + 40000] = bytes(40000)
    with pytest.raises(AudioError, match=r"damaged after \d+\.\d s .*; copy it again"):
        sources.read(bytes(data))


def test_a_wav_written_to_a_pipe_gives_all_its_samples() -> None:
    data = bytearray(encoded(swell()))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # the writer could not go back to its header
    np.testing.assert_array_equal(sources.read(bytes(data)), sources.read(encoded(swell())))


@pytest.mark.parametrize("n_claimed", [0, 2**36 - 1], ids=["unknown", "years"])
def test_a_flac_whose_header_lies_about_its_length_gives_all_its_samples(n_claimed: int) -> None:
    data = bytearray(encoded(swell(), kind="FLAC"))
    # STREAMINFO begins at 8; the low 36 bits of its bytes 10..17 count the samples, 0: unknown.
    fields = int.from_bytes(data[18:26], "big") >> 36 << 36
    data[18:26] = (fields | n_claimed).to_bytes(8, "big")
    np.testing.assert_array_equal(
        sources.read(bytes(data)), sources.read(encoded(swell(), kind="FLAC"))
    )


@pytest.mark.parametrize("rate", [1, 2**31 - 1])
def test_a_rate_no_recording_has_is_refused(rate: int) -> None:
    data = bytearray(encoded(swell(100)))
    data[24:28] = rate.to_bytes(4, "little")
    for source in (bytes(data), swell(100)):
        with pytest.raises(AudioError, match=rf"rate.* {rate}\b"):
            sources.read(source, rate)


# Values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_where_they_stand(value: float) -> None:
    samples = tone(440, 16000, 8000)
    samples[1000] = value
    stereo = np.stack([samples, tone(440, 16000, 8000)], axis=1)
    for source in (samples, stereo, wav(samples, 8000), wav(stereo, 8000)):
        with pytest.raises(AudioError, match=r"sample 1000 \(0\.125 s\) is NaN or infinite"):
            sources.read(source, 8000)


@pytest.mark.parametrize(
    "array",
    [np.full(1000, 1e300), np.full((1000, 2), 3e38, np.float32)],
    ids=["beyond float32", "sum of channels"],
)
def test_values_that_overflow_are_refused_without_a_warning(array: Samples) -> None:
    with pytest.raises(AudioError, match=r"sample 0 .* is (NaN or infinite|3e\+38)"):
        sources.read(array, RATE)


def test_values_beyond_one_are_kept() -> None:
    loud = swell() * 4
    np.testing.assert_array_equal(sources.read(loud, RATE), loud)
    np.testing.assert_array_equal(sources.read(wav(loud)), loud)


def test_integers_that_were_not_scaled_are_refused_with_their_values(tmp_path: Path) -> None:
    whole = np.round(swell() * 2**15)
    for array in (whole.astype(np.int32), whole.astype(np.int64), whole, whole.astype(np.float32)):
        with pytest.raises(AudioError, match=r"audio array: .*32768|audio array: .*int16"):
            sources.read(array, RATE)
    path = tmp_path / "undivided.wav"
    soundfile.write(path, whole, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"undivided\.wav: sample \d+ .* expected from -1 to 1"):
        sources.read(path)
    np.testing.assert_allclose(sources.read(whole.astype(np.int16), RATE), swell(), atol=2**-15)


@pytest.mark.parametrize("rate", [16000.0, np.float64(16000), np.int32(16000), np.uint16(16000)])
def test_a_rate_that_is_a_whole_number_is_taken(rate: Any) -> None:
    np.testing.assert_array_equal(sources.read(swell(), rate), swell())


@pytest.mark.parametrize("rate", ["16000", b"16000", 16000.5, np.nan, np.inf, [16000], 0, -1, True])
def test_a_rate_that_is_none_is_refused_as_it_was_given(rate: Any) -> None:
    for source in (swell(), iter([swell()])):
        with pytest.raises(AudioError, match=f"sample rate is {re.escape(repr(rate))}, expected"):
            list(sources.blocks(source, rate))


def test_a_sound_too_short_to_be_resampled_is_refused() -> None:
    for rate, n in ((48_000, 1), (1_000_000, 5)):
        with pytest.raises(AudioError, match=f"audio array: too short, {n} samples at {rate} Hz"):
            sources.read(swell()[:n], rate)


# Arrays and objects that are no audio ------------------------------------------------------------


def test_an_array_needs_its_sample_rate() -> None:
    with pytest.raises(AudioError, match=r"needs its sample rate.*sample_rate="):
        sources.read(swell())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(0.5), r"shape \(\), expected \[n\] or \[n, channels\]"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\), expected \[n\] or \[n, channels\]"),
        (np.zeros((2, 16000)), r"shape \(2, 16000\).*must be transposed"),
        (np.zeros((16000, 0)), r"shape \(16000, 0\).*no channels"),
        (np.zeros(0, np.float32), "no samples; the audio is empty"),
        (np.zeros((0, 2), np.float32), "no samples; the audio is empty"),
        (np.zeros(100, bool), "dtype bool, expected floating point or integer"),
        (np.zeros(100, complex), "dtype complex128, expected floating point or integer"),
        (np.zeros(100, object), "dtype object, expected floating point or integer"),
    ],
    ids=[
        "scalar",
        "3-d",
        "transposed",
        "channelless",
        "[0]",
        "[0, 2]",
        "bool",
        "complex",
        "object",
    ],
)
def test_an_array_that_is_no_audio_is_refused(array: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(AudioError, match=f"audio array.*{message}"):
        sources.read(array, RATE)


@pytest.mark.parametrize("source", [None, 7, [0.0, 0.1], {"array": 1}], ids=repr)
def test_an_object_that_is_no_audio_is_refused_with_what_can_be_passed(source: object) -> None:
    kind = type(source).__name__
    with pytest.raises(AudioError, match=f"from {kind}; pass a path, bytes, a binary file object"):
        sources.read(cast("Any", source))


def test_an_object_that_reads_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(swell()))
    with soundfile.SoundFile(path) as file, pytest.raises(AudioError, match="from SoundFile; pass"):
        sources.read(cast("Any", file))


def test_a_masked_array_is_heard() -> None:
    masked = np.ma.masked_array(swell(), swell() > 0.1)
    np.testing.assert_array_equal(sources.read(masked, RATE), swell())


def test_a_text_stream_is_refused() -> None:
    with pytest.raises(AudioError, match=r"audio stream: .*(text|binary)"):
        sources.read(cast("Any", io.StringIO("RIFF, but as text")))


# In parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_the_parts_together_are_the_whole(kind: str, rate: int) -> None:
    sound = np.concatenate([swell(), swell()[::-1]])
    data = encoded(np.tile(sound, 6), rate, kind=kind, subtype=None)
    parts = list(sources.blocks(data))
    assert len(parts) > 2
    assert all(0 < len(part) <= 17000 for part in parts)
    samples, found = soundfile.read(io.BytesIO(data), dtype="float32")
    whole = samples if found == RATE else soxr.resample(samples, found, RATE, quality="HQ")
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-6)


def test_arrays_of_any_length_that_come_one_by_one_are_one_audio() -> None:
    sound = swell(20000)
    pieces = np.split(sound, [0, 1, 700, 701, 12000])
    for begin, end in [(None, None), (0.02, None), (0.1, 1.0), (None, 0.5), (1.2, 9)]:
        found = sources.blocks(iter(pieces), RATE, begin_seconds=begin, end_seconds=end)
        expected = sources.read(sound, RATE, begin_seconds=begin, end_seconds=end)
        np.testing.assert_array_equal(np.concatenate(list(found)), expected)


def test_nothing_is_read_before_it_is_asked_for() -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            taken.append(1)
            yield np.zeros(1600, np.float32)

    taken: list[int] = []
    parts = sources.blocks(endless(), RATE)
    assert not taken
    next(parts)
    assert len(taken) == 1


def test_a_bad_sample_far_in_is_named_by_its_place_in_the_file() -> None:
    sound = np.zeros(5 * RATE, np.float32)
    sound[70000] = np.nan
    with pytest.raises(AudioError, match=r"sample 70000 \(4\.375 s\) is NaN"):
        list(sources.blocks(sound, RATE))


def test_the_length_is_known_where_a_header_tells_it(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(swell(8000)))
    assert sources.duration(path) == sources.duration(path.read_bytes()) == 0.5
    assert sources.duration(swell(8000), RATE) == 0.5
    stream = io.BytesIO(path.read_bytes())
    assert sources.duration(stream) == 0.5
    assert stream.tell() == 0
    assert len(sources.read(stream)) == 8000


class Breaking(io.BytesIO):
    """A file that fails, or is interrupted, after so many bytes."""

    def __init__(self, data: bytes, at: int, error: BaseException) -> None:
        super().__init__(data)
        self._at, self._error = at, error

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > self._at:
            raise self._error
        return super().read(size)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_a_disk_that_fails_and_ctrl_c_are_no_end_of_the_audio(kind: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 20 * RATE)
    data = encoded(noise, kind=kind, subtype=None)
    for raised, expected in (
        (OSError(5, "Input/output error"), AudioError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        with pytest.raises(expected):
            list(sources.blocks(Breaking(data, len(data) // 2, raised)))


def test_what_macs_leave_beside_a_file_does_not_matter(tmp_path: Path) -> None:
    for kind in ("MP3", "WAV", "FLAC"):
        path = tmp_path / f"clip.{kind.lower()}"
        data = encoded(swell(), kind=kind, subtype=None)
        path.write_bytes(data)
        (tmp_path / f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(4000))
        np.testing.assert_array_equal(sources.read(path), sources.read(data))


@pytest.mark.parametrize("seconds", [1e18, 1e308])
def test_a_part_beyond_all_time_is_empty(seconds: float) -> None:
    for source in (swell(), wav(swell())):
        with pytest.raises(AudioError, match="no samples from"):
            sources.read(source, RATE, begin_seconds=seconds)
        np.testing.assert_array_equal(sources.read(source, RATE, end_seconds=seconds), swell())
