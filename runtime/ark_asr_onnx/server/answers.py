"""Turns transcripts and failures into bodies: JSON, text, subtitles, events. Does no I/O.

Clients parse these shapes: every number of a segment is a JSON number, the deltas of a stream join
to its text, and an error has OpenAI's four keys and upstream's ``detail``.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..package.contract import Tokens
from ..transcript import Segment, Transcript
from ..writers import Style, word_fields, write
from .fields import Request

TokenText = Callable[[Sequence[int]], bytes]  # ids -> their text in UTF-8
_UPSTREAM_SAMPLING = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
_UTF8 = "; charset=utf-8"
MEDIA_TYPES = {
    "json": "application/json",
    "verbose_json": "application/json",
    "text": f"text/plain{_UTF8}",
    "srt": f"application/x-subrip{_UTF8}",
    "vtt": f"text/vtt{_UTF8}",
    "tsv": f"text/tab-separated-values{_UTF8}",
    "jsonl": f"application/jsonl{_UTF8}",
}
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


@dataclass(frozen=True, slots=True)
class Model:
    """The facts about the model that answers contain."""

    tokens: Tokens
    token_text: TokenText

    @property
    def n_prompt(self) -> int:
        """Number of ids in the prompt, the placeholder counted once; upstream's prompt tokens."""
        return len(self.tokens.prefix) + 1 + len(self.tokens.suffix)


def upstream(transcript: Transcript, request: Request, model: Model, seconds: float) -> bytes:
    """The body of ``/asr``, in upstream's order of keys."""
    return to_json(
        {
            "text": transcript.text,
            "latency_s": round(seconds, 6),
            "prompt_tokens": model.n_prompt,
            "sampling": {"max_new_tokens": request.max_new_tokens, **_UPSTREAM_SAMPLING},
            **_doubts(transcript),
        }
    )


def body(transcript: Transcript, request: Request, model: Model) -> bytes:
    """The body of a transcription in the requested format."""
    kind = request.response_format
    if kind == "json":
        return to_json(_short(transcript, request, model))
    if kind == "verbose_json":
        found = verbose(transcript, request)
        if request.wants_logprobs:
            found["logprobs"] = logprobs(transcript.segments, model)
        return to_json(found)
    if kind == "text":
        return f"{transcript.text}\n".encode()
    return write(transcript, kind, Style(request.layout)).encode()


def _short(transcript: Transcript, request: Request, model: Model) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": transcript.text,
        "usage": usage(transcript.segments, model),
        **_doubts(transcript),
    }
    if request.wants_logprobs:
        found["logprobs"] = logprobs(transcript.segments, model)
    return found


def verbose(transcript: Transcript, request: Request) -> dict[str, Any]:
    """``verbose_json``: OpenAI's ten values of each segment, two more, words, and warnings."""
    words = [word_fields(word) for word in transcript.words]
    return {
        "task": "transcribe",
        "language": request.language,
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "segments": _segments(transcript),
        **({"words": words} if request.wants_words else {}),
        "warnings": [asdict(warning) for warning in transcript.warnings],
        "usage": {"type": "duration", "seconds": math.ceil(transcript.duration)},
    }


def _doubts(transcript: Transcript) -> dict[str, Any]:
    """The warnings about the audio, if there are any."""
    found = [asdict(warning) for warning in transcript.warnings]
    return {"warnings": found} if found else {}


def _segments(transcript: Transcript) -> list[dict[str, Any]]:
    """Segments whose texts, with a space before all but the first, join to the whole text."""
    found: list[dict[str, Any]] = []
    space = ""
    for i, segment in enumerate(transcript.segments):
        found.append(_segment(i, segment, f"{space}{segment.text}" if segment.text else ""))
        space = " " if space or segment.text else ""
    return found


def _segment(index: int, segment: Segment, shown: str) -> dict[str, Any]:
    text = segment.text.encode()
    length = segment.end - segment.start
    silent = 1 - segment.speech_seconds / length if length > 0 else 0.0
    return {
        "id": index,
        "seek": round(100 * segment.start),
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": shown,
        "tokens": list(segment.token_ids),
        "temperature": 0.0,
        "avg_logprob": segment.mean_logprob if segment.logprobs else 0.0,
        "compression_ratio": len(text) / len(zlib.compress(text)) if text else 0.0,
        "no_speech_prob": min(max(silent, 0.0), 1.0),
        "finish_reason": segment.finish_reason,
        "speech_seconds": segment.speech_seconds,
    }


