"""All benchmarks in one run: ours against the published package and other engines, with verdicts.

python benchmarks/compare.py [--size 0.6B|small] [--tokenizer NAME] [--work DIR] [--out FILE.json]

Makes the models once (0.6B: checkpoint, two exports, peers' models; about 25 minutes and 15 GB
in ``--work``), then measures for less than 20 minutes on two cores. Exit status 1 if a target is
missed; with ``--size small``, whose times mean nothing, only if something fails.
Peers are measured if there is a Python with ``benchmarks/peers.txt``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import batch
import clip
import cold_start
import decode
import encoder
import memory
import roofline
from lab import Lab, Row, arguments, machine, opened, report, say

QUESTIONS = {
    "decode": decode, "encoder": encoder, "clip": clip, "cold start": cold_start,
    "memory": memory, "batch": batch, "roofline": roofline,
}  # fmt: skip


def check_words(lab: Lab) -> None:
    """End the program if engines do not compute the same tokens."""
    clip_path = str(lab.clips[5])
    with lab.subjects("native", "unprepared", "published") as subjects:
        ids = {n: s("clip", path=clip_path, tokens=8)["ids"] for n, s in subjects.items()}
    if ids["native"] != ids["unprepared"]:
        raise SystemExit(f"packed graphs give other tokens: {ids}")
    lab.findings["tokens"] = ids


def main() -> int:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, help="the JSON line goes into this file too")
    options = parser.parse_args()
    lab = opened(options)
    begin = time.perf_counter()
    _ = lab.native, lab.published, lab.prepared, lab.clips
    made = time.perf_counter()
    say(f"{machine()}\nready after {made - begin:.0f} s")
    check_words(lab)
    rows: list[Row] = []
    for name, question in QUESTIONS.items():
        say(f"{name} ({time.perf_counter() - made:.0f} s)")
        rows += question.measure(lab)
    say(f"measured in {time.perf_counter() - made:.0f} s")
    status = report(lab, rows, made)
    if options.out:
        record = {"rows": [{**vars(r), "verdict": r.verdict} for r in rows],
                  "machine": machine(), "findings": lab.findings}  # fmt: skip
        options.out.write_text(json.dumps(record))
    return 0 if options.size == "small" else status


if __name__ == "__main__":
    sys.exit(main())
