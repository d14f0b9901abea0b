"""MP4, M4A, MOV, AAC and Matroska through PyAV: heard as a stream, and accounted for."""

from __future__ import annotations

import difflib
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from conftest import DEMO

import ark_asr_onnx
from ark_asr_onnx import AudioError, AudioWarning
from ark_asr_onnx.audio import sources

av: Any = pytest.importorskip("av")
RATE = 16000
KINDS = {  # file format, codec, rate
    "m4a": ("ipod", "aac", 44100),
    "mp4": ("mp4", "aac", 48000),
    "mov": ("mov", "aac", 16000),
    "fragmented": ("mp4", "aac", 16000),
    "aac": ("adts", "aac", 16000),
    "mka": ("matroska", "pcm_s16le", 16000),
    "mkv": ("matroska", "aac", 44100),
}


def clip() -> npt.NDArray[np.float32]:
    one = soundfile.read(DEMO / "samples" / "an68-meht-b.flac", dtype="float32")[0]
    return np.concatenate([one, one]).astype(np.float32)


def encoded(kind: str, samples: npt.NDArray[np.float32]) -> bytes:
    form, codec, rate = KINDS[kind]
    options = {"movflags": "frag_keyframe+empty_moov"} if kind == "fragmented" else {}
    if kind in ("m4a", "mp4"):
        options = {"movflags": "faststart"}
    with (
        tempfile.TemporaryDirectory() as folder,
        av.open(path := f"{folder}/file", "w", format=form, options=options) as container,
    ):
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate)
        for at in range(0, len(samples), 1024):
            block = samples[None, at : at + 1024]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), "flt", "mono")
            frame.sample_rate = RATE
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
        for part in resampler.resample(None):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
        container.close()
        return Path(path).read_bytes()


def heard(source: Any, **options: Any) -> tuple[npt.NDArray[np.float32], list[AudioWarning]]:
    told: list[AudioWarning] = []
    return sources.read(source, on_warning=told.append, **options), told


@pytest.mark.parametrize("kind", KINDS)
def test_what_telephones_write_is_heard(kind: str, tmp_path: Path) -> None:
    data = encoded(kind, clip())
    path = tmp_path / "recording"  # the content counts, not the name
    path.write_bytes(data)
    expected, _ = heard(data)
    assert len(expected) / RATE == pytest.approx(len(clip()) / RATE, abs=0.2)
    for source in (path, io.BytesIO(data), bytearray(data)):
        waveform, told = heard(source)
        np.testing.assert_array_equal(waveform, expected)
        assert told == []
    demo = ark_asr_onnx.load(DEMO, threads=1)
    texts = demo.transcribe(path).text.split(), demo.transcribe(clip(), RATE).text.split()
    assert difflib.SequenceMatcher(None, *texts).ratio() >= 0.8  # what is left out, loses letters
    part, _ = heard(data, begin_seconds=0.5, end_seconds=1.5)
    assert len(part) == pytest.approx(RATE, abs=2)


@pytest.mark.parametrize("kind", ["m4a", "mp4", "mka", "mkv"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_one_that_was_cut_off_is_heard_and_said(
    kind: str, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encoded(kind, clip())
    waveform, told = heard(data[: round(share * len(data))])
    assert 0.2 * len(clip()) < len(waveform) < (share + 0.1) * len(clip())
    assert [warning.kind for warning in told][:1] == ["cut"]
    assert f"{len(waveform) / RATE:.2f} s are there"[:3] in told[0].message
    assert capfd.readouterr() == ("", "")


def test_one_whose_index_was_cut_off_is_an_error() -> None:
    data = encoded("mov", clip())  # its index is at its end
    with pytest.raises(AudioError, match="audio bytes: not readable as audio"):
        sources.read(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["m4a", "mov", "aac"])
def test_files_one_after_the_other_are_all_heard(kind: str) -> None:
    data = encoded(kind, clip())
    waveform, told = heard(data + data)
    assert len(waveform) == pytest.approx(2 * len(heard(data)[0]), abs=2000)
    assert [warning.kind for warning in told] == ([] if kind == "aac" else ["joined"])


@pytest.mark.parametrize("kind", ["m4a", "mov"])
def test_what_follows_is_said(kind: str) -> None:
    data = encoded(kind, clip())
    waveform, told = heard(data + bytes(5000))
    np.testing.assert_array_equal(waveform, heard(data)[0])
    assert [warning.kind for warning in told] == ["unused"]


def test_damaged_packets_are_left_out_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encoded("m4a", clip()))
    at = data.index(b"mdat") + 4000
    data[at : at + 1500] = b"\xff" * 1500
    waveform, told = heard(bytes(data))
    assert len(waveform) > 0.5 * len(clip())
    assert "damaged" in [warning.kind for warning in told]
    assert capfd.readouterr() == ("", "")


def test_a_film_without_sound_says_so() -> None:
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(AudioError, match="holds no audio track"):
        sources.read(data.getvalue())


def test_an_opus_recording_after_another_codec_does_not_hide_it() -> None:
    data = io.BytesIO()
    with av.open(data, "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=48000)
        stream.layout = "mono"
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(clip()[None]), "flt", "mono")
        frame.sample_rate = RATE
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    opus, other = data.getvalue(), encoded("mka", clip())
    for first, second in ((opus, other), (other, opus)):
        waveform, told = heard(first + second)
        assert len(waveform) == pytest.approx(2 * len(clip()), rel=0.05)
        assert [warning.kind for warning in told] == ["joined"]
