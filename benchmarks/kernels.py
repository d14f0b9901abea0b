"""Which product of rows and a matrix is fastest in onnxruntime here, and what does scaling cost?

    python benchmarks/kernels.py [--threads 2] [--repeat 7] [--rows 250 750 1500] [--only WORD]
        [--least]

``[rows, K] x [K, N]`` at the encoder's shapes, by every operator that the CPU provider has for it:
*whole* products take and give fp32, with a scale for each row; *given* ones start from codes, so
that the difference is the cost of the scaling; *pass* is a single elementwise step over the input
``[rows, K]`` or the result ``[rows, N]``. Segments divide K, each with a scale for each row.

All rows of the input have the same largest value, so products with one scale for the whole input
can be checked too: *error* is relative to fp32, at the first shape. Candidates take turns; times
are medians, or with ``--least`` the least times, which other work on the machine disturbs less.
Threads do not spin (see recipes.py). Inputs and results are bound, so nothing is copied. A dash
marks a product that this onnxruntime does not have; the JSON line says why.
"""

from __future__ import annotations

import ark_asr_onnx.model.ort  # noqa: F401 - first: it switches telemetry off

# isort: split
import argparse
import json
import platform
import sys
import time
from typing import cast

import numpy as np
import onnxruntime
from kernel_graphs import F32, Candidate, Graph, candidates
from lab import machine, say

MATRICES = ((1280, 1280), (1280, 5120), (5120, 1280))


class Opened:
    """A session with inputs and result bound."""

    def __init__(self, build: Candidate, x: F32, w: F32, threads: int) -> None:
        g = Graph()
        y = build(g, x, w)
        self.session = g.session(y, threads)
        self.binding = self.session.io_binding()
        self.result = cast("np.ndarray", self.session.run(None, g.feeds)[0])
        self._held = [onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in g.feeds.values()]
        for name, value in zip(g.feeds, self._held, strict=True):
            self.binding.bind_ortvalue_input(name, value)
        self._y = onnxruntime.OrtValue.ortvalue_from_numpy(np.empty_like(self.result))
        self.binding.bind_ortvalue_output("y", self._y)
        self.times: list[float] = []

    def time(self) -> None:
        """Run once more, and keep the time."""
        begin = time.perf_counter()
        self.session.run_with_iobinding(self.binding)
        self.times.append(1000 * (time.perf_counter() - begin))


def error(result: np.ndarray, exact: F32) -> float | None:
    """``||y - y'|| / ||y||`` of a product; None for other results."""
    if result.size != exact.size or result.dtype != np.float32:
        return None
    turned = result.T if result.shape == exact[0].T.shape and result.ndim == 2 else result
    return float(np.linalg.norm(turned.reshape(exact.shape) - exact) / np.linalg.norm(exact))


def measure(
    chosen: dict[str, Candidate], shape: tuple[int, int, int], threads: int, repeat: int
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, str]]:
    """Times of every candidate, errors of products, and the reasons of failed candidates."""
    n_rows, n_in, n_out = shape
    generator = np.random.default_rng(0)
    w = generator.standard_normal((n_in, n_out), np.float32) / np.float32(n_in**0.5)
    x = generator.standard_normal((1, n_rows, n_in), np.float32)
    x /= np.abs(x).max(axis=2, keepdims=True)
    exact, opened, errors, failed = x @ w, dict[str, Opened](), dict[str, float](), {}
    for name, build in chosen.items():
        try:
            opened[name] = Opened(build, x, w, threads)
        except Exception as problem:  # onnxruntime's errors have no common base
            failed[name] = str(problem).splitlines()[0][:200]
            continue
        found = None if name.startswith("pass") else error(opened[name].result, exact)
        if found is not None:
            errors[name] = found
    for _ in range(repeat):
        for candidate in opened.values():
            candidate.time()
    return {name: o.times for name, o in opened.items()}, errors, failed


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--threads", type=int, default=2)
    add("--repeat", type=int, default=7)
    add("--rows", type=int, nargs="+", default=[250, 750, 1500])
    add("--least", action="store_true", help="least times instead of medians")
    add("--only", default="", help="candidates with this word in their name")
    options = parser.parse_args()
    chosen = {name: c for name, c in candidates().items() if options.only in name}
    figures: dict[str, dict[str, float]] = {name: {} for name in chosen}
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    labels: list[str] = []
    middle = np.min if options.least else np.median
    for n_in, n_out in MATRICES:
        for n_rows in options.rows:
            labels.append(f"{n_in}x{n_out}, {n_rows}")
            say(labels[-1])
            shape = (n_rows, n_in, n_out)
            times, found, problems = measure(chosen, shape, options.threads, options.repeat)
            errors, failed = {**found, **errors}, {**failed, **problems}
            for name, values in times.items():
                figures[name][labels[-1]] = round(float(middle(values)), 3)
    print(f"| ms | error | {' | '.join(labels)} |\n| --- | --: |{' --: |' * len(labels)}")
    for name, row in figures.items():
        cells = " | ".join(f"{row[label]:.2f}" if label in row else "-" for label in labels)
        share = f"{100 * errors[name]:.2f} %" if name in errors else ""
        print(f"| {name} | {share} | {cells} |")
    about = {**machine(), "machine": platform.machine(), "threads": options.threads}
    print(json.dumps({"ms": figures, "errors": errors, "failed": failed, **about}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
