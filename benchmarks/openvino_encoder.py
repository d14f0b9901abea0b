"""The encoder as OpenVINO graphs, for three ways to store its matrices; callers give the weights.

    python benchmarks/openvino_encoder.py NETWORK.npz OUT

make_peers.py writes the graphs, subjects.py runs them. The network is that of
``export/ark_onnx_export/modeling/audio.py``, operator by operator; openvino_fidelity.py checks
that. The kinds differ in convolutions and products:

- ``float``: unchanged numbers; the precision of the arithmetic is chosen when the graph is opened.
- ``weights8``: signed bytes with one scale for each output; activations get their scales at
  runtime, in groups (``DYNAMIC_QUANTIZATION_GROUP_SIZE``). Convolutions are not changed.
- ``static8``: the same bytes, also for convolutions; activations become bytes with one scale for
  the whole array, from the extremes of calibration inputs. Attention is not changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    import openvino as ov
    from openvino import opset13 as ops
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    print(__doc__)
    raise SystemExit(f"error: {error}; take a Python with benchmarks/peers.txt") from None

F32 = npt.NDArray[np.float32]
Weights = Callable[[str], F32]  # a checkpoint's tensor by its name
Ranges = Mapping[str, tuple[float, float]]  # name of a weight: extremes of its input

ROPE_DIM, ROPE_THETA, NORM_EPS = 32, 10000.0, 1e-5
GROUP = 128  # inputs that share a scale in weights8 at runtime

_F32, _BF16 = {"INFERENCE_PRECISION_HINT": "f32"}, {"INFERENCE_PRECISION_HINT": "bf16"}
_GROUPS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP)}
# For each row of the tables: kind of graph, settings to open it.
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "openvino_fp32": ("float", _F32),
    "openvino_bf16": ("float", _BF16),
    "openvino_weights8": ("weights8", {**_F32, **_GROUPS}),
    "openvino_weights8_bf16": ("weights8", {**_BF16, **_GROUPS}),
    "openvino_static8": ("static8", _F32),
    "openvino_static8_bf16": ("static8", _BF16),
}
KINDS = ("float", "weights8", "static8")


@dataclass(frozen=True)
class Sizes:
    """Sizes of encoder and adapter, by their names in ``AudioConfig``."""

    n_mels: int
    d_model: int
    n_layers: int
    n_heads: int
    ffn_dim: int
    merge_factor: int
    max_positions: int
    hidden_size: int
    use_rope: bool = True


def write(sizes: Sizes, weights: Weights, calibration: Sequence[F32], out: Path) -> None:
    """Write a folder with a graph of each kind."""
    scratch = out.with_name(f"{out.name}.part")
    for kind in KINDS:
        model = build(sizes, weights, kind, calibration)
        ov.save_model(model, scratch / f"{kind}.xml", compress_to_fp16=False)
    scratch.rename(out)


def compiled(model: ov.Model | Path, settings: Mapping[str, str], threads: int) -> Any:
    """A graph compiled for one clip at a time."""
    fixed: dict[str, Any]
    fixed = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": threads}
    return ov.Core().compile_model(model, "CPU", {**fixed, **settings})


def build(sizes: Sizes, weights: Weights, kind: str, calibration: Sequence[F32] = ()) -> ov.Model:
    """``log_mel [1, n_mels, T]`` to ``audio_embeds [1, N, hidden]``.

    ``calibration`` are log-mels; only ``static8`` needs them.
    """
    ranges = _ranges(sizes, weights, calibration) if kind == "static8" else {}
    encoder = _Encoder(sizes, weights, kind, ranges)
    return ov.Model([ops.result(encoder.audio_embeds())], [encoder.log_mel], "encoder")


def _ranges(sizes: Sizes, weights: Weights, calibration: Sequence[F32]) -> Ranges:
    """Extremes of every product's and convolution's input, over all of ``calibration``."""
    encoder = _Encoder(sizes, weights, "float", {})
    encoder.audio_embeds()
    results = []
    for x in encoder.inputs.values():
        axes = np.arange(len(x.get_output_partial_shape(0)))
        results += [ops.reduce_min(x, axes), ops.reduce_max(x, axes)]
    model = ov.Model([ops.result(r) for r in results], [encoder.log_mel], "extremes")
    run = compiled(model, _F32, 2)
    runs = [run([log_mel]) for log_mel in calibration]
    found = np.array([[float(r[output]) for output in run.outputs] for r in runs])
    least, greatest = found[:, ::2].min(axis=0), found[:, 1::2].max(axis=0)
    return {
        name: (float(low), float(high))
        for name, low, high in zip(encoder.inputs, least, greatest, strict=True)
    }


class _Encoder:
    """The network under construction; ``inputs`` collects the input of each weight."""

    def __init__(self, sizes: Sizes, weights: Weights, kind: str, ranges: Ranges) -> None:
        self.sizes, self.weights, self.kind, self.ranges = sizes, weights, kind, ranges
        self.inputs: dict[str, Any] = {}
        self.log_mel = ops.parameter([1, sizes.n_mels, -1], np.float32, "log_mel")

    def audio_embeds(self) -> Any:
        """The whole network: convolutions, layers, merge, adapter."""
        whisper = "audio_encoder.whisper"
        x = ops.gelu(self._conv(self.log_mel, f"{whisper}.conv1", 1), "erf")
        x = ops.gelu(self._conv(x, f"{whisper}.conv2", 2), "erf")
        x = ops.transpose(x, [0, 2, 1])
        length = ops.gather(ops.shape_of(x, "i64"), np.array([1]), np.array(0))
        if not self.sizes.use_rope:
            table = self.weights(f"{whisper}.embed_positions.weight")[None]
            x = ops.add(x, _first(table, length))
        tables = self._tables(length)
        for i in range(self.sizes.n_layers):
            x = self._layer(x, f"{whisper}.layers.{i}", tables)
        return self._adapt(self._merge(self._norm(x, "audio_encoder.layer_norm"), length))

    def _layer(self, x: Any, name: str, tables: tuple[Any, Any]) -> Any:
        normed = self._norm(x, f"{name}.self_attn_layer_norm")
        x = ops.add(x, self._attention(normed, f"{name}.self_attn", tables))
        normed = self._norm(x, f"{name}.final_layer_norm")
        inner = ops.gelu(self._linear(normed, f"{name}.fc1"), "erf")
        return ops.add(x, self._linear(inner, f"{name}.fc2"))

    def _attention(self, x: Any, name: str, tables: tuple[Any, Any]) -> Any:
        n_heads, width = self.sizes.n_heads, self.sizes.d_model
        dim = width // n_heads
        order = _halves(n_heads, dim) if self.sizes.use_rope else None
        projected = (
            self._linear(x, f"{name}.q_proj", order=order),
            self._linear(x, f"{name}.k_proj", bias=False, order=order),
            self._linear(x, f"{name}.v_proj"),
        )
        q, k, v = (
            ops.transpose(ops.reshape(part, [0, 0, n_heads, dim], True), [0, 2, 1, 3])
            for part in projected
        )
        if self.sizes.use_rope:
            q, k = _rotate(q, tables), _rotate(k, tables)
        mixed = ops.scaled_dot_product_attention(q, k, v, causal=False)
        flat = ops.reshape(ops.transpose(mixed, [0, 2, 1, 3]), [0, 0, width], True)
        return self._linear(flat, f"{name}.out_proj")

    def _tables(self, length: Any) -> tuple[Any, Any]:
        """Cosines and sines ``[1, 1, S, 32]``; each angle is there twice."""
        inverse = ROPE_THETA ** (-np.arange(0, ROPE_DIM, 2) / ROPE_DIM)
        angle = np.tile(np.outer(np.arange(self.sizes.max_positions), inverse), 2)
        cos, sin = (t.astype(np.float32)[None, None] for t in (np.cos(angle), np.sin(angle)))
        return _first(cos, length, axis=2), _first(sin, length, axis=2)

    def _merge(self, x: Any, length: Any) -> Any:
        """Join groups of frames; a clip that is shorter than a group is filled with zeros."""
        factor, width = self.sizes.merge_factor, self.sizes.d_model
        n_audio = ops.maximum(ops.divide(length, np.array([factor])), np.array([1]))
        filled = ops.concat([x, np.zeros((1, factor - 1, width), np.float32)], 1)
        kept = _first(filled, ops.multiply(n_audio, np.array([factor])))
        return ops.reshape(kept, [1, -1, factor * width], False)

    def _adapt(self, x: Any) -> Any:
        inner = ops.gelu(self._linear(x, "audio_encoder.adapting.0"), "erf")
        return self._linear(inner, "audio_encoder.adapting.2")

    def _norm(self, x: Any, name: str) -> Any:
        normed = ops.mvn(x, np.array([-1]), True, NORM_EPS, "inside_sqrt")
        scaled = ops.multiply(normed, self.weights(f"{name}.weight"))
        return ops.add(scaled, self.weights(f"{name}.bias"))

    def _conv(self, x: Any, name: str, stride: int) -> Any:
        self.inputs[name] = x
        kernel = self.weights(f"{name}.weight")
        if self.kind == "static8":
            x, stored = self._coded(x, name), _bytes(kernel)
        else:
            stored = ops.constant(kernel)
        y = ops.convolution(x, stored, [stride], [1], [1], [1])
        return ops.add(y, self.weights(f"{name}.bias")[None, :, None])

    def _linear(self, x: Any, name: str, bias: bool = True, order: Any = None) -> Any:
        self.inputs[name] = x
        outputs = slice(None) if order is None else order
        matrix = np.ascontiguousarray(self.weights(f"{name}.weight")[outputs])
        stored = ops.constant(matrix) if self.kind == "float" else _bytes(matrix)
        if self.kind == "static8":
            x = self._coded(x, name)
        y = ops.matmul(x, stored, False, True)
        return ops.add(y, self.weights(f"{name}.bias")[outputs]) if bias else y

    def _coded(self, x: Any, name: str) -> Any:
        """Bytes with one scale: unsigned if little of the range is negative, else signed."""
        low, high = self.ranges[name]
        if -low < 0.2 * high:  # the output of a GELU
            step = (high - min(low, 0.0)) / 255
            zero = np.rint(-min(low, 0.0) / step)
            low, high = -zero * step, (255 - zero) * step
        else:
            step = max(-low / 128, high / 127)
            low, high = -128 * step, 127 * step
        return ops.fake_quantize(x, *_scalars(low, high, low, high), 256)


def _scalars(*numbers: float) -> list[Any]:
    return [np.float32(number) for number in numbers]


def _bytes(weight: F32) -> Any:
    """Signed bytes with one scale for each output, as a graph that restores the numbers."""
    axes = tuple(range(1, weight.ndim))
    scales = np.abs(weight).max(axis=axes, keepdims=True) / np.float32(127)
    codes = np.rint(weight / np.where(scales > 0, scales, 1)).astype(np.int8)
    return ops.multiply(ops.convert(ops.constant(codes), "f32"), scales.astype(np.float32))


def _first(x: Any, length: Any, axis: int = 1) -> Any:
    """The first positions of an array."""
    return ops.slice(x, np.array([0]), length, np.array([1]), np.array([axis]))


def _halves(n_heads: int, dim: int) -> npt.NDArray[np.int64]:
    """Rows of q and k in an order that rotates i with i + 16 instead of 2 i with 2 i + 1."""
    rotary = np.concatenate((np.arange(0, ROPE_DIM, 2), np.arange(1, ROPE_DIM, 2)))
    head = np.concatenate((rotary, np.arange(ROPE_DIM, dim)))
    return (np.arange(n_heads)[:, None] * dim + head).reshape(-1)


def _rotate(x: Any, tables: tuple[Any, Any]) -> Any:
    """RoPE on the first 32 of each head's dimensions, ``[1, heads, S, dim]``."""
    cos, sin = tables
    half = ROPE_DIM // 2
    rotary, rest = ops.variadic_split(x, 3, np.array([ROPE_DIM, -1])).outputs()
    first, second = ops.variadic_split(rotary, 3, np.array([half, half])).outputs()
    turned = ops.concat([ops.multiply(second, np.float32(-1)), first], 3)
    return ops.concat([ops.add(ops.multiply(rotary, cos), ops.multiply(turned, sin)), rest], 3)


def main() -> int:
    """Command line: write graphs of the network in a file of tensors, sizes and calibration."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("network", help="what openvino_fidelity.py stored")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    stored = np.load(options.network)
    sizes = Sizes(**json.loads(str(stored["sizes"])))
    calibration = [stored[name] for name in stored.files if name.startswith("log_mel")]
    write(sizes, stored.__getitem__, calibration, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
