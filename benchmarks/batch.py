"""How much faster is decoding several utterances together than one?

python benchmarks/batch.py [--size 0.6B] [--rounds 5]

Tokens per second of all slots, each after a prompt of 100 positions, against one slot.
"""

from __future__ import annotations

import statistics
import sys

from lab import Lab, Row, alternate, main, say, spread

SLOTS = (1, 2, 4, 8, 16)


def measure(lab: Lab) -> list[Row]:
    """A row for 8 slots; the other figures go into the findings."""
    with lab.subjects("native") as subjects:
        ask = subjects["native"]
        found = alternate(
            lab.rounds,
            {
                str(n): lambda n=n: n / statistics.median(ask("batch", slots=n, positions=100, n=8))
                for n in SLOTS
            },
        )
    lab.findings["tokens_per_second"] = found
    for slots, rates in found.items():
        say(f"  {slots} slots: {spread(rates)} tokens/s")
    ratio = statistics.median(b / a for a, b in zip(found["1"], found["8"], strict=True))
    one, eight = (statistics.median(found[n]) for n in ("1", "8"))
    return [Row("8 slots against 1", eight, one, "tokens/s", ratio, ">= 2.2")]


if __name__ == "__main__":
    sys.exit(main(measure, __doc__))
