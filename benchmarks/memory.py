"""How much memory does a transcription take, and how much of it is private to the process?

python benchmarks/memory.py [--size 0.6B]

30 s of audio, 96 tokens, each in a new process whose memory is read every 20 ms: our command, with
and without prepared graphs, and the published script. Resident memory includes mapped files, whose
pages the system can reclaim; anonymous memory does not. Idle is CPU time over wall time of a loaded
model that waits.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from lab import Lab, Row, main, say, smaller


def watch(command: list[str], environment: dict[str, str]) -> list[tuple[float, float, float]]:
    """Samples of seconds, anonymous and file-backed megabytes, from the start to the end."""
    begin = time.perf_counter()
    samples: list[tuple[float, float, float]] = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if "RssAnon" in fields:
                anonymous, mapped = (
                    int(fields[k].split()[0]) / 1e3 for k in ("RssAnon", "RssFile")
                )
                samples.append((time.perf_counter() - begin, anonymous, mapped))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{command}: exit status {process.returncode}")
    return samples


def measure(lab: Lab) -> list[Row]:
    """Rows for peak and anonymous memory, and for idling."""
    commands = lab.commands(30, 96)
    series = {name: watch(*command) for name, command in commands.items()}
    lab.findings["memory"] = series
    peak = {name: max(a + f for _, a, f in samples) for name, samples in series.items()}
    anonymous = {name: max(a for _, a, _ in samples) for name, samples in series.items()}
    for name in series:
        say(f"  {name}: peak {peak[name]:.0f} MB, anonymous {anonymous[name]:.0f} MB at most")
    rows: list[Row] = []
    for what, found, target in (
        ("peak resident memory", peak, "<= 0.6"),
        ("anonymous memory", anonymous, "<= 0.25"),
    ):
        theirs = found["published"]
        rows += [
            smaller(f"{what}, prepared", found["native"], theirs, target, "MB"),
            smaller(f"{what}, unprepared", found["unprepared"], theirs, "", "MB"),
        ]
    with lab.subjects("native") as subjects:
        busy = subjects["native"]("idle", seconds=3)
    rows.append(Row("CPU time while waiting", busy, 1.0, "of wall time", busy, "<= 0.01"))
    return rows


if __name__ == "__main__":
    sys.exit(main(measure, __doc__))
