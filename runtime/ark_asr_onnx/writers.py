"""A transcript as text, subtitles, a table, or JSON, in the formats of ``openai/whisper``.

Each writer is a pure function that returns the whole file; it ends lines with ``\\n`` on every
system. The caller chooses names and folders, and writes the files as UTF-8.

The first five give the same bytes as whisper 20250625 (``whisper/utils.py``, ``WriteTXT``,
``WriteSRT``, ``WriteVTT``, ``WriteTSV``, ``WriteJSON``) for the same segments, with one
difference: segments without text get no line and no cue. JSON keeps them. Without words, there are
no fields of words.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from .subtitles import Cue, CueLayout, cues
from .transcript import Segment, Transcript, Word


@dataclass(frozen=True, slots=True)
class Style:
    """How the formats use times of words."""

    layout: CueLayout | None = None  # of cues; None: one cue per segment, as whisper
    inline_times: bool = False  # times of words within WebVTT's cues
    words: bool | None = None  # in JSON; None: if there are any


def write(transcript: Transcript, kind: str, style: Style | None = None) -> str:
    """A transcript in one of the formats of :data:`WRITERS`."""
    style = style or Style()
    if kind == "srt":
        return to_srt(transcript, style.layout)
    if kind == "vtt":
        return to_vtt(transcript, style.layout, inline_times=style.inline_times)
    if kind == "json":
        return to_json(transcript, words=style.words)
    if kind == "jsonl":
        return to_jsonl(transcript, words=style.words)
    return WRITERS[kind](transcript)


def to_txt(transcript: Transcript) -> str:
    """One line of text per segment, without times."""
    return "".join(f"{segment.text.strip()}\n" for segment in _spoken(transcript))


def to_srt(transcript: Transcript, layout: CueLayout | None = None) -> str:
    """SubRip subtitles: numbered cues from 1, hours always shown, a comma before milliseconds.

    With a ``layout``, cues are made of words, see :func:`.subtitles.cues`. Raises ``ValueError`` if
    the transcript has no words.
    """
    found = _spoken(transcript) if layout is None else cues(transcript.segments, layout)
    return "".join(
        f"{number}\n{_times(cue, ',', hours=True)}\n{_plain(cue.text)}\n\n"
        for number, cue in enumerate(found, start=1)
    )


def to_vtt(
    transcript: Transcript, layout: CueLayout | None = None, *, inline_times: bool = False
) -> str:
    """WebVTT subtitles: cues without numbers, hours shown only in times that have them.

    With a ``layout``, cues are made of words; with ``inline_times``, every word of a cue but the
    first has its time before it. Both raise ``ValueError`` without words, and escape characters
    that WebVTT would read as a tag, which whisper does not.
    """
    if layout is None and not inline_times:
        found = [(cue, _plain(cue.text)) for cue in _spoken(transcript)]
    else:
        found = [(cue, _marked(cue, inline_times)) for cue in cues(transcript.segments, layout)]
    return "WEBVTT\n\n" + "".join(
        f"{_times(cue, '.', hours=False)}\n{text}\n\n" for cue, text in found
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


def to_json(transcript: Transcript, *, words: bool | None = None) -> str:
    """One JSON object in ASCII, without an end of line, as whisper's.

    Its keys are whisper's where there is a counterpart, then this package's. ``language`` is
    missing because the model does not report it. Texts are not stripped. ``words`` are those of
    segments; None: if there are any.
    """
    has_words = bool(transcript.words) if words is None else words
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
            **_words(segment, has_words),
        }
        for index, segment in enumerate(transcript.segments)
    ]
    timings = asdict(transcript.timings)
    if not has_words:
        del timings["words"]
    return json.dumps(
        {
            "text": transcript.text,
            "segments": segments,
            "duration": transcript.duration,
            "timings": timings,
            "finish_reason": transcript.finish_reason,
            "speech_seconds": transcript.speech_seconds,
            "covered_seconds": transcript.covered_seconds,
            "warnings": [asdict(warning) for warning in transcript.warnings],
        }
    )


def to_jsonl(transcript: Transcript, *, words: bool | None = None) -> str:
    """One line of JSON per segment, UTF-8 unescaped; for logs and streams."""
    has_words = bool(transcript.words) if words is None else words
    lines = (segment_to_json(segment, words=has_words) for segment in transcript.segments)
    return "".join(f"{line}\n" for line in lines)


def segment_to_json(segment: Segment, *, words: bool = False) -> str:
    """One line of JSON, UTF-8 unescaped."""
    fields = {
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "avg_logprob": segment.mean_logprob,
        "finish_reason": segment.finish_reason,
        **_words(segment, words),
    }
    return json.dumps(fields, ensure_ascii=False)


def word_fields(word: Word) -> dict[str, Any]:
    """A word with whisper's keys."""
    return {
        "word": word.text,
        "start": word.start,
        "end": word.end,
        "probability": word.probability,
    }


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
    """Segments with text; a cue without text would be a flaw."""
    return [segment for segment in transcript.segments if segment.text.strip()]


def _words(segment: Segment, has_words: bool) -> dict[str, Any]:
    return {"words": [word_fields(word) for word in segment.words]} if has_words else {}


def _plain(text: str) -> str:
    """Text without arrows, which would be read as a line of times.

    One pass, as in whisper: a longer arrow (``---->``) leaves an arrow.
    """
    return text.strip().replace("-->", "->")


def _marked(cue: Cue, inline_times: bool) -> str:
    """A cue's text in WebVTT; with inline times if they grow and lie within the cue's times."""
    found: list[str] = []
    before, end = _milliseconds(cue.start), _milliseconds(cue.end)
    for i, piece in enumerate(cue.pieces):
        found.append(piece.space)
        if inline_times and i and before < (time := _milliseconds(piece.start)) < end:
            found.append(f"<{_timestamp(piece.start, '.', hours=True)}>")
            before = time
        found.append(html.escape(piece.text, quote=False))
    return "".join(found)


def _times(cue: Segment | Cue, decimal_marker: str, *, hours: bool) -> str:
    """The line ``start --> end`` of a cue."""
    start = _timestamp(cue.start, decimal_marker, hours=hours)
    end = _timestamp(cue.end, decimal_marker, hours=hours)
    return f"{start} --> {end}"


def _timestamp(seconds: float, decimal_marker: str, *, hours: bool) -> str:
    """``[HH:]MM:SS.mmm``; hours if ``hours``, or if there are any.

    >>> _timestamp(59.9999, ".", hours=False)
    '01:00.000'
    """
    # To milliseconds first, so that rounding up carries into seconds, minutes and hours.
    n_seconds, ms = divmod(_milliseconds(seconds), 1000)
    n_minutes, s = divmod(n_seconds, 60)
    h, m = divmod(n_minutes, 60)
    prefix = f"{h:02d}:" if hours or h else ""
    return f"{prefix}{m:02d}:{s:02d}{decimal_marker}{ms:03d}"


def _milliseconds(seconds: float) -> int:
    """Seconds rounded to the nearest millisecond, halves to the even one (0.0005 s gives 0)."""
    return round(1000 * seconds)
