"""Where does the encoder's time go, and how far is each part from this machine's limits?

python benchmarks/profile_encoder.py [--size 0.6B] [--rounds 5]

onnxruntime's profile of the graph, for 30 s and 5 s of audio, by kind of operator. The limit for
products of INT8 matrices is the rate of byte multiply-adds from registers; for attention that of
float multiply-adds (``peak.c``, which needs cc and x86); for all others, which only pass over their
tensors, the memory's bandwidth. A ratio above 1 means that the data came from the cache.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lab import Lab, Row, main, say
from roofline import bandwidth

from ark_asr_onnx.model import graph
from ark_asr_onnx.package import contract

_KINDS = {
    "products": ("MatMul", "Gemm", "DynamicQuantizeMatMul", "FusedMatMul", "Conv"),
    "attention": ("MultiHeadAttention",),
    "norms": ("LayerNormalization", "SkipLayerNormalization"),
    "activations": ("BiasGelu", "Gelu"),
    "rotary": ("RotaryEmbedding",),
}


def kind(operator: str) -> str:
    """The kind of an operator, by which times are summed."""
    for name, operators in _KINDS.items():
        if operator in operators or (name == "products" and operator.startswith(operators[:1])):
            return name
    return "scaling, sums, copies"


def work(event: Mapping[str, Any]) -> float:
    """Multiply-adds of products and attention; for other operators, bytes read and written."""
    arguments = event["args"]
    shapes = [next(iter(d.values())) for d in arguments["input_type_shape"]]
    (out,) = arguments["output_type_shape"][0].values()
    what = kind(arguments["op_name"])
    if what == "products":
        return math.prod(out) * shapes[0][-1]
    if what == "attention":  # scores, and values weighted by them
        return 2 * math.prod(shapes[0]) * shapes[0][1]
    return sum(int(arguments[k]) for k in ("activation_size", "parameter_size", "output_size"))


def peaks(threads: int) -> tuple[float, float]:
    """Multiply-adds per second, of bytes and of floats, for all threads together."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "peak"
        source = Path(__file__).with_name("peak.c")
        subprocess.run(["cc", "-O2", "-march=native", source, "-o", program], check=True)
        running = [
            subprocess.Popen([program], stdout=subprocess.PIPE, text=True) for _ in range(threads)
        ]
        rates = [tuple(map(float, p.communicate()[0].split())) for p in running]
    return 1e9 * sum(r[0] for r in rates), 1e9 * sum(r[1] for r in rates)


def profiled(path: Path, threads: int, frames: int, rounds: int) -> list[dict[str, Any]]:
    """Kernel events of ``rounds`` runs after a first one."""
    with tempfile.TemporaryDirectory() as scratch:
        options = graph._options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        session = graph._open(path, options)
        n_mels = session.get_inputs()[0].shape[1]
        log_mel = np.random.default_rng(0).standard_normal((1, n_mels, frames), np.float32)
        for _ in range(rounds + 1):
            session.run(None, {contract.LOG_MEL: log_mel})
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    return kernels[len(kernels) // (rounds + 1) :]


def measure(lab: Lab) -> list[Row]:
    """A row for each kind of operator at both lengths: its time, and the least possible time."""
    of_bytes, of_floats = peaks(lab.threads)
    bytes_per_second = bandwidth(np.ones((1 << 26) if lab.size == "0.6B" else 1 << 20), lab.threads)
    say(f"  peaks: {of_bytes / 1e9:.0f}e9 INT8 and {of_floats / 1e9:.0f}e9 FP32 multiply-adds, "
        f"{bytes_per_second / 1e9:.0f} GB a second")  # fmt: skip
    limits = {"products": of_bytes, "attention": of_floats}
    path = lab.native / contract.AUDIO_FILE
    rows: list[Row] = []
    for seconds in (30, 5):
        spent: dict[str, float] = defaultdict(float)
        done: dict[str, float] = defaultdict(float)
        for event in profiled(path, lab.threads, 100 * seconds, lab.rounds):
            name = kind(event["args"]["op_name"])
            spent[name] += event["dur"] / 1e3 / lab.rounds
            done[name] += work(event) / lab.rounds
        total = sum(spent.values())
        for name in sorted(spent, key=lambda n: -spent[n]):
            least = 1e3 * done[name] / limits.get(name, bytes_per_second)
            what = f"encoder {seconds} s, {name}: {spent[name] / total:.1%}"
            rows.append(Row(what, spent[name], least, "ms", least / spent[name], ""))
    return rows


if __name__ == "__main__":
    sys.exit(main(measure, __doc__))
