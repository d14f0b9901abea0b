"""Shared by the benchmark scripts: packages to measure, subjects, alternating runs, tables.

Checkpoint, packages, packed graphs and peers' models take long to make, so they are made once and
kept in ``--work``, by default ``~/.cache/ark-asr-benchmarks``: about 15 GB for 0.6B.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("genai_int8", "genai_int4", "llamacpp", "ctranslate2")
_PATH = os.pathsep.join(str(ROOT / name) for name in ("runtime", "export", "benchmarks"))


class Subject:
    """A process that answers questions about one engine; see ``subjects.py``."""

    def __init__(
        self, name: str, arguments: Mapping[str, Any], python: str = sys.executable
    ) -> None:
        # A file, since an unread pipe is full after 64 kB of warnings, and the subject would wait.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._process = subprocess.Popen(
            [python, ROOT / "benchmarks" / "subjects.py", name, json.dumps(dict(arguments))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, text=True,
            env={**os.environ, "PYTHONPATH": _PATH, "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
        self.pid = self._process.pid
        self._answer()

    def __call__(self, ask: str, **arguments: Any) -> Any:
        """Call a method of the subject and return its result."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"ask": ask, **arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._complaints.seek(0)
            said = self._complaints.read().decode("utf-8", "replace")
            raise SystemExit(f"a subject ended: {said[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died before it read a question
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._complaints.close()


@dataclass
class Lab:
    """Packages and engines of one size, and the findings about them."""

    size: str
    work: Path
    threads: int
    rounds: int
    python_of_peers: Path
    plan: Path | None = None  # a report.json with the recipes for our package
    tokenizer: str = ""  # of a checkpoint; "": one is made
    findings: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """A random checkpoint, made if needed."""
        path = self.work / "checkpoint"
        if not path.exists():
            kind = "tiny" if self.size == "small" else self.size
            named = ["--tokenizer", self.tokenizer] if self.tokenizer else []
            self._make("make_checkpoint.py", path, "--size", kind, *named)
        return path

    @property
    def native(self) -> Path:
        """Our package by the plan, or by the default recipe, exported if needed."""
        if self.plan is None:
            return self.random
        digest = hashlib.sha256(self.plan.read_bytes()).hexdigest()[:8]
        return self._package(f"native-{digest}", "--plan", str(self.plan), "--allow-degraded")

    @property
    def random(self) -> Path:
        """Our package by the default recipe's choices for random weights."""
        return self._package("native")

    @property
    def published(self) -> Path:
        """A package of upstream's layout and recipe, exported if needed."""
        return self._package("published", "--layout", "published")

    @property
    def prepared(self) -> Path:
        """Our package's graphs, packed for this CPU."""
        path = self.work / "prepared"
        command = "import sys, ark_asr_onnx; ark_asr_onnx.prepare(*sys.argv[1:])"
        _run([sys.executable, "-c", command, self.native, path])
        return path

    @property
    def clips(self) -> dict[int, Path]:
        """Noise of 5 and 30 seconds; with random weights, speech would give no more information."""
        import soundfile

        paths: dict[int, Path] = {}
        for seconds in (5, 30):
            paths[seconds] = self.work / f"{seconds}s.wav"
            if not paths[seconds].exists():
                noise = np.random.default_rng(seconds).standard_normal(seconds * 16000)
                soundfile.write(paths[seconds], 0.1 * noise, 16000)
        return paths

    def subject(self, name: str) -> Subject | None:
        """Start an engine; None for a peer that is not installed."""
        if name in ("native", "unprepared"):
            prepared = str(self.prepared) if name == "native" else None
            arguments = {"model": str(self.native), "prepared": prepared}
            return Subject("native", {**arguments, "threads": self.threads})
        if name == "random":
            return Subject("native", {"model": str(self.random), "threads": self.threads})
        if name == "published":
            return Subject(name, {"model": str(self.published), "threads": self.threads})
        if self.size != "0.6B":
            return None
        if name.startswith("torch"):
            return Subject("torch", {"part": name.removeprefix("torch_"), "threads": self.threads})
        if not self.python_of_peers.exists():
            return None
        kind = name.partition("_")[0]
        made = kind if kind == "openvino" else name  # its variants share a folder
        path = self.work / made
        if not path.exists():
            tokenizer = ["--tokenizer", self.checkpoint] if kind == "genai" else []
            python = str(self.python_of_peers)
            self._make("make_peers.py", made, path, *tokenizer, python=python)
        arguments = {"model": str(path), "threads": self.threads}
        if kind == "openvino":
            arguments["variant"] = name
        return Subject(kind, arguments, str(self.python_of_peers))

    @contextlib.contextmanager
    def subjects(self, *names: str) -> Iterator[dict[str, Subject]]:
        """Those of several engines that are available, running side by side."""
        started = {name: self.subject(name) for name in names}
        found = {name: subject for name, subject in started.items() if subject is not None}
        try:
            yield found
        finally:
            for subject in found.values():
                subject.close()

    def commands(self, seconds: int, tokens: int) -> dict[str, tuple[list[str], dict[str, str]]]:
        """Command and environment of a process that prints a clip's text: ours and upstream's."""
        clip = str(self.clips[seconds])
        infer = str(ROOT / "infer_ark_audio_onnx.py")
        # In one pass, since noise has no speech to detect.
        script = [sys.executable, infer, "--window", "30", "--no-retry", "--audio", clip]
        model = ["--model-dir", str(self.native), "--max-new-tokens", str(tokens)]
        ours = [*script, *model, "--threads", str(self.threads)]
        settings = json.dumps({"model": str(self.published), "threads": self.threads})
        subjects = str(ROOT / "benchmarks" / "subjects.py")
        theirs = [sys.executable, subjects, "published", settings, "text", clip, str(tokens)]
        plain = {**os.environ, "PYTHONPATH": _PATH}
        plain.pop("ARK_ASR_PREPARED_DIR", None)
        return {
            "native": (ours, {**plain, "ARK_ASR_PREPARED_DIR": str(self.prepared)}),
            "unprepared": (ours, plain),
            "published": (theirs, plain),
        }

    def _package(self, name: str, *options: str) -> Path:
        path = self.work / name
        if not path.exists():
            say(f"exporting {name}, once: {path}")
            command = ["-m", "ark_onnx_export", "--ckpt", self.checkpoint, "--out", path]
            # Random weights of a tiny network need not be good.
            more = ["--allow-degraded"] if self.size == "small" else []
            _run([sys.executable, *command, "--quiet", *options, *more])
        return path

    def _make(self, script: str, *arguments: object, python: str = sys.executable) -> None:
        say(f"{script} {' '.join(map(str, arguments))}, once")
        self.work.mkdir(parents=True, exist_ok=True)
        _run([python, ROOT / "benchmarks" / script, *arguments])


@dataclass(frozen=True)
class Row:
    """A line of the table: our figure against another's."""

    what: str
    ours: float
    other: float
    unit: str
    ratio: float  # how many times ours is faster; for memory and start-up, ours over the other's
    target: str  # such as ">= 4" or "<= 0.6"; "": none

    @property
    def verdict(self) -> str:
        """``held`` or ``MISSED``."""
        if not self.target:
            return ""
        sign, limit = self.target.split()
        held = self.ratio >= float(limit) if sign == ">=" else self.ratio <= float(limit)
        return "held" if held else "MISSED"


def faster(what: str, ours: Sequence[float], other: Sequence[float], target: str, unit: str) -> Row:
    """Medians of times, and how many times ours is as fast: the median of the rounds' ratios."""
    ratio = statistics.median(b / a for a, b in zip(ours, other, strict=True))
    return Row(what, statistics.median(ours), statistics.median(other), unit, ratio, target)


def smaller(what: str, ours: float, other: float, target: str, unit: str) -> Row:
    """A row with our figure as a share of the other's."""
    return Row(what, ours, other, unit, ours / other, target)


def alternate(
    rounds: int, questions: Mapping[str, Callable[[], float]], warm: bool = True
) -> dict[str, list[float]]:
    """Ask each in turn for ``rounds`` rounds, so that a disturbance affects all of them."""
    found: dict[str, list[float]] = {name: [] for name in questions}
    for i in range(rounds + warm):
        for name, question in questions.items():
            value = question()
            if i >= warm:
                found[name].append(value)
    return found


def spread(values: Sequence[float]) -> str:
    """Median, least and greatest value."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| what | ours | other | unit | ratio | target | verdict |",
        "| --- | --: | --: | --- | --: | --: | --- |",
    ]
    lines += [
        f"| {r.what} | {r.ours:.4g} | {r.other:.4g} | {r.unit} | {r.ratio:.2f} | "
        f"{r.target} | {r.verdict} |"
        for r in rows
    ]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """The machine and the versions of the measurement."""
    cpu, flags = platform.processor(), ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
            if line.startswith("flags"):
                flags = line
    names = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
    versions = {}
    for name in ("numpy", "onnxruntime", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "cpu": cpu, "features": [n for n in names if n in flags.split()],
        "cores": os.cpu_count(),
        "python": platform.python_version(), **versions,
    }  # fmt: skip


def checksum(package: Path) -> str:
    """Checksum of the manifest, which contains the checksums of all files."""
    return hashlib.sha256((package / "ark_manifest.json").read_bytes()).hexdigest()[:16]


def say(line: str) -> None:
    """Print progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every script takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", choices=("small", "0.6B"), default="0.6B")
    add("--work", type=Path, help="where packages are made and kept")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=5)
    add("--plan", type=Path, help="a package's report.json: ours is stored by its choices")
    add("--tokenizer", default="", metavar="NAME", help="take it from this checkpoint, folder or "
        "Hugging Face id, in place of one that is made")  # fmt: skip
    add("--peers-python", type=Path, help="a Python with benchmarks/peers.txt "
        "(default: peers/bin/python in --work)")  # fmt: skip
    return parser


