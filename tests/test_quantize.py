"""INT8 blocks: what is stored, what it costs, and that onnxruntime multiplies with just that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import require_exact_sums

pytest.importorskip("torch")

import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import ark_asr_onnx
from ark_asr_onnx.errors import ExportError
from ark_onnx_export import edit, feedback, parity, quantize
from ark_onnx_export import rows as rows_module
from ark_onnx_export.quantize import pack_blocks8, unpack_blocks8
from ark_onnx_export.recipes import PLAIN, RECIPES


def matrix(n_in: int, n_out: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_in, n_out), np.float32)


@pytest.mark.parametrize(("n_in", "block"), [(64, 32), (96, 32), (384, 32), (512, 128), (896, 128),
                                             (1280, 128), (4864, 128), (1000, 32)])  # fmt: skip
def test_blocks_are_long_where_they_divide_a_large_matrix(n_in: int, block: int) -> None:
    assert PLAIN.block_size(n_in) == block


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


def graph_of(weight: np.ndarray, *, gelu: bool = False) -> Any:
    """An fp32 graph with one product, after a GELU or not, as the exporter traces it."""
    import onnx_ir as ir

    value, name = helper.make_tensor_value_info, "layer.proj.weight"
    nodes = [helper.make_node("MatMul", ["h" if gelu else "x", name], ["y"], name="layer.proj")]
    if gelu:
        nodes.insert(0, helper.make_node("Gelu", ["x"], ["h"], domain="com.microsoft"))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, "rows", weight.shape[0]])],
        [value("y", TensorProto.FLOAT, [1, "rows", weight.shape[1]])],
        [numpy_helper.from_array(weight, name)],
    )  # fmt: skip
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def opened(model: Any) -> Any:
    import onnx_ir as ir

    data = ir.serde.serialize_model(model).SerializeToString()
    return onnxruntime.InferenceSession(data)


def plainly(weight: Any, steps: Any, limits: Any, _: Any) -> Any:
    """Each weight rounded for itself."""
    return feedback.round_weights(weight, steps, limits, None)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    "recipe", [r.name for r in RECIPES.values() if r.kind not in ("columns", "dynamic")]
)
def test_a_recipe_computes_what_calibration_takes_it_to_compute(
    recipe: str, gelu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import torch.nn.functional as F

    from ark_onnx_export.products import product as simulated

    require_exact_sums(recipe)
    monkeypatch.setattr(rows_module, "round_weights", plainly)
    weight, x = matrix(96, 40), matrix(23, 96, seed=1)
    x[4] = 0
    x[:, 7] *= 9  # has several places
    model = graph_of(weight, gelu=gelu)
    rows = F.gelu(torch.from_numpy(x)) if gelu else torch.from_numpy(x)
    (stored,) = quantize.quantise(model, lambda _: recipe, examples=lambda _: rows.numpy())
    exact = (rows @ torch.from_numpy(weight)).numpy()
    expected = simulated(rows, torch.from_numpy(weight).T, RECIPES[recipe], after_gelu=gelu).numpy()
    (found,) = opened(model).run(None, {"x": x[None]})
    norm = np.linalg.norm(exact)
    # Roundings at the very middle between two codes may fall either way.
    assert np.linalg.norm(found[0] - expected) <= 2e-3 * norm
    assert np.linalg.norm(found[0] - exact) <= (0.03 if recipe != "fp32" else 1e-6) * norm
    assert np.abs(found[0, 4]).max() < 1e-12 or gelu
    assert (stored.recipe, stored.shape) == (recipe, (96, 40))
    assert (stored.error > 0) == (recipe != "fp32")


@pytest.mark.parametrize(
    "recipe",
    ["rows8", "rows8+25", "rows8/4", "rows7", "columns7", "blocks8", "fine8", "blocks12a16"],
)
def test_no_recipe_lets_a_loud_row_change_a_quiet_one(recipe: str) -> None:
    model = graph_of(matrix(128, 48))
    quantize.quantise(model, lambda _: recipe)
    session = opened(model)
    x = matrix(3, 128, seed=1)[None]
    (alone,) = session.run(None, {"x": x})
    x[0, 1] *= 1000
    (beside,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(beside[0, [0, 2]], alone[0, [0, 2]])


@pytest.mark.parametrize(("recipe", "bound"), [("blocks8a16", 0.008), ("blocks12a16", 0.0006)])
@pytest.mark.parametrize("n_in", [96, 512, 48])
def test_activations_in_two_bytes_leave_the_error_of_the_weights(
    recipe: str, bound: float, n_in: int
) -> None:
    weight = matrix(n_in, 40)
    model = graph_of(weight)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = None
    (stored,) = quantize.quantise(model, lambda _: recipe)
    x = matrix(6, n_in, seed=1).reshape(2, 3, n_in)  # a batch of two
    x[0, 1] *= 1000
    x[1, 2] = 0
    x[1, 0, 5] = 300  # an outlier
    (found,) = opened(model).run(None, {"x": x})
    exact = x @ weight
    errors = np.linalg.norm(found - exact, axis=2) / np.maximum(np.linalg.norm(exact, axis=2), 1e-9)
    assert stored.error < bound
    assert errors.max() < 2 * bound  # of every row, and of the row of zeros


@pytest.mark.parametrize("recipe", ["rows7"])
def test_the_codes_of_the_recipe_for_any_cpu_cannot_saturate_sixteen_bits(recipe: str) -> None:
    model = graph_of(np.abs(matrix(64, 16)))
    quantize.quantise(model, lambda _: recipe)
    weights = {name: v.const_value.numpy() for name, v in model.graph.initializers.items()}
    codes = weights["layer.proj.weight_q8"].astype(np.int64)
    levels = RECIPES[recipe].levels
    largest = 2 * levels.activations  # unsigned, so the middle is the zero point
    assert weights[f"rows_zero{levels.activations}"] == levels.activations
    assert np.abs(codes).max() == levels.weights
    assert 2 * largest * levels.weights <= np.iinfo(np.int16).max


def test_matrices_that_read_the_same_rows_share_their_codes() -> None:
    import onnx_ir as ir

    model = graph_of(matrix(64, 16))
    first = next(iter(model.graph))
    weight = edit.initializer(model, "other.proj.weight", matrix(64, 8, seed=2))
    second = ir.node("MatMul", [first.inputs[0], weight])
    second.outputs[0].name = "z"
    model.graph.insert_after(first, second)
    model.graph.outputs.append(second.outputs[0])
    quantize.quantise(model, lambda _: "rows7+25")
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("QuantizeLinear") == 2  # the first places, and the further ones
    assert kinds.count("MatMulIntegerToFloat") == 2
    assert kinds.count("ArrayFeatureExtractor") == 1


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


def test_every_matrix_of_a_package_is_quantised(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    from ark_onnx_export import pipeline

    out = pipeline.export(
        tiny_checkpoint, tmp_path / "out", pipeline.Settings(recipe="fine8")
    ).directory
    for name in ("audio.onnx", "decoder.onnx"):
        graph = onnx.load(str(out / name), load_external_data=False).graph
        weights = {i.name: i for i in graph.initializer}
        for node in graph.node:
            if node.op_type in ("MatMul", "Gemm"):
                assert not any(i in weights and len(weights[i].dims) == 2 for i in node.input)
    recipe = ark_asr_onnx.load(out).manifest.provenance.recipe
    assert "fp32" not in recipe["matrices"]


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
