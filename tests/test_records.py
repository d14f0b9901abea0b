"""Manifests: every line is checked before any work, and a complaint names file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ark_asr_onnx.corpus.records import Record, read_records
from ark_asr_onnx.errors import ArkError, RecordsError


def manifest(folder: Path, *lines: str | dict[str, object]) -> Path:
    path = folder / "in.jsonl"
    texts = [x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for x in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def test_a_record_has_the_named_fields_and_keeps_the_others_in_order(tmp_path: Path) -> None:
    line: dict[str, object] = {
        "speaker": "ä", "audio": "a/b.wav", "text": "hi", "begin_time": 1, "end_time": 2.5,
        "task": "asr", "nested": {"list": [1, None]},
    }  # fmt: skip
    assert read_records(manifest(tmp_path, line)) == [
        Record(
            line=1,
            audio="a/b.wav",
            path=tmp_path / "a/b.wav",
            text="hi",
            begin_seconds=1,
            end_seconds=2.5,
            fields={"speaker": "ä", "task": "asr", "nested": {"list": [1, None]}},
        )
    ]
    assert list(read_records(manifest(tmp_path, line))[0].fields) == ["speaker", "task", "nested"]


def test_what_is_absent_null_or_negative_is_none(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        {"audio": "a.wav"},
        {"audio": "a.wav", "text": None, "begin_time": None, "end_time": None},
        {"audio": "a.wav", "begin_time": -1, "end_time": -1.0},
    )
    for record in read_records(path):
        assert (record.text, record.begin_seconds, record.end_seconds) == (None, None, None)
        assert record.fields == {}


def test_an_absolute_path_stays_where_it_is(tmp_path: Path) -> None:
    audio = str(tmp_path / "elsewhere" / "a.wav")
    (record,) = read_records(manifest(tmp_path, {"audio": audio}))
    assert (record.audio, record.path) == (audio, Path(audio))


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = manifest(tmp_path, "", {"audio": "a.wav"}, "  \t", {"audio": "b.wav"}, "")
    assert [(record.line, record.audio) for record in read_records(path)] == [
        (2, "a.wav"),
        (4, "b.wav"),
    ]


def test_a_byte_order_mark_and_line_ends_of_windows_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"audio": "a.wav"}\r\n{"audio": "b.wav"}')
    assert [record.audio for record in read_records(path)] == ["a.wav", "b.wav"]


def test_other_line_separators_belong_to_the_text(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    (record,) = read_records(manifest(tmp_path, {"audio": "a.wav", "text": text}))
    assert record.text == text


def test_an_empty_manifest_has_no_records(tmp_path: Path) -> None:
    assert read_records(manifest(tmp_path)) == []


def test_text_is_required_only_on_demand(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"audio": "a.wav", "text": ""}, {"audio": "a.wav"})
    assert [record.text for record in read_records(path)] == ["", None]
    with pytest.raises(RecordsError, match=r"in\.jsonl:2: text is missing"):
        read_records(path, needs_text=True)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", r"is no JSON: Expecting property name .* \(column 2\)"),
        ("[1]", r"must be a JSON object, found \[1\]"),
        ('"' + "x" * 100 + '"', r"must be a JSON object, found 'x{56}\.\.\."),
        ("[" * 100_000, "is nested too deeply"),
        ({}, "audio is missing"),
        ({"audio": None}, "audio is missing"),
        ({"audio": ""}, "audio is '', must name a file"),
        ({"audio": 3}, "audio is 3, must be a string"),
        ('{"audio": "a\\u0000"}', r"audio is 'a\\x00', must name a file"),
        ('{"audio": "\\ud800"}', "surrogates not allowed"),
        ({"audio": "a.wav", "text": 3}, "text is 3, must be a string"),
        ({"audio": "a.wav", "task": "st"}, "task is 'st', only 'asr' can be done"),
        ({"audio": "a.wav", "begin_time": "1"}, "begin_time is '1', must be a number of seconds"),
        ({"audio": "a.wav", "end_time": True}, "end_time is True, must be a number of seconds"),
        ({"audio": "a.wav", "end_time": 10**400}, "end_time is 10{56}.*must be a number of"),
        (
            {"audio": "a.wav", "begin_time": 2, "end_time": 2},
            "end_time 2 is not after begin_time 2",
        ),
        ({"audio": "a.wav", "end_time": 0}, "end_time 0 is not after begin_time 0"),
        ('{"audio": "a.wav", "x": NaN}', "NaN is no JSON"),
        ('{"audio": "a.wav", "x": [1e999]}', "1e999 is too large a number"),
    ],
)
def test_a_wrong_line_is_named(
    line: str | dict[str, object], complaint: str, tmp_path: Path
) -> None:
    path = manifest(tmp_path, {"audio": "a.wav"}, line)
    with pytest.raises(RecordsError, match=rf"in\.jsonl:2: .*{complaint}") as caught:
        read_records(path)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ArkError)
    assert isinstance(caught.value, ValueError)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"audio": "a.wav"}\n{"audio": "\xe4.wav"}\n')
    with pytest.raises(RecordsError, match=r"in\.jsonl:2: 'utf-8' codec can't decode"):
        read_records(path)


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_records(tmp_path / "none.jsonl")
