"""Torch modules to fp32 ONNX graphs, with the contract's names and readable weight names.

Graphs stay ``onnx_ir`` models: their weights are views of torch memory until they are written.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch import Tensor

from ark_asr_onnx import contract

from .config import DecoderConfig
from .modeling import AudioTower, Decoder

OPSET = 21
MIN_ONNXRUNTIME = "1.22.0"  # the first with 8-bit MatMulNBits on the CPU


def trace_audio(tower: AudioTower) -> ir.Model:
    """``log_mel [1, n_mels, T]`` to ``audio_embeds [1, N, hidden]``; T is dynamic, 1 to its max."""
    config = tower.config
    frames = torch.export.Dim("n_frames", min=1, max=config.max_frames)
    example = torch.zeros(1, config.n_mels, min(200, config.max_frames))
    return _trace(tower, (example,), ({2: frames},), [contract.LOG_MEL], [contract.AUDIO_EMBEDS])


def trace_decoder(decoder: Decoder) -> ir.Model:
    """The decoder with KV cache; batch, length and past length are dynamic.

    Packs the q, k and v projections of ``decoder`` in place.
    """
    config = decoder.config
    for layer in decoder.model.layers:
        layer.self_attn.pack()
    batch, length, past = (
        torch.export.Dim(name, min=low, max=decoder.max_positions)
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
    )


def _zeros_cache(config: DecoderConfig) -> Tensor:
    return torch.zeros(2, config.n_kv_heads, 5, config.head_dim)


def _trace(
    module: torch.nn.Module,
    example: tuple[object, ...],
    dynamic_shapes: tuple[object, ...],
    inputs: list[str],
    outputs: list[str],
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
        )
    assert program is not None
    _tidy(program.model)
    return program.model


def _tidy(model: ir.Model) -> None:
    """Name weights after their modules, drop unused outputs and the tracer's own notes."""
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        if node.op_type == "MatMul" and (weight := node.inputs[1]) and weight.is_initializer():
            module = scopes.replace("'", "").strip("[]").split(", ")[-2]
            _rename(model, weight, f"{module}.weight")
            node.name = module
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


def _rename(model: ir.Model, value: ir.Value, name: str) -> None:
    if value.name == name:
        return
    old = value.name
    assert old is not None
    del model.graph.initializers[old]
    value.name = name
    assert name not in model.graph.initializers, f"two weights named {name}"
    model.graph.initializers[name] = value


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
