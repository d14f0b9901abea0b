"""The graph for CPUs that add products of bytes in 16 bits: the same numbers, and no overflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx
import onnxruntime
from conftest import require_exact_sums
from onnx import numpy_helper
from test_quantize import graph_of, matrix

from ark_onnx_export import narrow, quantize, write


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("recipe", ["rows8", "rows8+25", "rows8/4"])
def test_two_products_of_small_codes_are_one_of_large_codes(
    tmp_path: Path, recipe: str, gelu: bool
) -> None:
    require_exact_sums(recipe)  # of the graph that is compared with
    x = matrix(23, 96, seed=1)
    x[:, 7] *= 9
    model = graph_of(matrix(96, 40), gelu=gelu)
    quantize.quantise(model, lambda _: recipe, examples=lambda _: x)
    write.write_graph(model, tmp_path / "audio.onnx")
    assert narrow.write(tmp_path / "audio.onnx", tmp_path / "narrow.onnx")
    found, expected = (
        np.asarray(onnxruntime.InferenceSession(tmp_path / name).run(None, {"x": x[None]})[0])
        for name in ("narrow.onnx", "audio.onnx")
    )
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("gelu", [False, True])
def test_no_pair_of_products_leaves_sixteen_bits(tmp_path: Path, gelu: bool) -> None:
    x = 100 * matrix(40, 96, seed=2)
    model = graph_of(matrix(96, 40), gelu=gelu)
    quantize.quantise(model, lambda _: "rows8+25", examples=lambda _: x)
    write.write_graph(model, tmp_path / "audio.onnx")
    narrow.write(tmp_path / "audio.onnx", tmp_path / "narrow.onnx")
    graph = onnx.load(tmp_path / "narrow.onnx")
    weights = {i.name: i for i in graph.graph.initializer}
    products = [n for n in graph.graph.node if n.op_type == "MatMulIntegerToFloat"]
    assert len(products) == 2
    codes = [n.input[0] for n in products]
    graph.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in codes
    )
    onnx.save(graph, tmp_path / "shown.onnx")
    shown = onnxruntime.InferenceSession(tmp_path / "shown.onnx").run(codes, {"x": x[None]})
    for node, seen in zip(products, shown, strict=True):
        weight = numpy_helper.to_array(weights[node.input[1]], str(tmp_path)).astype(np.int64)
        largest = 2 * int(np.asarray(seen).max()) * int(np.abs(weight).max())
        assert np.abs(weight).max() == 127
        assert largest <= np.iinfo(np.int16).max


def test_a_graph_that_cannot_saturate_has_no_other(tmp_path: Path) -> None:
    model = graph_of(matrix(96, 40))
    quantize.quantise(model, lambda _: "rows7+10")
    write.write_graph(model, tmp_path / "audio.onnx")
    (tmp_path / "narrow.onnx").write_bytes(b"of an earlier choice")
    assert not narrow.write(tmp_path / "audio.onnx", tmp_path / "narrow.onnx")
    assert not (tmp_path / "narrow.onnx").exists()
