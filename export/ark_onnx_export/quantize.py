"""INT8 recipes: each replaces one matrix product of an fp32 graph, and tells what it cost.

Graphs are ``onnx_ir`` models, edited in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ark_asr_onnx.arrays import F32
from ark_asr_onnx.errors import ExportError

from . import row_products, two_bytes
from .edit import added_bias, constant, initializer, numbers_of, replace, weight_of
from .recipes import FULL, PLAIN, RECIPES, Kind, Levels, Recipe

U8 = npt.NDArray[np.uint8]
Recipes = Callable[[str], str]  # weight name -> recipe
Rows = Callable[[], F32 | None]  # reads rows [n, n_in] that a weight is multiplied with
Examples = Callable[[str], F32 | None]  # the same, by the name of the weight

_ZERO_POINT = 128  # MatMulNBits' default for 8 bits
RUN = 16384  # outputs
_ACCURACY_LEVEL = 4  # int8 x int8 products; activations are scaled per row and block


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a recipe did to one matrix."""

    name: str
    recipe: str
    shape: tuple[int, int]  # [inputs, outputs]
    block: int  # inputs that share a scale; 0 for none
    error: float  # ||W - W'|| / ||W||, Frobenius


def matrix_nodes(model: ir.Model) -> list[ir.Node]:
    """Every ``MatMul`` whose right side is a weight; each weight matrix must be in one."""
    nodes = [n for n in model.graph if n.op_type == "MatMul" and weight_of(n) is not None]
    found = {node.inputs[1] for node in nodes}
    for name, value in model.graph.initializers.items():
        if name.endswith("proj.weight") and value not in found:
            raise ExportError(
                f"{name} is in no matrix product of the traced graph; this version of torch traces "
                "linear layers in another way, use the one in scripts/check"
            )
    return nodes


def quantise(
    model: ir.Model,
    recipes: Recipes,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    examples: Examples = lambda _: None,
) -> list[Matrix]:
    """Store each matrix by its recipe."""
    stored: list[Matrix] = []
    for node in progress(matrix_nodes(model)):
        name = cast("ir.Value", weight_of(node)).name or ""
        recipe = RECIPES[recipes(name)]
        stored.append(_KINDS[recipe.kind](model, node, recipe, partial(examples, name)))
    RemoveUnusedNodesPass()(model)  # norms that were written anew
    return stored


def _fp32(_: ir.Model, node: ir.Node, recipe: Recipe, __: Rows) -> Matrix:
    """Leave one ``MatMul`` as it is."""
    value = cast("ir.Value", weight_of(node))
    n_in, n_out = cast("tuple[int, int]", tuple(value.shape or ()))
    return Matrix(value.name or "", recipe.name, (n_in, n_out), 0, 0.0)


def _blocks(model: ir.Model, node: ir.Node, recipe: Recipe, _: Rows) -> Matrix:
    """Store the weight of one ``MatMul`` in 8 bits and multiply with ``MatMulNBits``.

    Weights are symmetric in blocks along the input axis, each block and output column with its
    own scale; activations are scaled per row and block at run time, so that neither an outlier
    channel nor a loud frame sets the scale of the rest. Norms and biases stay fp32.
    """
    value, weight = numbers_of(node)
    n_in, n_out = weight.shape
    block = recipe.block_size(n_in)
    codes, scales = pack_blocks8(weight, block)
    _multiply_blocks(model, node, codes, scales, _ZERO_POINT)
    off = [
        np.linalg.norm(unpack_blocks8(codes[o], scales[o], n_in) - weight[:, o])
        for o in _outputs(n_out)
    ]
    error = _share(off, weight)
    return Matrix(value.name or "", recipe.name, (n_in, n_out), block, error)


