"""Form fields as clients spell them: what they mean, what has no effect, what is refused."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")

from ark_asr_onnx import CueLayout
from ark_asr_onnx.server import fields
from ark_asr_onnx.server.fields import FieldError, Request


def openai(**given: str | list[str]) -> Request:
    return fields.transcription(listed(given), 256)


def listed(given: dict[str, str | list[str]]) -> dict[str, list[str]]:
    return {k: v if isinstance(v, list) else [v] for k, v in given.items()}


def asr(**given: str) -> Request:
    return fields.asr(listed(dict(given)), 256)


def test_nothing_but_a_file_is_enough() -> None:
    assert openai() == Request(max_new_tokens=256)
    assert asr() == Request(max_new_tokens=256)


@pytest.mark.parametrize(
    "given",
    [
        {"timestamp_granularities[]": "segment"},
        {"timestamp_granularities": "segment"},
        {"timestamp_granularities": '["segment"]'},
        {"timestamp_granularities": "segment,segment"},
        {"timestamp_granularities[]": ["segment", "segment"]},
    ],
)
def test_lists_in_every_spelling(given: dict[str, str | list[str]]) -> None:
    assert openai(**given) == openai()
    words = {k: [i.replace("segment", "word") for i in v] for k, v in listed(given).items()}
    verbose = fields.transcription({**words, "response_format": ["verbose_json"]}, 256)
    assert verbose == Request(256, response_format="verbose_json", wants_words=True)
    for kind in fields.FORMATS:
        if kind != "verbose_json":
            with pytest.raises(FieldError, match="needs response_format=verbose_json") as error:
                fields.transcription({**words, "response_format": [kind]}, 256)
            assert error.value.param == "timestamp_granularities"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("true", True), ("True", True), ("1", True), ("false", False), ("False", False), ("", False)],
)
def test_booleans(text: str, expected: bool) -> None:
    assert openai(stream=text).is_stream is expected


@pytest.mark.parametrize(
    ("language", "echo"),
    [("", "und"), ("auto", "und"), ("en", "en"), ("en-US", "en"), ("zh_CN", "zh"), ("xx", "xx"),
     ("x" * 200, "und"), ("english", "und")],
)  # fmt: skip
def test_a_language_is_echoed_and_never_an_error(language: str, echo: str) -> None:
    found = openai(language=language)
    assert found.language == echo
    assert found.ignored == (("language",) if language else ())


def test_hints_are_named() -> None:
    found = openai(**{
        "prompt": "x", "languages[]": "de", "temperature": "0.2",
        "top_p": "1", "top_k": "-1", "vad_filter": "false",
    })  # fmt: skip
    assert found.ignored == ("prompt", "languages", "temperature")
    assert found.language == "de"


@pytest.mark.parametrize("name", ["hotwords", "keywords"])
def test_expected_words_in_every_spelling(name: str) -> None:
    for given in (
        {name: "Ljubljana, Kai  Müller,"},
        {name: ["Ljubljana", "Kai Müller"]},
        {f"{name}[]": ["Ljubljana", "Kai Müller"]},
        {name: '["Ljubljana", "Kai Müller"]'},
    ):
        found = openai(**given)
        assert found.hotwords == ("Ljubljana", "Kai Müller")
        assert found.hotword_strength is None
        assert found.ignored == ()
    assert openai(**{name: ""}) == openai()
    assert openai(hotwords="a", keywords="b", hotword_strength="1.5") == Request(
        max_new_tokens=256, hotwords=("a", "b"), hotword_strength=1.5
    )


@pytest.mark.parametrize(
    "given",
    [
        {"chunking_strategy": '{"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 300,'
         ' "prefix_padding_ms": 100}'},
        {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0.4",
         "chunking_strategy[silence_duration_ms]": "300",
         "chunking_strategy[prefix_padding_ms]": "100"},
    ],
)  # fmt: skip
def test_how_to_cut(given: dict[str, str | list[str]]) -> None:
    found = openai(**given).splitting
    assert found == {"threshold": 0.4, "pause_seconds": 0.3, "pad_seconds": 0.1}
    assert openai(chunking_strategy="auto").splitting == openai().splitting


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_how_large_cues_may_be(kind: str) -> None:
    assert not openai(response_format=kind).needs_words
    found = openai(response_format=kind, max_line_width="32", max_cue_seconds="4.5")
    assert found.layout == CueLayout(max_line_width=32, max_cue_seconds=4.5)
    assert found.needs_words
    assert openai(response_format=kind, max_line_count="1").layout == CueLayout(max_line_count=1)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"timestamp_granularities[]": "syllable"}, "timestamp_granularities"),
        ({"timestamp_granularities": "word,x" * 99}, "timestamp_granularities"),
        ({"max_line_width": "42"}, "max_line_width"),
        ({"max_line_count": "2", "response_format": "tsv"}, "max_line_count"),
        ({"max_line_width": "0", "response_format": "srt"}, "max_line_width"),
        ({"max_line_width": "1001", "response_format": "srt"}, "max_line_width"),
        ({"max_line_width": "4.5", "response_format": "srt"}, "max_line_width"),
        ({"max_line_count": "-1", "response_format": "vtt"}, "max_line_count"),
        ({"max_cue_seconds": "61", "response_format": "vtt"}, "max_cue_seconds"),
        ({"max_cue_seconds": "0", "response_format": "vtt"}, "max_cue_seconds"),
        ({"max_cue_seconds": "nan", "response_format": "vtt"}, "max_cue_seconds"),
        ({"response_format": "xml"}, "response_format"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"stream": "maybe"}, "stream"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "2.1"}, "temperature"),
        ({"include[]": "words"}, "include"),
        ({"include[]": "logprobs", "response_format": "srt"}, "include"),
        ({"chunking_strategy": "by_hand"}, "chunking_strategy"),
        ({"chunking_strategy": "{"}, "chunking_strategy"),
        ({"chunking_strategy[threshold]": "1.5"}, "chunking_strategy"),
        ({"chunking_strategy[threshold]": "nan"}, "chunking_strategy"),
        ({"known_speaker_names[]": "Ann"}, "known_speaker_names"),
        ({"max_new_tokens": "-3"}, "max_new_tokens"),
        ({"max_new_tokens": "2049"}, "max_new_tokens"),
        ({"max_tokens": "x"}, "max_tokens"),
        ({"begin_time": "3", "end_time": "3"}, "end_time"),
        ({"begin_time": "inf"}, "begin_time"),
        ({"begin_time": "1e308"}, "begin_time"),
        ({"end_time": "1e308"}, "end_time"),
        ({"top_k": "9" * 400}, "top_k"),
        ({"max_new_tokens": "9" * 400}, "max_new_tokens"),
        ({"max_new_tokens": "-" + "9" * 400}, "max_new_tokens"),
        ({"chunking_strategy[silence_duration_ms]": "1e308"}, "chunking_strategy"),
        ({"chunking_strategy[threshold]": "x" * 60_000}, "chunking_strategy"),
        ({"chunking_strategy": '{"prefix_padding_ms": null}'}, "chunking_strategy"),
        ({"chunking_strategy": '{"type": ["server_vad"]}'}, "chunking_strategy"),
        ({"hotwords": "a,--"}, "hotwords"),
        ({"hotwords": '["a", null]'}, "hotwords"),
        ({"keywords": '[["a", "b"]]'}, "keywords"),
        ({"hotwords": "x" * 60_000}, "hotwords"),
        ({"keywords[]": list(map(str, range(1001)))}, "keywords"),
        ({"keywords": "\ud800"}, "keywords"),
        ({"hotword_strength": "0"}, "hotword_strength"),
        ({"hotword_strength": "nan"}, "hotword_strength"),
        ({"hotword_strength": "20.1"}, "hotword_strength"),
        ({"hotword_strength": "strong"}, "hotword_strength"),
    ],
)
def test_what_cannot_be_names_its_field(given: dict[str, str | list[str]], param: str) -> None:
    with pytest.raises(FieldError) as error:
        openai(**given)
    assert error.value.param == param
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_upstreams_bounds_in_its_order_and_words() -> None:
    for given, message in [
        ({"max_new_tokens": "-2", "temperature": "9"}, "max_new_tokens must be positive, got -2"),
        ({"temperature": "9", "top_p": "9"}, "temperature must be between 0.0 and 2.0, got 9.0"),
        ({"top_p": "1.5", "top_k": "0"}, "top_p must be between 0.0 and 1.0, got 1.5"),
        (
            {"top_k": "0", "repetition_penalty": "9"},
            "top_k must be -1 or a positive integer, got 0",
        ),
        ({"repetition_penalty": "0"}, "repetition_penalty must be between 0.1 and 2.0, got 0.0"),
    ]:
        with pytest.raises(FieldError) as error:
            asr(**given)
        assert str(error.value) == message
        assert error.value.status == 400
    with pytest.raises(FieldError) as error:
        asr(top_k="x")
    assert error.value.status == 422


def test_upstreams_none_and_default() -> None:
    found = asr(begin_time="-1", end_time="-1", max_new_tokens="0", top_k="5")
    assert found == Request(max_new_tokens=256, ignored=("top_k",))
    assert asr(begin_time="1", end_time="2.5").end_seconds == 2.5
    assert asr(max_new_tokens="1000000").max_new_tokens == fields.MAX_NEW_TOKENS
    assert openai(max_completion_tokens="7").max_new_tokens == 7
