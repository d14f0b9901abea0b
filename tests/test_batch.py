"""Batches: a row for each record, in order, whatever fails, stops or kills the run."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import DEMO, ROOT, Sample

import ark_asr_onnx
from ark_asr_onnx import (
    ArkError,
    AudioError,
    AudioWarning,
    Clip,
    DecodeError,
    Options,
    PackageError,
    RecordsError,
    Splitting,
    Transcriber,
)
from ark_asr_onnx.corpus import workers
from ark_asr_onnx.corpus.batch import BatchResult, run_batch
from ark_asr_onnx.corpus.identity import fingerprint
from ark_asr_onnx.package.contract import File, Manifest

posix = pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")

LINES: list[dict[str, object]] = [
    {"audio": "ä.wav", "text": "spräche", "task": "asr", "speaker": {"id": 1}},
    {"audio": "b.wav", "begin_time": 1.5, "end_time": 2},
    {"audio": "bad.wav", "note": "\u2028"},
    {"audio": "日本.wav", "begin_time": -1, "end_time": -1.0},
]
ROWS = (
    '{"audio": "ä.wav", "text": "spräche", "pred_text": "says ä.wav", '
    '"pred_text_raw": "says ä.wav<|im_end|>", "begin_time": -1, "end_time": -1, '
    '"task": "asr", "speaker": {"id": 1}}\n'
    '{"audio": "b.wav", "text": "", "pred_text": "says b.wav", '
    '"pred_text_raw": "says b.wav<|im_end|>", "begin_time": 1.5, "end_time": 2}\n'
    '{"audio": "bad.wav", "text": "", "pred_text": "", "pred_text_raw": "", '
    '"begin_time": -1, "end_time": -1, "note": "\u2028", "error": "bad.wav: cannot be read"}\n'
    '{"audio": "日本.wav", "text": "", "pred_text": "says 日本.wav", '
    '"pred_text_raw": "says 日本.wav<|im_end|>", "begin_time": -1, "end_time": -1}\n'
)


@dataclass
class Spoken:
    """Stands for a transcript."""

    text: str
    duration: float = 2.0
    finish_reason: str = "stop"
    warnings: tuple[AudioWarning, ...] = ()

    @property
    def raw_text(self) -> str:
        return f"{self.text}<|im_end|>"


class Fake:
    """Stands for a transcriber that hears the names of files, a few at the same time."""

    manifest = ark_asr_onnx.open_package(DEMO).manifest

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.is_open = True
        self.failing = {"bad.wav"}

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

    def transcribe_many(
        self, clips: Iterable[Clip], *, slots: int, **_: object
    ) -> Iterator[Spoken | ArkError]:
        held: deque[str] = deque()
        for clip in clips:
            name = Path(cast(Path, clip.source)).name
            if name == "killed.wav":
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "crash.wav":
                raise ZeroDivisionError("a bug")
            held.append(name)
            if len(held) == slots:
                yield self.result(held.popleft())
        while held:
            yield self.result(held.popleft())

    def result(self, name: str) -> Spoken | ArkError:
        self.heard.append(name)
        return (
            AudioError(f"{name}: cannot be read")
            if name in self.failing
            else Spoken(f"says {name}")
        )


def open_fake() -> Transcriber:
    """Found by its name in a worker process."""
    return cast(Transcriber, Fake())


def open_nothing() -> Transcriber:
    raise ark_asr_onnx.PackageError("no model here")


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


class Batch:
    """An input and an output file, and what was heard by the fakes that ran on them."""

    def __init__(self, folder: Path) -> None:
        self.input, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.write(LINES)

    def write(self, lines: list[dict[str, object]]) -> None:
        texts = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
        self.input.write_text("".join(texts), encoding="utf-8", newline="\n")

    def run(
        self, failing: Iterable[str] = ("bad.wav",), **options: Any
    ) -> tuple[BatchResult, list[str]]:
        fake = Fake()
        fake.failing = set(failing)
        result = run_batch(
            lambda: cast(Transcriber, fake), self.input, self.output, **{"slots": 2, **options}
        )
        return result, fake.heard

    def leave(self, rows: str | bytes) -> None:
        """Have an output of so much, as a run leaves it that was stopped then."""
        self.run(overwrite=True)
        self.output.write_bytes(b"".join(lines_of(rows)))


def lines_of(content: str | bytes) -> list[bytes]:
    return (content.encode() if isinstance(content, str) else content).splitlines(keepends=True)


def test_a_row_has_upstreams_keys_in_upstreams_order(batch: Batch) -> None:
    batch.run()
    assert batch.output.read_text(encoding="utf-8") == ROWS


def test_the_result_counts_records_failures_and_seconds(batch: Batch) -> None:
    result, heard = batch.run()
    assert (result.n_records, result.n_done_before, result.n_failed) == (4, 0, 1)
    assert result.audio_seconds == 6.0
    assert result.elapsed_seconds > 0
    assert heard == [line["audio"] for line in LINES]


def test_progress_begins_with_what_is_done_before(batch: Batch) -> None:
    batch.leave(lines_of(ROWS)[0])
    calls: list[tuple[int, int]] = []
    batch.run(on_progress=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_results_of_an_earlier_run_make_way(batch: Batch) -> None:
    batch.write(
        [{"audio": "a.wav", "pred_text": "old", "x": 1, "pred_text_raw": "o", "error": "e"}]
    )
    batch.run()
    (row,) = map(json.loads, batch.output.read_text().splitlines())
    assert list(row) == [
        "audio",
        "text",
        "pred_text",
        "pred_text_raw",
        "begin_time",
        "end_time",
        "x",
    ]
    assert row["pred_text"] == "says a.wav"


def test_half_a_surrogate_pair_stays_as_json_writes_it(batch: Batch) -> None:
    batch.input.write_text('{"audio": "a.wav", "text": "\\ud83d", "x": "\\udc80"}\n')
    batch.run()
    assert r'"text": "\ud83d"' in batch.output.read_text()
    assert r'"x": "\udc80"' in batch.output.read_text()
    assert batch.run()[1] == []


def test_the_transcriber_is_closed_and_without_work_not_opened(batch: Batch) -> None:
    fake = Fake()
    fake.failing = set()
    run_batch(lambda: cast(Transcriber, fake), batch.input, batch.output)
    assert not fake.is_open
    result = run_batch(open_nothing, batch.input, batch.output)
    assert (result.n_done_before, result.n_failed, result.audio_seconds) == (4, 0, 0)


def test_nothing_is_written_for_a_wrong_manifest(batch: Batch) -> None:
    batch.write([*LINES, {"audio": 3}])
    with pytest.raises(RecordsError, match=r"in\.jsonl:5: "):
        batch.run()
    assert not batch.output.exists()


def test_a_run_continues_after_any_byte(batch: Batch) -> None:
    whole = ROWS.encode()
    batch.run()
    for n_bytes in range(len(whole) + 1):
        batch.output.write_bytes(whole[:n_bytes])
        result, heard = batch.run()
        n_done = whole[:n_bytes].count(b"\n")
        again = ["bad.wav"] if n_done > 2 else []
        assert batch.output.read_bytes() == whole
        assert heard == again + [line["audio"] for line in LINES[n_done:]]
        assert (result.n_done_before, result.n_failed) == (n_done - len(again), 1)


def test_a_run_continues_after_zeros_that_a_power_failure_left(batch: Batch) -> None:
    batch.leave(ROWS.encode()[:200] + bytes(100))
    batch.run()
    assert batch.output.read_bytes() == ROWS.encode()


def test_an_input_that_has_grown_is_continued(batch: Batch) -> None:
    batch.run()
    batch.write([*LINES, {"audio": "new.wav"}])
    assert batch.run()[1] == ["bad.wav", "new.wav"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (ROWS.replace("ä.wav", "other.wav"), 1),
        (ROWS.replace("1.5", "1.25"), 2),
        (ROWS.replace('"end_time": 2', '"end_time": -1'), 2),
        (ROWS.replace('"pred_text"', '"prediction"'), 1),
        (ROWS + ROWS.splitlines(keepends=True)[0], 5),
        (ROWS + '{"audio": "', 5),
        ('{"audio": "c', 1),
        ("somebody's notes", 1),
        ("somebody's notes\n", 1),
        ("[]\n", 1),
        ("\n", 1),
    ],
)
def test_the_output_of_another_input_is_kept(content: str, line: int, batch: Batch) -> None:
    batch.output.write_bytes(content.encode())
    with pytest.raises(RecordsError, match=rf"out\.jsonl:{line}: .*another input.*--overwrite"):
        batch.run()
    assert batch.output.read_bytes() == content.encode()


def test_overwriting_begins_anew(batch: Batch) -> None:
    batch.output.write_text("somebody's notes")
    result, heard = batch.run(overwrite=True)
    assert batch.output.read_bytes() == ROWS.encode()
    assert (result.n_done_before, len(heard)) == (0, 4)


def test_the_input_is_not_overwritten(batch: Batch) -> None:
    with pytest.raises(RecordsError, match=r"in\.jsonl: is the input too"):
        run_batch(open_fake, batch.input, batch.input, overwrite=True)
    assert batch.input.stat().st_size


def test_an_output_that_cannot_be_written_is_named(batch: Batch, tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"out\.jsonl: cannot be written \(No such file"):
        run_batch(open_fake, batch.input, tmp_path / "none" / "out.jsonl")
    with pytest.raises(RecordsError, match="is no file"):
        run_batch(open_fake, batch.input, tmp_path)


@posix
def test_a_full_disk_is_named_and_the_run_continues(batch: Batch) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    batch.write(LINES * 20)
    for limit in (300, 3000):  # in the journal, in the output
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(RecordsError, match=r"out\.jsonl: cannot be written \(File too "):
                batch.run()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert batch.output.stat().st_size == (0 if limit == 300 else limit)
    batch.run()
    assert batch.output.read_bytes() == ROWS.encode() * 20


@posix
def test_a_second_run_on_the_same_output_is_refused(batch: Batch) -> None:
    def second(n_done: int, _: int) -> None:
        if n_done == 1:
            with pytest.raises(RecordsError, match="is being written by another process"):
                batch.run(overwrite=True)

    batch.run(on_progress=second)
    assert batch.output.read_bytes() == ROWS.encode()


def test_an_interrupted_run_leaves_what_is_finished_and_no_model(batch: Batch) -> None:
    fake = Fake()

    def interrupt(n_done: int, _: int) -> None:
        if n_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(lambda: cast(Transcriber, fake), batch.input, batch.output, on_progress=interrupt)
    assert not fake.is_open
    assert batch.output.read_bytes() == b"".join(ROWS.encode().splitlines(keepends=True)[:2])
    assert batch.run()[1] == ["bad.wav", "日本.wav"]


def test_failed_rows_are_done_again_in_their_places(batch: Batch) -> None:
    batch.run(failing=["ä.wav", "bad.wav"])
    result, heard = batch.run(failing=[])
    assert heard == ["ä.wav", "bad.wav"]
    assert (result.n_done_before, result.n_again, result.n_failed) == (2, 2, 0)
    assert batch.output.read_text(encoding="utf-8") == ROWS.replace(
        '"pred_text": "", "pred_text_raw": ""',
        '"pred_text": "says bad.wav", "pred_text_raw": "says bad.wav<|im_end|>"',
    ).replace(', "error": "bad.wav: cannot be read"', "")
    assert batch.run()[1] == []


def test_a_row_that_fails_again_stays_and_the_file_is_not_written_anew(batch: Batch) -> None:
    batch.run()
    before = batch.output.stat()
    result, heard = batch.run()
    assert heard == ["bad.wav"]
    assert (result.n_done_before, result.n_again, result.n_failed) == (3, 1, 1)
    after = batch.output.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert batch.output.read_bytes() == ROWS.encode()


def test_rows_that_were_taken_out_are_done_again_in_their_places(batch: Batch) -> None:
    rows = lines_of(ROWS)
    for kept in ([1, 3], [0, 1, 3], [3], [2], [1, 2]):
        batch.leave(b"".join(rows[i] for i in kept))
        assert batch.run()[0].n_failed == 1
        assert batch.output.read_bytes() == ROWS.encode()


def test_records_that_were_put_between_get_rows_between(batch: Batch) -> None:
    batch.run(failing=[])
    new: list[dict[str, object]] = [{"audio": "new.wav"}, {"audio": "b.wav"}]
    batch.write([new[0], *LINES[:2], new[1], *LINES[2:]])
    assert batch.run()[1] == ["new.wav", "b.wav"]
    rows = map(json.loads, batch.output.read_bytes().splitlines())
    names = ["new.wav", "ä.wav", "b.wav", "b.wav", "bad.wav", "日本.wav"]
    assert [row["audio"] for row in rows] == names


def test_equal_records_have_rows_of_their_own(batch: Batch) -> None:
    same: dict[str, object] = {"audio": "bad.wav"}
    batch.write([same] * 3)
    batch.run()
    batch.output.write_bytes(batch.output.read_bytes().replace(b"cannot", b"could not", 1))
    result, heard = batch.run(failing=[])
    assert heard == ["bad.wav"] * 3
    assert (result.n_again, result.n_failed) == (3, 0)
    assert batch.output.read_bytes().count(b"says bad.wav<") == 3


def test_an_interrupted_run_leaves_what_was_done_again(batch: Batch) -> None:
    batch.write(many := LINES * 3)
    batch.run()

    def interrupt(n_done: int, _: int) -> None:
        if n_done == 10:  # of 12: 9 were done before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.run(failing=[], on_progress=interrupt)
    rows = [json.loads(line) for line in batch.output.read_bytes().splitlines()]
    assert [row["audio"] for row in rows] == [line["audio"] for line in many]
    assert [i for i, row in enumerate(rows) if "error" in row] == [6, 10]
    assert batch.run(failing=[])[1] == ["bad.wav"] * 2


def test_a_row_has_the_warnings_of_its_audio_and_they_are_counted(batch: Batch) -> None:
    class Warning_(Fake):
        def result(self, name: str) -> Spoken | ArkError:
            found = (AudioWarning("cut", "ends early"), AudioWarning("soft", "is soft"))
            return Spoken(f"says {name}", warnings=found)

    opens = lambda: cast(Transcriber, Warning_())  # noqa: E731
    for _ in range(2):
        assert run_batch(opens, batch.input, batch.output).n_warned == 4
    row = json.loads(batch.output.read_bytes().splitlines()[0])
    assert list(row)[-1] == "warnings"
    assert row["warnings"] == ["ends early", "is soft"]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"options": Options(max_new_tokens=1)}, r"another max_new_tokens \(256, now 1\)"),
        (
            {"options": Options(retry=False, max_repeats=None)},
            r"another max_repeats \(5, now null\), another retry \(true, now false\)",
        ),
        ({"splitting": Splitting(window_seconds=5)}, r"another window_seconds \(null, now 5\)"),
        ({"splitting": Splitting(vad=None)}, r'another vad \("ark_asr.*silero", now null\)'),
    ],
)
def test_an_output_of_other_options_is_refused(
    changed: dict[str, Any], complaint: str, batch: Batch
) -> None:
    batch.run(failing=[])
    new: dict[str, object] = {"audio": "new.wav"}
    for lines in (LINES, [*LINES, new]):  # whether there is something to do or not
        batch.write(lines)
        with pytest.raises(
            RecordsError,
            match=rf"out\.jsonl: was made with {complaint}; choose another .*--overwrite",
        ):
            batch.run(**changed)
        assert batch.output.read_text().count("\n") == 4
    assert batch.run(overwrite=True, **changed)[0].n_done_before == 0
    assert batch.run(**changed)[0].n_done_before == 4


def test_an_output_of_another_model_is_refused(batch: Batch, tmp_path: Path) -> None:
    demo = ark_asr_onnx.open_package(DEMO)
    files = {**demo.manifest.files, "decoder.onnx.data": File(3, "0" * 64)}
    other = replace(demo, manifest=replace(demo.manifest, files=files, name="other"))
    documents = {**demo.manifest.files, "README.md": File(3, "0" * 64)}
    same = replace(demo, manifest=replace(demo.manifest, files=documents), directory=tmp_path)
    batch.run(failing=[])  # the model that it opens is noted
    before = batch.output.read_bytes()
    assert batch.run(package=demo)[1] == batch.run(package=same)[1] == []
    with pytest.raises(RecordsError, match=r"made with another model \('.*', now 'other'\); cho"):
        batch.run(package=other)
    batch.write([*LINES, {"audio": "new.wav"}])
    for n_workers in (1, 2):
        opens = functools.partial(open_other, other.manifest)
        with pytest.raises(RecordsError, match="made with another model"):
            run_batch(opens, batch.input, batch.output, workers=n_workers)
    assert batch.output.read_bytes() == before


def open_other(manifest: Manifest) -> Transcriber:
    fake = Fake()
    fake.manifest = manifest
    return cast(Transcriber, fake)


def test_published_folders_are_told_apart_by_their_files(tmp_path: Path) -> None:
    demo = ark_asr_onnx.open_package(DEMO)
    manifest = replace(demo.manifest, files={})
    prints: list[dict[str, object]] = []
    for name, end in (("a", b"0"), ("b", b"0"), ("c", b"1")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "large").write_bytes(bytes(20 << 20) + end + bytes(30 << 20))
        (folder / "small").write_bytes(end)
        paths = {"decoder": folder / "large", "tokenizer": folder / "small"}
        prints.append(fingerprint(replace(demo, manifest=manifest, paths=paths, directory=folder)))
    assert prints[0] == prints[1] != prints[2]


def audio(folder: Path, *names: str) -> list[dict[str, object]]:
    for name in names:
        (folder / name).write_bytes(name.encode())
    return [{"audio": name} for name in names]


def test_rows_of_audio_that_has_changed_are_done_again(batch: Batch, tmp_path: Path) -> None:
    batch.write(audio(tmp_path, "a.wav", "b.wav", "c.wav", "d.wav", "e.wav"))
    batch.run()
    (tmp_path / "a.wav").write_bytes(b"longer than before")
    (tmp_path / "b.wav").write_bytes(b"B.wav")
    (tmp_path / "c.wav").write_bytes(b"c.wav")  # touched, or copied again: nothing to do
    os.utime(tmp_path / "c.wav", (1, 1))
    os.utime(tmp_path / "b.wav", (1, 1))
    (tmp_path / "d.wav").unlink()  # its row is all there is of it
    result, heard = batch.run()
    assert heard == ["a.wav", "b.wav"]
    assert (result.n_done_before, result.n_again) == (3, 2)
    assert batch.run()[1] == []


def test_a_text_that_has_changed_is_renewed_without_work(batch: Batch) -> None:
    batch.run(failing=[])
    rows = lines_of(batch.output.read_bytes())
    noted = rows[1].replace(b"}\n", b', "mine": 1}\n')
    batch.output.write_bytes(b"".join([rows[0], noted, *rows[2:]]))
    lines = [{**LINES[0], "text": "sprach", "speaker": "x"}, {**LINES[1], "more": 2}, *LINES[2:]]
    batch.write(lines)
    result = run_batch(open_nothing, batch.input, batch.output)
    assert (result.n_done_before, result.n_renewed) == (4, 2)
    found = lines_of(batch.output.read_bytes())
    row = json.loads(found[0])
    assert (row["text"], row["speaker"], row["pred_text"]) == ("sprach", "x", "says ä.wav")
    assert found[1] == rows[1].replace(b"}\n", b', "more": 2, "mine": 1}\n')
    assert found[2:] == rows[2:]
    assert run_batch(open_nothing, batch.input, batch.output).n_renewed == 0


def test_an_output_of_an_older_version_is_continued_with_a_warning(batch: Batch) -> None:
    batch.output.write_bytes(b"".join(lines_of(ROWS)[:2]))
    with pytest.warns(UserWarning, match="does not say with which model and options") as found:
        assert batch.run()[1] == ["bad.wav", "日本.wav"]
    assert found[0].filename == __file__
    assert batch.output.read_bytes() == ROWS.encode()
    batch.run()
    with pytest.raises(RecordsError, match="another max_new_tokens"):
        batch.run(options=Options(max_new_tokens=1))


def test_overwriting_keeps_the_old_rows_until_there_is_a_new_one(batch: Batch) -> None:
    batch.run()
    with pytest.raises(ark_asr_onnx.PackageError, match="no model here"):
        run_batch(open_nothing, batch.input, batch.output, overwrite=True)
    assert batch.output.read_bytes() == ROWS.encode()
    batch.input.write_bytes(b"")
    batch.run(overwrite=True)
    assert batch.output.read_bytes() == b""


def test_somebodys_file_beside_the_output_is_kept(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl.meta").write_text("notes\n")
    for overwrite in (False, True):
        with pytest.raises(RecordsError, match=r"meta: is no journal of a batch; move it away"):
            batch.run(overwrite=overwrite)
    assert (tmp_path / "out.jsonl.meta").read_text() == "notes\n"


def test_a_journal_of_a_newer_version_is_refused(batch: Batch, tmp_path: Path) -> None:
    batch.run()
    path = tmp_path / "out.jsonl.meta"
    path.write_bytes(path.read_bytes().replace(b'{"ark_asr_batch": 1', b'{"ark_asr_batch": 2'))
    with pytest.raises(RecordsError, match="has format 2, this version of ark-asr-onnx writes 1"):
        batch.run()


def test_what_is_spoilt_in_the_journal_is_left_out(batch: Batch, tmp_path: Path) -> None:
    batch.write(audio(tmp_path, "a.wav", "b.wav"))
    batch.run()
    path = tmp_path / "out.jsonl.meta"
    whole = path.read_bytes()
    lines = lines_of(whole)
    (tmp_path / "b.wav").write_bytes(b"other")
    for spoilt in (
        whole + bytes(100),
        whole + b'{"key": ["b.w',
        b"".join([lines[0], bytes(30), b"\n", *lines[2:]]),
        b"".join([lines[0], b'[]\n{"key": 3}\n{"key": ["x", 1]}\n' * 2, *lines[2:]]),
    ):
        path.write_bytes(spoilt)
        (tmp_path / "b.wav").write_bytes(b"other")
        assert batch.run()[1] == ["b.wav"]
    for spoilt in (b"", bytes(50), lines[0][:20]):  # nothing is known then
        path.write_bytes(spoilt)
        with pytest.warns(UserWarning, match="does not say with which model"):
            assert batch.run()[1] == []


# Every state that a run can be killed in, by killing it wherever it writes.

KILLED = """
import functools, json, os, pathlib, shutil, signal, sys
from types import SimpleNamespace

