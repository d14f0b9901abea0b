"""Batches: a row for each record, in order, whatever fails, stops or kills the run."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import DEMO, ROOT

import ark_asr_onnx
from ark_asr_onnx import (
    ArkError,
    AudioError,
    Clip,
    DecodeError,
    Options,
    RecordsError,
    Transcriber,
)
from ark_asr_onnx.corpus import workers
from ark_asr_onnx.corpus.batch import BatchResult, run_batch

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

    @property
    def raw_text(self) -> str:
        return f"{self.text}<|im_end|>"


class Fake:
    """Stands for a transcriber that hears the names of files, a few at the same time."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.is_open = True

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
            AudioError(f"{name}: cannot be read") if name == "bad.wav" else Spoken(f"says {name}")
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

    def run(self, **options: Any) -> tuple[BatchResult, list[str]]:
        fake = Fake()
        result = run_batch(
            lambda: cast(Transcriber, fake), self.input, self.output, **{"slots": 2, **options}
        )
        return result, fake.heard


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
    batch.output.write_bytes(ROWS.encode().splitlines(keepends=True)[0])
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
    run_batch(lambda: cast(Transcriber, fake), batch.input, batch.output)
    assert not fake.is_open
    result = run_batch(open_nothing, batch.input, batch.output)
    assert (result.n_done_before, result.n_failed, result.audio_seconds) == (4, 1, 0)


def test_nothing_is_written_for_a_wrong_manifest(batch: Batch) -> None:
    batch.write([*LINES, {"audio": 3}])
    with pytest.raises(RecordsError, match=r"in\.jsonl:5: "):
        batch.run()
    assert not batch.output.exists()


def test_a_run_continues_after_any_byte(batch: Batch) -> None:
    whole = ROWS.encode()
    for n_bytes in range(len(whole) + 1):
        batch.output.write_bytes(whole[:n_bytes])
        result, heard = batch.run()
        n_done = whole[:n_bytes].count(b"\n")
        assert batch.output.read_bytes() == whole
        assert heard == [line["audio"] for line in LINES[n_done:]]
        assert (result.n_done_before, result.n_failed) == (n_done, 1)


def test_a_run_continues_after_zeros_that_a_power_failure_left(batch: Batch) -> None:
    batch.output.write_bytes(ROWS.encode()[:200] + bytes(100))
    batch.run()
    assert batch.output.read_bytes() == ROWS.encode()


def test_an_input_that_has_grown_is_continued(batch: Batch) -> None:
    batch.run()
    batch.write([*LINES, {"audio": "new.wav"}])
    assert batch.run()[1] == ["new.wav"]


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
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(RecordsError, match=r"out\.jsonl: cannot be written \(File too large\)"):
            batch.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert batch.output.read_bytes() == ROWS.encode()[:300]
    batch.run()
    assert batch.output.read_bytes() == ROWS.encode()


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


@pytest.mark.parametrize("sizes", [{"slots": 0}, {"workers": 0}])
def test_slots_and_workers_are_at_least_one(sizes: dict[str, int], batch: Batch) -> None:
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


# With the demo's real model, in processes of their own.

RUN = """
import functools, sys, threading

def say(line):  # in one piece, whoever else is speaking
    sys.stdout.write(line + "\\n")
    sys.stdout.flush()

if __name__ != "__main__":
    say("worker")

import ark_asr_onnx
from ark_asr_onnx.corpus.batch import run_batch

class Stuck:
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
    model, manifest, output, workers = sys.argv[1:]
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
            [sys.executable, script, model, manifest, tmp_path / "out.jsonl", str(workers)],
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
    dealer = workers._Dealer([Clip(f"{i}.wav") for i in range(9)], lead=3)
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


def test_workers_with_the_demo_write_the_same_bytes(
    undisturbed: tuple[Path, bytes], tmp_path: Path
) -> None:
    opens = functools.partial(ark_asr_onnx.load, DEMO, threads=1)
    run_batch(opens, undisturbed[0], tmp_path / "out.jsonl", workers=2, slots=2)
    assert (tmp_path / "out.jsonl").read_bytes() == undisturbed[1]


@posix
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_workers_end_when_their_parent_is_killed(
    name: str, undisturbed: tuple[Path, bytes], start: Callable[..., Run]
) -> None:
    process = start("stuck", undisturbed[0], workers=2)
    assert says(process, "stuck")
    assert says(process, "stuck")
    process.send_signal(getattr(signal, name))
    # Its output ends when the last process that could write to it has ended.
    process.communicate(timeout=30)


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
