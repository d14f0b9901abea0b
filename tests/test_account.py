"""All that is in a file is heard, and what is missing of it is said."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from conftest import DEMO

from ark_asr_onnx import AudioError, AudioWarning
from ark_asr_onnx.audio import chunks, mp3, pcm, sources

RATE = 16000
CHUNKED = ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "SVX", "NIST"]
WHOLE = [*CHUNKED, "FLAC", "OGG", "MP3"]
REFUSED = {"RAW", "SD2", "HTK", "SDS"}  # no header, a second file, exact sizes, prints
NO_LENGTH = {"PAF", "PVF", "IRCAM", "XI"}  # whose headers do not say one


def speech(seconds: float = 3.0, seed: int = 0) -> npt.NDArray[np.float32]:
    """Noise that fades in and out."""
    n = round(seconds * RATE)
    noise = np.random.default_rng(seed).normal(0, 0.1, n)
    return (noise * (0.2 + np.hanning(n))).astype(np.float32)


def encoded(kind: str, samples: npt.NDArray[np.float32], **options: Any) -> bytes:
    stream = io.BytesIO()
    file = {"format": kind, "subtype": None, **options}
    soundfile.write(stream, samples, file.pop("rate", RATE), **file)
    return stream.getvalue()


def heard(source: Any, **options: Any) -> tuple[npt.NDArray[np.float32], list[AudioWarning]]:
    told: list[AudioWarning] = []
    return sources.read(source, on_warning=told.append, **options), told


def kinds(told: list[AudioWarning]) -> list[str]:
    return [warning.kind for warning in told]


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_file_gives_no_warning(kind: str) -> None:
    waveform, told = heard(encoded(kind, speech()))
    assert len(waveform) == 3 * RATE
    assert told == []


@pytest.mark.parametrize("kind", sorted(set(soundfile.available_formats()) - REFUSED - NO_LENGTH))
@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_a_file_that_was_cut_off_is_heard_and_said(
    kind: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # libsndfile writes beside some files
    data = encoded(kind, speech(8.0))
    whole = len(heard(data)[0])
    waveform, told = heard(data[: round(share * len(data))])
    assert (share - 0.2) * whole < len(waveform) < (share + 0.02) * whole
    assert kinds(told)[:1] == ["cut"]
    assert f" {len(waveform) / RATE:.2f} s" in told[0].message


@pytest.mark.parametrize("kind", sorted(NO_LENGTH | {"AVR", "MAT5", "VOC", "MPC2K"}))
def test_a_kind_that_tells_nothing_of_its_end_is_heard_with_a_warning(kind: str) -> None:
    waveform, told = heard(encoded(kind, speech()))
    assert len(waveform) > RATE
    assert kinds(told) == ["unchecked"]
    assert f"{kind} files do not tell" in told[0].message


@pytest.mark.parametrize("kind", sorted(set(soundfile.available_formats()) - REFUSED))
def test_every_kind_by_a_pipe_is_what_it_is_by_a_path(kind: str) -> None:
    data = encoded(kind, speech())
    pipe = pcm.Pipe(io.BytesIO(data))
    assert pcm.can_be_read_as_it_comes(pipe) == (kind in ("WAV", "WAVEX"))
    np.testing.assert_array_equal(heard(pipe)[0], heard(data)[0])


@pytest.mark.parametrize("kind", [*CHUNKED, "FLAC"])
def test_a_few_bytes_that_are_missing_are_said_too(kind: str) -> None:
    _, told = heard(encoded(kind, speech())[:-40])
    assert kinds(told) == ["cut"]


def test_another_kind_of_recording_after_one_in_a_pipe_is_heard() -> None:
    first = encoded("WAV", speech(2), subtype="PCM_16")
    for second in (encoded("WAV", speech(1), rate=8000), encoded("FLAC", speech(2))):
        told: list[AudioWarning] = []
        parts = pcm.parts(pcm.Pipe(io.BytesIO(first + second)), on_warning=told.append)
        waveform = np.concatenate(list(sources.mono(parts, "standard input", told.append)))
        np.testing.assert_allclose(waveform, heard(first + second)[0], atol=1e-4)
        assert kinds(told) == ["joined"]


def test_what_follows_an_odd_number_of_bytes_is_heard_in_a_pipe_too() -> None:
    first = encoded("WAV", speech()[:47_999], subtype="PCM_U8")
    assert len(first) == 48_044  # with the byte that makes it even
    for second in (encoded("WAV", speech(2), rate=8000), encoded("WAV", speech(2)), b"\0\0\0\0"):
        for data in (first + second, first[:-1] + second):
            waveform, told = heard(data)
            said: list[AudioWarning] = []
            parts = pcm.parts(pcm.Pipe(io.BytesIO(data)), on_warning=said.append)
            piped = np.concatenate(list(sources.mono(parts, "standard input", said.append)))
            np.testing.assert_allclose(piped, waveform, atol=1e-4)
            assert kinds(said) == kinds(told)


def test_a_part_that_is_there_is_heard_without_a_word() -> None:
    for kind in WHOLE:
        data = encoded(kind, speech())
        waveform, told = heard(data[: round(0.7 * len(data))], end_seconds=0.5)
        assert (len(waveform), told) == (RATE // 2, [])


def places() -> dict[str, Callable[[bytes], tuple[int, int, str]]]:
    """Where the size of the samples stands, how many bytes it has, in which order."""
    return {
        "WAV": lambda d: (d.index(b"data") + 4, 4, "little"),
        "WAVEX": lambda d: (d.index(b"data") + 4, 4, "little"),
        "AIFF": lambda d: (d.index(b"SSND") + 4, 4, "big"),
        "SVX": lambda d: (d.index(b"BODY") + 4, 4, "big"),
        "AU": lambda _: (8, 4, "big"),
        "CAF": lambda d: (d.index(b"data") + 4, 8, "big"),
        "W64": lambda d: (d.index(b"data") + 16, 8, "little"),
        "RF64": lambda d: (d.index(b"ds64") + 16, 8, "little"),
    }


@pytest.mark.parametrize("kind", places())
@pytest.mark.parametrize("claimed", [0, 16, 20_000])
def test_a_header_that_says_less_than_there_is_is_not_believed(kind: str, claimed: int) -> None:
    data = bytearray(encoded(kind, speech()))
    at, width, order = places()[kind](bytes(data))
    data[at : at + width] = (claimed + 24 * (kind == "W64")).to_bytes(width, order)  # type: ignore[arg-type]
    for source in (bytes(data), io.BytesIO(data)):
        waveform, told = heard(source)
        assert len(waveform) == 3 * RATE
        assert kinds(told) == ["longer"]
        assert "3.00 s are there: all of it was heard" in told[0].message


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "AU", "CAF"])
def test_a_header_that_does_not_know_is_no_lie(kind: str) -> None:
    data = bytearray(encoded(kind, speech()))
    at, width, _ = places()[kind](bytes(data))
    data[at : at + width] = b"\xff" * width
    waveform, told = heard(bytes(data))
    assert (len(waveform), told) == (3 * RATE, [])


@pytest.mark.parametrize("claimed", [1, 20_000, 90_000])
def test_a_flac_is_read_to_its_end_whatever_its_header_says(claimed: int) -> None:
    data = bytearray(encoded("FLAC", speech()))
    data[22:26] = claimed.to_bytes(4, "big")
    waveform, told = heard(bytes(data))
    assert len(waveform) == 3 * RATE
    assert kinds(told) == ["longer" if claimed < 3 * RATE else "cut"]


@pytest.mark.parametrize("kind", WHOLE)
def test_recordings_one_after_the_other_are_all_heard(kind: str) -> None:
    first, second = encoded(kind, speech(2, 1)), encoded(kind, speech(3, 2))
    expected = np.concatenate([heard(first)[0], heard(second)[0]])
    waveform, told = heard(first + second)
    np.testing.assert_array_equal(waveform, expected)
    assert kinds(told) == ["joined"]
    assert "of 2.0, 3.0 s" in told[0].message
    part, _ = heard(first + second, begin_seconds=1.5, end_seconds=2.5)
    assert len(part) == RATE
    if kind not in ("OGG", "MP3"):  # whose decoders begin with something else in the middle
        np.testing.assert_array_equal(part, expected[round(1.5 * RATE) : round(2.5 * RATE)])


def test_recordings_of_other_rates_channels_and_kinds_are_heard_too() -> None:
    stereo = np.stack([speech(1), speech(1)], axis=1)
    pieces = [
        encoded("FLAC", speech(2)),
        encoded("WAV", stereo, rate=8000),
        encoded("FLAC", speech(1)),
        encoded("OGG", speech(1), rate=48000),
        encoded("MP3", speech(2)),
        encoded("MP3", stereo, rate=44100),
        encoded("FLAC", speech(1), rate=44100),
    ]
    waveform, told = heard(b"".join(pieces))
    expected = [len(heard(piece)[0]) for piece in pieces]
    assert len(waveform) == pytest.approx(sum(expected), abs=10)
    assert kinds(told) == ["joined"]


def test_a_recording_that_was_cut_off_before_another_one_is_said() -> None:
    first, second = encoded("OGG", speech(3, 1)), encoded("OGG", speech(2, 2))
    waveform, told = heard(first[: len(first) // 2] + second)
    assert kinds(told)[0] == "cut"
    assert kinds(told)[-1] == "joined"
    np.testing.assert_array_equal(waveform[-2 * RATE :], heard(second)[0])


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("tail", [bytes(9999), np.random.default_rng(3).bytes(9999)])
def test_what_follows_the_audio_and_is_none_is_said(kind: str, tail: bytes) -> None:
    data = encoded(kind, speech())
    waveform, told = heard(data + tail)
    np.testing.assert_array_equal(waveform, heard(data)[0])
    assert kinds(told) == ["unused"]


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "W64"])
def test_what_follows_numbers_and_is_none_is_said(kind: str) -> None:
    data = encoded(kind, speech(), subtype="FLOAT")
    waveform, told = heard(data + b"\xff\xff\xff\xff" * 3000)
    np.testing.assert_array_equal(waveform, heard(data)[0])
    assert kinds(told) == ["unused"]


def test_chunks_after_the_samples_are_no_samples() -> None:
    data = encoded("WAV", speech())
    for tail in (
        b"LIST\x04\0\0\0INFO",
        b"id3 \x03\0\0\0abc\0" + b"LIST\x04\0\0\0INFO",
        b"bext\x10\0\0\0abcd",  # which is cut off itself
    ):
        waveform, told = heard(data + tail)
        assert (len(waveform), told) == (3 * RATE, [])
        parts = pcm.parts(pcm.Pipe(io.BytesIO(data + tail)), on_warning=told.append)
        assert (sum(len(part) for part, _ in parts), told) == (3 * RATE, [])


def test_a_midi_sample_dump_is_called_so() -> None:
    with pytest.raises(AudioError, match="is a MIDI sample dump, which cannot be read; WAV, "):
        heard(encoded("SDS", speech(), subtype="PCM_16"))


@pytest.mark.parametrize("table", [b"\xff" * 6, b"\x81"], ids=["a long number", "a torn number"])
def test_a_damaged_table_of_packets_prints_nothing(
    table: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encoded("CAF", speech(), subtype="ALAC_16")
    assert heard(data)[1] == []
    begin = data.index(b"pakt") + 36
    end = data.index(b"data", begin)
    at = begin if len(table) > 1 else end - 1
    with pytest.raises(AudioError, match="table of packets is damaged; copy it again"):
        heard(data[:at] + table + data[at + len(table) :])
    assert capfd.readouterr() == ("", "")


# MP3 ----------------------------------------------------------------------------------------------


def frames(data: bytes) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while (frame := mp3.frame_of(data[at : at + 4])) is not None:
        found.append(data[at : at + frame.n_bytes])
        at += frame.n_bytes
    return found


def variable(samples: npt.NDArray[np.float32], rate: int = RATE) -> bytes:
    """With a header of Xing's, and frames of all sizes: the first ones are small."""
    silence = np.zeros(RATE, np.float32)
    return encoded("MP3", np.concatenate([silence, samples]), rate=rate)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_an_mp3_without_a_header_is_heard_to_its_end(rate: int) -> None:
    header, *rest = frames(variable(speech(5), rate))
    assert b"Xing" in header
    waveform, told = heard(b"".join(rest))
    assert len(waveform) / RATE == pytest.approx((RATE + 5 * RATE) / rate, abs=0.2)
    assert told == []


