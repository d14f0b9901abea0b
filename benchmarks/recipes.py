"""How fast is each INT8 recipe's product here? The costs that the choice of recipes rests on.

    python benchmarks/recipes.py [--threads 2] [--repeat 25]

One matrix product with its activations' scaling, for each recipe and for fp32, at the shapes of
the encoder (fc1 and fc2, 5 s and 30 s) and of the decoder (gate or up, one token and a prompt).
Recipes take turns; medians. Threads do not spin, or one session's would slow the next one's.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from ark_onnx_export.quantize import RECIPES, quantise

SHAPES = {
    "fc1, 5 s": (250, 1280, 5120),
    "fc2, 5 s": (250, 5120, 1280),
    "fc1, 30 s": (1500, 1280, 5120),
    "fc2, 30 s": (1500, 5120, 1280),
    "gate, prompt": (390, 896, 4864),
    "gate, token": (1, 896, 4864),
    "head, token": (1, 896, 151646),
}


def session(weight: np.ndarray, recipe: str, threads: int) -> onnxruntime.InferenceSession:
    """A graph with one product, stored by a recipe."""
    n_in, n_out = weight.shape
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=kind, shape=ir.Shape([1, "rows", n_in]))
    stored = ir.Value(name="proj.weight", const_value=ir.tensor(weight, name="proj.weight"),
                      type=kind, shape=ir.Shape(weight.shape))  # fmt: skip
    node = ir.node("MatMul", [x, stored])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", kind, ir.Shape([1, "rows", n_out])
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=[stored], opset_imports={"": 21}, name="product"
    )
    model = ir.Model(graph, ir_version=10)
    quantise(model, lambda _: recipe)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = ir.serde.serialize_model(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Speed of the INT8 recipes' products.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=25)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    figures: dict[str, dict[str, float]] = {}
    print(f"| product | rows | {' | '.join(RECIPES)} |\n| --- | --: |{' --: |' * len(RECIPES)}")
    for label, (n_rows, n_in, n_out) in SHAPES.items():
        weight = generator.standard_normal((n_in, n_out), np.float32) / np.float32(n_in**0.5)
        x = generator.standard_normal((1, n_rows, n_in), np.float32)
        sessions = {recipe: session(weight, recipe, options.threads) for recipe in RECIPES}
        times: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
        for _ in range(options.repeat):
            for recipe, opened in sessions.items():
                begin = time.perf_counter()
                opened.run(None, {"x": x})
                times[recipe].append(time.perf_counter() - begin)
        figures[label] = {r: round(1000 * float(np.median(t)), 3) for r, t in times.items()}
        cells = " | ".join(f"{value:.2f} ms" for value in figures[label].values())
        print(f"| {label} | {n_rows} | {cells} |", flush=True)
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    vnni = sorted({flag for flag in flags if "vnni" in flag})
    about = {"machine": platform.machine(), "vnni": vnni, "threads": options.threads}
    print(json.dumps({"ms": figures, **about, "onnxruntime": onnxruntime.__version__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
