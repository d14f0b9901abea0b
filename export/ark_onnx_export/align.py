"""The graph that tells where the decoder looked: its layers, over the text that it has written.

It reads the rows that predicted the text once more, all at once, with the keys and values of the
prompt that the decoder has cached, up to the last layer of the chosen heads. It has no weights of
its own: it is cut out of ``prefill.onnx``, or ``decoder.onnx`` where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ark_asr_onnx.package import contract

Head = tuple[int, int]  # layer, head


def write(directory: Path, heads: Sequence[Head], audio_begin: int) -> Path:
    """Derive the graph from those of a package's folder, beside them.

    ``audio_begin`` is the position of the first audio row. The output is ``[heads, T, N]``, head by
    head in the order of their layers.
    """
    prefill = directory / contract.PREFILL_FILE
    model = ir.load(prefill if prefill.is_file() else directory / contract.DECODER_FILE)
    _Cutter(model, audio_begin).run(sorted(heads))
    RemoveUnusedNodesPass()(model)
    graph = model.graph
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]
    path = directory / contract.ALIGN_FILE
    ir.save(model, path)
    return path


class _Cutter:
    """Adds the attention of some heads to a decoder's graph, and ends it there."""

    def __init__(self, model: ir.Model, audio_begin: int) -> None:
        self.graph = model.graph
        self.layers = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
        self.begin = audio_begin
        self.positions = _input(contract.POSITIONS, ["T"])
        self.end = _input(contract.AUDIO_END, [1])
        self.graph.inputs.extend([self.positions, self.end])

    def run(self, heads: Sequence[Head]) -> None:
        chosen = {layer: [h for at, h in heads if at == layer] for layer, _ in heads}
        found = [self._attention(layer, some) for layer, some in chosen.items()]
        attention = found[0] if len(found) == 1 else self._add("Concat", found, {"axis": 0})
        attention.name = contract.ATTENTION
        attention.type = ir.TensorType(ir.DataType.FLOAT)
        attention.shape = ir.Shape([len(heads), "T", "N"])
        n_whole = max(chosen)  # layers whose rows are attended to by later ones
        present = set(contract.present_names(n_whole))
        self.graph.outputs[:] = [
            *(value for value in self.graph.outputs if value.name in present), attention
        ]  # fmt: skip

    def _attention(self, layer: int, heads: Sequence[int]) -> ir.Value:
        """``[heads, T, N]`` of a layer, from its queries and the cached keys of the audio."""
        node = self.layers[layer]
        packed, key, cos, sin = (cast("ir.Value", node.inputs[i]) for i in (0, 3, 7, 8))
        n_heads, n_kv = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
        assert key.shape is not None
        dim = cast("int", key.shape[3])
        queries = self._queries(packed, heads, n_heads, dim, (cos, sin))
        keys = self._add("Slice", [key, self._ints([self.begin]), self.end, self._ints([2])])
        keys = self._add("Squeeze", [keys, self._ints([0])])
        keys = self._add("Gather", [keys, self._ints([h // (n_heads // n_kv) for h in heads])])
        keys = self._add("Transpose", [keys], {"perm": [0, 2, 1]})
        scores = self._add("MatMul", [queries, keys])
        return self._add("Softmax", [scores], {"axis": -1})

    def _queries(
        self,
        packed: ir.Value,
        heads: Sequence[int],
        n_heads: int,
        dim: int,
        tables: tuple[ir.Value, ir.Value],
    ) -> ir.Value:
        """Scaled queries ``[heads, T, dim]``, turned to their positions."""
        shape = self._ints([-1, n_heads, dim])
        ends = [self._ints([i]) for i in (0, n_heads * dim, 2)]
        found = self._add("Reshape", [self._add("Slice", [packed, *ends]), shape])
        found = self._add("Gather", [found, self._ints(list(heads))], {"axis": 1})
        found = self._add("Transpose", [found], {"perm": [1, 0, 2]})
        found = self._add("Mul", [found, self._constant(np.float32(dim**-0.5))])
        cos, sin = (self._add("Gather", [table, self.positions]) for table in tables)
        first, second = (
            self._add("Slice", [found, *(self._ints([i]) for i in (*half, 2))])
            for half in ((0, dim // 2), (dim // 2, dim))
        )
        turned = (
            self._add("Sub", [self._add("Mul", [first, cos]), self._add("Mul", [second, sin])]),
            self._add("Add", [self._add("Mul", [second, cos]), self._add("Mul", [first, sin])]),
        )
        return self._add("Concat", turned, {"axis": 2})

    def _ints(self, numbers: Sequence[int]) -> ir.Value:
        return self._constant(np.array(numbers, np.int64))

    def _constant(self, array: npt.NDArray[np.generic] | np.generic) -> ir.Value:
        name = f"align.{np.asarray(array).tolist()}".replace(" ", "")
        if found := self.graph.initializers.get(name):
            return found
        tensor = ir.tensor(np.asarray(array), name=name)
        kind, shape = ir.TensorType(tensor.dtype), cast("ir.Shape", tensor.shape)
        value = ir.Value(name=name, const_value=tensor, type=kind, shape=shape)
        self.graph.register_initializer(value)
        return value

    def _add(
        self,
        operator: str,
        inputs: Sequence[ir.Value],
        attributes: dict[str, int | list[int]] | None = None,
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes or {})
        self.graph.append(node)
        return node.outputs[0]


def _input(name: str, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(shape))
