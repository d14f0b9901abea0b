"""How much time do times of words cost? A window with and without them.

    python benchmarks/word_cost.py [--size 0.6B|small] [--work DIR] [--plan REPORT.json]

Random weights have no heads that attend to words, so eight heads of one layer are taken: of the
layer at four fifths of the depth, where the last heads of the real network are, and of the last
layer, which costs most because all layers run again. Lengths of texts are forced, 3.2 tokens per
second. Runs with and without times alternate; the ratio is that of their medians.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lab

import ark_asr_onnx
from ark_asr_onnx import Options, Splitting
from ark_asr_onnx.package import contract
from ark_onnx_export import align

_N_HEADS = 8
_TOKENS_PER_SECOND = 3.2
_ALLOWED = "<= 1.08"
_DEPTHS = (0.8, 1.0)  # of the layer whose heads are taken


def with_times(package: Path, checkpoint: Path, out: Path, depth: float) -> Path:
    """A package that links to another's files and adds the graph for times of words."""
    manifest: dict[str, Any] = json.loads((package / contract.MANIFEST_FILE).read_text("utf-8"))
    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text("utf-8"))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for path in package.iterdir():
        if path.name not in (contract.MANIFEST_FILE, contract.ALIGN_FILE):
            (out / path.name).hardlink_to(path)
    layer = round(depth * manifest["sizes"]["n_layers"]) - 1
    heads = [(layer, head) for head in range(min(_N_HEADS, config["num_attention_heads"]))]
    path = align.write(out, heads, len(manifest["tokens"]["prefix"]))
    manifest["files"][path.name] = {
        "bytes": path.stat().st_size, "sha256": contract.file_sha256(path)
    }  # fmt: skip
    (out / contract.MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
    return out


def measure(of: lab.Lab) -> list[lab.Row]:
    """A row for each length and depth."""
    return [row for depth in _DEPTHS for row in _measure(of, depth)]


def _measure(of: lab.Lab, depth: float) -> list[lab.Row]:
    package = with_times(of.native, of.checkpoint, of.work / "with-times", depth)
    whole = Splitting(vad=None)
    rows: list[lab.Row] = []
    with ark_asr_onnx.load(package, threads=of.threads) as transcriber:

        def seconds(clip: Path, options: Options) -> float:
            begin = time.perf_counter()
            transcriber.transcribe(clip, options=options, splitting=whole)
            return time.perf_counter() - begin

        for length, clip in of.clips.items():
            n = round(_TOKENS_PER_SECOND * length)
            asked: dict[str, Callable[[], float]] = {
                name: partial(
                    seconds, clip, Options(n, max_repeats=None, retry=False, words=name == "with")
                )
                for name in ("without", "with")
            }
            found = lab.alternate(of.rounds, asked)
            ours, other = (statistics.median(found[name]) for name in ("with", "without"))
            what = f"times of words, {length} s, {n} tokens, layer at {depth:.0%}"
            rows.append(lab.smaller(what, ours, other, _ALLOWED, "s"))
    return rows


if __name__ == "__main__":
    sys.exit(lab.main(measure, __doc__))
