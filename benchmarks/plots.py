"""Draw the pictures of ``results/README.md`` from what ``compare.py --out FILE.json`` wrote.

python benchmarks/plots.py FILE.json [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, THEIRS, GREY = "#1f6f8b", "#c8553d", "#8a8a8a"
_STAGES = {"features": "#9bc1bc", "encode": OURS, "prefill": "#e6b54a", "decode": "#6a4c93"}


def bars(record: dict[str, Any], axes: Axes) -> None:
    """How many times as fast, against the published package and other engines."""
    wanted = ("decode", "prefill", "encoder", "whole clip")
    rows = [
        r for r in record["rows"] if r["what"].startswith(wanted) and "roofline" not in r["what"]
    ]
    rows.reverse()
    names = [row["what"] for row in rows]
    axes.barh(names, [row["ratio"] for row in rows],
              color=[OURS if row["target"] else GREY for row in rows])  # fmt: skip
    for i, row in enumerate(rows):
        axes.annotate(f" {row['ratio']:.2f}", (row["ratio"], i), va="center", fontsize=8)
        if row["target"]:
            target = float(row["target"].split()[1])
            axes.plot([target, target], [i - 0.4, i + 0.4], color=THEIRS, linewidth=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast (red: target; grey: no target was set; no name: published INT8)")


def lengths(record: dict[str, Any], axes: Axes) -> None:
    """Cost of the stages against the clip's length."""
    rows = record["findings"]["lengths"]
    seconds = [row["seconds"] for row in rows]
    for stage, label in (("encode", "encoder"), ("prefill", "prompt")):
        values = [1e3 * row[stage] / row["seconds"] for row in rows]
        axes.plot(seconds, values, "o-", color=_STAGES[stage], label=label)
    # About three tokens a second of speech.
    values = [1e3 * 3 * row["step"] for row in rows]
    axes.plot(seconds, values, "o-", color=_STAGES["decode"], label="3 tokens for each second")
    axes.set_xlabel("length of the clip, s")
    axes.set_ylabel("ms of work for each second of audio")
    axes.set_ylim(bottom=0)
    axes.legend(loc="center right", bbox_to_anchor=(1.0, 0.35))


def memory(record: dict[str, Any], axes: Axes) -> None:
    """Resident and anonymous memory over time."""
    labels = {"published": "published", "unprepared": "ours", "native": "ours, prepared"}
    colours = {"published": THEIRS, "unprepared": "#e6b54a", "native": OURS}
    for name, label in labels.items():
        series = record["findings"]["memory"][name]
        times = [t for t, _, _ in series]
        axes.plot(times, [a + f for _, a, f in series], color=colours[name], label=label)
        axes.plot(times, [a for _, a, _ in series], color=colours[name], linestyle=":")
    axes.set_xlabel("seconds since the process started (30 s of audio, 96 tokens)")
    axes.set_ylabel("MB resident (dotted: anonymous)")
    axes.set_ylim(bottom=0)
    axes.legend()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "ark-asr"  # the same file from the same figures
    record = cast("dict[str, Any]", json.loads(options.record.read_text()))
    for draw, size in ((bars, (9, 5.5)), (lengths, (7, 4)), (memory, (7, 4))):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(record, axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(options.out / f"{draw.__name__}.svg", metadata={"Date": None})
        print(options.out / f"{draw.__name__}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
