"""How close is a step to the limit of the memory's bandwidth?

python benchmarks/roofline.py [--size 0.6B] [--rounds 5]

A step reads every weight of the decoder once. The least time of a step is these bytes divided by
the measured bandwidth (numpy summing 512 MB with as many threads); the share is the least time
divided by the measured time. Bandwidth and steps are measured in turn.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
from lab import Lab, Row, alternate, main, say, spread


def bandwidth(numbers: np.ndarray, threads: int) -> float:
    """Bytes per second, the best of three passes."""
    best = 0.0
    for _ in range(3):
        readers = [threading.Thread(target=part.sum) for part in np.array_split(numbers, threads)]
        begin = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, numbers.nbytes / (time.perf_counter() - begin))
    return best


def weights(package: Path) -> int:
    """Bytes that a step reads: all of the decoder's weights."""
    return (package / "decoder.onnx.data").stat().st_size


def measure(lab: Lab) -> list[Row]:
    """A row for the step's share."""
    numbers = np.ones((1 << 26) if lab.size == "0.6B" else (1 << 20))
    n_bytes = weights(lab.native)
    with lab.subjects("native") as subjects:
        ask = subjects["native"]
        ask("prefill", positions=100)
        found = alternate(
            3 * lab.rounds,
            {
                "bandwidth": lambda: bandwidth(numbers, lab.threads),
                "step": lambda: statistics.median(ask("steps", n=8)),
            },
        )
    shares = [n_bytes / b / s for b, s in zip(found["bandwidth"], found["step"], strict=True)]
    lab.findings["roofline"] = {**found, "bytes": n_bytes, "shares": shares}
    say(f"  bandwidth {spread([b / 1e9 for b in found['bandwidth']])} GB/s, share {spread(shares)}")
    least = n_bytes / statistics.median(found["bandwidth"])
    step, share = statistics.median(found["step"]), statistics.median(shares)
    what = "decode step, share of the memory roofline"
    return [Row(what, 1e3 * step, 1e3 * least, "ms", share, ">= 0.85")]


if __name__ == "__main__":
    sys.exit(main(measure, __doc__))
