"""How long do a prompt and a token take, against the published package and other engines?

python benchmarks/decode.py [--size 0.6B] [--rounds 5] [--peers-python PYTHON]

A prompt of 390 positions, then steps of one token. Engines alternate: each round asks every engine
once, for a prompt or for the median of some steps.
"""

from __future__ import annotations

import statistics
import sys

from lab import Lab, Row, alternate, faster, main, say, spread

POSITIONS, STEPS = 390, 24
_PEERS = {
    "genai_int8": ("onnxruntime-genai INT8", ">= 1.6", ">= 3"),
    "genai_int4": ("onnxruntime-genai INT4", "", ""),
    "llamacpp": ("llama.cpp Q8_0", ">= 1.2", ">= 1.8"),
    "torch_decoder": ("torch INT8 dynamic", "", ""),
}


def measure(lab: Lab) -> list[Row]:
    """Rows for prompt and step."""
    with lab.subjects("native", "published", *_PEERS) as subjects:
        prompts = alternate(
            lab.rounds,
            {n: lambda s=s: 1e3 * s("prefill", positions=POSITIONS) for n, s in subjects.items()},
        )
        # More rounds, since a round is short and other programs may use the memory's bandwidth.
        steps = alternate(
            3 * lab.rounds,
            {
                n: lambda s=s: 1e3 * statistics.median(s("steps", n=STEPS // 3))
                for n, s in subjects.items()
            },
        )
    lab.findings["prefill_ms"], lab.findings["step_ms"] = prompts, steps
    for name in prompts:
        say(f"  {name}: prompt {spread(prompts[name])} ms, step {spread(steps[name])} ms")
    ours, mine = steps["native"], prompts["native"]
    rows = [
        faster("decode step", ours, steps["published"], ">= 4", "ms"),
        faster(f"prefill, {POSITIONS} positions", mine, prompts["published"], ">= 2.5", "ms"),
    ]
    for name, (label, step_target, prompt_target) in _PEERS.items():
        if name in steps:
            rows += [
                faster(f"decode step, {label}", ours, steps[name], step_target, "ms"),
                faster(f"prefill, {label}", mine, prompts[name], prompt_target, "ms"),
            ]
    return rows


if __name__ == "__main__":
    sys.exit(main(measure, __doc__))
