"""The graphs that kernels.py measures: one product each, by every operator that exists.

A candidate takes a graph, the input ``x [1, rows, K]`` and the matrix ``w [K, N]``, and returns the
result's value. With the levels of ``u8s8``, 16-bit sums saturate on no CPU.
"""

from __future__ import annotations

import ark_asr_onnx.model.ort  # noqa: F401 - first: it switches telemetry off

# isort: split
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

F32 = npt.NDArray[np.float32]
MICROSOFT = "com.microsoft"
ACTIVATIONS, WEIGHTS = 90, 91  # 2 * (2 * 90) * 91 < 32768


class Graph:
    """A graph under construction, with its input arrays."""

    def __init__(self) -> None:
        self.graph = ir.Graph([], [], nodes=[], name="g", opset_imports={"": 21, MICROSOFT: 1})
        self.feeds: dict[str, np.ndarray] = {}

    def input(self, array: np.ndarray) -> ir.Value:
        """An input with this array as its value."""
        name = f"x{len(self.feeds)}"
        self.feeds[name] = array
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value = ir.Value(name=name, type=kind, shape=ir.Shape(array.shape))
        self.graph.inputs.append(value)
        return value

    def constant(self, array: npt.ArrayLike) -> ir.Value:
        """An initializer."""
        name = f"c{len(self.graph.initializers)}"
        tensor = ir.tensor(np.asarray(array), name=name)
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, const_value=tensor, type=kind, shape=cast("Any", tensor.shape))
        self.graph.register_initializer(value)
        return value

    def many(
        self, operator: str, inputs: Sequence[ir.Value | None], n: int, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """A node with several outputs; a dot marks operators that only onnxruntime has."""
        domain = MICROSOFT if operator.startswith(".") else ""
        node = ir.node(operator.removeprefix("."), inputs, attributes, domain=domain, num_outputs=n)
        self.graph.append(node)
        return tuple(node.outputs)

    def add(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """A node with one output."""
        return self.many(operator, inputs, 1, **attributes)[0]

    def session(self, y: ir.Value, threads: int) -> onnxruntime.InferenceSession:
        """A session of the graph with the result ``y``."""
        y.name = "y"
        self.graph.outputs.append(y)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # the table shows what onnxruntime lacks
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        data = ir.serde.serialize_model(ir.Model(self.graph, ir_version=10)).SerializeToString()
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


Candidate: TypeAlias = Callable[[Graph, F32, F32], ir.Value]  # graph, x [1, rows, K], w [K, N]


def plain(g: Graph, x: F32, w: F32, dtype: npt.DTypeLike = np.float32) -> ir.Value:
    """``MatMul`` in a floating type."""
    if dtype is np.float32:
        return g.add("MatMul", g.input(x), g.constant(w))
    to = ir.DataType.from_numpy(np.dtype(dtype)).value
    low = g.add("Cast", g.input(x), to=to)
    product = g.add("MatMul", low, g.constant(w.astype(dtype)))
    return g.add("Cast", product, to=ir.DataType.FLOAT.value)


def blocks(g: Graph, x: F32, w: F32, bits: int, block: int, accuracy: int = 4) -> ir.Value:
    """``MatMulNBits``."""
    n_in, n_out = w.shape
    level = 2 ** (bits - 1) - 1
    parts = w.T.reshape(n_out, n_in // block, block)
    scales = np.abs(parts).max(axis=2) / np.float32(level)
    codes = (np.rint(parts / scales[:, :, None]) + level + 1).astype(np.uint8)
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    inputs = (g.input(x), g.constant(codes), g.constant(scales.reshape(-1)))
    sizes = {"K": n_in, "N": n_out, "bits": bits, "block_size": block, "accuracy_level": accuracy}
    return g.add(".MatMulNBits", *inputs, **sizes)


def codes_of(array: F32, level: int, zero: int, dtype: npt.DTypeLike) -> np.ndarray:
    """The codes that ``QuantizeLinear`` gives for numbers in [-1, 1]."""
    return (np.rint(array * np.float32(level)) + zero).astype(dtype)


class Side:
    """The quantisation of one side of a product: type, largest code, code of zero."""

    def __init__(self, signed: bool, level: int) -> None:
        self.dtype: Any = np.int8 if signed else np.uint8
        self.level, self.zero = level, 0 if signed else level

    def zero_point(self) -> np.generic:
        """The code of zero, as a scalar."""
        return self.dtype(self.zero)


def weights(w: F32, side: Side) -> tuple[np.ndarray, F32]:
    """Codes ``[K, N]`` and scales ``[N]``."""
    scales = np.abs(w).max(axis=0) / np.float32(side.level)
    return (np.rint(w / scales) + side.zero).astype(side.dtype), scales


KINDS = {
    "u8s8": (Side(False, ACTIVATIONS), Side(True, WEIGHTS)),
    "u8u8": (Side(False, 127), Side(False, 127)),
    "s8s8": (Side(True, 127), Side(True, 127)),
}


def row_codes(g: Graph, x: ir.Value, side: Side, axis: int = -1) -> tuple[ir.Value, ir.Value]:
    """Codes, and the largest value of each row, as ``quantize.rows8`` computes them."""
    axes = g.constant(np.array([axis]))
    largest = g.add("ReduceMax", g.add("Abs", x), axes, keepdims=1)
    divisor = g.add("Max", largest, g.constant(np.float32(1e-20)))
    unit = g.add("Div", x, divisor)
    step = g.constant(np.float32(1 / side.level))
    return g.add("QuantizeLinear", unit, step, g.constant(side.zero_point())), divisor


def to_float(
    g: Graph, a: ir.Value, left: Side, b: ir.Value, b_scale: ir.Value, right: Side
) -> ir.Value:
    """``MatMulIntegerToFloat``."""
    step, zero = g.constant(np.float32(1 / left.level)), g.constant(left.zero_point())
    n_out = cast("int", cast("ir.Shape", b_scale.shape)[0])
    b_zero = g.constant(np.full(n_out, right.zero, right.dtype))
    return g.add(".MatMulIntegerToFloat", a, b, step, b_scale, zero, b_zero)


def rows(g: Graph, x: F32, w: F32, kind: str, whole: bool) -> ir.Value:
    """A product with one scale for each row: recipe ``rows``."""
    left, right = KINDS[kind]
    codes, scales = weights(w, right)
    if not whole:
        a = g.input(codes_of(x, left.level, left.zero, left.dtype))
        return to_float(g, a, left, g.constant(codes), g.constant(scales), right)
    a, largest = row_codes(g, g.input(x), left)
    product = to_float(g, a, left, g.constant(codes), g.constant(scales), right)
    return g.add("Mul", product, largest)


def integer(g: Graph, x: F32, w: F32) -> ir.Value:
    """``MatMulInteger``, ``Cast`` and one ``Mul``, from codes."""
    left, right = KINDS["u8s8"]
    codes, scales = weights(w, right)
    a = g.input(codes_of(x, left.level, left.zero, left.dtype))
    zero = g.constant(left.zero_point())
    product = g.add("MatMulInteger", a, g.constant(codes), zero)
    numbers = g.add("Cast", product, to=ir.DataType.FLOAT.value)
    return g.add("Mul", numbers, g.constant(scales / np.float32(left.level)))


def linear(g: Graph, x: F32, w: F32) -> ir.Value:
    """``QLinearMatMul`` from codes to codes, and ``DequantizeLinear``."""
    left, right = KINDS["u8s8"]
    codes, scales = weights(w, right)
    a = g.input(codes_of(x, left.level, left.zero, left.dtype))
    step = g.constant(np.float32(np.abs(x @ w).max() / 127))
    zero = g.constant(np.uint8(128))
    product = g.add(
        "QLinearMatMul", a, g.constant(np.float32(1 / left.level)), g.constant(left.zero_point()),
        g.constant(codes), g.constant(scales), g.constant(np.zeros(len(scales), np.int8)),
        step, zero,
    )  # fmt: skip
    return g.add("DequantizeLinear", product, step, zero)


def gemm(g: Graph, x: F32, w: F32) -> ir.Value:
    """``QGemm`` from codes to fp32."""
    left, right = KINDS["u8s8"]
    codes, scales = weights(w, right)
    a = g.input(codes_of(x[0], left.level, left.zero, left.dtype))
    step, zero = g.constant(np.float32(1 / left.level)), g.constant(left.zero_point())
    zeros = g.constant(np.zeros(len(scales), np.int8))
    return g.add(".QGemm", a, step, zero, g.constant(codes), g.constant(scales), zeros, alpha=1.0)


def dynamic(g: Graph, x: F32, w: F32) -> ir.Value:
    """``DynamicQuantizeMatMul``: one scale for the whole input, computed at runtime."""
    codes, scales = weights(w, KINDS["u8s8"][1])
    return g.add(".DynamicQuantizeMatMul", g.input(x), g.constant(codes), g.constant(scales))


def sizes_of(n_in: int, parts: Sequence[int] | int) -> list[int]:
    """Sizes of segments: a number of nearly equal ones, or 1/n of the channels, and the rest."""
    if isinstance(parts, int):
        bounds = [round(i * n_in / parts / 16) * 16 for i in range(parts + 1)]
        return np.diff(bounds).tolist()
    first = [n_in // part for part in parts]
    return [*first, n_in - sum(first)]


def segments(g: Graph, x: F32, w: F32, parts: Sequence[int] | int, whole: bool = True) -> ir.Value:
    """A product for each segment of K, scaled for its rows, and their sum."""
    left, right = KINDS["u8s8"]
    sizes = sizes_of(len(w), parts)
    at = np.cumsum(sizes)[:-1]
    if whole:
        cut = g.many("Split", (g.input(x), g.constant(np.array(sizes))), len(sizes), axis=-1)
        coded = [row_codes(g, part, left) for part in cut]
    else:
        one = np.ones((1, x.shape[1], 1), np.float32)
        split = np.split(codes_of(x, left.level, left.zero, left.dtype), at, axis=2)
        coded = [(g.input(np.ascontiguousarray(part)), g.input(one)) for part in split]
    total = None
    for (a, largest), part in zip(coded, np.split(w, at), strict=True):
        codes, scales = weights(part, right)
        product = to_float(g, a, left, g.constant(codes), g.constant(scales), right)
        scaled = g.add("Mul", product, largest)
        total = scaled if total is None else g.add("Add", total, scaled)
    assert total is not None
    return total


def folded_segments(g: Graph, x: F32, w: F32, n: int) -> ir.Value:
    """Equal segments whose codes are computed together and split as bytes."""
    left, right = KINDS["u8s8"]
    n_in = len(w)
    folded = g.add("Reshape", g.input(x), g.constant(np.array([1, -1, n, n_in // n])))
    a, largest = row_codes(g, folded, left)
    flat = g.add("Reshape", a, g.constant(np.array([1, -1, n_in])))
    sizes = g.constant(np.full(n, n_in // n))
    parts = g.many("Split", (flat, sizes), n, axis=-1)
    scales_of_rows = g.many("Split", (largest, g.constant(np.ones(n, np.int64))), n, axis=2)
    total = None
    for part, largest_of_part, matrix in zip(parts, scales_of_rows, np.split(w, n), strict=True):
        codes, scales = weights(matrix, right)
        product = to_float(g, part, left, g.constant(codes), g.constant(scales), right)
        column = g.add("Reshape", largest_of_part, g.constant(np.array([1, -1, 1])))
        scaled = g.add("Mul", product, column)
        total = scaled if total is None else g.add("Add", total, scaled)
    assert total is not None
    return total


def extended(g: Graph, x: F32, w: F32, share: float, whole: bool) -> ir.Value:
    """A product with a ``share`` of the channels twice, each with half the weight."""
    more = round(share * len(w) / 4) * 4
    longer: F32 = np.concatenate((w, w[:more]))
    longer[:more] /= 2
    longer[len(w) :] /= 2
    if not whole:
        return rows(g, np.concatenate((x, x[:, :, :more]), axis=2), longer, "u8s8", False)
    left, right = KINDS["u8s8"]
    value = g.input(x)
    chosen = g.add("Gather", value, g.constant(np.arange(more)), axis=2)
    both = g.add("Concat", value, chosen, axis=2)
    a, largest = row_codes(g, both, left)
    codes, scales = weights(longer, right)
    product = to_float(g, a, left, g.constant(codes), g.constant(scales), right)
    return g.add("Mul", product, largest)


def left_side(
    g: Graph, x: F32, w: F32, parts: Sequence[int] | int = 1, whole: bool = True
) -> ir.Value:
    """Weights on the left, as in ``prefill``: the kernel takes the rows' scales as columns' scales.

    For ``whole``, codes and result are transposed; otherwise both stay ``[., rows]``.
    """
    left, right = Side(False, 127), Side(True, 127)
    sizes = sizes_of(len(w), parts)
    at = np.cumsum(sizes)[:-1]
    codes, scales = weights(w.T.copy().T, left)
    if whole:
        flat = g.add("Reshape", g.input(x), g.constant(np.array([-1, len(w)])))
        cut = (
            g.many("Split", (flat, g.constant(np.array(sizes))), len(sizes), axis=1)
            if len(sizes) > 1
            else (flat,)
        )
        coded = [row_codes(g, part, right) for part in cut]
        step = g.constant(np.float32(1 / right.level))
        rest = g.constant(np.array([-1]))
        turned = [
            (g.add("Transpose", a, perm=[1, 0]),
             g.add("Reshape", g.add("Mul", largest, step), rest))
            for a, largest in coded
        ]  # fmt: skip
    else:
        each = np.full(x.shape[1], 1 / right.level, np.float32)
        split = np.split(codes_of(x[0].T, right.level, 0, np.int8), at)
        turned = [(g.input(np.ascontiguousarray(part)), g.input(each)) for part in split]
    one, zero = g.constant(np.float32(1)), g.constant(left.zero_point())
    total = None
    for (b, scale), part in zip(turned, np.split(codes.T, at, axis=1), strict=True):
        matrix = g.constant(np.ascontiguousarray(part))
        product = g.add(".MatMulIntegerToFloat", matrix, b, one, scale, zero)
        total = product if total is None else g.add("Add", total, product)
    assert total is not None
    result = g.add("Mul", total, g.constant(scales[:, None]))
    return g.add("Transpose", result, perm=[1, 0]) if whole else result


def one_pass(g: Graph, x: F32, w: F32, operator: str, of: str = "K", **attributes: Any) -> ir.Value:
    """One elementwise operator over the input, or over an array of the result's shape."""
    numbers = x if of == "K" else np.zeros((1, x.shape[1], w.shape[1]), np.float32) + x[..., :1]
    column = np.ones((1, x.shape[1], 1), np.float32)
    if operator == "Cast":
        return g.add(operator, g.input(numbers.astype(np.int32)), **attributes)
    if operator == "Transpose":
        return g.add(operator, g.input(codes_of(x, 90, 90, np.uint8)), **attributes)
    value = g.input(numbers)
    others: dict[str, Callable[[], tuple[ir.Value, ...]]] = {
        "ReduceMax": lambda: (g.constant(np.array([-1])),),
        "Div": lambda: (g.input(column),),
        "Mul": lambda: (g.input(column),),
        "Add": lambda: (g.input(numbers),),
        "QuantizeLinear": lambda: (g.constant(np.float32(1 / 90)), g.constant(np.uint8(90))),
        "Split": lambda: (g.constant(np.array(sizes_of(x.shape[2], 3))),),
    }
    return g.many(operator, (value, *others.get(operator, tuple)()),
                  3 if operator == "Split" else 1, **attributes)[0]  # fmt: skip


def scaling(g: Graph, x: F32, w: F32) -> ir.Value:  # noqa: ARG001 - a candidate takes both
    """All passes from fp32 to the codes of rows."""
    return row_codes(g, g.input(x), KINDS["u8s8"][0])[0]


def scaling_by_axis(g: Graph, x: F32, w: F32) -> ir.Value:  # noqa: ARG001
    """As :func:`scaling` without ``Div``: ``QuantizeLinear`` with a scale per row, signed codes."""
    value = g.input(x)
    largest = g.add("ReduceMax", g.add("Abs", value), g.constant(np.array([0, 2])), keepdims=0)
    scale = g.add("Mul", largest, g.constant(np.float32(1 / 127)))
    return g.add("QuantizeLinear", value, scale, axis=1, output_dtype=ir.DataType.INT8.value)


def scaling_by_extremes(g: Graph, x: F32, w: F32) -> ir.Value:  # noqa: ARG001
    """As :func:`scaling` without ``Abs``: from the greatest and the least value."""
    value, axes = g.input(x), g.constant(np.array([-1]))
    high = g.add("ReduceMax", value, axes, keepdims=1)
    low = g.add("Neg", g.add("ReduceMin", value, axes, keepdims=1))
    unit = g.add("Div", value, g.add("Max", high, low))
    return g.add("QuantizeLinear", unit, g.constant(np.float32(1 / 90)), g.constant(np.uint8(90)))


def candidates() -> dict[str, Candidate]:
    """The functions that build the graphs, by name in the table."""
    found: dict[str, Candidate] = {
        "whole: MatMul fp32": plain,
        "whole: MatMul fp16": partial(plain, dtype=np.float16),
        "whole: MatMul bf16": partial(plain, dtype=ml_dtypes.bfloat16),
    }
    for bits in (8, 4):
        for block in (32, 64, 128, 256):
            name = f"whole: MatMulNBits {bits} bits, blocks of {block}"
            found[name] = partial(blocks, bits=bits, block=block)
    found["whole: MatMulNBits 8 bits, 128, accuracy_level 1"] = partial(
        blocks, bits=8, block=128, accuracy=1
    )
    found["whole: DynamicQuantizeMatMul"] = dynamic
    for kind in KINDS:
        found[f"whole: rows {kind}"] = partial(rows, kind=kind, whole=True)
    for n in (2, 3, 4, 8):
        found[f"whole: {n} segments"] = partial(segments, parts=n)
    for n in (2, 4, 8):
        found[f"whole: {n} segments, coded together"] = partial(folded_segments, n=n)
    found["whole: segments 1/16, rest"] = partial(segments, parts=(16,))
    found["whole: segments 1/32, 1/8, rest"] = partial(segments, parts=(32, 8))
    for share in (0.02, 0.05):
        found[f"whole: K + {share:.0%}"] = partial(extended, share=share, whole=True)
    found["whole: weights left"] = left_side
    found["whole: weights left, 3 segments"] = partial(left_side, parts=3)
    for kind in KINDS:
        found[f"given: MatMulIntegerToFloat {kind}"] = partial(rows, kind=kind, whole=False)
    found |= {"given: MatMulInteger, Cast, Mul": integer,
              "given: QLinearMatMul, DequantizeLinear": linear, "given: QGemm": gemm}  # fmt: skip
    for n in (2, 3, 4, 8):
        found[f"given: {n} segments"] = partial(segments, parts=n, whole=False)
    found["given: segments 1/16, rest"] = partial(segments, parts=(16,), whole=False)
    found["given: segments 1/32, 1/8, rest"] = partial(segments, parts=(32, 8), whole=False)
    for share in (0.02, 0.05):
        found[f"given: K + {share:.0%}"] = partial(extended, share=share, whole=False)
    found["given: weights left"] = partial(left_side, whole=False)
    found["given: weights left, 3 segments"] = partial(left_side, parts=3, whole=False)
    return found | passes()


def passes() -> dict[str, Candidate]:
    """The single passes of the scaling, by name in the table."""

    def of(operator: str, of: str = "K", **attributes: Any) -> Candidate:
        return partial(one_pass, operator=operator, of=of, **attributes)

    return {
        "pass: rows to codes, all five": scaling,
        "pass: the same, by axis and signed": scaling_by_axis,
        "pass: the same, ReduceMin for Abs": scaling_by_extremes,
        "pass: Abs [rows, K]": of("Abs"),
        "pass: ReduceMax [rows, K]": of("ReduceMax", keepdims=1),
        "pass: Div by a column [rows, K]": of("Div"),
        "pass: QuantizeLinear [rows, K]": of("QuantizeLinear"),
        "pass: Split in 3 [rows, K]": of("Split", axis=-1),
        "pass: Transpose of codes [rows, K]": of("Transpose", perm=[0, 2, 1]),
        "pass: Cast of int32 [rows, N]": of("Cast", "N", to=ir.DataType.FLOAT.value),
        "pass: Mul by a column [rows, N]": of("Mul", "N"),
        "pass: Add [rows, N]": of("Add", "N"),
    }
