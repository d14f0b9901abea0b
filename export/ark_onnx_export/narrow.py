"""The audio graph for CPUs that add products of bytes in 16 bits: the same numbers, in two parts.

``rows8`` multiplies codes up to 255 with weights up to 127. A CPU with VNNI, or of ARM's, adds
such products in 32 bits. Older ones add two of them in 16, which saturates without a word. Codes up
to 128 cannot: ``2 * 128 * 127`` is below 32767. So each product is two, of the positive and of the
negative codes, or of the lower and of the upper half where there are no negative ones. The graph
has no weights of its own, it reads those of ``audio.onnx``.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .edit import constant, replace
from .recipes import NARROW_ROWS

_HALF = 127  # the largest code of the lower half


def write(audio: Path, path: Path) -> bool:
    """Derive ``path`` from the graph ``audio`` beside it; False where there is no need of it."""
    path.unlink(missing_ok=True)
    model = ir.load(audio)
    nodes = [node for node in model.graph if node.op_type == "MatMulIntegerToFloat"]
    if not any(_is_wide(node) for node in nodes):
        return False
    parts = _Parts(model)
    for node in nodes:
        parts.divide(node)
    RemoveUnusedNodesPass()(model)
    ir.save(model, path)
    return True


def _is_wide(node: ir.Node) -> bool:
    """Codes of 8 bits: those of 7 do not saturate as they are."""
    zero = _number(node.inputs[4])
    step = _number(node.inputs[2])
    return zero + round(1 / step) > 2 * NARROW_ROWS.activations


class _Parts:
    """Codes in two parts, made once for all products that read them."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.made: dict[ir.Value, tuple[ir.Value, ir.Value, bool]] = {}

    def divide(self, node: ir.Node) -> None:
        """Put two products and their sum, or difference, in the place of one."""
        codes = cast("ir.Value", node.inputs[0])
        first, second, signed = self._divided(codes, node)
        nothing = self._constant("narrow_zero", np.uint8(0))
        products = [
            ir.node(
                node.op_type,
                [part, *node.inputs[1:4], nothing, *node.inputs[5 : 7 - i]],
                domain=node.domain,
                name=f"{node.name}_{i}",
            )
            for i, part in enumerate((first, second))
        ]
        results = [product.outputs[0] for product in products]
        both = ir.node("Sub" if signed else "Add", results)
        replace(self.model, node, [*products, both])

    def _divided(self, codes: ir.Value, before: ir.Node) -> tuple[ir.Value, ir.Value, bool]:
        if codes not in self.made:
            self.made[codes] = self._make(codes, before)
        return self.made[codes]

    def _make(self, codes: ir.Value, before: ir.Node) -> tuple[ir.Value, ir.Value, bool]:
        node = cast("ir.Node", codes.producer())
        if node.op_type == "Concat":
            pairs = [self._divided(cast("ir.Value", x), before) for x in node.inputs]
            firsts, seconds, signs = zip(*pairs, strict=True)
            joined = [
                self._add(before, "Concat", list(some), {"axis": -1}) for some in (firsts, seconds)
            ]
            return joined[0], joined[1], signs[0]
        values, step, zero = (cast("ir.Value", x) for x in node.inputs)
        nothing = self._constant("narrow_zero", np.uint8(0))
        signed = bool(_number(zero))
        if signed:
            parts = [values, self._add(before, "Neg", [values])]
        else:
            half = self._constant(f"narrow_half{step.name}", np.float32(_HALF * _number(step)))
            parts = [
                self._add(before, "Min", [values, half]),
                self._add(before, "Sub", [values, half]),
            ]
        first, second = (
            self._add(before, "QuantizeLinear", [part, step, nothing]) for part in parts
        )
        return first, second, signed

    def _constant(self, name: str, value: npt.ArrayLike) -> ir.Value:
        return constant(self.model, name, value)

    def _add(
        self,
        before: ir.Node,
        operator: str,
        inputs: list[ir.Value],
        attributes: dict[str, int] | None = None,
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes or {})
        self.model.graph.insert_before(before, node)
        return node.outputs[0]


def _number(value: ir.Value | None) -> float:
    """A constant's one number."""
    assert value is not None and value.const_value is not None
    return float(value.const_value.numpy())