def _columns(model: ir.Model, node: ir.Node, recipe: Recipe, rows: Rows) -> Matrix:
    """As :func:`_blocks` with the same scale for all blocks of an output column.

    Coarser, and good for two kinds of product: in blocks for a step, and for a prompt as in
    :mod:`prefill`.
    """
    value, weight = numbers_of(node)
    n_in, n_out = weight.shape
    block = next((size for size in (128, 64, 32, 16) if n_in % size == 0), None)
    if block is None:
        return _blocks(model, node, PLAIN, rows)
    scales = (np.abs(weight).max(axis=0) / np.float32(recipe.levels.weights)).astype(np.float32)
    codes = np.rint(weight / np.where(scales > 0, scales, 1))
    stored = (codes.T.astype(np.int16) + zero_point(recipe.levels)).astype(np.uint8)
    n_blocks = n_in // block
    _multiply_blocks(
        model,
        node,
        stored.reshape(n_out, n_blocks, block),
        np.repeat(scales[:, None], n_blocks, axis=1),
        zero_point(recipe.levels),
    )
    error = weight_error(weight, codes * scales)
    return Matrix(value.name or "", recipe.name, (n_in, n_out), block, error)


def _two_bytes(model: ir.Model, node: ir.Node, recipe: Recipe, rows: Rows) -> Matrix:
    """Both bytes of the activations times 8 bits of the weight, and all of them times 4 more.

    For few rows: a step of the decoder waits for the weights, which are read once for both bytes
    (:mod:`two_bytes`). The second product needs no second byte: what it adds is small.
    """
    value, weight = numbers_of(node)
    n_in, n_out = weight.shape
    block = next((size for size in (recipe.block_size(n_in), 16) if n_in % size == 0), None)
    if block is None:
        return _blocks(model, node, PLAIN, rows)
    codes, scales = pack_blocks8(weight, block)
    restored = unpack_blocks8(codes, scales, n_in)
    x = cast("ir.Value", node.inputs[0])
    nodes = two_bytes.split(model, x, n_in, block)
    nodes.append(_product(model, node, nodes[-1].outputs[0], codes, scales))
    nodes += two_bytes.join(model, nodes[-1].outputs[0], n_out)
    if recipe.rest:
        codes, scales, rest = pack_blocks4(weight - restored, block)
        restored += rest
        nodes.append(_product(model, node, x, codes, scales, bits=4))
        nodes.append(ir.node("Add", [nodes[-2].outputs[0], nodes[-1].outputs[0]]))
    replace(model, node, nodes)
    error = weight_error(weight, restored)
    return Matrix(value.name or "", recipe.name, (n_in, n_out), block, error)


def _rows(model: ir.Model, node: ir.Node, recipe: Recipe, rows: Rows) -> Matrix:
    """See :mod:`row_products`."""
    name = cast("ir.Value", node.inputs[1]).name or ""
    weight, restored = row_products.multiply(model, node, recipe, rows())
    return Matrix(name, recipe.name, weight.shape, 0, weight_error(weight, restored))


# Each takes a graph, one of its MatMul nodes, the recipe, and what reads examples of its input.
_KINDS: dict[Kind, Callable[[ir.Model, ir.Node, Recipe, Rows], Matrix]] = {
    "rows": _rows,
    "columns": _columns,
    "blocks": _blocks,
    "two bytes": _two_bytes,
    "fp32": _fp32,
}


def zero_point(levels: Levels) -> int:
    """The code of zero in ``columns``: unsigned bytes, from 0 where they must not saturate."""
    return _ZERO_POINT if levels == FULL else levels.weights


def _multiply_blocks(
    model: ir.Model, node: ir.Node, codes: U8, scales: F32, zero_point: int
) -> None:
    """Put a ``MatMulNBits`` in the place of a ``MatMul``, and of the addition of a bias."""
    product = _product(model, node, node.inputs[0], codes, scales, zero_point)
    replaced = node
    if (added := added_bias(node)) is not None:
        replaced, bias = added
        product.resize_inputs(6)
        product.replace_input_with(5, bias)
    replace(model, node, [product], replaced)


