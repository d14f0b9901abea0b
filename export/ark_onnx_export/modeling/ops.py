"""The operators that ONNX Runtime has fused: plain torch when run, one node each when traced.

Eager branches are the definition; the traced node is checked against them by every export
(``parity``). Attention scale is 1/sqrt(head_dim) throughout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MS = "com.microsoft::"
_FLOAT32 = torch.float32


def rope_tables(n_positions: int, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``position * theta**(-2i/dim)``, each ``[n_positions, dim // 2]``."""
    cpu = {"dtype": torch.float64, "device": "cpu"}  # also where modules are built on "meta"
    inverse = theta ** (-torch.arange(0, dim, 2, **cpu) / dim)
    angle = torch.outer(torch.arange(n_positions, **cpu), inverse)
    return angle.cos().float(), angle.sin().float()


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor, n_heads: int) -> Tensor:
    """Turn the pairs (x0,x1), (x2,x3)… of the first ``2 * cos.shape[1]`` dimensions of each head.

    ``x`` is ``[B, S, n_heads * head_dim]``, positions count from 0. The rest of each head passes
    through (the encoder's partial RoPE; Ark applies it as complex numbers, which is this).
    """
    batch, length, width = x.shape
    if torch.compiler.is_exporting():
        position = torch.zeros(1, dtype=torch.int64)
        return torch.onnx.ops.symbolic(
            _MS + "RotaryEmbedding",
            [x, position, cos, sin],
            attrs={
                "interleaved": 1,
                "rotary_embedding_dim": 2 * cos.shape[1],
                "num_heads": n_heads,
            },
            dtype=_FLOAT32,
            shape=(batch, length, width),
            version=1,
        )
    heads = x.view(batch, length, n_heads, width // n_heads)
    rotary, rest = heads.split([2 * cos.shape[1], heads.shape[3] - 2 * cos.shape[1]], dim=3)
    even, odd = rotary[..., 0::2], rotary[..., 1::2]
    c, s = cos[:length, None, :].to(x.dtype), sin[:length, None, :].to(x.dtype)
    turned = torch.stack((even * c - odd * s, even * s + odd * c), dim=4).flatten(3)
    return torch.cat((turned, rest), dim=3).view(batch, length, width)


def attention(q: Tensor, k: Tensor, v: Tensor, n_heads: int, bias: Tensor | None = None) -> Tensor:
    """Bidirectional attention over ``[B, S, n_heads * head_dim]``, same shape out.

    ``bias`` is added to the scores (``[B, 1, 1, S]``; only training with padded batches uses it).
    """
    batch, length, width = q.shape
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            _MS + "MultiHeadAttention",
            [q, k, v],
            attrs={"num_heads": n_heads},
            dtype=_FLOAT32,
            shape=(batch, length, width),
            version=1,
        )
    q, k, v = (x.view(batch, length, n_heads, width // n_heads).transpose(1, 2) for x in (q, k, v))
    scores = (q * (width // n_heads) ** -0.5) @ k.transpose(2, 3)
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(dim=3) @ v).transpose(1, 2).reshape(batch, length, width)


def grouped_query_attention(
    qkv: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    cos: Tensor,
    sin: Tensor,
    n_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention with rotate-half RoPE and a KV cache.

    ``qkv`` is ``[B, S, (n_heads + 2 * n_kv_heads) * head_dim]``, ``past_*`` are
    ``[B, n_kv_heads, P, head_dim]`` with keys after RoPE. Returns ``[B, S, n_heads * head_dim]``
    and both presents ``[B, n_kv_heads, P + S, head_dim]``. ``seqlens_k`` int32 ``[B]`` is the
    number of valid positions less one, ``total_sequence_length`` int32 ``[]`` the largest number;
    the eager branch takes every past position as valid and ignores both.
    """
    batch, length, _ = qkv.shape
    n_kv, past, dim = past_key.shape[1:]
    if torch.compiler.is_exporting():
        inputs = [qkv, None, None, past_key, past_value, seqlens_k, total_sequence_length, cos, sin]
        attn, key, value = torch.onnx.ops.symbolic_multi_out(
            _MS + "GroupQueryAttention",
            inputs,
            attrs={"num_heads": n_heads, "kv_num_heads": n_kv, "do_rotary": 1},
            dtypes=[_FLOAT32] * 3,
            shapes=[
                (batch, length, n_heads * dim),
                (batch, n_kv, past + length, dim),
                (batch, n_kv, past + length, dim),
            ],
            version=1,
        )
        return attn, key, value
    q, k, v = (
        part.view(batch, length, -1, dim).transpose(1, 2)
        for part in qkv.split([n_heads * dim, n_kv * dim, n_kv * dim], dim=2)
    )
    q, k = (rotate_half(x, cos, sin, past) for x in (q, k))
    key, value = torch.cat((past_key, k), dim=2), torch.cat((past_value, v), dim=2)
    causal = torch.ones(length, past + length, dtype=torch.bool, device=qkv.device).tril(past)
    # Query head h reads key head h // (n_heads // n_kv).
    grouped = q.reshape(batch, n_kv, n_heads // n_kv, length, dim)
    scores = (grouped * dim**-0.5) @ key[:, :, None].transpose(3, 4)
    weights = scores.masked_fill(~causal, float("-inf")).softmax(dim=4)
    attn = (weights @ value[:, :, None]).reshape(batch, n_heads, length, dim)
    return attn.transpose(1, 2).reshape(batch, length, n_heads * dim), key, value


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor, first: int) -> Tensor:
    """Qwen2's RoPE on ``[B, heads, S, dim]`` from a position on: i turns with i + dim / 2."""
    rows = slice(first, first + x.shape[2])
    c, s = cos[rows].to(x.dtype), sin[rows].to(x.dtype)
    x1, x2 = x.chunk(2, dim=3)
    return torch.cat((x1 * c - x2 * s, x2 * c + x1 * s), dim=3)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis, computed in fp32."""
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            "SimplifiedLayerNormalization",
            [x, weight],
            attrs={"axis": -1, "epsilon": eps, "stash_type": 1},
            dtype=_FLOAT32,
            shape=x.shape,
            version=1,
        )
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight.to(x.dtype)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + delta`` and its RMS norm: ``(normed, sum)``."""
    if torch.compiler.is_exporting():
        normed, _, _, total = torch.onnx.ops.symbolic_multi_out(
            _MS + "SkipSimplifiedLayerNormalization",
            [x, delta, weight],
            attrs={"epsilon": eps},
            dtypes=[_FLOAT32] * 4,
            shapes=[x.shape, *[(*x.shape[:-1], 1)] * 2, x.shape],
            version=1,
        )
        return normed, total
    total = x + delta
    return rms_norm(total, weight, eps), total


def add_layer_norm(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``x + delta`` and its LayerNorm: ``(normed, sum)``.

    As two operators: onnxruntime's fused one takes four times as long.
    """
    total = x + delta
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return F.layer_norm(total, (int(weight.shape[0]),), weight, bias, eps), total


def gelu(x: Tensor) -> Tensor:
    """Exact (erf) GELU."""
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(_MS + "Gelu", [x], dtype=_FLOAT32, shape=x.shape, version=1)
    return F.gelu(x)
