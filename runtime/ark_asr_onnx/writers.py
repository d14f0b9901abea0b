"""A transcript as text, subtitles, a table, or JSON, in the formats of ``openai/whisper``.

Each writer is a pure function that gives back the whole file; it ends lines with ``\\n`` on every
system. Where files go, and what they are called, is the caller's matter: write them as UTF-8.

The first five give the same bytes as whisper 20250625 (``whisper/utils.py``, ``WriteTXT``,
``WriteSRT``, ``WriteVTT``, ``WriteTSV``, ``WriteJSON``) for the same segments, with one
difference: segments without text get no line and no cue. JSON keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from .transcript import Segment, Transcript


def to_txt(transcript: Transcript) -> str:
    """One line of text per segment, without times."""
    return "".join(f"{segment.text.strip()}\n" for segment in _spoken(transcript))


def to_srt(transcript: Transcript) -> str:
    """SubRip subtitles: numbered cues from 1, hours always shown, a comma before milliseconds."""
    return "".join(
        f"{number}\n{_times(segment, ',', hours=True)}\n{_cue_text(segment)}\n\n"
        for number, segment in enumerate(_spoken(transcript), start=1)
    )


def to_vtt(transcript: Transcript) -> str:
    """WebVTT subtitles: cues without numbers, hours shown only in times that have them."""
    return "WEBVTT\n\n" + "".join(
        f"{_times(segment, '.', hours=False)}\n{_cue_text(segment)}\n\n"
        for segment in _spoken(transcript)
    )


def to_tsv(transcript: Transcript) -> str:
    """A table ``start, end, text`` with a heading; times in integer milliseconds."""
    rows = (
        (_milliseconds(segment.start), _milliseconds(segment.end), segment.text.strip())
        for segment in _spoken(transcript)
    )
    return "start\tend\ttext\n" + "".join(
        "{}\t{}\t{}\n".format(start, end, text.replace("\t", " ")) for start, end, text in rows
    )


def to_json(transcript: Transcript) -> str:
    """One JSON object in ASCII, without an end of line, as whisper's.

    Its keys are whisper's where there is a counterpart, then ours. ``language`` is missing
    because the model does not tell it. Texts are not stripped.
    """
    segments = [
        {
            "id": index,
            "start": segment.start,
            "end": segment.end,
            "text": segment.text,
            "tokens": segment.token_ids,
            "avg_logprob": segment.mean_logprob,
            "finish_reason": segment.finish_reason,
            "logprobs": segment.logprobs,
            "raw_text": segment.raw_text,
            "speech_seconds": segment.speech_seconds,
        }
        for index, segment in enumerate(transcript.segments)
    ]
    return json.dumps(
        {
            "text": transcript.text,
            "segments": segments,
            "duration": transcript.duration,
            "timings": asdict(transcript.timings),
            "finish_reason": transcript.finish_reason,
            "speech_seconds": transcript.speech_seconds,
            "covered_seconds": transcript.covered_seconds,
            "warnings": [asdict(warning) for warning in transcript.warnings],
        }
    )


def to_jsonl(transcript: Transcript) -> str:
    """One line of JSON per segment, UTF-8 unescaped: what a log or a stream wants to read."""
    return "".join(f"{segment_to_json(segment)}\n" for segment in transcript.segments)


def segment_to_json(segment: Segment) -> str:
    """One line of JSON, UTF-8 unescaped."""
    fields = {
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "avg_logprob": segment.mean_logprob,
        "finish_reason": segment.finish_reason,
    }
    return json.dumps(fields, ensure_ascii=False)


WRITERS: dict[str, Callable[[Transcript], str]] = {
    "txt": to_txt,
    "srt": to_srt,
    "vtt": to_vtt,
    "tsv": to_tsv,
    "json": to_json,
    "jsonl": to_jsonl,
}
"""Writers by the name of their format, which is also the suffix of their files."""


def _spoken(transcript: Transcript) -> list[Segment]:
    """Segments with text; a cue without text is a flaw."""
    return [segment for segment in transcript.segments if segment.text.strip()]


def _cue_text(segment: Segment) -> str:
    """Text without the arrow that would read as a line of times.

    As in whisper, one pass: of a longer arrow (``---->``) an arrow remains.
    """
    return segment.text.strip().replace("-->", "->")


def _times(segment: Segment, decimal_marker: str, *, hours: bool) -> str:
    """The line ``start --> end`` of a cue."""
    start = _timestamp(segment.start, decimal_marker, hours=hours)
    end = _timestamp(segment.end, decimal_marker, hours=hours)
    return f"{start} --> {end}"


def _timestamp(seconds: float, decimal_marker: str, *, hours: bool) -> str:
    """``[HH:]MM:SS.mmm``; hours when asked for, or when there are any.

    >>> _timestamp(59.9999, ".", hours=False)
    '01:00.000'
    """
    # To milliseconds first, so that what is rounded up carries into seconds, minutes and hours.
    n_seconds, ms = divmod(_milliseconds(seconds), 1000)
    n_minutes, s = divmod(n_seconds, 60)
    h, m = divmod(n_minutes, 60)
    prefix = f"{h:02d}:" if hours or h else ""
    return f"{prefix}{m:02d}:{s:02d}{decimal_marker}{ms:03d}"


def _milliseconds(seconds: float) -> int:
    """Rounded to the nearest millisecond; halves go to the even one (0.0005 s gives 0)."""
    return round(1000 * seconds)
