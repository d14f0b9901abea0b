"""The decoder with upstream's contract: a static, sequence-major cache that goes in whole.

Plain operators only (no contrib), attention over every position of the cache, as the published
graph has it. Shares its weights with :class:`Decoder`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .decoder import Decoder, DecoderAttention
from .ops import rms_norm

_HIDDEN = -1e4  # what upstream adds to the scores of positions that must not be seen


class PublishedDecoder(nn.Module):
    """``inputs_embeds`` and full caches to logits of the last position and the new cache rows."""

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        super().__init__()
        self.decoder = decoder
        cos, sin = decoder.rope_cos[:capacity], decoder.rope_sin[:capacity]
        # Rotate-half over the whole head: both halves turn by the same angles.
        self.register_buffer("cos", torch.cat((cos, cos), dim=1), persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=1), persistent=False)

    cos: Tensor
    sin: Tensor

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, cache_position: Tensor, *caches: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits ``[B, 1, vocab]``, then key and value rows ``[B, S, n_kv_heads, dim]`` by layer.

        ``inputs_embeds [B, S, hidden]``, ``attention_mask [B, P]`` (1: visible),
        ``cache_position [S]``, ``caches`` key and value ``[B, P, n_kv_heads, dim]`` by layer.
        """
        config = self.decoder.config
        position = torch.arange(caches[0].shape[1])
        visible = (position[None] <= cache_position[:, None])[None] & (attention_mask[:, None] == 1)
        bias = torch.where(visible, 0.0, _HIDDEN)[:, None]  # [B, 1, S, P]
        cos, sin = self.cos[cache_position][:, None], self.sin[cache_position][:, None]
        x, rows = inputs_embeds, []
        for i, layer in enumerate(self.decoder.model.layers):
            normed = rms_norm(x, layer.input_layernorm.weight, config.rms_norm_eps)
            attn, key, value = self._attend(
                layer.self_attn, normed, caches[2 * i], caches[2 * i + 1], cache_position,
                bias, cos, sin,
            )  # fmt: skip
            rows += [key, value]
            x = x + layer.self_attn.o_proj(attn)
            normed = rms_norm(x, layer.post_attention_layernorm.weight, config.rms_norm_eps)
            x = x + layer.mlp(normed)
        hidden = rms_norm(x[:, -1:], self.decoder.model.norm.weight, config.rms_norm_eps)
        return (self.decoder.lm_head(hidden), *rows)

    def _attend(
        self, attention: DecoderAttention, x: Tensor, key_cache: Tensor, value_cache: Tensor,
        cache_position: Tensor, bias: Tensor, cos: Tensor, sin: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        config = self.decoder.config
        batch, length, _ = x.shape
        q, k, v = (
            part.reshape(batch, length, -1, config.head_dim)
            for part in (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
        )
        q, k = _turn(q, cos, sin), _turn(k, cos, sin)
        index = cache_position[None, :, None, None].expand_as(k)
        repeats = config.n_heads // config.n_kv_heads
        keys = key_cache.scatter(1, index, k).repeat_interleave(repeats, dim=2)
        values = value_cache.scatter(1, index, v).repeat_interleave(repeats, dim=2)
        scores = q.transpose(1, 2) @ keys.permute(0, 2, 3, 1) * config.head_dim**-0.5
        weights = (scores + bias).softmax(dim=3)
        attn = (weights @ values.transpose(1, 2)).transpose(1, 2)
        return attn.reshape(batch, length, config.n_heads * config.head_dim), k, v


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half RoPE on ``[B, S, heads, dim]``; ``sin`` has the sign of the first half."""
    first, second = x.chunk(2, dim=3)
    return x * cos + torch.cat((second, first), dim=3) * sin
