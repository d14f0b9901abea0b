"""Parses the form fields of a request into values of the library; independent of HTTP servers.

There are two dialects: upstream's ``/asr``, with its limits and messages, and OpenAI's
transcriptions, as four generations of clients write them. A field that the model does not support
is accepted if it is only a hint, and named in ``ignored``; it is refused if the answer would only
look right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

from ..audio.split import Splitting
from ..decoding.hotwords import MAX_STRENGTH, checked
from ..subtitles import CueLayout

Form: TypeAlias = Mapping[str, Sequence[str]]  # every value of every field

MAX_NEW_TOKENS = 2048
FORMATS = ("json", "text", "srt", "vtt", "verbose_json", "tsv", "jsonl")
_GRANULARITIES = "timestamp_granularities"
_HINTS = ("prompt", "language", "languages")  # fields that the model ignores
_HOTWORDS = ("hotwords", "keywords")  # this service's name and OpenAI's
_STRENGTH = "hotword_strength"
_SAMPLING = (("temperature", 0.0, 2.0), ("top_p", 0.0, 1.0), ("repetition_penalty", 0.1, 2.0))
_NEUTRAL = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
_LARGEST_CUE = {"max_line_width": 1000, "max_line_count": 20, "max_cue_seconds": 60}
_LARGEST = 1e9  # of any number; larger ones make no sense, and may overflow
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")


class FieldError(ValueError):
    """A field has a wrong value; ``param`` names the field."""

    def __init__(self, message: str, param: str | None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@dataclass(frozen=True, slots=True)
class Request:
    """The parameters of a request, all but the audio."""

    max_new_tokens: int
    begin_seconds: float | None = None
    end_seconds: float | None = None
    response_format: str = "json"
    is_stream: bool = False
    wants_logprobs: bool = False
    wants_words: bool = False
    layout: CueLayout | None = None  # of subtitles
    model: str | None = None
    language: str = "und"  # the request's first subtag; else ISO 639's "undetermined"
    splitting: dict[str, float] = field(default_factory=dict[str, float])  # fields of Splitting
    hotwords: tuple[str, ...] = ()
    hotword_strength: float | None = None
    ignored: tuple[str, ...] = ()  # fields that were given and have no effect

    @property
    def needs_words(self) -> bool:
        """Whether the answer needs times of words."""
        return self.wants_words or self.layout is not None


def asr(form: Form, default_tokens: int) -> Request:
    """The request of upstream's ``/asr``: the same checks, in the same order, with its messages.

    Raises :class:`FieldError`.
    """
    tokens = _tokens(form, default_tokens, limit=None)
    ignored = _sampling(form)
    begin, end = _part(form)
    return Request(tokens, begin, end, ignored=tuple(ignored))


def transcription(form: Form, default_tokens: int) -> Request:
    """The request of OpenAI's transcriptions, with upstream's fields in addition.

    Raises :class:`FieldError`.
    """
    response_format = _one_of(form, "response_format", FORMATS, "json")
    wants_words = _wants_words(form, response_format)
    layout = _layout(form, response_format)
    for name in ("known_speaker_names", "known_speaker_references"):
        if _items(form, name):
            raise FieldError("this model does not tell speakers apart", name, "unsupported_value")
    wants_logprobs = _logprobs(form, response_format)
    begin, end = _part(form)
    ignored = [name for name in _HINTS if any(value.strip() for value in _items(form, name))]
    ignored += _sampling(form)
    return Request(
        max_new_tokens=_tokens(form, default_tokens, limit=MAX_NEW_TOKENS),
        begin_seconds=begin,
        end_seconds=end,
        response_format=response_format,
        is_stream=_boolean(form, "stream"),
        wants_logprobs=wants_logprobs,
        wants_words=wants_words,
        layout=layout,
        model=_last(form, "model"),
        language=_language(form),
        splitting=_splitting(form),
        hotwords=_hotwords(form),
        hotword_strength=_strength(form),
        ignored=tuple(ignored),
    )


def _wants_words(form: Form, response_format: str) -> bool:
    """Whether times of words are requested; segments always have times."""
    granularities = _items(form, _GRANULARITIES)
    for granularity in granularities:
        if granularity not in ("word", "segment"):
            message = f"{_GRANULARITIES} has {granularity[:40]!r}, expected word or segment"
            raise FieldError(message, _GRANULARITIES, "unsupported_value")
    if "word" in granularities and response_format != "verbose_json":
        message = f"needs response_format=verbose_json, not {response_format}; segment does not"
        raise FieldError(f"{_GRANULARITIES}=word {message}", _GRANULARITIES)
    return "word" in granularities


def _layout(form: Form, response_format: str) -> CueLayout | None:
    """The largest cues of subtitles, if the request limits them."""
    given: dict[str, Any] = {}
    for name, most in _LARGEST_CUE.items():
        value = _number(form, name, float if name == "max_cue_seconds" else int)
        if value is None:
            continue
        if response_format not in ("srt", "vtt"):
            message = f"{name} needs response_format=srt or vtt, not {response_format}"
            raise FieldError(message, name)
        if value > most:
            raise FieldError(f"{name} must be at most {most}, got {value}", name)
        given[name] = value
        try:
            CueLayout(**given)
        except ValueError as error:
            raise FieldError(str(error), name) from None
    return CueLayout(**given) if given else None


def _hotwords(form: Form) -> tuple[str, ...]:
    return tuple(phrase for name in _HOTWORDS for phrase in _phrases(form, name))


def _phrases(form: Form, name: str) -> tuple[str, ...]:
    try:
        return checked(_items(form, name))
    except ValueError as error:
        raise FieldError(str(error), name) from None


def _strength(form: Form) -> float | None:
    value = _number(form, _STRENGTH)
    if value is not None and not 0 < value <= MAX_STRENGTH:
        rule = f"must be positive, and at most {MAX_STRENGTH:g}, got {value}"
        raise FieldError(f"{_STRENGTH} {rule}", _STRENGTH)
    return value


def _logprobs(form: Form, response_format: str) -> bool:
    """Whether ``include`` requests them; it may request nothing else."""
    include = _items(form, "include")
    for value in include:
        if value != "logprobs":
            message = f"include has {value[:40]!r}, expected logprobs"
            raise FieldError(message, "include", "unsupported_value")
    if include and response_format not in ("json", "verbose_json"):
        raise FieldError(
            f"include=logprobs needs response_format=json, not {response_format}", "include"
        )
    return bool(include)


def _last(form: Form, name: str) -> str | None:
    """The last value of a field; None if it is absent or empty."""
    values = form.get(name, ())
    return values[-1].strip() or None if values else None


def _items(form: Form, name: str) -> list[str]:
    """A list: a repeated field, with or without brackets, JSON, or separated by commas."""
    found: list[str] = []
    for value in (*form.get(name, ()), *form.get(f"{name}[]", ())):
        parsed: object = None
        if value.lstrip().startswith("["):
            try:
                parsed = json.loads(value)
            except (ValueError, RecursionError):
                parsed = None
        if isinstance(parsed, list):
            if name in _HOTWORDS and not all(isinstance(x, str) for x in cast("list[Any]", parsed)):
                raise FieldError(f"{name} must be a list of words and phrases", name)
            found += [str(item) for item in cast("list[object]", parsed)]
        elif name in (_GRANULARITIES, "include", *_HOTWORDS):
            found += value.split(",")
        else:
            found.append(value)
    return [item.strip() for item in found if item.strip()]


def _one_of(form: Form, name: str, allowed: Sequence[str], default: str) -> str:
    value = _last(form, name) or default
    if value not in allowed:
        raise FieldError(
            f"{name} is {value[:40]!r}, expected one of {', '.join(allowed)}",
            name,
            "unsupported_value",
        )
    return value


def _boolean(form: Form, name: str) -> bool:
    value = (_last(form, name) or "").lower()
    if value not in (*_TRUE, *_FALSE):
        raise FieldError(f"{name} is {value[:40]!r}, expected true or false", name)
    return value in _TRUE


def _number(form: Form, name: str, kind: Callable[[str], Any] = float) -> Any:
    """A number; None if it is absent. Another value has the status 422, as upstream."""
    value = _last(form, name)
    return None if value is None else _parsed(value, name, name, kind)


def _parsed(text: str, what: str, param: str, kind: Callable[[str], Any] = float) -> Any:
    try:
        number = kind(text)
    except ValueError:
        wanted = "an integer" if kind is int else "a number"
        raise FieldError(f"{what} is {text[:40]!r}, expected {wanted}", param, status=422) from None
    if not abs(number) <= _LARGEST:
        raise FieldError(f"{what} is {text[:40]!r}, expected a number of usual size", param)
    return number


def _tokens(form: Form, default: int, limit: int | None) -> int:
    for name in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
        value = _number(form, name, int)
        if not value:  # upstream tests truth, so 0 is the default as well
            continue
        if value < 0:
            raise FieldError(f"{name} must be positive, got {value}", name)
        if limit is not None and value > limit:
            raise FieldError(f"{name} must be at most {limit}, got {value}", name)
        return min(value, MAX_NEW_TOKENS)
    return default


def _sampling(form: Form) -> list[str]:
    """Check upstream's sampling fields; returns those that would change the text but do not."""
    given: dict[str, float] = {}
    for name, least, most in _SAMPLING[:2]:
        given |= _within(form, name, least, most)
    top_k = _number(form, "top_k", int)
    if top_k is not None:
        if top_k != -1 and top_k < 1:
            raise FieldError(f"top_k must be -1 or a positive integer, got {top_k}", "top_k")
        given["top_k"] = top_k
    given |= _within(form, *_SAMPLING[2])
    return [name for name, value in given.items() if value != _NEUTRAL[name]]


