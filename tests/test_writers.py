"""Files of a transcript: the first five formats against openai-whisper's own writers.

``golden/whisper.*`` are what openai-whisper wrote for ``golden/segments.json``; the command that
makes them is in ``golden/whisper_writers.py``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ark_asr_onnx import CueLayout, Word
from ark_asr_onnx.transcript import Segment, Timings, Transcript
from ark_asr_onnx.writers import WRITERS, Style, segment_to_json, to_srt, to_vtt, write

GOLDEN = Path(__file__).parent / "golden"
RESULT: dict[str, Any] = json.loads((GOLDEN / "segments.json").read_text(encoding="utf-8"))


def segment(**fields: Any) -> Segment:
    """A segment from the fields of one in JSON."""
    return Segment(
        start=fields["start"],
        end=fields["end"],
        text=fields["text"],
        raw_text=fields["raw_text"],
        token_ids=tuple(fields["tokens"]),
        logprobs=tuple(fields["logprobs"]),
        finish_reason=fields["finish_reason"],
        speech_seconds=fields["speech_seconds"],
    )


def transcript(*segments: Segment, text: str = "") -> Transcript:
    return Transcript(
        text=text,
        segments=segments,
        duration=RESULT["duration"],
        timings=Timings(**RESULT["timings"]),
    )


SEGMENTS = tuple(segment(**fields) for fields in RESULT["segments"])
FULL = transcript(*SEGMENTS, text=RESULT["text"])
BLANK = replace(SEGMENTS[0], text=" \t\n")
EMPTY = transcript()


def test_the_formats_are_those_of_whisper_and_json_lines() -> None:
    assert list(WRITERS) == ["txt", "srt", "vtt", "tsv", "json", "jsonl"]


@pytest.mark.parametrize("name", ["txt", "srt", "vtt", "tsv", "json"])
def test_a_file_has_the_bytes_that_whisper_writes(name: str) -> None:
    assert WRITERS[name](FULL).encode("utf-8") == (GOLDEN / f"whisper.{name}").read_bytes()


@pytest.mark.parametrize("name", ["txt", "srt", "vtt", "tsv"])
def test_segments_without_text_get_no_line_and_no_number(name: str) -> None:
    with_blanks = transcript(BLANK, SEGMENTS[0], BLANK, *SEGMENTS[1:], BLANK)

    assert WRITERS[name](with_blanks) == WRITERS[name](FULL)


def test_json_keeps_segments_without_text() -> None:
    written = transcript(SEGMENTS[0], BLANK)

    segments = json.loads(WRITERS["json"](written))["segments"]
    lines = WRITERS["jsonl"](written).splitlines()

    assert [s["id"] for s in segments] == [0, 1]
    assert [s["text"] for s in segments] == [SEGMENTS[0].text, BLANK.text]
    assert [json.loads(line)["text"] for line in lines] == [SEGMENTS[0].text, BLANK.text]


@pytest.mark.parametrize(
    ("name", "expected"),  # as whisper's writers for an empty list of segments
    [
        ("txt", ""),
        ("srt", ""),
        ("vtt", "WEBVTT\n\n"),
        ("tsv", "start\tend\ttext\n"),
        ("jsonl", ""),
    ],
)
def test_without_segments_only_the_heading_is_written(name: str, expected: str) -> None:
    assert WRITERS[name](EMPTY) == expected


@pytest.mark.parametrize("name", ["txt", "srt", "vtt", "tsv"])
def test_a_transcript_of_silence_is_written_as_one_without_segments(name: str) -> None:
    assert WRITERS[name](transcript(BLANK)) == WRITERS[name](EMPTY)


def test_json_of_a_transcript_without_segments_has_all_keys() -> None:
    read = json.loads(WRITERS["json"](EMPTY))

    assert list(read) == list(RESULT)
    assert (read["text"], read["segments"], read["finish_reason"]) == ("", [], "stop")


def test_json_reads_back_as_the_transcript() -> None:
    read = json.loads(WRITERS["json"](FULL))

    assert read == RESULT
    assert transcript(*(segment(**s) for s in read["segments"]), text=read["text"]) == FULL


def test_json_lines_are_one_object_per_segment() -> None:
    written = WRITERS["jsonl"](FULL)

    assert written.endswith("}\n")
    assert [json.loads(line) for line in written.removesuffix("\n").split("\n")] == [
        {
            "start": s.start,
            "end": s.end,
            "text": s.text,
            "avg_logprob": s.mean_logprob,
            "finish_reason": s.finish_reason,
        }
        for s in SEGMENTS
    ]


def test_json_is_ascii_and_json_lines_are_not_escaped() -> None:
    assert WRITERS["json"](FULL).isascii()
    assert all(
        word in WRITERS["jsonl"](FULL) for word in ("Größe", "你好", "안녕하세요", "\U0001f600")
    )


@pytest.mark.parametrize("name", list(WRITERS))
def test_lines_end_with_a_line_feed_alone(name: str) -> None:
    assert "\r" not in WRITERS[name](FULL)


def test_milliseconds_rounded_up_carry_into_minutes_and_hours() -> None:
    cues = transcript(
        replace(SEGMENTS[0], start=59.9999, end=3599.9995),
        replace(SEGMENTS[0], start=3599.9994, end=3600.0),
    )

    times = [line for line in WRITERS["vtt"](cues).splitlines() if "-->" in line]

    assert times == ["01:00.000 --> 01:00:00.000", "59:59.999 --> 01:00:00.000"]


# Words --------------------------------------------------------------------------------------------


def word(text: str, start: float, end: float) -> Word:
    return Word(text, start, end, 0.5)


SAID = replace(
    SEGMENTS[0],
    start=3599.5,
    end=3601.0,
    text=" one <i>two & --> three. ",
    words=(
        word("one", 3599.5, 3599.75),
        word("<i>two &", 3599.75, 3600.1),
        word("-->", 3600.1, 3600.2),
        word("three.", 3600.5, 3601.0),
    ),
)
SILENT = replace(BLANK, text="")
TIMED = replace(transcript(SAID, SILENT), timings=replace(FULL.timings, words=0.5))
NARROW = CueLayout(max_line_width=8)


def test_times_of_words_are_in_json_where_there_are_any() -> None:
    first, second = json.loads(WRITERS["json"](TIMED))["segments"]
    assert first["words"][0] == {"word": "one", "start": 3599.5, "end": 3599.75, "probability": 0.5}
    assert [found["word"] for found in first["words"]] == ["one", "<i>two &", "-->", "three."]
    assert second["words"] == []
    assert list(first)[-1] == "words"
    assert json.loads(WRITERS["json"](TIMED))["timings"]["words"] == 0.5
    lines = [json.loads(line) for line in WRITERS["jsonl"](TIMED).splitlines()]
    assert [line["words"] for line in lines] == [first["words"], []]
    assert json.loads(segment_to_json(SAID, words=True)) == lines[0]


@pytest.mark.parametrize("name", list(WRITERS))
def test_nothing_of_words_is_written_where_nobody_asked(name: str) -> None:
    untold = replace(TIMED, timings=FULL.timings, segments=(replace(SAID, words=()), SILENT))
    assert write(TIMED, name, Style(words=False)) == write(untold, name) == WRITERS[name](untold)
    asked = json.loads(write(FULL, "json", Style(words=True)))["segments"]
    assert [found["words"] for found in asked] == [[] for _ in SEGMENTS]


def test_subtitles_of_words_have_their_layout() -> None:
    expected = (
        "1\n00:59:59,500 --> 01:00:00,100\none\n<i>two &\n\n"
        "2\n01:00:00,100 --> 01:00:01,100\n->\nthree.\n\n"
    )
    assert to_srt(TIMED, NARROW) == write(TIMED, "srt", Style(NARROW)) == expected
    expected = (
        "WEBVTT\n\n59:59.500 --> 01:00:00.100\none\n&lt;i&gt;two &amp;\n\n"
        "01:00:00.100 --> 01:00:01.100\n--&gt;\nthree.\n\n"
    )
    assert to_vtt(TIMED, NARROW) == write(TIMED, "vtt", Style(NARROW)) == expected


def test_webvtt_has_the_times_of_words_but_the_first() -> None:
    cue = "one <00:59:59.750>&lt;i&gt;two &amp; <01:00:00.100>--&gt; <01:00:00.500>three."
    expected = f"WEBVTT\n\n59:59.500 --> 01:00:01.000\n{cue}\n\n"
    assert to_vtt(TIMED, inline_times=True) == expected
    assert write(TIMED, "vtt", Style(inline_times=True)) == expected
    assert to_vtt(TIMED, CueLayout(), inline_times=True) == expected


def test_times_within_a_cue_grow() -> None:
    words = (word("a", 1, 1), word("b", 1.0001, 1.2), word("c", 1.2, 1.3), word("d", 1.2, 1.4))
    said = replace(SAID, text="a b c d", start=1.0, end=1.4, words=words)
    assert "\na b <00:00:01.200>c d\n" in to_vtt(transcript(said), inline_times=True)
    last = replace(said, end=1.2)
    assert "\na b c d\n" in to_vtt(transcript(last), inline_times=True)


@pytest.mark.parametrize("style", [Style(CueLayout()), Style(inline_times=True)])
def test_subtitles_of_words_need_some(style: Style) -> None:
    with pytest.raises(ValueError, match="no times of words"):
        write(FULL, "vtt", style)
    assert write(EMPTY, "vtt", style) == write(transcript(SILENT), "vtt", style) == "WEBVTT\n\n"
