"""Audio that is still being spoken: pipes, microphones, and text before the speech has ended."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from conftest import DEMO, Sample

import ark_asr_onnx
from ark_asr_onnx import AudioError, Transcriber
from ark_asr_onnx.audio import containers, microphone, pcm, sources
from ark_asr_onnx.commands import cli
from ark_asr_onnx.decoding.slots import Slots

RATE = 16000
QUIET = np.zeros(round(1.5 * RATE), np.float32)


@pytest.fixture(scope="module")
def demo() -> Transcriber:
    return ark_asr_onnx.load(DEMO)


@pytest.fixture(scope="module")
def spoken(samples: list[Sample]) -> tuple[np.ndarray, list[str]]:
    """Three samples with silence between them, and their words."""
    parts: list[np.ndarray] = []
    for sample in samples[:3]:
        parts += [soundfile.read(sample.path, dtype="float32")[0], QUIET]
    return np.concatenate(parts), [sample.text for sample in samples[:3]]


def wav(waveform: np.ndarray, rate: int = RATE, width: int = 2) -> bytes:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1 if waveform.ndim == 1 else waveform.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        scaled = np.round(waveform * (2 ** (8 * width - 1) - 1)).astype("<i4")
        if width == 1:
            file.writeframes((scaled + 128).astype("u1").tobytes())
        else:
            file.writeframes(scaled.reshape(-1, 1).view("u1")[:, :width].tobytes())
    return data.getvalue()


def stream(data: bytes) -> Any:
    return io.BufferedReader(io.BytesIO(data))  # pyright: ignore[reportArgumentType] - raw enough


def pipe(data: bytes) -> pcm.Pipe:
    return pcm.Pipe(io.BytesIO(data))


def n_samples(pipe: pcm.Pipe) -> int:
    return sum(len(part) for part, _ in pcm.parts(pipe))


# A pipe -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_is_read_as_it_comes_in_every_width(width: int, channels: int) -> None:
    expected = np.random.default_rng(0).uniform(-0.9, 0.9, (5000, channels))
    parts = list(pcm.parts(pipe(wav(expected, 22050, width))))
    assert {rate for _, rate in parts} == {22050}
    if channels == 2:
        whole = np.concatenate([part for part, _ in parts])
        assert whole.shape == (5000, 2)
        centre, scale = (128, 128) if width == 1 else (0, 2.0 ** (8 * max(width, 2) - 1))
        scale = 2.0**31 if width == 3 else scale
        np.testing.assert_allclose(
            (whole - float(centre)) / scale, expected, atol=2 ** (2 - 8 * width)
        )
    else:
        waveform = sources.mono(parts, "standard input", [].append)
        assert sum(map(len, waveform)) == pytest.approx(5000 * RATE / 22050, abs=1)


def test_a_wav_whose_writer_did_not_know_its_length_is_read_to_the_end() -> None:
    data = bytearray(wav(np.full(4000, 0.5)))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    assert n_samples(pipe(bytes(data))) == 4000


def test_bare_samples_are_taken_as_they_are_said_to_be() -> None:
    samples = np.arange(-3000, 3000, dtype="<i2")
    parts = list(pcm.parts(pipe(samples.tobytes() + b"\x01"), 8000, 2))  # the last one is torn
    assert {rate for _, rate in parts} == {8000}
    whole = np.concatenate([part for part, _ in parts])
    np.testing.assert_array_equal(whole, samples.reshape(-1, 2))


def test_a_wav_that_is_no_pcm_says_what_to_send() -> None:
    data = io.BytesIO()
    soundfile.write(data, np.zeros(100), RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(AudioError, match="send PCM, for example with ffmpeg"):
        pcm.parts(pipe(data.getvalue()))


def test_text_comes_while_the_pipe_is_open(spoken: tuple[np.ndarray, list[str]]) -> None:
    waveform, expected = spoken
    command = [sys.executable, "-m", "ark_asr_onnx", "transcribe", "-m", str(DEMO), "-"]
    environment = {"PYTHONPATH": str(Path(ark_asr_onnx.__file__).parent.parent)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(wav(waveform))
        process.stdin.flush()
        lines = [process.stdout.readline().decode() for _ in expected]
        assert process.poll() is None  # it still listens
        process.stdin.close()
        assert process.stdout.read() == b""
    assert lines == [f"{text}\n" for text in expected]
    assert process.returncode == 0


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_what_cannot_be_read_as_it_comes_is_read_to_its_end(
    kind: str, samples: list[Sample], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = io.BytesIO()
    soundfile.write(data, soundfile.read(samples[0].path)[0], RATE, format=kind)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream(data.getvalue())))
    assert cli.main(["transcribe", "-m", str(DEMO), "-"]) == 0
    assert capsys.readouterr().out == f"{samples[0].text}\n"


def test_words_of_a_pipe_have_times(
    spoken: tuple[np.ndarray, list[str]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    waveform, expected = spoken
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream(wav(waveform))))
    assert cli.main(["transcribe", "-m", str(DEMO), "-f", "jsonl", "--words", "-"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [" ".join(word["word"] for word in row["words"]) for row in rows] == expected


# Listening ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [160, 512, 5000])
def test_each_sentence_is_a_segment_when_it_has_ended(
    n: int, demo: Transcriber, spoken: tuple[np.ndarray, list[str]]
) -> None:
    waveform, expected = spoken
    heard = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal heard
        for i in range(0, len(waveform), n):
            heard = i + n
            yield waveform[i : i + n]

    found: list[str] = []
    for segment in demo.listen(blocks(), RATE):
        assert segment.is_final
        # Not later than a pause and a little more after the speech.
        assert heard / RATE < segment.end + 0.7 + 0.1 + n / RATE
        found.append(segment.text)
    assert found == expected


def test_what_was_heard_so_far_is_told_on_request(
    demo: Transcriber, spoken: tuple[np.ndarray, list[str]]
) -> None:
    waveform, expected = spoken
    segments = list(
        demo.listen(np.split(waveform, 400 * np.arange(1, 700)), RATE, partial_seconds=0.5)
    )
    final = [s.text for s in segments if s.is_final]
    assert final == expected
    partial = [s for s in segments if not s.is_final]
    assert len(partial) > 5
    for after in (s for s in segments if s.is_final):
        before = [p for p in partial if p.start == after.start]
        assert before
        assert all(p.end <= after.end + 0.2 for p in before)
        assert len(before[0].text) <= len(before[-1].text) <= len(after.text)


def test_silence_says_nothing(demo: Transcriber) -> None:
    assert list(demo.listen([QUIET] * 5, RATE, partial_seconds=0.5)) == []


def test_a_partial_text_needs_a_time(demo: Transcriber) -> None:
    with pytest.raises(ValueError, match="partial_seconds is 0"):
        demo.listen([], RATE, partial_seconds=0)


def test_doubts_about_live_audio_count_when_it_is_strict(
    spoken: tuple[np.ndarray, list[str]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for options, status in (([], 0), (["--strict"], 3)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream(wav(spoken[0])[:-32000])))
        assert cli.main(["transcribe", "-m", str(DEMO), *options, "-"]) == status
        captured = capsys.readouterr()
        assert captured.out.splitlines() == spoken[1]
        assert captured.err.startswith("warning: -: cut off: its header says ")


def test_options_that_a_header_overrules_are_told(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waveform = soundfile.read(samples[0].path, dtype="float32")[0]
    for data, words in (
        (wav(waveform), "has a header: --rate and --channels are not used"),
        (samples[0].path.read_bytes(), "is a file with a header: --rate, --channels, --partial"),
    ):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream(data)))
        options = ["--rate", "8000", "--channels", "1", "--partial", "60"]
        assert cli.main(["transcribe", "-m", str(DEMO), *options, "-"]) == 0
        captured = capsys.readouterr()
        assert captured.out == f"{samples[0].text}\n"
        assert f"warning: standard input {words}" in captured.err


# A microphone -------------------------------------------------------------------------------------


class FakeSound:
    """sounddevice with a tape in it, of a device that has but one rate and number of channels."""

    class PortAudioError(Exception):
        pass

    def __init__(self, tape: np.ndarray, rate: int = RATE, channels: int = 1) -> None:
        self.tape = np.repeat((32767 * tape).astype("<i2")[:, None], channels, axis=1)
        self.rate, self.channels = rate, channels
        self.asked: list[tuple[int, int]] = []
        self.state, self.status = "closed", SimpleNamespace(input_overflow=False)
        self.times: Iterator[float] = iter(())
        self.active = True

    def query_devices(self, device: object, kind: str) -> dict[str, Any]:
        assert kind == "input"
        if device == "none":
            raise ValueError("no such device")
        return {"default_samplerate": float(self.rate), "max_input_channels": self.channels}

    def RawInputStream(self, samplerate: int, channels: int, **asked: Any) -> FakeSound:
        self.asked.append((samplerate, channels))
        if asked["device"] == "none":
            raise self.PortAudioError("no such device")
        if (samplerate, channels) != (self.rate, self.channels):
            raise self.PortAudioError("Invalid sample rate [PaErrorCode -9997]")
        self.hear, self.block_size = asked["callback"], asked["blocksize"]
        self.state = "ready"
        return self

    def start(self) -> None:
        self.state = "open"
        for i in range(0, len(self.tape), self.block_size):
            when = SimpleNamespace(inputBufferAdcTime=next(self.times, 0.0))
            block = self.tape[i : i + self.block_size]
            self.hear(block.tobytes(), len(block), when, self.status)

    def close(self) -> None:
        self.state = "closed"


def mic(*options: object) -> int:
    return cli.main(["mic", "-m", str(DEMO), *map(str, options)])


def test_a_microphone_is_listened_to_until_the_end_of_the_block(
    demo: Transcriber, spoken: tuple[np.ndarray, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    waveform, expected = spoken
    sound = FakeSound(waveform)
    monkeypatch.setitem(sys.modules, "sounddevice", sound)
    with microphone.opened() as (blocks, rate):
        segments = demo.listen(blocks, rate)
        assert [next(segments).text for _ in expected] == expected
        assert sound.state == "open"
        assert sound.asked == [(RATE, 1)]
    assert sound.state == "closed"


@pytest.mark.parametrize(
    ("rate", "channels"), [(48000, 1), (44100, 2), (16000, 2), (48000, 6), (8000, 1)]
)
def test_a_microphone_is_heard_with_its_own_rate_and_channels(
    rate: int, channels: int, spoken: tuple[np.ndarray, list[str]],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    waveform, expected = spoken
    sound = FakeSound(soxr.resample(waveform, RATE, rate), rate, channels)
    sound.active = False  # the tape is its all
    monkeypatch.setitem(sys.modules, "sounddevice", sound)
    assert mic() == 1
    captured = capsys.readouterr()
    if rate > 8000:
        assert captured.out.splitlines() == expected
    assert len(captured.out.splitlines()) == 3
    assert sound.asked[-1] == (rate, channels)


def test_words_of_a_microphone_have_times(
    spoken: tuple[np.ndarray, list[str]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    waveform, expected = spoken
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSound(waveform))
    assert mic("-f", "jsonl", "--words") == 1  # the tape ends, as if it were unplugged
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [" ".join(word["word"] for word in row["words"]) for row in rows] == expected
    assert all(row["start"] == row["words"][0]["start"] for row in rows)
    with pytest.raises(SystemExit, match="2"):
        mic("--words")
    assert "--words: for a format that has times, such as -f jsonl" in capsys.readouterr().err


def test_a_microphone_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", sound := FakeSound(QUIET))
    assert mic("--device", "none") == 1
    assert "error: the microphone cannot be opened (no such device)" in capsys.readouterr().err
    assert sound.state == "closed"
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    monkeypatch.setattr(ark_asr_onnx, "load", None)  # it is told before
    assert mic() == 1
    assert "pip install 'ark-asr-onnx[mic]'" in capsys.readouterr().err


def test_a_microphone_that_stops_is_told_and_its_words_are_kept(
    spoken: tuple[np.ndarray, list[str]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    waveform, expected = spoken
    sound = FakeSound(waveform[: -len(QUIET)])  # no pause behind the last word
    monkeypatch.setitem(sys.modules, "sounddevice", sound)
    for active in (False, True):  # not every driver says that its device is gone
        sound.active = active
        assert mic() == 1
        captured = capsys.readouterr()
        assert captured.out.splitlines() == expected
        assert captured.err.endswith(
            "error: the microphone has stopped, perhaps it was unplugged; what was heard is kept\n"
        )
        assert sound.state == "closed"


def test_a_microphone_without_a_sound_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", sound := FakeSound(QUIET[:0]))
    sound.active = False
    assert mic() == 1
    assert "error: the microphone has stopped" in capsys.readouterr().err


def test_a_microphone_is_closed_when_anything_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", sound := FakeSound(QUIET))
    assert cli.main(["mic", "-m", "nowhere"]) == 1
    assert sound.asked == []  # the model comes first, so that nothing is heard before "listening"

    def fail() -> None:
        raise sound.PortAudioError("Device unavailable")

    monkeypatch.setattr(sound, "start", fail)
    assert mic() == 1
    assert "cannot be opened (Device unavailable)" in capsys.readouterr().err
    assert sound.state == "closed"


def test_samples_that_are_lost_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = np.zeros(10 * 512)
    for times, words in (
        ((), "samples were lost before 10 of its blocks (how many, the device does not tell)"),
        ((0.032 * i + 0.1 * (i > 4) for i in range(1, 11)), "of its blocks (0.10 s)"),
    ):
        sound = FakeSound(tape)
        sound.status.input_overflow = True
        sound.times = iter(times)
        monkeypatch.setitem(sys.modules, "sounddevice", sound)
        with pytest.warns(UserWarning) as found, microphone.opened() as (blocks, _):
            assert len(next(blocks)) == 512
        assert [words in str(warning.message) for warning in found] == [True]


def test_what_waits_for_a_slow_model_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = FakeSound(np.zeros(150 * RATE))
    sound.active = False
    monkeypatch.setitem(sys.modules, "sounddevice", sound)
    n_heard = 0
    with (
        pytest.warns(UserWarning, match=r"30\.0 s were lost: more than 120 s of audio wait"),
        microphone.opened() as (blocks, _),
        pytest.raises(AudioError, match="has stopped"),
    ):
        for block in blocks:
            n_heard += len(block)
    assert n_heard == 120 * RATE


@pytest.mark.usefixtures("ctrl_c_counts")
def test_ctrl_c_ends_listening(
    spoken: tuple[np.ndarray, list[str]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    waveform, expected = spoken
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSound(waveform[: -len(QUIET)]))

    def interrupted(_: object) -> bool:  # just after the last word
        signal.raise_signal(signal.SIGINT)
        return True

    monkeypatch.setattr(FakeSound, "active", property(interrupted, lambda *_: None), raising=False)
    assert mic() == 130
    captured = capsys.readouterr()
    assert captured.out.splitlines() == expected
    assert captured.err.endswith("interrupted\n")


@pytest.mark.usefixtures("ctrl_c_counts")
def test_ctrl_c_while_the_model_works_loses_nothing(
    spoken: tuple[np.ndarray, list[str]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    waveform, expected = spoken
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSound(waveform))
    step = Slots.step
    is_first = True

    def interrupted(slots: Slots) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            signal.raise_signal(signal.SIGINT)
        step(slots)

    monkeypatch.setattr(Slots, "step", interrupted)
    assert mic() == 130
    assert capsys.readouterr().out.splitlines() == expected


def test_a_live_part_is_not_selected_by_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (["--begin", "1"], ["--end", "1"], ["-f", "srt"], ["-o", "folder"]):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream(wav(QUIET))))
        with pytest.raises(SystemExit) as exit_info:
            cli.main(["transcribe", "-m", str(DEMO), *options, "-"])
        assert exit_info.value.code == 2
        assert "ark-asr" in capsys.readouterr().err


def test_what_follows_the_samples_of_a_wav_is_not_heard() -> None:
    data = wav(np.full(4000, 0.5)) + b"LIST\x04\x00\x00\x00abcd"
    assert n_samples(pipe(data)) == 4000


def test_a_wav_that_ends_too_early_says_so() -> None:
    cut = pipe(wav(np.full(4000, 0.5))[:-1000])
    with pytest.warns(
        UserWarning, match=r"standard input: cut off: its header says 0.25 s, 0.22 s came"
    ):
        assert n_samples(cut) == 3500


def test_samples_without_a_header_are_taken_for_something_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, words in (
        ([], "taken for 16-bit samples, 16000 a second"),
        (["--rate", 8000], ""),
    ):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream(bytes(64000))))
        assert cli.main(["transcribe", "-m", str(DEMO), *map(str, options), "-"]) == 0
        captured = capsys.readouterr()
        assert captured.out == ""
        assert (words in captured.err) if words else captured.err == ""
    m4a = b"\0\0\0 ftypM4A " + bytes(99)
    words = "not readable as audio" if containers.has_media() else "ark-asr-onnx[media]"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream(m4a)))
    assert cli.main(["transcribe", "-m", str(DEMO), "-"]) == 1
    assert words in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["transcribe", "-m", str(DEMO), "-"]) == 1
    assert "standard input is closed" in capsys.readouterr().err


@pytest.mark.parametrize("subtype", ["FLOAT", "ULAW"])
def test_a_wav_of_another_encoding_is_read_to_its_end(
    subtype: str, samples: list[Sample], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = io.BytesIO()
    soundfile.write(data, sources.read(samples[0].path), RATE, format="WAV", subtype=subtype)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream(data.getvalue())))
    assert cli.main(["transcribe", "-m", str(DEMO), "-"]) == 0
    assert capsys.readouterr().out == f"{samples[0].text}\n"
