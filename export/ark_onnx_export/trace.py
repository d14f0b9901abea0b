"""The network to fp32 ONNX graphs, with the contract's names and the checkpoint's weight names.

Tracing needs shapes, not numbers: hollow modules are traced, and the graphs, ``onnx_ir`` models,
read each weight when it is quantised or written. Memory holds one matrix at a time.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from ark_asr_onnx.package import contract

from .config import AudioConfig, DecoderConfig
from .modeling import AudioTower, Decoder

Weights = Callable[[str], Tensor]  # parameter name -> its fp32 value
_M = TypeVar("_M", bound=nn.Module)

OPSET = 21
MIN_ONNXRUNTIME = "1.22.0"  # the first with 8-bit MatMulNBits on the CPU


def trace_audio(config: AudioConfig, hidden_size: int, weights: Weights) -> ir.Model:
    """``log_mel [1, n_mels, T]`` to ``audio_embeds [1, N, hidden]``; T is dynamic, 1 to its max."""
    frames = torch.export.Dim("n_frames", min=1, max=config.max_frames)
    example = torch.zeros(1, config.n_mels, min(200, config.max_frames))
    return _trace(
        _hollow(lambda: AudioTower(config, hidden_size)),
        (example,),
        ({2: frames},),
        [contract.LOG_MEL],
        [contract.AUDIO_EMBEDS],
        weights,
    )


def trace_decoder(config: DecoderConfig, max_positions: int, weights: Weights) -> ir.Model:
    """The decoder with KV cache; batch, length and past length are dynamic.

    The q, k and v projections of a layer become one, ``qkv_proj``, so do gate and up,
    ``gate_up_proj``.
    """
    decoder = _hollow(lambda: Decoder(config, max_positions))
    for layer in decoder.model.layers:
        layer.self_attn.pack()
        layer.mlp.pack()
    batch, length, past = (
        torch.export.Dim(name, min=low, max=max_positions)
        for name, low in (("batch", 1), ("length", 1), ("past", 0))
    )
    caches = [(_zeros_cache(config), _zeros_cache(config)) for _ in range(config.n_layers)]
    example = (
        torch.zeros(2, 3, config.hidden_size),
        torch.full((2,), 7, dtype=torch.int32),
        torch.tensor(8, dtype=torch.int32),
        caches,
    )
    cache_dims = {0: batch, 2: past}
    dims = ({0: batch, 1: length}, {0: batch}, None, [(cache_dims, cache_dims)] * config.n_layers)
    inputs = [contract.INPUTS_EMBEDS, contract.SEQLENS_K, contract.TOTAL_SEQUENCE_LENGTH]
    return _trace(
        decoder,
        example,
        dims,
        [*inputs, *contract.past_names(config.n_layers)],
        [contract.LOGITS, *contract.present_names(config.n_layers)],
        weights,
    )


def _hollow(build: Callable[[], _M]) -> _M:
    """A module whose parameters have shapes but share one zero: tracing needs no more."""
    with torch.device("meta"):
        module = build()
    for name, parameter in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        zeros = torch.zeros(1).expand(parameter.shape)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(zeros, requires_grad=False))
    return module.eval()


def _zeros_cache(config: DecoderConfig) -> Tensor:
    return torch.zeros(2, config.n_kv_heads, 5, config.head_dim)


def _trace(
    module: nn.Module,
    example: tuple[object, ...],
    dynamic_shapes: tuple[object, ...],
    inputs: list[str],
    outputs: list[str],
    weights: Weights,
) -> ir.Model:
    with _quiet():
        program = torch.onnx.export(
            module,
            example,  # pyright: ignore[reportArgumentType]
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic_shapes,
            opset_version=OPSET,
            verbose=False,
            optimize=False,  # it would compare and merge the hollow weights
        )
    assert program is not None
    model = program.model
    _fill(model, {name for name, _ in module.named_parameters()}, weights)
    with _quiet():
        onnxscript.optimizer.fold_constants(model)
    _tidy(model)
    return model


def _fill(model: ir.Model, names: set[str], weights: Weights) -> None:
    """Put the weights in, read when they are needed, and the transpositions of matrices away."""
    for node in list(model.graph):
        if node.op_type != "Transpose" or (matrix := node.inputs[0]) is None:
            continue
        if matrix.name not in names:
            continue
        n_out, n_in = cast("list[int]", list(matrix.shape or ()))
        value = _weight(matrix.name, (n_in, n_out), lambda n=matrix.name: weights(n).T)
        transposed = node.outputs[0]
        ir.convenience.replace_all_uses_with(transposed, value)
        model.graph.remove(node, safe=True)
        del model.graph.initializers[matrix.name]
        model.graph.register_initializer(value)
    for name, value in model.graph.initializers.items():
        if name in names and not isinstance(value.const_value, ir.LazyTensor):
            shape = cast("tuple[int, ...]", tuple(value.shape or ()))
            value.const_value = _weight(name, shape, lambda n=name: weights(n)).const_value


def _weight(name: str, shape: tuple[int, ...], read: Callable[[], Tensor]) -> ir.Value:
    """An fp32 initializer whose numbers are read each time they are asked for."""
    tensor = ir.LazyTensor(
        lambda: ir.tensor(read().contiguous().numpy(), name=name),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(shape),
        name=name,
    )
    kind = ir.TensorType(ir.DataType.FLOAT)
    return ir.Value(name=name, const_value=tensor, type=kind, shape=ir.Shape(shape))


def _tidy(model: ir.Model) -> None:
    """Name products after their modules, drop unused outputs and the tracer's own notes."""
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer():
            node.name = (weight.name or "").removesuffix(".weight")
        for output in node.outputs[1:]:
            if not output.uses() and not output.is_graph_output():
                output.name = ""
        node.metadata_props.clear()
        node.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    model.producer_name, model.producer_version = "ark-onnx-export", None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's remarks (torchvision is not installed, …) off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
