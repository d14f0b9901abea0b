"""INT8 blocks: what is stored, what it costs, and that onnxruntime multiplies with just that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import ark_asr_onnx
from ark_asr_onnx.errors import ExportError
from ark_onnx_export import parity, quantize
from ark_onnx_export.quantize import block_size, pack_blocks8, unpack_blocks8


def matrix(n_in: int, n_out: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_in, n_out), np.float32)


@pytest.mark.parametrize(("n_in", "block"), [(64, 32), (96, 32), (384, 32), (512, 128), (896, 128),
                                             (1280, 128), (4864, 128), (1000, 32)])  # fmt: skip
def test_blocks_are_long_where_they_divide_a_large_matrix(n_in: int, block: int) -> None:
    assert block_size(n_in) == block


@pytest.mark.parametrize(("n_in", "block"), [(64, 32), (50, 32), (31, 32), (256, 128), (200, 128)])
def test_each_number_is_within_half_a_step_of_its_own_block(n_in: int, block: int) -> None:
    weight = matrix(n_in, 7)
    codes, scales = pack_blocks8(weight, block)
    restored = unpack_blocks8(codes, scales, n_in)
    steps = np.repeat(scales, block, axis=1)[:, :n_in].T
    assert (np.abs(restored - weight) <= steps / 2 + 1e-6).all()
    assert codes.shape == (7, -(-n_in // block), block)
    assert codes.min() >= 1  # symmetric: 128 +- 127


def test_an_outlier_costs_only_its_own_block_and_column() -> None:
    weight = matrix(128, 4)
    plain = unpack_blocks8(*pack_blocks8(weight, 32), 128)
    weight[5, 2] = 1000
    wild = unpack_blocks8(*pack_blocks8(weight, 32), 128)
    changed = wild != plain
    assert changed[:32, 2].any()
    changed[:32, 2] = False
    assert not changed.any()


def test_zeros_stay_zero() -> None:
    weight = matrix(64, 3)
    weight[:, 1] = 0
    weight[:32, 2] = 0
    restored = unpack_blocks8(*pack_blocks8(weight, 32), 64)
    assert not restored[:, 1].any()
    assert not restored[:32, 2].any()


def product(codes: np.ndarray, scales: np.ndarray, block: int, n_in: int, level: int) -> Any:
    """A session that multiplies ``x`` with packed weights."""
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft",
        K=n_in, N=len(codes), bits=8, block_size=block, accuracy_level=level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", n_in])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", len(codes)])],
        [
            numpy_helper.from_array(codes, "codes"),
            numpy_helper.from_array(scales.ravel(), "scales"),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("rows", [1, 2, 37])
@pytest.mark.parametrize(("n_in", "block"), [(64, 32), (512, 128), (96, 32)])
def test_onnxruntime_multiplies_with_what_unpacking_gives(rows: int, n_in: int, block: int) -> None:
    codes, scales = pack_blocks8(matrix(n_in, 48), block)
    x = matrix(rows, n_in, seed=1)
    expected = x @ unpack_blocks8(codes, scales, n_in)
    (exact,) = product(codes, scales, block, n_in, level=1).run(None, {"x": x})
    np.testing.assert_allclose(exact, expected, atol=1e-3)
    # Level 4 rounds each row's blocks to 8 bits as well: some 0.5 % more.
    (fast,) = product(codes, scales, block, n_in, level=4).run(None, {"x": x})
    assert np.linalg.norm(fast - expected) <= 0.015 * np.linalg.norm(expected)


def test_a_loud_row_does_not_change_a_quiet_one() -> None:
    codes, scales = pack_blocks8(matrix(128, 48), 32)
    session = product(codes, scales, 32, 128, level=4)
    x = matrix(3, 128, seed=1)
    (alone,) = session.run(None, {"x": x})
    x[1] *= 1000
    (beside,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(beside[[0, 2]], alone[[0, 2]])


def test_a_linear_layer_that_is_no_matmul_is_refused_not_left_in_fp32() -> None:
    import onnx_ir as ir

    weight = numpy_helper.from_array(matrix(4, 4), "model.layers.0.self_attn.q_proj.weight")
    node = helper.make_node("Gemm", ["x", weight.name], ["y"])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, [1, 4])], [weight],
    )  # fmt: skip
    model = ir.serde.deserialize_model(helper.make_model(graph))
    with pytest.raises(ExportError, match=r"q_proj\.weight is in no matrix product"):
        quantize.matrix_nodes(model)


def test_every_matrix_of_a_package_is_quantised(tiny_package: Any) -> None:
    import onnx

    for name in ("audio.onnx", "decoder.onnx"):
        graph = onnx.load(str(tiny_package / name), load_external_data=False).graph
        weights = {i.name: i for i in graph.initializer}
        kinds = [n.op_type for n in graph.node]
        assert kinds.count("MatMulNBits") >= 7
        for node in graph.node:
            if node.op_type in ("MatMul", "Gemm"):
                assert not any(i in weights and len(weights[i].dims) == 2 for i in node.input)
    recipe = ark_asr_onnx.load(tiny_package).manifest.provenance.recipe
    assert "in blocks of 32" in recipe["matrices"]


def test_nan_anywhere_fails_the_comparison() -> None:
    fine = np.ones((1, 4), np.float32)
    broken = np.full((1, 4), np.nan, np.float32)
    found = parity._parity([(fine, fine), (fine, broken)])
    assert np.isnan(found.max_relative)
    with pytest.raises(ExportError):
        parity.require_fp32(found, "audio.onnx")
    assert parity.int8_shortfall(found, "audio.onnx")


def test_the_worst_case_decides() -> None:
    a = np.array([[4.0, 1.0]], np.float32)
    b = np.array([[2.0, 3.0]], np.float32)
    found = parity._parity([(a, a), (a, b), (a, a)])
    assert found.max_error == 2.0
    assert found.max_relative == 0.5
    assert found.rms_relative == pytest.approx(np.sqrt(8 / 17))
    assert found.top1 == pytest.approx(2 / 3)