def work_folder(name: str) -> Path:
    """The folder of this name in which benchmarks keep the files that they make once."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise SystemExit("there is no home directory: pass --work DIR") from None
    return cache / "ark-asr-benchmarks" / name


def opened(options: argparse.Namespace) -> Lab:
    """The lab for the options."""
    work = options.work or work_folder(options.size)
    peers = options.peers_python or work / "peers" / "bin" / "python"
    return Lab(
        options.size, work.resolve(), options.threads, options.rounds, peers, options.plan,
        options.tokenizer,
    )  # fmt: skip


def report(lab: Lab, rows: Sequence[Row], begin: float) -> int:
    """Print machine, table and one JSON line on stdout; returns 1 if a target is missed."""
    facts = {**machine(), "threads": lab.threads, "package": checksum(lab.native)}
    print(", ".join(f"{k} {' '.join(v) if isinstance(v, list) else v}" for k, v in facts.items()))
    print(f"\n{table(rows)}\n")
    record = {
        "machine": facts, "seconds": round(time.perf_counter() - begin),
        "rows": [{**vars(row), "verdict": row.verdict} for row in rows], "findings": lab.findings,
    }  # fmt: skip
    print(json.dumps(record, default=_plain))
    return int(any(row.verdict == "MISSED" for row in rows))


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else str(value)


def main(measure: Callable[[Lab], list[Row]], description: str | None) -> int:
    """The command line of a script that answers one question."""
    begin = time.perf_counter()
    lab = opened(arguments(description).parse_args())
    return report(lab, measure(lab), begin)


def _run(command: Sequence[object]) -> None:
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": _PATH},
    )  # fmt: skip
    if result.returncode:
        raise SystemExit(f"{command}: {result.stdout[-1000:]}{result.stderr[-2000:]}")
