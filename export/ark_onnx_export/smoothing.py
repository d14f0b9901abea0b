"""Scaling and sorting channels for nothing: what one tensor gives, another takes in the same way.

A norm's gain, the rows of a linear layer: whatever writes the input of a matrix product can write
any channel smaller, if the matrix has that channel's weights larger by as much. The network stays
the same, and outlier channels, which set the scales of 8-bit codes, become like the others. In the
same way channels behind a GELU can stand in any order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ark_asr_onnx.arrays import F32

from .config import ArkConfig
from .recipes import Graph

Order = npt.NDArray[np.int64]  # channels, in the order in which they are to stand
Fold = Callable[[str, Tensor], Tensor]  # a tensor's name and value to the value to be stored


@dataclass(frozen=True, slots=True)
class Site:
    """Matrix products that read the same input, and are stored by the same recipe."""

    name: str
    modules: tuple[str, ...]  # in the audio tower or the decoder
    weights: tuple[str, ...]  # of the traced graph
    writers: tuple[str, ...] = ()  # tensors by whose first axis the input can be scaled
    repeat: int = 1  # how often the writers' channels stand side by side in the input
    movers: tuple[str, ...] = ()  # tensors by whose first axis the input can be put in order
    after_gelu: bool = False


def audio_sites(config: ArkConfig) -> list[Site]:
    """The matrix products of ``audio.onnx``, in the order in which they run."""
    whisper, norm = "audio_encoder.whisper", "audio_encoder.layer_norm"
    sites = [_site(f"{whisper}.conv1"), _site(f"{whisper}.conv2")]
    for i in range(config.audio.n_layers):
        layer = f"{whisper}.layers.{i}"
        attn = f"{layer}.self_attn"
        qkv = tuple(f"{attn}.{part}_proj" for part in "qkv")
        value = (f"{attn}.v_proj.weight", f"{attn}.v_proj.bias")
        sites += [
            Site(f"{attn}.qkv", qkv, _weights(qkv), _norm(f"{layer}.self_attn_layer_norm")),
            _site(f"{attn}.out_proj", value),
            _site(f"{layer}.fc1", _norm(f"{layer}.final_layer_norm")),
            _after_gelu(f"{layer}.fc2", f"{layer}.fc1"),
        ]
    up, down = "audio_encoder.adapting.0", "audio_encoder.adapting.2"
    merged = Site(up, (up,), _weights((up,)), _norm(norm), config.audio.merge_factor)
    return [*sites, merged, _after_gelu(down, up)]


def decoder_sites(config: ArkConfig) -> list[Site]:
    """The matrix products of ``decoder.onnx``.

    Each head of values serves several of queries, so what ``o_proj`` reads stays as it is.
    """
    sites: list[Site] = []
    for i in range(config.decoder.n_layers):
        layer = f"model.layers.{i}"
        attn, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        qkv, both = (
            tuple(f"{attn}.{part}_proj" for part in "qkv"),
            (f"{mlp}.gate_proj", f"{mlp}.up_proj"),
        )
        sites += [
            Site(
                f"{attn}.qkv_proj",
                qkv,
                (f"{attn}.qkv_proj.weight",),
                (f"{layer}.input_layernorm.weight",),
            ),
            _site(f"{attn}.o_proj"),
            Site(
                f"{mlp}.gate_up_proj",
                both,
                (f"{mlp}.gate_up_proj.weight",),
                (f"{layer}.post_attention_layernorm.weight",),
            ),
            _site(f"{mlp}.down_proj", (f"{mlp}.up_proj.weight",)),
        ]
    return [*sites, _site("lm_head", ("model.norm.weight",))]


def sites(config: ArkConfig) -> dict[Graph, list[Site]]:
    """The matrix products of both graphs."""
    return {"audio": audio_sites(config), "decoder": decoder_sites(config)}


def folded(
    all_sites: Iterable[Site], factors: Mapping[str, F32], orders: Mapping[str, Order]
) -> Fold:
    """Divide what writes a site's input by the site's factors and multiply its weights.

    Put channels in the order of ``orders``, in the same way.
    """
    steps: defaultdict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    turns: defaultdict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for site in all_sites:
        if site.name in orders:
            order = torch.from_numpy(orders[site.name])
            for name in site.movers:
                turns[name].append((0, order))
            for name in site.weights:
                turns[name].append((1, order))
        if site.name not in factors:
            continue
        factor = torch.from_numpy(factors[site.name])
        for name in site.writers:
            steps[name].append((0, 1 / factor))
        for name in site.weights:
            steps[name].append((1, factor.repeat(site.repeat)))

    def fold(name: str, tensor: Tensor) -> Tensor:
        for axis, factor in steps.get(name, ()):
            shape = (-1, *[1] * (tensor.ndim - 1 - axis))
            tensor = tensor.float() * factor.view(shape)
        for axis, order in turns.get(name, ()):
            tensor = tensor.index_select(axis, order)
        return tensor

    return fold


def best_factor(largest: Tensor, weights: Tensor, strength: float, repeat: int = 1) -> Tensor:
    """How far to scale down each channel of an input: ``[n_channels]``, by powers of two.

    ``largest`` is each channel's largest value, ``weights [n_out, n_in]`` what multiplies it;
    ``strength`` 0 evens out the weights, 1 the inputs. A power of two costs no rounding.
    """
    loudest = largest.view(repeat, -1).amax(0).clamp(min=1e-6)
    low, high = weights.amin(0), weights.amax(0)  # abs() would copy the weights
    heaviest = torch.maximum(high, -low).view(repeat, -1).amax(0).clamp(min=1e-6)
    exponent = strength * loudest.log2() - (1 - strength) * heaviest.log2()
    return torch.exp2((exponent - exponent.mean()).round())


def _site(module: str, writers: tuple[str, ...] = ()) -> Site:
    return Site(module, (module,), _weights((module,)), writers)


def _after_gelu(module: str, before: str) -> Site:
    """A matrix behind a GELU, whose input the matrix before can put in order."""
    movers = (f"{before}.weight", f"{before}.bias")
    return Site(module, (module,), _weights((module,)), movers=movers, after_gelu=True)


def _weights(modules: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{module}.weight" for module in modules)


def _norm(name: str) -> tuple[str, str]:
    return f"{name}.weight", f"{name}.bias"
