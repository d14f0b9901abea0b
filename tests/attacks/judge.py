"""Starts children, gives them cases, and says what is wrong with what came of each.

A transcript or an ``ArkError`` may come, the error within :data:`ERROR_SECONDS` and either within
:data:`MEGABYTES` beyond what the child had. Seconds are of the processor: what others do on the
machine does not count. Everything else is a :class:`Finding`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import child
from .cases import Case

ERROR_SECONDS = 5.0
MEGABYTES = 500.0
HANG_SECONDS = 60.0  # of wall time
_STOP_MEGABYTES = 3000.0  # a child that takes more is ended at once
_NEAR_SECONDS = 0.003  # of a length that was resampled
_CODEC_SECONDS = 0.15  # that codecs add or cut
_PADDING_BYTES = 8  # that some formats have at the end
# A block that is there twice is no more audio than before, in what is compressed.
_COMPRESSED = ("FLAC", "OGG", "MP3", "AAC", "webm", "mp4", "mov", "matroska")
_PER_CHILD = 2000  # cases, after which a new child starts


@dataclass(frozen=True)
class Finding:
    """Something that must not be."""

    what: str  # crash, hang, foreign, slow, memory, output, differs, loss, alarm
    group: str  # findings that are probably the same
    detail: str


@dataclass
class Judged:
    """A case and what came of it."""

    case: Case
    findings: list[Finding]
    outcome: str  # transcript, error or none
    cpu_seconds: float = 0.0
    megabytes: float = 0.0
    ways: dict[str, Any] = field(default_factory=dict[str, Any])


class Child:
    """A process that takes cases of one kind; a new one comes when it dies."""

    def __init__(self, kind: str, scratch: Path, idle_seconds: float = 10.0) -> None:
        self._kind, self._scratch = kind, scratch
        self._idle_seconds = idle_seconds  # without using the processor: it waits for ever
        self._process: Any = None
        self._n_done = 0

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None

    def judge(self, case: Case) -> Judged:
        """Run a case and judge it."""
        if self._process is None or self._n_done >= _PER_CHILD:
            self.close()
            self._start()
        self._n_done += 1
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        try:
            _lay_out(case, folder)
            self._connection.send((str(folder), case.facts))
            died = self._wait()
            if died is not None:
                self.close()
                return Judged(case, [died], "none")
            found = self._connection.recv()
        except EOFError:
            died = self._crash()
            return Judged(case, [died], "none")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return judged(case, found["ways"], found["log"])

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._output = self._scratch / f"output-{time.monotonic_ns()}"
        self._process = context.Process(
            target=child.main, args=(self._kind, theirs, str(self._output)), daemon=True
        )  # fmt: skip
        self._process.start()
        theirs.close()
        self._connection, self._n_done = ours, 0
        try:
            ours.recv()
        except EOFError:
            said = self._output.read_text("utf-8", "replace")
            self.close()
            raise RuntimeError(f"a child does not start: {said[-3000:]}") from None

    def _wait(self) -> Finding | None:
        """Until there is an answer; a finding if there will be none."""
        begin = moved = time.monotonic()
        used = -1
        while not self._connection.poll(0.05):
            now = time.monotonic()
            if (ticks := self._ticks()) != used:
                used, moved = ticks, now
            if self._megabytes() > _STOP_MEGABYTES:
                return self._stopped("memory")
            if now - begin > HANG_SECONDS or now - moved > self._idle_seconds:
                return self._stopped("hang")
        return None

    def _stopped(self, what: str) -> Finding:
        """With the place where it is now, if it says that."""
        os.kill(self._process.pid, signal.SIGUSR1)
        time.sleep(0.3)
        said = self._said()
        return Finding(what, _innermost(said), said)

    def _crash(self) -> Finding:
        self._process.join()
        status = self._process.exitcode
        said = self._said()
        self.close()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return Finding("crash", f"{how} {_innermost(said)}", said)

    def _said(self) -> str:
        return self._output.read_text("utf-8", "replace")[-3000:]

    def _ticks(self) -> int:
        """Of processor time so far."""
        try:
            status = Path(f"/proc/{self._process.pid}/stat").read_text("ascii")
        except OSError:
            return -1
        return sum(map(int, status.rpartition(")")[2].split()[11:13]))

    def _megabytes(self) -> float:
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text("ascii").split()[1])
        except (OSError, IndexError):
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def judge_all(kind: str, cases: Iterable[Case], jobs: int) -> Generator[Judged]:
    """Each case, judged; in several children at once, in no order."""
    source: Iterator[Case] = iter(cases)
    with (
        tempfile.TemporaryDirectory(prefix="attacks-") as scratch,
        contextlib.ExitStack() as children,
        ThreadPoolExecutor(jobs) as pool,
    ):
        free = [Child(kind, Path(scratch)) for _ in range(jobs)]
        for each in free:
            children.callback(each.close)
        running: dict[Any, Child] = {}
        while True:
            while free and (case := next(source, None)) is not None:
                one = free.pop()
                running[pool.submit(one.judge, case)] = one
            if not running:
                return
            done = next(iter(_first_done(running)))
            free.append(running.pop(done))
            yield done.result()


def _first_done(running: Iterable[Any]) -> set[Any]:
    from concurrent.futures import FIRST_COMPLETED, wait

    return wait(running, return_when=FIRST_COMPLETED).done


def _lay_out(case: Case, folder: Path) -> None:
    """The case's files; over a copy of what they belong to, if they do."""
    if base := case.facts.get("base"):
        shutil.copytree(base, target := folder / "package", copy_function=_link)
    else:
        target = folder
    for name, content in case.files.items():
        path = target / name
        path.unlink(missing_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "folder":
            path.mkdir()
        elif content == "fifo":
            os.mkfifo(path)
        elif content.startswith("link "):
            path.symlink_to(content.removeprefix("link "))


def _link(source: str, target: str) -> None:
    """A copy that costs nothing, times of change included, where the file system has it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def judged(case: Case, ways: dict[str, Any], log: list[str]) -> Judged:
    """What is wrong with what came of a case."""
    findings = [Finding("foreign", f"log: {line}", line) for line in log]
    for way, found in ways.items():
        findings += _of_one_way(way, found)
    if case.kind == "audio":
        findings += _of_audio(case, ways)
    elif case.kind == "prepared" or case.facts["damage"] == "intact":
        for found in ways.values():
            if found["outcome"] == "error":
                message = str(found["message"])
                findings.append(Finding("alarm", f"refused: {_without_numbers(message)}", message))
    worst = max(ways.values(), key=lambda found: found["cpu_seconds"])
    return Judged(
        case,
        findings,
        "transcript" if any(w["outcome"] == "transcript" for w in ways.values()) else "error",
        worst["cpu_seconds"],
        max(found["megabytes"] for found in ways.values()),
        ways,
    )


def _of_one_way(way: str, found: dict[str, Any]) -> Iterator[Finding]:
    if found["outcome"] == "foreign":
        message = found["message"]
        yield Finding("foreign", _without_numbers(message), found.get("trace", message))
    if found["outcome"] != "transcript" and found["cpu_seconds"] > ERROR_SECONDS:
        detail = f"{found['cpu_seconds']:.1f} s by {way}: {found['message']}"
        yield Finding("slow", _without_numbers(found["message"]), detail)
    if found["megabytes"] > MEGABYTES:
        detail = f"{found['megabytes']:.0f} MB by {way}: {found.get('message', 'transcript')}"
        yield Finding("memory", _without_numbers(found.get("message", "transcript")), detail)
    if found["written"]:
        words = " ".join(dict.fromkeys(re.findall(r"[A-Za-z]{3,}", found["written"][:100])))
        yield Finding("output", words, f"by {way}: {found['written']}")


# What may be said of a whole file: its kind tells nothing of its end, its words were cut away.
_HONEST = {"unchecked", "no speech"}


def _of_audio(case: Case, ways: dict[str, Any]) -> Iterator[Finding]:
    path = ways["path"]
    form, facts = case.facts["format"], case.facts
    for way, found in ways.items():
        if way in ("path", "split") or (way == "stdin" and form == "HTK"):  # which has no name
            continue
        if difference := _difference(found, path, ways.get("split"), way == "stdin"):
            yield Finding("differs", f"{way}, {form}: {difference[0]}", difference[1])
    said = set(path["warnings"]) - _HONEST
    if facts["damage"] == "intact" and (path["outcome"] != "transcript" or said):
        said = path.get("message") or str(path["warnings"])
        yield Finding("alarm", f"{form}: {_without_numbers(said)}", said)
    if path["outcome"] == "transcript" and not path["warnings"] and (lost := _loss(case, path)):
        yield Finding("loss", f"{form}, {facts['damage']}", lost)


def _difference(
    found: dict[str, Any], other: dict[str, Any], split: dict[str, Any] | None, by_command: bool
) -> tuple[str, str] | None:
    """How two ways differ, in short and in full.

    The command may cut short audio at its pauses, as ``split`` was, and tells no kinds of warnings.
    """
    is_nameless = by_command and "not recognised" in str(other.get("message"))
    if found["outcome"] != other["outcome"] and is_nameless:
        return None  # whose first bytes are damaged may be bare samples, if it comes by a pipe
    if found["outcome"] != other["outcome"]:
        both = f"{found['outcome']} and {other['outcome']}"
        return both, f"{both}: {found.get('message')!r}, {other.get('message')!r}"
    if found["outcome"] != "transcript":
        return None
    allowed = (other, split) if by_command else (other,)
    heard = [way for way in allowed if way is not None and "text" in way]
    same = [way for way in heard if way["text"] == found["text"]]
    if not same:
        return "text", f"{found['text']!r} and {' or '.join(repr(way['text']) for way in heard)}"
    kinds = sorted(set(found["warnings"]))
    said = [sorted(set(way["warnings"])) for way in same]
    if all(bool(kinds) != bool(others) if by_command else kinds != others for others in said):
        return "warnings", f"{kinds} and {' or '.join(map(str, said))}"
    return None


def _loss(case: Case, path: dict[str, Any]) -> str:
    """How audio is missing of which nothing was said; empty if none is."""
    facts = case.facts
    damage, wanted, heard = facts["damage"], facts["seconds"], path["duration"]
    says_length = facts["says_length"] and facts["is_single"]
    near = _NEAR_SECONDS
    if damage == "intact" or (damage == "join" and facts["says_length"]):
        near = _CODEC_SECONDS
    elif damage in ("append", "duplicate"):
        is_seen = damage == "append" or facts["format"] not in _COMPRESSED
        if says_length and is_seen and facts["more"] > _PADDING_BYTES and heard <= wanted + near:
            return f"{facts['more']} bytes were not used"
        return ""
    elif not says_length or damage not in ("truncate", "remove"):
        return ""
    return f"{heard:.4f} of {wanted:.4f} s" if heard < wanted - near else ""


def _without_numbers(text: str) -> str:
    return re.sub(r"/\S+/", "", re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "N", text))[:160]


def _innermost(said: str) -> str:
    """The first frame of the project in what faulthandler wrote."""
    found = re.findall(r'File "[^"]*/(ark_asr_onnx/[^"]+)", line \d+ in (\S+)', said)
    return " ".join(found[0]) if found else ""
