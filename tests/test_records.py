"""Manifests: every line is checked before any work, and a complaint names file and line."""

from __future__ import annotations

import codecs
import gzip
import json
import os
from collections.abc import Callable
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
        ({"key": "a", "wav": "a.wav"}, "audio is missing; the line has 'key, wav'"),
        ({"id": "a", "recording": {}, "supervisions": []}, "manifests of Lhotse are not read"),
        ({"id": "a", "sources": [], "sampling_rate": 16000}, "manifests of Lhotse are not read"),
        ("utt1 /data/a.wav", "wav.scp are not read, write a line such as"),
        ("client_id\tpath\tsentence", "tables and .* are not read"),
        ({"audio": "https://a.b/c.wav"}, "'https://a.b/c.wav', must be a file here; download it"),
        ({"audio": "s3://a/b.wav"}, "must be a file here; download it first"),
        ({"audio": "file://server/b.wav"}, "'file://server/b.wav', a file of another computer"),
        ({"audio": "file:///a%00.wav"}, "must name a file"),
        ({"audio": "file:"}, "must name a file"),
        ({"audio_filepath": 3}, "audio_filepath is 3, must be a string"),
        ({"audio": "a.wav", "offset": "1"}, "offset is '1', must be a number of seconds"),
        ({"audio": "a.wav", "offset": 1, "duration": 0}, "duration is 0, must be positive"),
        ({"audio": "a.wav", "offset": 1, "begin_time": 2}, "begin_time is 2, but .* say 1; give"),
        (
            {"audio": "a.wav", "offset": 1, "duration": 2, "end_time": 2},
            "end_time is 2, but offset and duration say 3",
        ),
        ('{"audio": "a.wav", "x": ' + "9" * 5000 + "}", r"'9{56}\.\.\. is too large a number"),
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


def test_nemos_names_are_understood_and_stay(tmp_path: Path) -> None:
    whole: dict[str, object] = {"audio_filepath": "a.wav", "duration": 2.5, "text": "hi"}
    part = {**whole, "offset": 1.0}
    for line, begin, end in ((whole, None, 2.5), (part, 1.0, 3.5)):
        (record,) = read_records(manifest(tmp_path, line), needs_text=True)
        assert (record.audio, record.path, record.text) == ("a.wav", tmp_path / "a.wav", "hi")
        assert (record.begin_seconds, record.end_seconds) == (begin, end)
        assert record.fields == {key: value for key, value in line.items() if key != "text"}


@pytest.mark.parametrize(
    ("line", "begin", "end"),
    [
        ({"offset": 1, "duration": 0.5}, 1, 1.5),
        ({"offset": 0, "duration": 0.5}, 0, 0.5),
        ({"offset": 1}, 1, None),
        ({"offset": None, "duration": 3}, None, None),  # said of the whole file
        ({"offset": -1, "duration": 3}, None, None),
        ({"begin_time": 1, "end_time": 1.5, "offset": 1, "duration": 0.5}, 1, 1.5),
        ({"begin_time": 1, "end_time": 2, "duration": 7}, 1, 2),
    ],
)
def test_an_offset_beside_audio_is_where_it_begins(
    line: dict[str, object], begin: float | None, end: float | None, tmp_path: Path
) -> None:
    (record,) = read_records(manifest(tmp_path, {"audio": "a.wav", **line}))
    assert (record.begin_seconds, record.end_seconds) == (begin, end)


def test_hugging_faces_names_are_understood_and_stay(tmp_path: Path) -> None:
    line: dict[str, object] = {"file_name": "train/a.wav", "transcription": "hi"}
    (record,) = read_records(manifest(tmp_path, line), needs_text=True)
    assert (record.path, record.text) == (tmp_path / "train/a.wav", "hi")
    assert record.fields == line


def test_our_own_names_count_before_those_of_others(tmp_path: Path) -> None:
    line: dict[str, object] = {
        "audio": "a.wav", "audio_filepath": "b.wav", "file_name": 3, "text": "hi", "sentence": "no",
    }  # fmt: skip
    (record,) = read_records(manifest(tmp_path, line))
    assert (record.audio, record.text) == ("a.wav", "hi")


@pytest.mark.parametrize(
    "encode",
    [
        gzip.compress,
        lambda content: codecs.BOM_UTF8 + content,
        lambda content: gzip.compress(codecs.BOM_UTF8 + content),
        lambda content: content.decode().encode("utf-16"),
        lambda content: codecs.BOM_UTF16_BE + content.decode().encode("utf-16-be"),
        lambda content: content.decode().encode("utf-16-le"),
        lambda content: content.decode().encode("utf-32"),
    ],
)
def test_a_list_is_read_however_it_is_encoded(
    encode: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(encode('{"audio": "ä.wav"}\r\n\n{"audio": "日本\u2028.wav"}'.encode()))
    found = [(record.line, record.audio) for record in read_records(path)]
    assert found == [(1, "ä.wav"), (3, "日本\u2028.wav")]


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b'{"audio": "a.wav"}\n' * 1000)[:-9],
        gzip.compress(b'{"audio": "a.wav"}\n')[:-4] + b"abcd",
        gzip.compress(b'{"audio": "a.wav"}\n')[:12] + b"\xff" * 20,
        '{"audio": "a.wav"}\n'.encode("utf-16")[:-1],
    ],
)
def test_a_damaged_list_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordsError, match=r"in\.jsonl.*: ") as caught:
        read_records(path)
    assert "\n" not in str(caught.value)


def test_home_and_file_urls_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    url = (tmp_path / "a b%.wav").as_uri()
    names = ("~/a.wav", url, "no-one:/a.wav", "x~")
    records = read_records(manifest(tmp_path, *(json.dumps({"audio": x}) for x in names)))
    assert [record.path for record in records] == [
        tmp_path / "a.wav",
        tmp_path / "a b%.wav",
        tmp_path / "no-one:/a.wav",
        tmp_path / "x~",
    ]
    assert records[1].audio == url


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, found in ((tmp_path, "a folder"), (tmp_path / "pipe", "a pipe"), ("/dev/zero", "a")):
        with pytest.raises(RecordsError, match=rf"is {found}.*, expected a file of JSON Lines"):
            read_records(path)


def test_a_line_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"audio": "a.wav"}\n' + b" " * (9 << 20))
    with pytest.raises(RecordsError, match=r"in\.jsonl:2: is longer than 8 MiB"):
        read_records(path)


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_records(tmp_path / "none.jsonl")
