"""INT8 recipes: each replaces one matrix product of an fp32 graph, and tells what it cost.

Graphs are ``onnx_ir`` models, edited in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ark_asr_onnx.errors import ExportError

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_ZERO_POINT = 128  # MatMulNBits' default for 8 bits
_ACCURACY_LEVEL = 4  # int8 x int8 products; activations are scaled per row and block


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a recipe did to one matrix."""

    name: str
    shape: tuple[int, int]  # [inputs, outputs]
    block: int  # inputs that share a scale
    error: float  # ||W - W'|| / ||W||, Frobenius


def matrix_nodes(model: ir.Model) -> list[ir.Node]:
    """Every ``MatMul`` whose right side is a weight; each weight matrix must be in one."""
    nodes = [n for n in model.graph if n.op_type == "MatMul" and _weight(n) is not None]
    found = {node.inputs[1] for node in nodes}
    for name, value in model.graph.initializers.items():
        if name.endswith("proj.weight") and value not in found:
            raise ExportError(
                f"{name} is in no matrix product of the traced graph; this version of torch traces "
                "linear layers in another way, use the one in scripts/check"
            )
    return nodes


def blocks8(model: ir.Model, node: ir.Node) -> Matrix:
    """Store the weight of one ``MatMul`` in 8 bits and multiply with ``MatMulNBits``.

    Weights are symmetric in blocks along the input axis, each block and output column with its
    own scale; activations are scaled per row and block at run time, so that neither an outlier
    channel nor a loud frame sets the scale of the rest. Norms and biases stay fp32.
    """
    value = _weight(node)
    assert value is not None and value.const_value is not None and value.name is not None
    weight = value.const_value.numpy().astype(np.float32, copy=False)
    n_in, n_out = weight.shape
    block = block_size(n_in)
    codes, scales = pack_blocks8(weight, block)
    packed = [
        _initializer(model, f"{value.name}_q8", codes),
        _initializer(model, f"{value.name}_scale", scales.reshape(-1)),
    ]
    attributes = {
        "K": n_in, "N": n_out, "bits": 8, "block_size": block, "accuracy_level": _ACCURACY_LEVEL,
    }  # fmt: skip
    quantised = ir.node(
        "MatMulNBits",
        [node.inputs[0], *packed],
        attributes,
        domain="com.microsoft",
        name=node.name,
        outputs=[ir.Value(name=node.outputs[0].name)],
    )
    quantised.outputs[0].type = node.outputs[0].type
    quantised.outputs[0].shape = node.outputs[0].shape
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [quantised], node.outputs, quantised.outputs
    )
    model.graph.opset_imports["com.microsoft"] = 1
    if not value.uses():
        del model.graph.initializers[value.name]
    restored = unpack_blocks8(codes, scales, n_in)
    norm = float(np.linalg.norm(weight))
    error = float(np.linalg.norm(restored - weight)) / norm if norm else 0.0
    return Matrix(value.name, (n_in, n_out), block, error)


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

    def constant(name: str, numbers: list[int]) -> ir.Value:
        return _initializer(model, f"{kernel.name}_{name}", np.array(numbers, np.int64))

    del model.graph.initializers[kernel.name]
    unfolded = stored.numpy().transpose(2, 1, 0).reshape(width * n_in, n_out)
    matrix = _initializer(model, kernel.name, unfolded)
    axis, step = constant("axis", [2]), constant("step", [stride])
    padded = ir.node("Pad", [x, constant("pads", [0, 0, 1, 0, 0, 1])])
    # Ends 2, 1 and 0 before the last: each tap gets ceil(T / stride) frames.
    ends = (-2, -1, np.iinfo(np.int64).max)
    taps = [
        ir.node("Slice", [padded.outputs[0], constant(f"tap{i}", [i]),
                          constant(f"end{i}", [end]), axis, step])
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


def block_size(n_in: int) -> int:
    """Inputs that share a scale: 128 where it divides (twice as fast to decode), else 32."""
    return 128 if n_in % 128 == 0 and n_in >= 512 else 32


def pack_blocks8(weight: F32, block: int) -> tuple[U8, F32]:
    """Codes ``[n_out, n_blocks, block]`` and scales ``[n_out, n_blocks]`` of ``[n_in, n_out]``.

    ``weight ~ (code - 128) * scale``. The last block is filled up with zeros.
    """
    n_in, n_out = weight.shape
    n_blocks = -(-n_in // block)
    padded = np.zeros((n_out, n_blocks * block), np.float32)
    padded[:, :n_in] = weight.T
    blocks = padded.reshape(n_out, n_blocks, block)
    scales = np.abs(blocks).max(axis=2) / 127
    codes = np.rint(blocks / np.where(scales > 0, scales, 1)[:, :, None]) + _ZERO_POINT
    return codes.astype(np.uint8), scales.astype(np.float32)


def unpack_blocks8(codes: U8, scales: F32, n_in: int) -> F32:
    """The matrix ``[n_in, n_out]`` that the graph multiplies with."""
    blocks = (codes.astype(np.float32) - _ZERO_POINT) * scales[:, :, None]
    return blocks.reshape(len(codes), -1)[:, :n_in].T


def _weight(node: ir.Node) -> ir.Value | None:
    value = node.inputs[1]
    return value if value is not None and value.is_initializer() else None


def _initializer(model: ir.Model, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name,
        const_value=tensor,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(array.shape),
    )
    model.graph.register_initializer(value)
    return value