def test_an_mp3_whose_header_lies_is_heard_to_its_end() -> None:
    data = bytearray(variable(speech()))
    at = data.index(b"Xing") + 8
    n = int.from_bytes(data[at : at + 4], "big")
    for claimed, kind in ((n // 3, "longer"), (2 * n, "cut")):
        data[at : at + 4] = claimed.to_bytes(4, "big")
        waveform, told = heard(bytes(data))
        assert len(waveform) / RATE == pytest.approx(4, abs=0.2)
        assert kinds(told) == [kind]


def test_tags_of_an_mp3_are_no_audio_and_no_fault() -> None:
    data = variable(speech())
    id3v2 = b"ID3\x03\0\0\0\0\x10\0" + bytes(2048)
    id3v1 = b"TAG" + bytes(125)
    size = (32 + 40).to_bytes(4, "little")
    ape = b"APETAGEX" + (2000).to_bytes(4, "little") + size + bytes(4)
    ape = ape + b"\0\0\0\xa0" + bytes(8) + bytes(72)
    for tagged in (id3v2 + data, data + id3v1, id3v2 + data + ape + id3v1):
        waveform, told = heard(tagged)
        np.testing.assert_array_equal(waveform, heard(data)[0])
        assert told == []
    waveform, told = heard(id3v2 + data + id3v2 + data)
    assert (len(waveform), kinds(told)) == (2 * len(heard(data)[0]), ["joined"])


def test_bytes_between_frames_are_left_out_and_said() -> None:
    data = frames(variable(speech()))
    waveform, told = heard(b"".join([*data[:40], bytes(700), *data[40:]]))
    assert len(waveform) / RATE == pytest.approx(4, abs=0.2)
    assert told == [AudioWarning("damaged", "damaged: 700 bytes within it are no audio")]


# A pipe -------------------------------------------------------------------------------------------


def piped(data: bytes) -> tuple[int, list[AudioWarning]]:
    told: list[AudioWarning] = []
    pipe = pcm.Pipe(io.BytesIO(data))
    assert pcm.can_be_read_as_it_comes(pipe)
    parts = list(pcm.parts(pipe, on_warning=told.append))
    assert {rate for _, rate in parts} == {RATE}
    return sum(len(part) for part, _ in parts), told


def test_a_pipe_hears_what_a_file_gives() -> None:
    data = encoded("WAV", speech(), subtype="PCM_16")
    at = data.index(b"data") + 4
    short = data[:at] + (20_000).to_bytes(4, "little") + data[at + 4 :]
    empty = data[:at] + bytes(4) + data[at + 4 :]
    for source in (data, short, empty, data + data, data[:-30_000]):
        n, told = piped(source)
        waveform, expected = heard(source)
        assert n == len(waveform)
        assert kinds(told) == kinds(expected)


def test_a_header_with_something_before_its_format_is_read_by_every_way() -> None:
    data = encoded("WAV", speech(), subtype="PCM_16")
    odd = data[:12] + b"JUNK" + (9001).to_bytes(4, "little") + bytes(9002) + data[12:]
    assert piped(odd) == (3 * RATE, [])
    assert len(heard(odd)[0]) == 3 * RATE
    extensible = encoded("WAVEX", speech(), subtype="PCM_24")
    assert piped(extensible) == (3 * RATE, [])


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "GSM610"])
def test_a_wav_of_something_else_waits_until_it_is_whole(subtype: str) -> None:
    for junk in (b"", b"JUNK\x04\0\0\0abcd"):
        data = encoded("WAV", speech(), subtype=subtype)
        data = data[:12] + junk + data[12:]
        pipe = pcm.Pipe(io.BytesIO(data))
        assert not pcm.can_be_read_as_it_comes(pipe)
        np.testing.assert_array_equal(heard(pipe)[0], heard(data)[0])