import ark_asr_onnx
from ark_asr_onnx import AudioError
from ark_asr_onnx.corpus import batch, journal

demo, folder = map(pathlib.Path, sys.argv[1:])
manifest = ark_asr_onnx.open_package(demo).manifest

class Fake:
    def __init__(self, failing=()):
        self.manifest, self.failing = manifest, failing

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def transcribe_many(self, clips, **_):
        for clip in clips:
            name = pathlib.Path(clip.source).name
            said = f"{name} says {pathlib.Path(clip.source).read_text()}"
            if name in self.failing:
                yield AudioError("fails")
            else:
                yield SimpleNamespace(
                    text=said, raw_text=said, finish_reason="stop", warnings=(), duration=1
                )

def run(where, failing=()):
    batch.run_batch(functools.partial(Fake, failing), where / "in.jsonl", where / "out.jsonl")

def prepare(where):
    # Rows that failed, of other audio, with another text, taken out; and some that are not yet.
    where.mkdir()
    names = [f"{i}.wav" for i in range(9)]
    for name in names:
        (where / name).write_text("1")
    lines = [{"audio": name, "text": "old"} for name in names]
    write(where, lines[:7])
    run(where, ["1.wav", "2.wav", "5.wav"])
    rows = (where / "out.jsonl").read_bytes().splitlines(keepends=True)
    (where / "out.jsonl").write_bytes(b"".join(rows[:4] + rows[5:]))
    (where / "3.wav").write_text("other")
    lines[6]["text"] = "new"
    write(where, lines)

