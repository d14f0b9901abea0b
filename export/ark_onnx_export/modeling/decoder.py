"""The Qwen2 decoder: embeddings in, logits of the last position and the KV cache out.

Attribute names are the checkpoint's tensor names. Plain Qwen2: RMSNorm, biases on q, k and v
only, rotate-half RoPE over the whole head, grouped-query attention, SwiGLU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import DecoderConfig
from .ops import add_rms_norm, grouped_query_attention, rms_norm, rope_tables
from .stored import Linear


class RMSNorm(nn.Module):
    """Holds the gain of one norm; the arithmetic is :func:`ops.rms_norm`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class DecoderAttention(nn.Module):
    """The projections around grouped-query attention (:func:`ops.grouped_query_attention`)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        self.n_heads = config.n_heads
        self.q_proj = Linear(hidden, config.n_heads * dim)
        self.k_proj = Linear(hidden, config.n_kv_heads * dim)
        self.v_proj = Linear(hidden, config.n_kv_heads * dim)
        self.o_proj = Linear(config.n_heads * dim, hidden, bias=False)
        self.qkv_proj: Linear | None = None

    def pack(self) -> None:
        """Replace q, k and v by one projection, as the traced graph wants it."""
        self.qkv_proj = _packed(self.q_proj, self.k_proj, self.v_proj)
        del self.q_proj, self.k_proj, self.v_proj

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side, ``[B, S, (n_heads + 2 n_kv_heads) * dim]``."""
        if self.qkv_proj is not None:
            return self.qkv_proj(x)
        return torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=2)


class DecoderMLP(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.ffn_dim, bias=False)
        self.up_proj = Linear(config.hidden_size, config.ffn_dim, bias=False)
        self.down_proj = Linear(config.ffn_dim, config.hidden_size, bias=False)
        self.gate_up_proj: Linear | None = None

    def pack(self) -> None:
        """Replace gate and up by one projection, as the traced graph wants it."""
        self.gate_up_proj = _packed(self.gate_proj, self.up_proj)
        del self.gate_proj, self.up_proj

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        if self.gate_up_proj is not None:
            gate, up = self.gate_up_proj(x).chunk(2, dim=2)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """One pre-norm layer, without its residual additions (see :class:`Decoder`)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size)
        self.self_attn = DecoderAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size)
        self.mlp = DecoderMLP(config)


class Qwen2(nn.Module):
    """The tensors under ``model``, without ``embed_tokens``: the table is exported by itself."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layers))
        self.layers = cast("list[DecoderLayer]", layers)
        self.norm = RMSNorm(config.hidden_size)


class Decoder(nn.Module):
    """``inputs_embeds [B, S, hidden]`` and the past to logits and the present.

    ``lm_head`` holds the tied embedding or the stored head, ``[vocab, hidden]``.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: DecoderConfig, max_positions: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = Qwen2(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.max_positions = max_positions or config.max_positions
        self.register_rope()

    def register_rope(self) -> None:
        """Compute the RoPE tables ``[max_positions, head_dim / 2]``, on the CPU."""
        cos, sin = rope_tables(self.max_positions, self.config.head_dim, self.config.rope_theta)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def forward(
        self,
        inputs_embeds: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        past: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits ``[B, 1, vocab]`` of the last position, and key and value of each layer.

        ``past`` holds ``[B, n_kv_heads, P, head_dim]`` pairs; the two lengths are those of
        :func:`ops.grouped_query_attention`.
        """
        hidden, present = self.hidden(
            inputs_embeds, seqlens_k, total_sequence_length, past, last_only=True
        )
        return self.lm_head(hidden), present

    def hidden(
        self,
        inputs_embeds: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        past: list[tuple[Tensor, Tensor]],
        *,
        last_only: bool = False,
        watch: Callable[[Tensor, Tensor], None] | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Normed states of every position ``[B, S, hidden]`` or the last, and the present.

        ``watch`` is given what each layer projects (:meth:`DecoderAttention.project`), and its
        keys ``[B, n_kv_heads, P + S, head_dim]``.
        """
        eps = self.config.rms_norm_eps
        x, delta, present = inputs_embeds, None, []
        for layer, (past_key, past_value) in zip(self.model.layers, past, strict=True):
            normed, x = _next_norm(x, delta, layer.input_layernorm.weight, eps)
            projected = layer.self_attn.project(normed)
            attn, key, value = grouped_query_attention(
                projected,
                past_key,
                past_value,
                seqlens_k,
                total_sequence_length,
                self.rope_cos,
                self.rope_sin,
                layer.self_attn.n_heads,
            )
            present.append((key, value))
            if watch is not None:
                watch(projected, key)
            if last_only and len(present) == len(past):  # the others' work is done: keys, values
                attn, x = attn[:, -1:], x[:, -1:]
            delta = layer.self_attn.o_proj(attn)
            normed, x = _next_norm(x, delta, layer.post_attention_layernorm.weight, eps)
            delta = layer.mlp(normed)
        return _next_norm(x, delta, self.model.norm.weight, eps)[0], present

    def empty_past(self, batch: int = 1) -> list[tuple[Tensor, Tensor]]:
        """The past before the first position: a pair ``[batch, n_kv_heads, 0, dim]`` a layer."""
        shape = (batch, self.config.n_kv_heads, 0, self.config.head_dim)
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(self.config.n_layers)]


def _packed(*parts: Linear) -> Linear:
    """Several projections of one input as one: outputs side by side."""
    biased = parts[0].bias is not None
    n_out = sum(part.out_features for part in parts)
    packed = Linear(parts[0].in_features, n_out, bias=biased, device="meta")
    packed.weight = nn.Parameter(torch.cat([p.weight for p in parts]), requires_grad=False)
    if biased:
        packed.bias = nn.Parameter(torch.cat([p.bias for p in parts]), requires_grad=False)
    return packed


def _next_norm(x: Tensor, delta: Tensor | None, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add the pending residual ``delta`` to ``x`` and normalise: ``(normed, sum)``."""
    if delta is None:
        return rms_norm(x, gain, eps), x
    return add_rms_norm(x, delta, gain, eps)
