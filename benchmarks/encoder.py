"""How long does the encoder take, against the published package and other engines?

python benchmarks/encoder.py [--size 0.6B] [--rounds 5] [--peers-python PYTHON]

Log-mel to audio embeddings, 30 s and 5 s; CTranslate2 and torch run the same shape without adapter.
"""

from __future__ import annotations

import sys
from functools import partial

from lab import Lab, Row, alternate, faster, main, say, spread

_PEERS = {
    "ctranslate2": ("CTranslate2 INT8", ">= 1.7"),
    "torch_encoder": ("torch INT8 dynamic", ""),
}


def measure(lab: Lab) -> list[Row]:
    """Rows for 30 s and 5 s."""
    rows: list[Row] = []
    with lab.subjects("native", "published", *_PEERS) as subjects:
        for seconds, target, rounds in ((30, ">= 1.9", lab.rounds), (5, ">= 2.4", 2 * lab.rounds)):
            # CTranslate2's Whisper takes windows of 30 s only.
            able = {n: s for n, s in subjects.items() if seconds == 30 or n != "ctranslate2"}
            frames = 100 * seconds
            questions = {n: partial(s, "encode", frames=frames) for n, s in able.items()}
            found = alternate(rounds, questions)
            lab.findings[f"encode_{seconds}s"] = found
            for name, times in found.items():
                say(f"  {name}: {seconds} s in {spread(times)} s")
            ours = found["native"]
            rows.append(faster(f"encoder, {seconds} s", ours, found["published"], target, "s"))
            for name, (label, limit) in _PEERS.items():
                if name in found:
                    what = f"encoder, {seconds} s, {label}"
                    rows.append(
                        faster(what, ours, found[name], limit if seconds == 30 else "", "s")
                    )
    return rows


if __name__ == "__main__":
    sys.exit(main(measure, __doc__))
