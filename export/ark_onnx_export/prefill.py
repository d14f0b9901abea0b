"""The graph that fills the KV cache with a long prompt: the decoder's codes, multiplied faster.

A step of the decoder reads every weight for one position; there ``MatMulNBits`` is as fast as
memory. A prompt of hundreds of positions is arithmetic, and there products of whole rows of bytes
are faster. Weights that have one scale for each output (the kind ``columns``) serve both: as codes
``[outputs, inputs]`` they are the left side of ``codes @ rows.T``, where they need no packing. So
this graph has no weights of its own, it reads those in the file of ``decoder.onnx``.

It gives no logits: the last position of a prompt goes through the decoder itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ark_asr_onnx.package import contract

from .quantize import Matrix, zero_point
from .recipes import RECIPES, Levels, Recipe

_TURNED = {"Sigmoid", "Mul"}  # operators on [outputs, positions] as on [1, positions, outputs]


def write(decoder: Path, path: Path, matrices: Sequence[Matrix]) -> None:
    """Derive ``path`` from the INT8 decoder beside it, if that has matrices in columns.

    Those of other kinds are multiplied as in the decoder.
    """
    recipes = {matrix.name: RECIPES[matrix.recipe] for matrix in matrices}
    path.unlink(missing_ok=True)
    if all(recipe.kind != "columns" for recipe in recipes.values()):
        return
    model = ir.load(decoder)
    graph = model.graph
    graph.outputs[:] = [value for value in graph.outputs if value.name != contract.LOGITS]
    for value in graph.inputs:
        shape = value.shape
        if shape is not None and len(shape) > 1:
            value.shape = ir.Shape([1, *shape[1:]])
    RemoveUnusedNodesPass()(model)
    _Turner(model, recipes).run()
    RemoveUnusedNodesPass()(model)
    ir.save(model, path)


class _Turner:
    """Rewrites products; keeps their results as ``[outputs, positions]`` where that is enough."""

    def __init__(self, model: ir.Model, recipes: Mapping[str, Recipe]) -> None:
        self.graph, self.recipes = model.graph, recipes
        self.turned: dict[ir.Value, ir.Value] = {}
        self.halved: set[ir.Value] = set()  # results that exist only in parts
        self.codes: dict[tuple[ir.Value, int], tuple[ir.Value, ir.Value]] = {}
        self.node: ir.Node | None = None  # what new nodes go before

    def run(self) -> None:
        """Rewrite every node, in order."""
        for node in list(self.graph):
            self.node = node
            recipe = self._recipe(node)
            if recipe is not None and recipe.kind == "columns":
                self._multiply(node, recipe.levels)
            elif node.inputs and node.inputs[0] in self.halved:
                continue
            elif node.op_type in _TURNED and all(x in self.turned for x in node.inputs):
                inputs = [self.turned[cast("ir.Value", x)] for x in node.inputs]
                self.turned[node.outputs[0]] = self._add(node.op_type, inputs)
            else:
                for i, x in enumerate(node.inputs):
                    if x in self.turned:
                        node.replace_input_with(i, self._back(cast("ir.Value", x)))
        assert not any(value in self.turned for value in self.graph.outputs)

    def _recipe(self, node: ir.Node) -> Recipe | None:
        """The recipe of the weight that a node multiplies with; none for a part of one."""
        if node.op_type != "MatMulNBits":
            return None
        codes = cast("ir.Value", node.inputs[1])
        return self.recipes.get(cast("str", codes.name).removesuffix("_q8"))

    def _multiply(self, node: ir.Node, levels: Levels) -> None:
        """A product; one that is split at once is made in parts, from parts of the weight."""
        result, n_out = node.outputs[0], node.attributes["N"].as_int()
        users = [use.node for use in result.uses()]
        if len(users) != 1 or users[0].op_type != "Split":
            self.turned[result] = self._product(node, levels, range(n_out))
            return
        parts = users[0].outputs
        size = n_out // len(parts)
        assert users[0].attributes.get_int("num_outputs", len(parts)) * size == n_out
        self.halved.add(result)
        for i, part in enumerate(parts):
            self.turned[part] = self._product(node, levels, range(i * size, (i + 1) * size))

    def _product(self, node: ir.Node, levels: Levels, outputs: range) -> ir.Value:
        x, codes, scales = (cast("ir.Value", value) for value in node.inputs[:3])
        n_in, n_out = (node.attributes[name].as_int() for name in ("K", "N"))
        rows, row_scales = self._rows(x, n_in, levels.activations)
        weight = self._codes(codes, outputs, n_in)
        name = f"{cast('str', codes.name).removesuffix('_q8')}_{outputs.start}"
        assert scales.const_value is not None
        chosen = slice(outputs.start, outputs.stop)
        each = scales.const_value.numpy().reshape(n_out, -1)[chosen, :1]
        zero = np.uint8(zero_point(levels))
        inputs = [weight, rows, self._constant("one", np.float32(1)), row_scales,
                  self._constant(f"zero{zero}", zero)]  # fmt: skip
        product = self._add("MatMulIntegerToFloat", inputs, domain="com.microsoft")
        result = self._add("Mul", [product, self._constant(f"{name}_scales", each.copy())])
        bias = node.inputs[5] if len(node.inputs) > 5 else None
        if bias is None:
            return result
        assert bias.const_value is not None
        column = bias.const_value.numpy().reshape(-1, 1)[chosen]
        return self._add("Add", [result, self._constant(f"{name}_bias", column)])

    def _rows(self, x: ir.Value, n_in: int, level: int) -> tuple[ir.Value, ir.Value]:
        """Codes ``[inputs, positions]`` of an input, and the scales ``[positions]``."""
        if (x, level) not in self.codes:
            turned = x in self.turned
            if turned:
                numbers, axis = self.turned[x], 0
            else:
                flat = self._constant(f"flat{n_in}", np.array([-1, n_in]))
                numbers, axis = self._add("Reshape", [x, flat]), 1
            size = self._add("Abs", [numbers])
            axes = self._constant(f"axis{axis}", np.array([axis]))
            largest = self._add("ReduceMax", [size, axes], {"keepdims": 1})
            divisor = self._add("Max", [largest, self._constant("least", np.float32(1e-20))])
            unit = self._add("Div", [numbers, divisor])
            step = self._constant(f"step{level}", np.float32(1 / level))
            codes = self._add("QuantizeLinear", [unit, step, self._constant("zero", np.int8(0))])
            if not turned:
                codes = self._add("Transpose", [codes], {"perm": [1, 0]})
            scales = self._add("Mul", [divisor, step])
            scales = self._add("Reshape", [scales, self._constant("all", np.array([-1]))])
            self.codes[x, level] = codes, scales
        return self.codes[x, level]

    def _back(self, x: ir.Value) -> ir.Value:
        """A turned value as ``[1, positions, outputs]``."""
        rows = self._add("Transpose", [self.turned[x]], {"perm": [1, 0]})
        return self._add("Unsqueeze", [rows, self._constant("axis0", np.array([0]))])

    def _codes(self, value: ir.Value, outputs: range, n_in: int) -> ir.Value:
        """Some outputs of the decoder's codes as a matrix, in its file."""
        name = f"{value.name}_{outputs.start}_matrix"
        tensor = cast("ir.ExternalTensor", value.const_value)
        matrix = ir.ExternalTensor(
            tensor.location,
            (tensor.offset or 0) + outputs.start * n_in,
            len(outputs) * n_in,
            ir.DataType.UINT8,
            shape=ir.Shape([len(outputs), n_in]),
            name=name,
            base_dir=tensor.base_dir,
        )
        return self._initializer(name, matrix)

    def _constant(self, name: str, array: npt.ArrayLike) -> ir.Value:
        name = f"prefill.{name}"
        found = self.graph.initializers.get(name)
        return found or self._initializer(name, ir.tensor(np.asarray(array), name=name))

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        kind, shape = ir.TensorType(tensor.dtype), cast("ir.Shape", tensor.shape)
        value = ir.Value(name=name, const_value=tensor, type=kind, shape=shape)
        self.graph.register_initializer(value)
        return value

    def _add(
        self,
        operator: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, int | list[int]] | None = None,
        domain: str = "",
    ) -> ir.Value:
        node = ir.node(operator, inputs, dict(attributes or {}), domain=domain)
        assert self.node is not None
        self.graph.insert_before(self.node, node)
        return node.outputs[0]
