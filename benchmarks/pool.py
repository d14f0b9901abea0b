"""One pool for all callers, against a checkout in which each call had its own engine.

    git worktree add ../before COMMIT
    python benchmarks/pool.py --before ../before [--speech DIR] [--model models/demo]
        [--rounds 7] [--clips 77] [--tokens 0]

Both checkouts open the same package, in separate processes, and take turns: one clip alone,
``transcribe_many`` over AN4 dev, and eight threads that transcribe those clips one by one. Then
this checkout measures how long a short clip waits beside a long file. ``--tokens N`` limits a
window to N tokens, for packages with random weights, which never end a text.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from outside import SPEECH_HELP, rows, speech

ROOT = Path(__file__).resolve().parent.parent
CALLERS = 8
_LONG_SECONDS = 600


class Worker:
    """A checkout's runtime in this process."""

    def __init__(self, model: str, clips: Sequence[str], threads: int, tokens: int) -> None:
        import ark_asr_onnx

        self.module, self.clips = ark_asr_onnx, list(clips)
        self.transcriber = ark_asr_onnx.load(model, threads=threads)
        guards: Any = {"max_new_tokens": tokens, "retry": False} if tokens else {}
        self.options = ark_asr_onnx.Options(**guards)

    def alone(self) -> float:
        """Seconds for one clip: the median of several runs after a first one."""
        n = 2 if self.options.max_new_tokens < 256 else 12
        times = [self._timed(lambda: self._one(self.clips[0])) for _ in range(n)]
        return statistics.median(times[1:])

    def many(self) -> float:
        """Seconds for ``transcribe_many`` over all clips."""
        clips = [self.module.Clip(path) for path in self.clips]
        many = self.transcriber.transcribe_many
        return self._timed(lambda: list(many(clips, options=self.options)))

    def callers(self) -> float:
        """Seconds for all clips, transcribed one by one in several threads."""

        def run() -> None:
            with ThreadPoolExecutor(CALLERS) as pool:
                list(pool.map(self._one, self.clips))

        return self._timed(run)

    def beside(self) -> list[float]:
        """Seconds for short clips, one after the other, while a long file is transcribed."""
        import numpy as np

        from ark_asr_onnx.audio import sources

        once = np.concatenate([sources.read(path) for path in self.clips])
        long_audio = np.tile(once, 1 + _LONG_SECONDS * 16000 // len(once))
        stream = self.transcriber.stream(long_audio, 16000, options=self.options)
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        time.sleep(1.0)
        found = [self._timed(lambda p=path: self._one(p)) for path in self.clips[:9]]
        stream.close()
        reader.join()
        return found

    def _one(self, path: str) -> None:
        self.transcriber.transcribe(path, options=self.options)

    @staticmethod
    def _timed(run: Callable[[], object]) -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin


def work(about: dict[str, Any]) -> None:
    """Answer questions, one per line."""
    worker = Worker(**about)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(getattr(worker, line.strip())()), flush=True)


def started(root: Path, about: dict[str, Any]) -> subprocess.Popen[str]:
    """Start a worker of a checkout."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--work", json.dumps(about)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root / "runtime")},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


def ask(process: subprocess.Popen[str], question: str) -> Any:
    """The answer of a worker."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(question + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=json.loads, help=argparse.SUPPRESS)
    add("--before", type=Path, help="checkout to compare with")
    add("--speech", default="", metavar="DIR", help=SPEECH_HELP)
    add("--model", type=Path, default=ROOT / "models" / "demo")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=7)
    add("--clips", type=int, default=77)
    add("--tokens", type=int, default=0)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return 0
    manifest = "sentences/dev"
    found = rows(speech(options.speech, manifest), manifest)
    clips = [str(row["path"]) for row in found][: options.clips]
    about = {"model": str(options.model), "clips": clips, "threads": options.threads,
             "tokens": options.tokens}  # fmt: skip
    processes = {"here": started(ROOT, about)}
    if options.before:
        processes["before"] = started(options.before, about)
    times: defaultdict[str, defaultdict[str, list[float]]]
    times = defaultdict(lambda: defaultdict(list))
    for turn in range(options.rounds + 1):
        for question in ("alone", "many", "callers"):
            for name, process in list(processes.items())[:: -1 if turn % 2 else 1]:
                seconds = ask(process, question)
                if turn:
                    times[question][name].append(seconds)
    beside = ask(processes["here"], "beside")
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    print(f"| {len(clips)} clips | {' | '.join(processes)} | times the speed |")
    print(f"| --- |{' --: |' * (len(processes) + 1)}")
    for question, found in times.items():
        medians = [statistics.median(found[name]) for name in processes]
        cells = " | ".join(f"{1000 * seconds:.1f} ms" for seconds in medians)
        print(f"| {question} | {cells} | {medians[-1] / medians[0]:.2f} |")
    print(f"a clip beside a long file waits {statistics.median(beside):.2f} s, at most "
          f"{max(beside):.2f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
