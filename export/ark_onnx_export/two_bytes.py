"""Activations in 16 bits for a product that takes 8: a row becomes two, its codes and their rest.

``MatMulNBits`` scales each row of activations in blocks and rounds it to bytes. The graph does the
same first and subtracts: the rounded row passes the product unharmed, what is left is a row of its
own, in blocks with far smaller scales. Both go through the product together, so that each weight
is read once, and their results are added. The error is that of 15 bits and a sign.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .edit import constant

_LEVELS = 127  # of the product's codes, on each side of zero


def split(model: ir.Model, x: ir.Value, n_in: int, block: int) -> list[ir.Node]:
    """``[B, S, n_in]`` to ``[B, 2 S, n_in]``: all rounded rows, then all rests."""

    def add(operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        nodes.append(ir.node(operator, inputs, attributes))
        return nodes[-1].outputs[0]

    nodes: list[ir.Node] = []
    shape = np.array([0, 0, n_in // block, block])
    blocks = add("Reshape", x, constant(model, f"blocks{n_in}x{block}", shape))
    last = constant(model, "last_axis", np.array([-1]))
    largest = add("ReduceMax", add("Abs", blocks), last, keepdims=1)
    # Blocks of zeros: any scale will do.
    bounded = add("Max", largest, constant(model, "least", np.float32(1e-20)))
    scale = add("Mul", bounded, constant(model, "code", np.float32(1 / _LEVELS)))
    rounded = add("Mul", add("Round", add("Div", blocks, scale)), scale)
    both = add("Concat", rounded, add("Sub", blocks, rounded), axis=1)
    add("Reshape", both, constant(model, f"rows{n_in}", np.array([0, 0, n_in])))
    return nodes


def join(model: ir.Model, product: ir.Value, n_out: int) -> list[ir.Node]:
    """``[B, 2 S, n_out]`` of such rows to ``[B, S, n_out]``."""
    shape = constant(model, f"pairs{n_out}", np.array([0, 2, -1, n_out]))
    pairs = ir.node("Reshape", [product, shape])
    axis = constant(model, "pair_axis", np.array([1]))
    return [pairs, ir.node("ReduceSum", [pairs.outputs[0], axis], {"keepdims": 0})]