def _within(form: Form, name: str, least: float, most: float) -> dict[str, float]:
    value = _number(form, name)
    if value is None:
        return {}
    if not least <= value <= most:
        raise FieldError(f"{name} must be between {least} and {most}, got {value}", name)
    return {name: value}


def _part(form: Form) -> tuple[float | None, float | None]:
    """Begin and end in seconds; -1 means none, as upstream."""
    begin, end = _number(form, "begin_time"), _number(form, "end_time")
    begin = None if begin is None or begin < 0 else begin
    end = None if end is None or end < 0 else end
    if end is not None and end <= (begin or 0.0):
        raise FieldError(
            f"end_time is {end:g}, must be after begin_time {begin or 0:g}", "end_time"
        )
    return begin, end


def _language(form: Form) -> str:
    """The language for the answer: the first subtag of the request's, if it looks like one."""
    for value in (*_items(form, "language"), *_items(form, "languages")):
        subtag = re.split("[-_]", value)[0].lower()
        if re.fullmatch("[a-z]{2,3}", subtag):
            return subtag
    return "und"


def _splitting(form: Form) -> dict[str, float]:
    """``chunking_strategy``: ``auto``, or server_vad's three numbers in any of three spellings."""
    name = "chunking_strategy"
    given: dict[str, object] = {
        key[len(name) + 1 : -1]: values[-1]
        for key, values in form.items()
        if values and key.startswith(f"{name}[") and key.endswith("]")
    }
    whole = _last(form, name)
    if whole is not None and whole.startswith("{"):
        try:
            parsed = json.loads(whole)
        except (ValueError, RecursionError):
            raise FieldError(f"{name} is no JSON object", name) from None
        given |= cast("dict[str, object]", parsed)
    elif whole is not None and whole != "auto":
        given.setdefault("type", whole)
    if not given:
        return {}
    if given.get("type", "server_vad") not in ("server_vad", "auto"):
        raise FieldError(
            f"{name} is {str(given['type'])[:40]!r}, expected auto or server_vad", name
        )
    scales = (
        ("threshold", "threshold", 1.0),
        ("silence_duration_ms", "pause_seconds", 1000.0),
        ("prefix_padding_ms", "pad_seconds", 1000.0),
    )
    found: dict[str, float] = {}
    for key, ours, scale in scales:
        if key in given:
            found[ours] = _parsed(str(given[key]), f"{name}: {key}", name) / scale
            try:
                replace(Splitting(), **{ours: found[ours]})
            except ValueError as error:
                raise FieldError(f"{name}: {key}: {error}", name) from None
    return found
