"""Changing one node of an ``onnx_ir`` graph: what it multiplies with, what takes its place."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ark_asr_onnx.arrays import F32


def weight_of(node: ir.Node) -> ir.Value | None:
    """The right side of a ``MatMul``, where it is a weight."""
    value = node.inputs[1]
    return value if value is not None and value.is_initializer() else None


def numbers_of(node: ir.Node) -> tuple[ir.Value, F32]:
    """The weight of a ``MatMul``, read now."""
    value = weight_of(node)
    assert value is not None and value.const_value is not None and value.name is not None
    return value, value.const_value.numpy().astype(np.float32, copy=False)


def added_bias(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The ``Add`` of a bias that alone reads a product, and the bias."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    bias = uses[0].node.inputs[1 - uses[0].idx]
    if bias is None or not bias.is_initializer() or len(bias.shape or ()) != 1:
        return None
    return uses[0].node, bias


def replace(
    model: ir.Model, node: ir.Node, new: list[ir.Node], last: ir.Node | None = None
) -> None:
    """Put ``new``, of which the last gives the result, in the place of ``MatMul`` to ``last``."""
    last = last or node
    value, old, result = weight_of(node), last.outputs[0], new[-1].outputs[0]
    result.name, result.type, result.shape = old.name, old.type, old.shape
    replaced = list(dict.fromkeys((last, node)))
    ir.convenience.replace_nodes_and_values(
        model.graph, node, replaced, new, last.outputs, new[-1].outputs
    )
    model.graph.opset_imports["com.microsoft"] = 1
    if value is not None and not value.uses():
        del model.graph.initializers[cast("str", value.name)]


def constant(model: ir.Model, name: str, value: npt.ArrayLike) -> ir.Value:
    """An initializer that several nodes share."""
    found = model.graph.initializers.get(name)
    return found if found is not None else initializer(model, name, np.asarray(value))


def initializer(model: ir.Model, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    """A new initializer of the graph."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name,
        const_value=tensor,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(array.shape),
    )
    model.graph.register_initializer(value)
    return value