def write(where, lines):
    (where / "in.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))

def kill_at(moment):
    # The process ends before, in the middle of, or after its nth act of writing.
    acts = iter(range(1 << 30))

    def die_if(now):
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    def killing(act):
        def killed(*args):
            n = 3 * next(acts)
            die_if(n == moment)
            if act is write_all and n + 1 == moment:
                args[0].write(args[1][: len(args[1]) // 2])
            die_if(n + 1 == moment)
            result = act(*args)
            die_if(n + 2 == moment)
            return result
        return killed

    write_all = journal.write_all
    journal.write_all = batch.write_all = killing(write_all)
    pathlib.Path.replace = killing(pathlib.Path.replace)
    os.fsync = killing(os.fsync)
    shutil.copymode = killing(shutil.copymode)

def good(where):
    rows = map(json.loads, (where / "out.jsonl").read_bytes().splitlines())
    return [row["pred_text"] for row in rows if "error" not in row]

undisturbed = folder / "undisturbed"
prepare(undisturbed)
run(undisturbed)
expected = (undisturbed / "out.jsonl").read_bytes()
assert [json.loads(x)["pred_text"] for x in expected.splitlines()] == [
    f"{i}.wav says {'other' if i == 3 else 1}" for i in range(9)
]
for moment in range(1 << 30):
    where = folder / str(moment)
    prepare(where)
    done = good(where)
    done.remove("3.wav says 1")
    if not (child := os.fork()):
        kill_at(moment)
        run(where)
        os._exit(0)
    is_killed = os.waitpid(child, 0)[1]
    rows = (where / "out.jsonl").read_bytes()
    (where / "out.jsonl").write_bytes(rows[: rows.rfind(b"\\n") + 1])
    assert set(done) <= set(good(where)), moment
    (where / "out.jsonl").write_bytes(rows)
    run(where)
    assert (where / "out.jsonl").read_bytes() == expected, moment
    if not is_killed:
        break
print(moment)
"""


@posix
def test_whatever_it_writes_when_it_is_killed_the_next_run_is_right(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(KILLED)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", DEMO, tmp_path],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40  # moments


@pytest.mark.parametrize("sizes", [{"slots": 0}, {"workers": 0}])
def test_slots_and_workers_are_at_least_one(sizes: dict[str, Any], batch: Batch) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        batch.run(**sizes)


def test_workers_write_the_same_rows(batch: Batch) -> None:
    many = LINES * 10
    batch.write(many)
    for n_workers, slots in ((2, 1), (3, 4)):
        result = run_batch(
            open_fake, batch.input, batch.output, workers=n_workers, slots=slots, overwrite=True
        )
        assert batch.output.read_bytes() == ROWS.encode() * 10
        assert (result.n_records, result.n_failed, result.audio_seconds) == (40, 10, 60)


def test_a_model_that_no_worker_can_open_is_the_error_of_the_run(batch: Batch) -> None:
    with pytest.raises(ark_asr_onnx.PackageError, match="no model here"):
        run_batch(open_nothing, batch.input, batch.output, workers=2)


@posix
@pytest.mark.parametrize(
    ("audio", "complaint"), [("killed.wav", "signal 9"), ("crash.wav", "exit status 1")]
)
def test_a_worker_that_dies_ends_the_run_with_an_error(
    audio: str, complaint: str, batch: Batch, capfd: pytest.CaptureFixture[str]
) -> None:
    batch.write([*LINES * 5, {"audio": audio}, *LINES])
    with pytest.raises(DecodeError, match=rf"\({complaint}\).* run the command again to continue"):
        run_batch(open_fake, batch.input, batch.output, workers=2, slots=1)
    assert (ROWS.encode() * 5).startswith(batch.output.read_bytes())
    assert ("ZeroDivisionError" in capfd.readouterr().err) == (audio == "crash.wav")


def test_what_cannot_be_sent_to_a_worker_is_named(batch: Batch) -> None:
    with pytest.raises(ValueError, match=r"cannot be sent to a worker.*lambda.*functools\.partial"):
        run_batch(lambda: cast(Transcriber, Fake()), batch.input, batch.output, workers=2)


@pytest.mark.parametrize(
    ("before", "complaint"),
    [
        ("", "workers import the script that starts them, and it starts them there again"),
        (
            "assert __name__ == '__main__'",
            r"ended \(exit status 1\) before it had begun; it imports",
        ),
    ],
)
def test_a_script_without_a_guard_is_told_so(
    before: str, complaint: str, batch: Batch, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(f"""
import functools, sys
import ark_asr_onnx
from ark_asr_onnx.corpus.batch import run_batch

{before}
try:
    run_batch(functools.partial(ark_asr_onnx.load, {str(DEMO)!r}), *sys.argv[1:], workers=2)
except ark_asr_onnx.ArkError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
""")
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", batch.input, batch.output],
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    *others, last = done.stderr.splitlines()
    assert re.search(f"DecodeError: .*{complaint}", last)
    assert 'if __name__ == "__main__":' in last
    assert bool(others) == bool(before)  # what the script itself says
    assert done.returncode == 1
    assert batch.output.read_bytes() == b""


# With the demo's real model, in processes of their own.

RUN = """
import functools, signal, sys, threading

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what is in the background

def say(line):  # in one piece, whoever else is speaking
    sys.stdout.write(line + "\\n")
    sys.stdout.flush()

if __name__ != "__main__":
    say("worker")

import ark_asr_onnx
from ark_asr_onnx.corpus.batch import run_batch

class Stuck:
    manifest = ark_asr_onnx.open_package(sys.argv[5]).manifest

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def transcribe_many(self, clips, **_):
        for _ in clips:
            say("stuck")
            threading.Event().wait()
            yield

if __name__ == "__main__":
    model, manifest, output, workers, demo = sys.argv[1:]
    run_batch(
        functools.partial(ark_asr_onnx.load, model, threads=1) if model != "stuck" else Stuck,
        manifest,
        output,
        workers=int(workers),
        slots=3,
        on_progress=lambda n, _: say(f"row {n}"),
    )
"""


def demo_manifest(folder: Path) -> Path:
    """The demo's clips five times over, whole and in parts."""
    lines = (DEMO / "samples" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    path = folder / "in.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for begin in (-1, 0.1, 0.2, 0.3, 0.4):
            for row in map(json.loads, lines):
                audio = str(DEMO / "samples" / row["audio"])
                file.write(json.dumps({**row, "audio": audio, "begin_time": begin}) + "\n")
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A manifest for the demo and what comes out when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    manifest, output = demo_manifest(folder), folder / "out.jsonl"
    result = run_batch(functools.partial(ark_asr_onnx.load, DEMO, threads=1), manifest, output)
    assert (result.n_records, result.n_failed) == (30, 0)
    return manifest, output.read_bytes()


Run = subprocess.Popen[str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts :data:`RUN`, writing to ``out.jsonl``, in a session of its own."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    started: list[Run] = []

    def start(model: str | Path, manifest: Path, workers: int) -> Run:
        process = subprocess.Popen(
            [sys.executable, script, model, manifest, tmp_path / "out.jsonl", str(workers), DEMO],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if os.name == "posix":  # its workers too, should they have been left behind
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def says(process: Run, line: str) -> bool:
    """Whether a run prints this line; returns when it has, or has ended."""
    assert process.stdout is not None
    return any(printed == f"{line}\n" for printed in process.stdout)


def test_a_batch_of_the_demo_holds_what_was_said(undisturbed: tuple[Path, bytes]) -> None:
    rows = [json.loads(line) for line in undisturbed[1].decode().splitlines()]
    for row in rows[:6]:
        assert row["pred_text"] == row["text"]
        assert row["pred_text_raw"].endswith("<|im_end|>")
        assert list(row)[6:] == ["speaker", "duration_s", "source"]


def test_rows_have_words_where_they_are_asked_for(samples: list[Sample], tmp_path: Path) -> None:
    output, given = tmp_path / "out.jsonl", {"pred_words": "old", "words": ["mine"]}
    lines = [{"audio": str(sample.path.resolve()), **given} for sample in samples[:2]]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    run = functools.partial(
        run_batch,
        functools.partial(ark_asr_onnx.load, DEMO, threads=1),
        tmp_path / "in.jsonl",
        output,
    )
    run(options=Options(words=True))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    for row, sample in zip(rows, samples, strict=False):
        assert [word["word"] for word in row["pred_words"]] == sample.text.split()
        assert list(row["pred_words"][0]) == ["word", "start", "end", "probability"]
        assert list(row)[-2:] == ["words", "pred_words"]
        assert row["words"] == ["mine"]
    lines[0]["text"] = "renewed"
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert run(options=Options(words=True)).n_renewed == 1
    assert json.loads(output.read_text().splitlines()[0]) == rows[0] | {"text": "renewed"}
    with pytest.raises(RecordsError, match=r"another words \(true, now false\)"):
        run()
    run(overwrite=True)
    assert not any("pred_words" in json.loads(line) for line in output.read_text().splitlines())


def test_a_model_without_times_of_words_leaves_the_output(
    tiny_package: Path, undisturbed: tuple[Path, bytes], tmp_path: Path
) -> None:
    (tmp_path / "out.jsonl").write_bytes(undisturbed[1])
    opens = functools.partial(ark_asr_onnx.load, tiny_package, threads=1)
    for n_workers in (1, 2):
        with pytest.raises(PackageError, match="cannot tell when words are said"):
            run_batch(
                opens, undisturbed[0], tmp_path / "out.jsonl", options=Options(words=True),
                overwrite=True, workers=n_workers,
            )  # fmt: skip
        assert (tmp_path / "out.jsonl").read_bytes() == undisturbed[1]


def test_a_doubtful_text_says_why_and_is_counted(
    undisturbed: tuple[Path, bytes], tmp_path: Path
) -> None:
    opens = functools.partial(ark_asr_onnx.load, DEMO)
    options = Options(max_new_tokens=2)
    for _ in range(2):  # counted again when the run is continued
        result = run_batch(opens, undisturbed[0], tmp_path / "out.jsonl", options=options)
        assert result.n_flagged == result.n_records - result.n_failed > 0
    row = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert list(row)[-1] == "finish_reason"
    assert row["finish_reason"] == "length"


def test_fast_workers_wait_for_the_slowest() -> None:
    dealer = workers._Dealer(enumerate(Clip(f"{i}.wav") for i in range(9)), lead=3)
    slow, fast = Inbox(), Inbox()
    for inbox in (slow, fast):
        dealer.hear(inbox, None)  # pyright: ignore[reportArgumentType] - a double
    for number in (1, 2):
        dealer.hear(fast, (number, ArkError()))  # pyright: ignore[reportArgumentType]
        dealer.hear(fast, None)  # pyright: ignore[reportArgumentType]
    assert slow.numbers == [0]
    assert fast.numbers == [1, 2]  # 3 would be three behind 0, which is not finished
    dealer.hear(slow, None)  # pyright: ignore[reportArgumentType]
    assert slow.numbers == [0, 3]  # who has the oldest is not kept waiting
    dealer.hear(slow, (0, ArkError()))  # pyright: ignore[reportArgumentType]
    assert fast.numbers == [1, 2, 4]


class Inbox:
    """The end of a worker's pipe."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def send(self, numbered: tuple[int, Clip]) -> None:
        self.numbers.append(numbered[0])


@posix
def test_killed_at_any_moment_a_run_goes_on_where_it_was(
    undisturbed: tuple[Path, bytes], start: Callable[..., Run], tmp_path: Path
) -> None:
    manifest, whole = undisturbed
    moment, output = random.Random(0), tmp_path / "out.jsonl"
    for n in range(20):
        process = start(DEMO, manifest, workers=1 + n % 2)
        n_done = output.read_bytes().count(b"\n") if output.exists() else 0
        says(process, f"row {n_done + moment.randint(0, 4)}")
        try:
            process.wait(timeout=moment.uniform(0, 0.05))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        assert whole.startswith(output.read_bytes())
    process = start(DEMO, manifest, workers=1)
    assert process.communicate()[1] == ""
    assert output.read_bytes() == whole


@posix
def test_killed_while_rows_are_done_again_a_run_loses_none(
    undisturbed: tuple[Path, bytes], start: Callable[..., Run], tmp_path: Path
) -> None:
    manifest, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [json.loads(line) for line in undisturbed[0].read_bytes().splitlines()]
    for i, line in enumerate(lines):
        line["audio"] = f"{i}.flac"
        if i % 2:
            (tmp_path / f"{i}.flac").symlink_to(json.loads(lines_of(undisturbed[1])[i])["audio"])
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    process = start(DEMO, manifest, workers=2)
    assert process.communicate()[1] == ""
    assert output.read_bytes().count(b'"error": ') == 15
    for i in range(0, 30, 2):
        (tmp_path / f"{i}.flac").symlink_to(json.loads(lines_of(undisturbed[1])[i])["audio"])
    moment = random.Random(1)
    for n in range(6):
        process = start(DEMO, manifest, workers=1 + n % 2)
        says(process, f"row {15 + 2 * n + moment.randint(0, 4)}")
        try:
            process.wait(timeout=moment.uniform(0, 0.05))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        rows = [json.loads(line) for line in output.read_bytes().splitlines()]
        assert [row["audio"] for row in rows] == [line["audio"] for line in lines]
        assert all("error" not in row for row in rows[1::2])
    process = start(DEMO, manifest, workers=1)
    assert process.communicate()[1] == ""
    for found, expected in zip(
        lines_of(output.read_bytes()), lines_of(undisturbed[1]), strict=True
    ):
        assert json.loads(found)["pred_text_raw"] == json.loads(expected)["pred_text_raw"]


def test_workers_with_the_demo_write_the_same_bytes(
    undisturbed: tuple[Path, bytes], tmp_path: Path
) -> None:
    opens = functools.partial(ark_asr_onnx.load, DEMO, threads=1)
    run_batch(opens, undisturbed[0], tmp_path / "out.jsonl", workers=2, slots=2)
    assert (tmp_path / "out.jsonl").read_bytes() == undisturbed[1]


@posix
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("moment", ["worker", "stuck"])
def test_workers_end_when_their_parent_is_killed(
    moment: str, name: str, undisturbed: tuple[Path, bytes], start: Callable[..., Run]
) -> None:
    process = start("stuck", undisturbed[0], workers=2)
    assert says(process, moment)
    assert says(process, moment)
    process.send_signal(getattr(signal, name))
    # Its output ends when the last process that could write to it has ended.
    process.communicate(timeout=30)


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_what_ends_a_whole_service_is_left_to_the_parent(
    name: str, undisturbed: tuple[Path, bytes], start: Callable[..., Run], tmp_path: Path
) -> None:
    script = tmp_path / "run.py"  # its parent ends as by Ctrl-C
    handler = f"signal.signal(signal.{name}, signal.default_int_handler)\n"
    script.write_text(script.read_text().replace("signal.signal", f"{handler}signal.signal", 1))
    process = start("stuck", undisturbed[0], workers=2)
    assert says(process, "stuck")
    assert says(process, "stuck")
    os.killpg(process.pid, getattr(signal, name))
    complaint = process.communicate(timeout=30)[1]
    assert complaint.count("Traceback") == complaint.count("KeyboardInterrupt") == 1


@posix
@pytest.mark.parametrize("moment", ["worker", "row 3"])
def test_control_c_ends_workers_without_a_word_of_theirs(
    moment: str, undisturbed: tuple[Path, bytes], start: Callable[..., Run], tmp_path: Path
) -> None:
    process = start(DEMO, undisturbed[0], workers=2)
    assert says(process, moment)
    os.killpg(process.pid, signal.SIGINT)
    complaint = process.communicate(timeout=30)[1]
    assert complaint.count("Traceback") == complaint.count("KeyboardInterrupt") == 1
    assert undisturbed[1].startswith((tmp_path / "out.jsonl").read_bytes())
