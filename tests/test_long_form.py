"""Long audio on real speech: nothing lost, times right, memory constant, ended when asked."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DEMO, SLOTS_DIFFER, SPEECH, Sample
from long_form import Sentence, joined, peak_memory, rates, sentences, write_long

import ark_asr_onnx
from ark_asr_onnx import ArkError, AudioError, Clip, Splitting, Transcriber, Transcript
from ark_asr_onnx.audio import sources
from ark_asr_onnx.commands.cli import main

RATE = 16000
needs_speech = pytest.mark.skipif(not SPEECH.is_dir(), reason="the speech corpus is not here")


@pytest.fixture(scope="module")
def demo(demo_package_of_each_layout: Path) -> Transcriber:
    return ark_asr_onnx.load(demo_package_of_each_layout)


@pytest.fixture(scope="module")
def meeting(samples: list[Sample]) -> tuple[np.ndarray, list[Sentence]]:
    """Two minutes of the sample clips with silences."""
    clips = [Sentence(sources.read(s.path), s.text, 0, 0) for s in samples]
    return joined(clips, 2, (0.8, 2.0))


@needs_speech
def test_half_an_hour_is_heard_as_well_as_its_sentences() -> None:
    jiwer = pytest.importorskip("jiwer")
    clips = sentences(SPEECH)
    waveform, said = joined(clips, 30, (0.8, 2.0))
    transcriber = ark_asr_onnx.load(DEMO)
    texts = {id(c.waveform): transcriber.transcribe(c.waveform, RATE).text for c in clips}
    alone = jiwer.wer(" ".join(s.text for s in said), " ".join(texts[id(s.waveform)] for s in said))
    transcript = transcriber.transcribe(waveform, RATE)
    found = rates(said, transcript.segments)
    assert found["wer"] <= alone + 0.01
    assert found["starts"] >= 0.95
    assert found["ends"] >= 0.95
    assert transcript.duration == pytest.approx(len(waveform) / RATE)
    assert transcript.covered_seconds >= 0.99 * transcript.speech_seconds
    spoken = sum(s.end - s.begin for s in said)
    assert transcript.speech_seconds == pytest.approx(spoken, rel=0.1)


@needs_speech
def test_read_chapters_of_more_than_a_minute_run_end_to_end(demo: Transcriber) -> None:
    rows = [json.loads(line) for line in (SPEECH / "read" / "dev.jsonl").read_text().splitlines()]
    speakers = sorted({row["speaker"] for row in rows if row["speaker"].startswith("libri-")})
    assert len(speakers) == 5
    for speaker in speakers:
        paths = [SPEECH / "read" / row["audio"] for row in rows if row["speaker"] == speaker]
        chapter = np.concatenate([sources.read(p) for p in sorted(paths)])
        assert len(chapter) > 60 * RATE
        transcript = demo.transcribe(chapter, RATE)
        assert transcript.duration == pytest.approx(len(chapter) / RATE)
        segments = transcript.segments
        assert all(s.end - s.start <= 15 for s in segments)
        assert all(a.end <= b.start for a, b in itertools.pairwise(segments))
        assert transcript.speech_seconds > 0.6 * transcript.duration  # people who read hardly pause


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_file(
    meeting: tuple[np.ndarray, list[Sentence]], tmp_path: Path
) -> None:
    found: list[float] = []
    for minutes in (1, 20):
        path = tmp_path / f"{minutes}.wav"
        write_long(path, meeting[0], 60 * minutes)
        found.append(peak_memory(DEMO, path))
    assert found[1] < found[0] + 25  # MB; the samples of 20 minutes alone are 77 in memory


def test_any_number_of_slots_gives_the_same_segments(
    demo: Transcriber, meeting: tuple[np.ndarray, list[Sentence]]
) -> None:
    waveform, said = meeting
    one, three, eight = (demo.transcribe(waveform, RATE, slots=n) for n in (1, 3, 8))
    assert len(one.segments) == len(said)
    assert one.text == " ".join(s.text for s in one.segments) == three.text == eight.text
    for other in (three, eight):
        assert [s.token_ids for s in other.segments] == [s.token_ids for s in one.segments]
        assert other.logprobs == pytest.approx(one.logprobs, abs=SLOTS_DIFFER)
    assert one.finish_reason == "stop"
    assert one.flagged == ()
    # Cut out of their silence, a few are understood a little differently.
    same = [a.text == b.text for a, b in zip(one.segments, said, strict=True)]
    assert sum(same) >= 0.8 * len(same)


def test_segments_come_while_the_audio_is_read(
    demo: Transcriber, meeting: tuple[np.ndarray, list[Sentence]]
) -> None:
    waveform, said = meeting
    stream = demo.stream(waveform, RATE, slots=2)
    first = next(stream)
    assert said[0].text.startswith(first.text[:5])
    partial = stream.transcript()
    assert partial.text.startswith(first.text)  # more may be finished by now
    assert partial.duration < 40  # it has not been read to its end
    stream.close()
    assert list(stream) == []
    assert stream.transcript().segments[0] == first


def test_times_are_those_of_the_file_also_in_a_part_of_it(
    demo: Transcriber, meeting: tuple[np.ndarray, list[Sentence]]
) -> None:
    waveform, _ = meeting
    whole = demo.transcribe(waveform, RATE)
    at = whole.segments[3].start - 0.3
    part = demo.transcribe(waveform, RATE, begin_seconds=at)
    assert part.duration == pytest.approx(len(waveform) / RATE - at)
    starts = [s.start for s in part.segments]
    assert starts == pytest.approx([s.start for s in whole.segments[3:]], abs=0.2)


def test_progress_is_told_in_seconds(
    demo: Transcriber, meeting: tuple[np.ndarray, list[Sentence]]
) -> None:
    told: list[float] = []
    transcript = demo.transcribe(meeting[0], RATE, on_progress=told.append)
    assert told == [*(s.end for s in transcript.segments), transcript.duration]
    assert told == sorted(told)


def test_without_a_detector_windows_are_cut_at_quiet_points(
    demo: Transcriber, meeting: tuple[np.ndarray, list[Sentence]]
) -> None:
    waveform, _ = meeting
    transcript = demo.transcribe(waveform, RATE, splitting=Splitting(vad=None))
    segments = transcript.segments
    assert segments[0].start == 0
    assert [s.start for s in segments[1:]] == [s.end for s in segments[:-1]]
    assert segments[-1].end == pytest.approx(transcript.duration, abs=0.04)
    assert transcript.speech_seconds == pytest.approx(transcript.duration, abs=0.04)


def test_a_window_longer_than_the_model_hears_is_refused_at_once(demo: Transcriber) -> None:
    with pytest.raises(ValueError, match="this model hears at most 30 s at once"):
        demo.stream(np.zeros(RATE, np.float32), RATE, splitting=Splitting(window_seconds=31))
    with pytest.raises(ValueError, match="slots is 0"):
        demo.stream(np.zeros(RATE, np.float32), RATE, slots=0)


def test_an_error_far_in_comes_after_the_segments_before_it(
    demo: Transcriber, meeting: tuple[np.ndarray, list[Sentence]]
) -> None:
    waveform = meeting[0].copy()
    waveform[60 * RATE] = np.nan
    stream = demo.stream(waveform, RATE, slots=1)
    segments: list[Any] = []
    with pytest.raises(AudioError, match=r"60\.000 s\) is NaN"):
        segments.extend(stream)
    assert len(stream.transcript().segments) > 10


# Many files --------------------------------------------------------------------------------------


def test_many_clips_give_their_transcripts_in_order(
    demo: Transcriber, samples: list[Sample], meeting: tuple[np.ndarray, list[Sentence]]
) -> None:
    clips: list[Clip] = [Clip(s.path) for s in samples]
    clips.insert(2, Clip(meeting[0], RATE))
    clips.insert(4, Clip("no such file.wav"))
    clips.insert(5, Clip(np.zeros(40 * RATE, np.float32), RATE))  # longer than a window: nothing
    clips.insert(6, Clip(np.zeros(100, np.float32), RATE))
    clips.append(Clip(samples[0].path, begin_seconds=2, end_seconds=1))
    found: list[Transcript | ArkError] = list(demo.transcribe_many(iter(clips)))
    assert len(found) == len(clips)
    assert isinstance(found[4], AudioError)
    assert isinstance(found[6], AudioError)
    assert "too short" in str(found[6])
    assert "is empty" in str(found[-1])
    for clip, result in zip(clips, found, strict=True):
        if not isinstance(result, ArkError):
            expected = demo.transcribe(clip.source, clip.sample_rate)
            assert result.text == expected.text
            assert result.duration == expected.duration
            assert [s.start for s in result.segments] == [s.start for s in expected.segments]
            assert result.timings.total > 0


def test_clips_are_taken_as_there_is_room(demo: Transcriber, samples: list[Sample]) -> None:
    taken: list[int] = []

    def clips() -> Any:
        for i in range(50):
            taken.append(i)
            yield Clip(samples[i % 6].path)

    results = demo.transcribe_many(clips(), slots=4)
    next(results)
    assert len(taken) < 20
    results.close()  # pyright: ignore[reportAttributeAccessIssue] - a generator


@needs_speech
@pytest.mark.parametrize(
    ("split", "rate"), [("sentences", 7.87), ("digits", 2.96), ("words", 6.58)]
)
def test_evaluating_the_dev_splits_gives_the_figures_of_the_card(
    split: str, rate: float, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jiwer")
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {split} |")]
    assert line.split("|")[6].strip() == f"{rate} %"
    manifest = SPEECH / split / "dev.jsonl"
    options = ["--input", str(manifest), "--no-normalize"]
    assert main(["evaluate", "-m", str(DEMO), *options]) == 0
    assert f"WER {rate} % (95 %: " in capsys.readouterr().out
