"""The recipes ``rows``: one ``MatMul`` becomes integer products of rows of bytes.

Arithmetic and layout of codes are in :mod:`rows`; here they become operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ark_asr_onnx.arrays import F32

from .edit import added_bias, constant, initializer, numbers_of, replace
from .recipes import Recipe
from .rows import GELU_FLOOR, further, offsets, parts, places, store


@dataclass(frozen=True, slots=True)
class _Segment:
    """Codes of one segment of the rows, and what restores the values."""

    codes: ir.Value  # uint8 [1, n_rows, places]
    largest: ir.Value  # float32 [1, n_rows, 1]
    step: ir.Value  # a code's size, as a share of the largest value: 1 / steps
    steps: int
    zero: ir.Value  # the code of zero
    lifts: F32  # of each place, in steps: what was added before rounding


@dataclass(frozen=True, slots=True)
class _Coded:
    """An input as codes; matrices that read it share them."""

    segments: list[_Segment]
    counts: npt.NDArray[np.int64]  # places of each input
    floor: float  # was added to the values


def multiply(model: ir.Model, node: ir.Node, recipe: Recipe, rows: F32 | None) -> tuple[F32, F32]:
    """Put integer products in the place of ``node``: the weight, and what is multiplied with."""
    value, weight = numbers_of(node)
    name, n_out = value.name or "", weight.shape[1]
    x, new = cast("ir.Value", node.inputs[0]), list[ir.Node]()
    if recipe.name not in x.meta:
        coder = _Coder(model, new, f"{x.name}.{recipe.name}")
        x.meta[recipe.name] = coder.code(x, recipe, rows, len(weight))
    coded: _Coded = x.meta[recipe.name]
    stored, restored = store(weight, recipe, coded.counts, rows)
    total: ir.Value | None = None
    for i, (segment, (codes, scales)) in enumerate(zip(coded.segments, stored, strict=True)):
        suffix = f"_{i}" if len(stored) > 1 else ""
        inputs = [
            segment.codes,
            initializer(model, f"{name}_q8{suffix}", codes),
            segment.step,
            initializer(model, f"{name}_scale{suffix}", scales),
            segment.zero,
            constant(model, f"columns_zero{n_out}", np.zeros(n_out, np.int8)),
        ]
        if segment.lifts.any():
            step = 1 / segment.steps
            lifted = -step * scales * (segment.lifts @ codes.astype(np.float32))
            inputs.append(initializer(model, f"{name}_lift{suffix}", lifted.astype(np.float32)))
        product = ir.node(
            "MatMulIntegerToFloat", inputs, domain="com.microsoft", name=f"{node.name}{suffix}"
        )
        scaled = ir.node("Mul", [product.outputs[0], segment.largest])
        new += [product, scaled]
        if total is not None:
            new.append(ir.node("Add", [total, scaled.outputs[0]]))
        total = new[-1].outputs[0]
    if coded.floor:
        _lower(model, node, new, coded.floor * restored.sum(axis=0))
    replace(model, node, new)
    return weight, restored


def _lower(model: ir.Model, node: ir.Node, new: list[ir.Node], lifted: F32) -> None:
    """Take off what the floor added: from the bias, where one follows."""
    name = cast("ir.Value", node.inputs[1]).name
    found = added_bias(node)
    if found is None:
        floor = initializer(model, f"{name}_floor", lifted)
        new.append(ir.node("Sub", [new[-1].outputs[0], floor]))
        return
    adder, bias = found
    assert bias.const_value is not None
    lowered = initializer(model, f"{name}_bias", bias.const_value.numpy() - lifted)
    adder.replace_input_with(list(adder.inputs).index(bias), lowered)


class _Coder:
    """Writes the nodes that turn rows into codes."""

    def __init__(self, model: ir.Model, new: list[ir.Node], name: str) -> None:
        self.model, self.new, self.name = model, new, name

    def code(self, x: ir.Value, recipe: Recipe, rows: F32 | None, n_in: int) -> _Coded:
        """Codes of all segments."""
        producer = x.producer()
        unsigned = producer is not None and producer.op_type == "Gelu"
        floor = GELU_FLOOR if unsigned else 0.0
        seen = np.ones((1, n_in), np.float32) if rows is None else rows + np.float32(floor)
        counts = places(seen, recipe, unsigned=unsigned)
        if unsigned:
            x = self._add("Add", [x, constant(self.model, "rows_floor", np.float32(floor))])
        if (counts > 1).any():
            x = self._divide(x, counts)
        segments = parts(n_in, recipe)
        values = [x]
        if len(segments) > 1:
            sizes = np.array([part.stop - part.start for part in segments])
            stated = constant(self.model, f"rows_sizes{n_in}_{len(segments)}", sizes)
            split = ir.node("Split", [x, stated], {"axis": -1}, num_outputs=len(segments))
            self.new.append(split)
            values = list(split.outputs)
        coded = [
            self._segment(f"{self.name}_{i}", value, recipe, counts[part], unsigned=unsigned)
            for i, (value, part) in enumerate(zip(values, segments, strict=True))
        ]
        return _Coded(coded, counts, floor)

    def _divide(self, x: ir.Value, counts: npt.NDArray[np.int64]) -> ir.Value:
        """Each input's share for one place; where a norm gives it, by the norm itself."""
        producer, name = x.producer(), f"{self.name}_places"
        if producer is None or producer.op_type != "LayerNormalization":
            shares = initializer(self.model, name, (1 / counts).astype(np.float32))
            return self._add("Mul", [x, shares])
        inputs = [producer.inputs[0]]
        for i, value in enumerate(producer.inputs[1:]):
            assert value is not None and value.const_value is not None
            numbers = (value.const_value.numpy() / counts).astype(np.float32)
            inputs.append(initializer(self.model, f"{name}{i}", numbers))
        norm = ir.node("LayerNormalization", inputs, dict(producer.attributes))
        self.new.append(norm)
        return norm.outputs[0]

    def _segment(
        self,
        name: str,
        x: ir.Value,
        recipe: Recipe,
        counts: npt.NDArray[np.int64],
        *,
        unsigned: bool,
    ) -> _Segment:
        level = recipe.levels.activations
        zero, steps = (0, 2 * level) if unsigned else (level, level)
        step = self._number(f"rows_step{steps}", np.float32(1 / steps))
        middle = self._number(f"rows_zero{zero}", np.uint8(zero))
        least = self._number("rows_least", np.float32(1e-20))  # for a row of zeros
        axis = self._number("rows_axis", np.array([-1]))
        ends = [self._add("ReduceMax", [x, axis], {"keepdims": 1})]
        if not unsigned:  # faster than the largest magnitude
            ends.append(self._add("Neg", [self._add("ReduceMin", [x, axis], {"keepdims": 1})]))
        divisor = self._add("Max", [*ends, least])
        unit = self._add("Div", [x, divisor])
        codes = self._add("QuantizeLinear", [unit, step, middle])
        lifts, (inputs, _) = offsets(counts), further(counts)
        if len(inputs):
            index = initializer(self.model, f"{name}_inputs", inputs)
            # As Gather along the last axis, which takes ten times as long.
            node = ir.node("ArrayFeatureExtractor", [unit, index], domain="ai.onnx.ml")
            self.new.append(node)
            self.model.graph.opset_imports["ai.onnx.ml"] = 1
            shares = node.outputs[0]
            lifted = initializer(self.model, f"{name}_lifts", lifts / np.float32(steps))
            shares = self._add("Add", [shares, lifted])
            others = self._add("QuantizeLinear", [shares, step, middle])
            codes = self._add("Concat", [codes, others], {"axis": -1})
        lifts = np.concatenate((np.zeros(len(counts), np.float32), lifts))
        return _Segment(codes, divisor, step, steps, middle, lifts)

    def _number(self, name: str, value: npt.ArrayLike) -> ir.Value:
        return constant(self.model, name, value)

    def _add(
        self, operator: str, inputs: list[ir.Value], attributes: dict[str, int] | None = None
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes or {})
        self.new.append(node)
        return node.outputs[0]