def usage(segments: Iterable[Segment], model: Model) -> dict[str, Any]:
    """Tokens read and written, over all windows."""
    windows = list(segments)
    n_audio = sum(segment.audio_tokens for segment in windows)
    n_text = (model.n_prompt - 1) * len(windows)
    n_output = sum(len(_spoken(segment, model.tokens)) for segment in windows)
    return {
        "type": "tokens",
        "input_tokens": n_text + n_audio,
        "input_token_details": {"text_tokens": n_text, "audio_tokens": n_audio},
        "output_tokens": n_output,
        "total_tokens": n_text + n_audio + n_output,
    }


def logprobs(segments: Iterable[Segment], model: Model) -> list[dict[str, Any]]:
    """An entry for each token of the text; a token may be a part of a character."""
    found: list[dict[str, Any]] = []
    for segment in segments:
        ids = _spoken(segment, model.tokens)
        for token_id, logprob in zip(ids, segment.logprobs, strict=False):
            text = model.token_text([token_id])
            entry = {"token": text.decode("utf-8", "replace"), "bytes": list(text)}
            found.append({**entry, "logprob": logprob})
    return found


def _spoken(segment: Segment, tokens: Tokens) -> tuple[int, ...]:
    """The ids of the text, without end of turn."""
    ids = segment.token_ids
    return ids[:-1] if ids and ids[-1] in tokens.stop else ids


class Events:
    """The events of a stream: one delta for each window; the deltas join to the text."""

    def __init__(self, request: Request, model: Model) -> None:
        self._request, self._model = request, model
        self._has_text = False

    def delta(self, segment: Segment) -> bytes:
        """The event with a window's text; empty without a text."""
        if not segment.text:
            return b""
        event: dict[str, Any] = {
            "type": "transcript.text.delta",
            "delta": f" {segment.text}" if self._has_text else segment.text,
        }
        self._has_text = True
        if self._request.wants_logprobs:
            event["logprobs"] = logprobs([segment], self._model)
        return _event(event)

    def done(self, transcript: Transcript) -> bytes:
        """The last event, with the whole text."""
        event = {
            "type": "transcript.text.done",
            **_short(transcript, self._request, self._model),
        }
        if self._request.response_format == "verbose_json":
            found = verbose(transcript, self._request)
            keys = ("language", "duration", "segments", "words", "warnings")
            event |= {key: found[key] for key in keys if key in found}
        return _event(event) + DONE


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a request has no transcript."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None
    is_final: bool = False  # a retry would fail in the same way

    @property
    def kind(self) -> str:
        """OpenAI's type of error."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's four keys."""
        return {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }  # fmt: skip

    def body(self) -> bytes:
        """The error of both dialects."""
        return to_json({"error": self.error, "detail": self.message})

    def event(self) -> bytes:
        """The error of a stream that has begun."""
        return _event({"error": self.error})

    def headers(self) -> dict[str, str]:
        """The headers that tell clients whether and when to retry."""
        found: dict[str, str] = {}
        if self.retry_after is not None:
            found["retry-after"] = str(self.retry_after)
        if self.is_final:
            found["x-should-retry"] = "false"
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


def token_mask(model: Model, n_ids: int, text_id: Callable[[str], int]) -> bytes:
    """Upstream's ``/token-mask``: the ids that may be chosen."""
    tokens = model.tokens

    def is_blocked(token_id: int) -> bool:
        if token_id in tokens.eos:
            return False
        in_range = any(first <= token_id <= last for first, last in tokens.blocked)
        return in_range or token_id >= tokens.block_from_id

    names = ("user", "assistant", "im_end", "audio", "begin_of_audio", "end_of_audio")
    ids = {f"<|{name}|>": text_id(f"<|{name}|>") for name in names}
    n_blocked = sum(map(is_blocked, range(n_ids)))
    return to_json(
        {
            "allowed_count": n_ids - n_blocked,
            "blocked_count": n_blocked,
            "eos_token_ids": list(tokens.eos),
            "tokens": {
                name: {"id": i, "blocked": is_blocked(i), "allowed": not is_blocked(i)}
                for name, i in ids.items()
            },
        }
    )


def models(names: Sequence[str], created: int) -> bytes:
    """``/v1/models``."""
    return to_json({"object": "list", "data": [model(name, created) for name in names]})


def model(name: str, created: int) -> dict[str, Any]:
    """One entry of that list."""
    return {"id": name, "object": "model", "created": created, "owned_by": "ark-asr-onnx"}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8. Raises ``ValueError`` for NaN."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