def _product(
    model: ir.Model,
    node: ir.Node,
    x: ir.Value | None,
    codes: U8,
    scales: F32,
    zero_point: int = _ZERO_POINT,
    bits: int = 8,
) -> ir.Node:
    """``x`` times the weight of a ``MatMul``, as codes ``[n_out, n_blocks, bytes]``."""
    value = cast("ir.Value", weight_of(node))
    n_in, n_out = cast("tuple[int, int]", tuple(value.shape or ()))
    name = cast("str", value.name) + ("" if bits == 8 else f"_rest{bits}")
    inputs: list[ir.Value | None] = [
        x,
        initializer(model, f"{name}_q{bits}", codes),
        initializer(model, f"{name}_scale", scales.reshape(-1)),
        None,
    ]
    if zero_point != _ZERO_POINT:
        zeros = np.full(scales.size, zero_point, np.uint8)
        inputs[3] = constant(model, f"zeros{zero_point}x{scales.size}", zeros)
    attributes = {
        "K": n_in, "N": n_out, "bits": bits, "block_size": codes.shape[2] * 8 // bits,
        "accuracy_level": _ACCURACY_LEVEL,
    }  # fmt: skip
    label = f"{node.name}{'' if bits == 8 else '_rest'}"
    return ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=label)


def pack_blocks8(weight: F32, block: int) -> tuple[U8, F32]:
    """Codes ``[n_out, n_blocks, block]`` and scales ``[n_out, n_blocks]`` of ``[n_in, n_out]``.

    ``weight ~ (code - 128) * scale``. The last block is filled up with zeros.
    """
    n_in, n_out = weight.shape
    n_blocks = -(-n_in // block)
    codes = np.empty((n_out, n_blocks, block), np.uint8)
    scales = np.empty((n_out, n_blocks), np.float32)
    for some in _outputs(n_out):
        padded = np.zeros((some.stop - some.start, n_blocks * block), np.float32)
        padded[:, :n_in] = weight[:, some].T
        blocks = padded.reshape(-1, n_blocks, block)
        scales[some] = found = np.abs(blocks).max(axis=2) / 127
        codes[some] = np.rint(blocks / np.where(found > 0, found, 1)[:, :, None]) + _ZERO_POINT
    return codes, scales


def unpack_blocks8(codes: U8, scales: F32, n_in: int) -> F32:
    """The matrix ``[n_in, n_out]`` that the graph multiplies with."""
    blocks = (codes.astype(np.float32) - _ZERO_POINT) * scales[:, :, None]
    return blocks.reshape(len(codes), -1)[:, :n_in].T


def _outputs(n_out: int) -> Iterator[slice]:
    """Runs of outputs: of a head, arrays of all would take gigabytes."""
    for begin in range(0, n_out, RUN):
        yield slice(begin, min(begin + RUN, n_out))


def pack_blocks4(weight: F32, block: int) -> tuple[U8, F32, F32]:
    """Codes ``[n_out, n_blocks, block / 2]`` and scales of ``[n_in, n_out]``, and what they hold.

    ``weight ~ (code - 8) * scale``; the first of two codes is in the lower half of a byte.
    """
    n_in, n_out = weight.shape
    blocks = np.ascontiguousarray(weight.T).reshape(n_out, n_in // block, block)
    scales = (np.abs(blocks).max(axis=2) / 7).astype(np.float32)
    codes = np.rint(blocks / np.where(scales > 0, scales, 1)[:, :, None])
    held = (codes * scales[:, :, None]).reshape(n_out, n_in).T
    pairs = (codes + 8).astype(np.uint8).reshape(n_out, n_in // block, block // 2, 2)
    return (pairs[..., 0] | pairs[..., 1] << np.uint8(4)), scales, held.astype(np.float32)


def weight_error(weight: F32, restored: F32) -> float:
    """``||W - W'|| / ||W||``, Frobenius."""
    return _share([np.linalg.norm(restored - weight)], weight)


def _share(off: Sequence[np.floating[Any]], weight: F32) -> float:
    """The norm of some norms, as a share of the weight's."""
    norm = float(np.linalg.norm(weight))
    return float(np.linalg.norm(off)) / norm if norm else 0.0
