"""What a weight costs in each recipe, as a multiple of the plainest product of rows of bytes.

``costs.json`` is written by ``benchmarks/recipes.py --write`` on a CPU with VNNI, recipes in turn,
medians: in the encoder the time at 250 to 1500 rows and the shapes of 0.6B, in the decoder that of
a step. A recipe that adds passes over the outputs costs more where a matrix has many of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from .smoothing import Graph

Costs = Mapping[str, float]  # recipe -> cost

_FOUND: Any = json.loads(
    resources.files("ark_onnx_export").joinpath("costs.json").read_text(encoding="utf-8")
)


def costs(graph: Graph, n_in: int, n_out: int) -> Costs:
    """The recipes that may serve a matrix ``[n_in, n_out]`` of a graph."""
    if graph == "decoder":
        return _FOUND["decoder"]
    return _FOUND["audio, more outputs than inputs" if n_out > n_in else "audio"]
