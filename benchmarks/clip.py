"""How long does a whole file take, from its bytes to its tokens, warm?

python benchmarks/clip.py [--size 0.6B] [--rounds 5]

Clips of 30 s with 96 tokens and of 5 s with 16. The number of tokens is forced, because the weights
are random.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

from lab import Lab, Row, faster, main, say

CLIPS = {30: (96, ">= 2.1"), 5: (16, ">= 2.7")}
STAGES = ("features", "encode", "prefill", "decode")


def measure(lab: Lab) -> list[Row]:
    """Rows for both clips; the stages go into the findings."""
    rows: list[Row] = []
    with lab.subjects("native", "published") as subjects:
        for seconds, (tokens, target) in CLIPS.items():
            question = {"path": str(lab.clips[seconds]), "tokens": tokens}
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in subjects}
            for i in range(1 + lab.rounds):
                for name, subject in subjects.items():
                    answer = subject("clip", **question)
                    if i:
                        found[name].append(answer)
            totals = {name: [one["total"] for one in found[name]] for name in found}
            what = f"whole clip, {seconds} s, {tokens} tokens"
            rows.append(faster(what, totals["native"], totals["published"], target, "s"))
            medians = {
                name: {s: statistics.median(one[s] for one in found[name]) for s in STAGES}
                for name in found
            }
            lab.findings[f"clip_{seconds}s"] = {"totals": totals, "stages": medians}
            for name, stages in medians.items():
                say(
                    f"  {name}, {seconds} s: "
                    + ", ".join(f"{k} {v:.3f}" for k, v in stages.items())
                )
        lab.findings["lengths"] = _lengths(lab, subjects["native"])
    return rows


def _lengths(lab: Lab, subject: Any) -> list[dict[str, float]]:
    """Our cost of each stage, by the length of the clip."""
    found: list[dict[str, float]] = []
    for seconds in (1, 2, 5, 10, 15, 20, 25, 30):
        times: dict[str, list[float]] = {"encode": [], "prefill": [], "step": []}
        for _ in range(max(lab.rounds // 2, 1)):
            times["encode"].append(subject("encode", frames=100 * seconds))
            times["prefill"].append(subject("prefill", positions=(100 * seconds) // 8 + 10))
            times["step"] += subject("steps", n=8)
        found.append({"seconds": seconds, **{k: statistics.median(v) for k, v in times.items()}})
    return found


if __name__ == "__main__":
    sys.exit(main(measure, __doc__))