NO_SAMPLES = {
    "web page": b"<!DOCTYPE html><html><head><title>Not found</title></head>" * 80,
    "text": "Das ist kein Ton, sondern Text; überall.\n".encode() * 100,
    "json": b'{"error": "no such recording"}\n' * 100,
    "pdf": b"%PDF-1.7\n" + np.random.default_rng(0).bytes(9000),
    "zip": b"PK\x03\x04" + np.random.default_rng(0).bytes(9000),
    "png": b"\x89PNG\r\n\x1a\n" + np.random.default_rng(0).bytes(9000),
    "sox": b".SoX" + bytes(9000),
    "encrypted": np.random.default_rng(1).bytes(9000),
    "RIFX": b"RIFX\0\0\0\x24WAVEfmt " + bytes(9000),
    "AVI": b"RIFF\xff\0\0\0AVI LIST" + bytes(9000),
}


@pytest.mark.parametrize("name", NO_SAMPLES)
def test_what_is_no_samples_is_not_taken_for_some(name: str) -> None:
    pipe = pcm.Pipe(io.BytesIO(NO_SAMPLES[name]))
    assert not pcm.can_be_read_as_it_comes(pipe)
    with pytest.raises(AudioError, match="audio stream: not readable as audio"):
        sources.read(pipe)  # type: ignore[arg-type]


