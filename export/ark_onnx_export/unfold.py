"""Convolutions as matrix products, which the recipes can store."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir

from .edit import initializer


def unfold_convolutions(model: ir.Model) -> None:
    """Write each one-dimensional ``Conv`` (kernel 3, padding 1) as a product with a matrix.

    ``[1, C, T]`` becomes the three shifted copies that the kernel sees, side by side, times
    ``[3 C, outputs]``: the same sums, in a form that blocks of 8 bits can store.
    """
    for node in [n for n in model.graph if n.op_type == "Conv"]:
        _unfold(model, node)


def _unfold(model: ir.Model, node: ir.Node) -> None:
    x, kernel, bias = node.inputs
    (stride,) = node.attributes["strides"].as_ints()
    assert x is not None and kernel is not None and bias is not None
    assert kernel.name is not None and kernel.const_value is not None
    assert [list(node.attributes[name].as_ints()) for name in ("pads", "dilations")] == [
        [1, 1],
        [1],
    ]
    assert node.attributes["group"].as_int() == 1
    n_out, n_in, width = cast("tuple[int, ...]", tuple(kernel.const_value.shape))
    assert width == 3
    stored = kernel.const_value

    def numbers(name: str, values: list[int]) -> ir.Value:
        return initializer(model, f"{kernel.name}_{name}", np.array(values, np.int64))

    del model.graph.initializers[kernel.name]
    unfolded = stored.numpy().transpose(2, 1, 0).reshape(width * n_in, n_out)
    matrix = initializer(model, kernel.name, unfolded)
    axis, step = numbers("axis", [2]), numbers("step", [stride])
    padded = ir.node("Pad", [x, numbers("pads", [0, 0, 1, 0, 0, 1])])
    # Ends 2, 1 and 0 before the last: each tap gets ceil(T / stride) frames.
    ends = (-2, -1, np.iinfo(np.int64).max)
    taps = [
        ir.node("Slice", [padded.outputs[0], numbers(f"tap{i}", [i]),
                          numbers(f"end{i}", [end]), axis, step])
        for i, end in enumerate(ends)
    ]  # fmt: skip
    seen = ir.node("Concat", [tap.outputs[0] for tap in taps], {"axis": 1})
    rows = ir.node("Transpose", seen.outputs, {"perm": [0, 2, 1]})
    name = kernel.name.removesuffix(".weight")
    product = ir.node("MatMul", [rows.outputs[0], matrix], name=name)
    shifted = ir.node("Add", [product.outputs[0], bias])
    back = ir.node(
        "Transpose", shifted.outputs, {"perm": [0, 2, 1]},
        outputs=[ir.Value(name=node.outputs[0].name, type=node.outputs[0].type,
                          shape=node.outputs[0].shape)],
    )  # fmt: skip
    new = [padded, *taps, seen, rows, product, shifted, back]
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], new, node.outputs, back.outputs
    )
