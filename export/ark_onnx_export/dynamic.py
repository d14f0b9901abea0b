"""Recipes of the kind ``dynamic``: Optimum's presets for a kind of CPU.

One scale for all activations of a product. As fast as it gets, but a loud click takes its digits
from the speech beside it, and one outlier channel from all others: for comparison, and for models
that are known to be harmless.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from ark_asr_onnx.errors import ExportError

from .quantize import Matrix, Recipes, matrix_nodes, weight_error
from .recipes import RECIPES, Recipe
from .write import write_graph


def quantise(model: ir.Model, recipes: Recipes, scratch: Path) -> tuple[ir.Model, list[Matrix]]:
    """Store the matrices of an fp32 graph whose recipe is one of these; ``model`` is used up."""
    chosen = {node.name or "": RECIPES[recipes(_weight(node)[0])] for node in matrix_nodes(model)}
    names = [name for name, recipe in chosen.items() if recipe.kind == "dynamic"]
    if not names:
        return model, []
    folder = scratch / ".dynamic"
    folder.mkdir()
    write_graph(model, folder / "fp32.onnx")
    stored = _run_optimum(folder, chosen[names[0]], names)
    matrices = [
        _matrix(stored, node, chosen[node.name or ""].name)
        for node in matrix_nodes(model)
        if node.name in names
    ]
    ir.external_data.load_to_model(stored)  # its file goes
    shutil.rmtree(folder)
    return stored, matrices


def _run_optimum(folder: Path, recipe: Recipe, names: list[str]) -> ir.Model:
    try:  # it brings transformers, and only these recipes need it
        from optimum import onnxruntime as optimum
    except ImportError as error:
        raise ExportError(
            "the recipe dynamic needs Optimum: pip install optimum-onnx, or take another --recipe"
        ) from error
    options: dict[str, Any] = {"is_static": False, "per_channel": True, "nodes_to_quantize": names}
    if not recipe.exact_sums:
        options["reduce_range"] = True
    config = getattr(cast("Any", optimum).AutoQuantizationConfig, recipe.preset)(**options)
    logging.disable(logging.WARNING)  # remarks about shape inference
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantizer = cast("Any", optimum).ORTQuantizer(folder / "fp32.onnx")
            quantizer.quantize(
                config, folder / "int8", file_suffix=None, use_external_data_format=True
            )
    finally:
        logging.disable(logging.NOTSET)
    return ir.load(folder / "int8" / "fp32.onnx")


def _matrix(stored: ir.Model, node: ir.Node, recipe: str) -> Matrix:
    """What became of the weight of one ``MatMul``."""
    name, tensor = _weight(node)
    weight = tensor.numpy()

    def part(suffix: str) -> Any:
        found: Any = stored.graph.initializers[f"{name}_{suffix}"].const_value
        return found.numpy().astype(np.float32)

    restored = (part("quantized") - part("zero_point")) * part("scale")
    return Matrix(name, recipe, weight.shape, 0, weight_error(weight, restored))


def _weight(node: ir.Node) -> tuple[str, Any]:
    value = cast("ir.Value", node.inputs[1])
    return value.name or "", cast("Any", value.const_value)