def test_bare_samples_are_taken_for_samples() -> None:
    quiet = 0.001 * speech()
    loud = np.clip(30 * np.convolve(speech(), np.ones(8) / 8), -1, 1)
    tone = np.sin(np.arange(RATE) * 0.2)
    for samples in (speech(), quiet, loud, tone, np.zeros(RATE), np.full(RATE, 0.05)):
        for channels in (1, 2):
            data = np.repeat(np.round(samples * 32767).astype("<i2"), channels).tobytes()
            assert pcm.can_be_read_as_it_comes(pcm.Pipe(io.BytesIO(data)))


@pytest.mark.parametrize(
    "start", [b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf1", b"PK", b"ID3"]
)
def test_a_rate_says_that_they_are_samples(start: bytes) -> None:
    data = start + np.round(speech() * 32767).astype("<i2").tobytes()
    assert pcm.can_be_read_as_it_comes(pcm.Pipe(io.BytesIO(data)), 8000)


def test_a_file_that_is_one_is_read_as_one_whatever_the_rate() -> None:
    for kind in ("FLAC", "OGG", "AIFF", "CAF"):
        pipe = pcm.Pipe(io.BytesIO(encoded(kind, speech())))
        assert not pcm.can_be_read_as_it_comes(pipe, 8000)


def test_a_header_may_come_byte_by_byte() -> None:
    class Slow(io.BytesIO):
        def read(self, n: int | None = -1) -> bytes:
            return super().read(min(n, 1) if n and n > 0 else n)

    pipe = pcm.Pipe(Slow(encoded("WAV", speech(0.1))))
    assert pcm.can_be_read_as_it_comes(pipe)
    assert sum(len(part) for part, _ in pcm.parts(pipe)) == 1600


# Time and memory ----------------------------------------------------------------------------------


def test_what_is_looked_at_has_an_end() -> None:
    endless = b"RIFF\0\0\0\0WAVE" + b"JUNK\0\0\0\0" * 200_000
    assert chunks.find(io.BytesIO(endless), 0, len(endless)) is None
    assert not pcm.can_be_read_as_it_comes(pcm.Pipe(io.BytesIO(endless)))
    with pytest.raises(AudioError):
        sources.read(endless)


@pytest.mark.skipif(os.name != "posix", reason="descriptors of POSIX")
def test_a_damaged_mp3_prints_only_lines_of_ours(tmp_path: Path) -> None:
    header, *rest = frames(variable(speech()))
    random = np.random.default_rng(7)
    damaged = [frame[:6] + random.bytes(len(frame) - 6) for frame in rest]
    path = tmp_path / "damaged.mp3"
    path.write_bytes(b"".join([header, *damaged]))
    command = [sys.executable, "-m", "ark_asr_onnx", "transcribe", "-m", str(DEMO), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1)
    lines = done.stderr.splitlines()
    assert all(line.startswith(("warning: ", "error: ")) for line in lines), lines
    library = subprocess.run(
        [sys.executable, "-c", f"import soundfile; soundfile.read({str(path)!r})"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "libmpg123" in library.stderr  # else this shows nothing
