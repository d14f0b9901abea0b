"""Whisper's encoder as ARK's audio tower: CTranslate2's variables under the checkpoint's names.

CTranslate2 stacks the projections of queries, keys and values. Keys have no bias in Whisper (the
file holds zeros) and in ARK's tower. Whisper's last norm becomes the adapter's norm, and its table
of positions is added after the convolutions (``use_rope: false``).
"""

from __future__ import annotations

import numpy as np
import torch
from ctranslate2_file import Arrays, FileFormatError
from torch import Tensor

Tensors = dict[str, Tensor]

HEAD_DIM = 64  # of every Whisper model; the file does not state it
_LAYER_TENSORS = {
    "self_attn.out_proj.weight": "self_attention/linear_1/weight",
    "self_attn.out_proj.bias": "self_attention/linear_1/bias",
    "self_attn_layer_norm.weight": "self_attention/layer_norm/gamma",
    "self_attn_layer_norm.bias": "self_attention/layer_norm/beta",
    "fc1.weight": "ffn/linear_0/weight",
    "fc1.bias": "ffn/linear_0/bias",
    "fc2.weight": "ffn/linear_1/weight",
    "fc2.bias": "ffn/linear_1/bias",
    "final_layer_norm.weight": "ffn/layer_norm/gamma",
    "final_layer_norm.bias": "ffn/layer_norm/beta",
}
_TENSORS = {
    "whisper.conv1.weight": "conv1/weight",
    "whisper.conv1.bias": "conv1/bias",
    "whisper.conv2.weight": "conv2/weight",
    "whisper.conv2.bias": "conv2/bias",
    "whisper.embed_positions.weight": "position_encodings/encodings",
    "layer_norm.weight": "layer_norm/gamma",
    "layer_norm.bias": "layer_norm/beta",
}


def audio_tensors(variables: Arrays) -> Tensors:
    """The tensors under ``audio_encoder`` except the adapter's, in the type of the file."""
    found = {f"audio_encoder.{n}": _tensor(variables, s) for n, s in _TENSORS.items()}
    for i in range(n_layers(variables)):
        layer = f"audio_encoder.whisper.layers.{i}."
        for name, stored in _LAYER_TENSORS.items():
            found[layer + name] = _tensor(variables, f"layer_{i}/{stored}")
        found |= {layer + n: t for n, t in _attention(variables, i).items()}
    return found


def n_layers(variables: Arrays) -> int:
    """Number of encoder layers."""
    n = 0
    while f"encoder/layer_{n}/ffn/linear_0/weight" in variables:
        n += 1
    if n == 0:
        raise FileFormatError("no encoder/layer_0 among the variables; this is no Whisper model")
    return n


def _attention(variables: Arrays, i: int) -> Tensors:
    """Queries, keys and values of layer ``i``, separated."""
    stacked = f"layer_{i}/self_attention/linear_0/"
    weights = _tensor(variables, stacked + "weight").chunk(3)
    biases = _tensor(variables, stacked + "bias").chunk(3)
    if biases[1].any():
        raise FileFormatError(f"encoder layer {i}: keys have a bias; this is no Whisper model")
    tensors = {f"self_attn.{n}_proj.weight": w.clone() for n, w in zip("qkv", weights, strict=True)}
    return tensors | {f"self_attn.{n}_proj.bias": biases["qkv".index(n)].clone() for n in "qv"}


def _tensor(variables: Arrays, name: str) -> Tensor:
    if f"encoder/{name}" not in variables:
        raise FileFormatError(f"no variable encoder/{name}; this is no Whisper model")
    return torch.from_numpy(np.array(variables[f"encoder/{name}"]))
