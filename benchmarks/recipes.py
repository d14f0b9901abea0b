"""How fast is each INT8 recipe's product here? The choice of recipes uses these costs.

    python benchmarks/recipes.py [--threads 2] [--repeat 15] [--write]

One matrix product with its activations' scaling, for each recipe and for fp32, at the shapes of
the encoder (5 s, 15 s and 30 s) and of the decoder (gate or up, one token and a prompt). Recipes
take turns; the times are medians. Threads do not spin, since those of one session would slow the
next one's. ``--write`` writes ``export/ark_onnx_export/costs.json``; run it alone, on a CPU with
VNNI.
"""

from __future__ import annotations

import ark_asr_onnx.model.ort  # noqa: F401 - first: it switches telemetry off

# isort: split
import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from ark_onnx_export.quantize import quantise
from ark_onnx_export.recipes import PLAIN, RECIPES, Recipe

ROWS = {"5 s": 250, "15 s": 750, "30 s": 1500}
ENCODER = {"qkv": (1280, 3840), "out": (1280, 1280), "fc1": (1280, 5120), "fc2": (5120, 1280)}
DECODER = {
    "gate, prompt": (390, 896, 4864),
    "gate, token": (1, 896, 4864),
    "head, token": (1, 896, 151646),
}
COSTS = Path(__file__).parent.parent / "export" / "ark_onnx_export" / "costs.json"
_CACHED = 50_000_000  # bytes; more than any cache holds
_COLUMNS = 0.9  # of a block's cost: a step is as fast, and prompts are faster


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


def measure(shapes: dict[str, tuple[int, int, int]], recipes: list[str], threads: int,
            repeat: int) -> dict[str, dict[str, float]]:  # fmt: skip
    """Milliseconds by shape and recipe; prints a line of the table for each shape."""
    generator = np.random.default_rng(0)
    figures: dict[str, dict[str, float]] = {}
    print(f"| product | rows | {' | '.join(recipes)} |\n| --- | --: |{' --: |' * len(recipes)}")
    for label, (n_rows, n_in, n_out) in shapes.items():
        weight = generator.standard_normal((n_in, n_out), np.float32) / np.float32(n_in**0.5)
        x = generator.standard_normal((1, n_rows, n_in), np.float32)
        # A step reads each weight from memory, so the weights must not stay in a cache.
        n_copies = 1 if n_rows > 1 else -(-_CACHED // (n_in * n_out))
        sessions = {
            recipe: [session(weight, recipe, threads) for _ in range(n_copies)]
            for recipe in recipes
        }
        times: dict[str, list[float]] = {recipe: [] for recipe in recipes}
        for _ in range(repeat):
            for recipe, copies in sessions.items():
                begin = time.perf_counter()
                for opened in copies:
                    opened.run(None, {"x": x})
                times[recipe].append((time.perf_counter() - begin) / n_copies)
        figures[label] = {r: round(1000 * float(np.median(t)), 3) for r, t in times.items()}
        cells = " | ".join(f"{value:.2f} ms" for value in figures[label].values())
        print(f"| {label} | {n_rows} | {cells} |", flush=True)
    return figures


def costs(encoder: dict[str, dict[str, float]], decoder: dict[str, dict[str, float]]
          ) -> dict[str, dict[str, float]]:  # fmt: skip
    """The content of ``costs.json``: ratios of the times, summed over shapes."""
    found: dict[str, dict[str, float]] = {}
    for name, parts in (("audio", ("out", "fc2")), ("audio, more outputs than inputs",
                                                     ("qkv", "fc1"))):  # fmt: skip
        rows = [times for label, times in encoder.items() if label.startswith(parts)]
        # 7 and 8 bits have the same products, so the faster measurement is used.
        sums = {r: sum(min(t[twin] for twin in twins(r)) for t in rows) for r in rows[0]}
        plainest = next(r for r in sums if RECIPES[r].kind == "rows")
        found[name] = {r: round(ms / sums[plainest], 2) for r, ms in sums.items()}
    step = decoder["gate, token"]
    found["decoder"] = {r: round(ms / step[PLAIN.name], 2) for r, ms in step.items()}
    found["decoder"] |= dict.fromkeys(of("columns"), _COLUMNS)
    return found


def twins(recipe: str) -> list[str]:
    """The recipes of a kind that differ in their levels only."""

    def form(one: Recipe) -> tuple[object, ...]:
        return one.kind, one.extra, one.segments, one.fine, one.rest

    return [name for name, one in RECIPES.items() if form(one) == form(RECIPES[recipe])]


def of(*kinds: str) -> list[str]:
    """The recipes of some kinds."""
    return [name for name, recipe in RECIPES.items() if recipe.kind in kinds]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Speed of the INT8 recipes' products.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="write the table that chooses")
    options = parser.parse_args()
    shapes = {f"{name}, {seconds}": (n_rows, *shape)
              for name, shape in ENCODER.items() for seconds, n_rows in ROWS.items()}  # fmt: skip
    encoder = measure(shapes, of("rows", "blocks", "fp32"), options.threads, options.repeat)
    # Two bytes are slow for many rows.
    kinds = ("columns", "blocks", "two bytes", "fp32")
    decoder = measure(DECODER, of(*kinds), options.threads, options.repeat)
    found = costs(encoder, decoder)
    if options.write:
        COSTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    vnni = sorted({flag for flag in flags if "vnni" in flag})
    about = {"machine": platform.machine(), "vnni": vnni, "threads": options.threads}
    print(json.dumps({"ms": encoder | decoder, "costs": found, **about,
                      "onnxruntime": onnxruntime.__version__}))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
