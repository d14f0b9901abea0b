"""The audio side: Whisper-style encoder with RoPE, merge of 4 frames, MLP adapter.

Without RoPE (``use_rope: false``) it is Whisper's own: stored positions are added to the frames.

Attribute names are the checkpoint's tensor names. Nothing here branches on a length: a tracer
keeps the branch it saw.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..config import ENCODER_ROPE_DIM, ENCODER_ROPE_THETA, LAYER_NORM_EPS, AudioConfig
from .ops import add_layer_norm, attention, gelu, rope_tables, rotate_interleaved
from .stored import Conv1d, LayerNorm, Linear

# Between two layers: the sum so far [B, S, d_model], and what is still to be added to it.
State = tuple[Tensor, Tensor | None]


class EncoderAttention(nn.Module):
    """Bidirectional self-attention with partial interleaved RoPE; keys have no bias."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width = config.d_model
        self.n_heads = config.n_heads
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width, bias=False)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None, bias: Tensor | None) -> Tensor:
        """``[B, S, d_model]`` to the same shape.

        ``rope`` is cosine and sine for :func:`ops.rotate_interleaved`, ``bias`` as in
        :func:`ops.attention`.
        """
        q, k = self.q_proj(x), self.k_proj(x)
        if rope is not None:
            q, k = (rotate_interleaved(part, *rope, self.n_heads) for part in (q, k))
        return self.out_proj(attention(q, k, self.v_proj(x), self.n_heads, bias))


class EncoderLayer(nn.Module):
    """One pre-norm Whisper layer, without its residual additions (see :class:`Whisper`)."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.self_attn = EncoderAttention(config)
        self.self_attn_layer_norm = LayerNorm(config.d_model, eps=LAYER_NORM_EPS)
        self.fc1 = Linear(config.d_model, config.ffn_dim)
        self.fc2 = Linear(config.ffn_dim, config.d_model)
        self.final_layer_norm = LayerNorm(config.d_model, eps=LAYER_NORM_EPS)


class Whisper(nn.Module):
    """Two convolutions and the layers; the adapter's norm follows instead of Whisper's own."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.conv1 = Conv1d(config.n_mels, config.d_model, kernel_size=3, padding=1)
        self.conv2 = Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1)
        layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))
        self.layers = cast("list[EncoderLayer]", layers)
        if not config.use_rope:
            self.embed_positions = Positions(config.n_stored_positions, config.d_model)


class Positions(nn.Module):
    """Holds the table ``[n_positions, width]`` of which a row is added to each frame."""

    def __init__(self, n_positions: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_positions, width))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, width]`` to the same shape."""
        return x + self.weight[: x.shape[1]].to(x.dtype)


class AudioEncoder(nn.Module):
    """The tensors under ``audio_encoder``: encoder, adapter norm, adapter MLP."""

    def __init__(self, config: AudioConfig, hidden_size: int) -> None:
        super().__init__()
        self.whisper = Whisper(config)
        self.layer_norm = LayerNorm(config.d_model, eps=LAYER_NORM_EPS)
        merged = config.merge_factor * config.d_model
        self.adapting = nn.Sequential(
            Linear(merged, 2 * hidden_size), nn.GELU(), Linear(2 * hidden_size, hidden_size)
        )


class AudioTower(nn.Module):
    """``log_mel [B, n_mels, T]`` to ``audio_embeds [B, N, hidden]``.

    ``N = max(((T + 1) // 2) // merge_factor, 1)``: frames that do not fill a group of
    ``merge_factor`` are dropped, and a clip with fewer is filled up with zero rows.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: AudioConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.audio_encoder = AudioEncoder(config, hidden_size)
        self.register_rope()

    def register_rope(self) -> None:
        """Compute the RoPE tables ``[max_positions, 16]``, on the CPU."""
        cos, sin = rope_tables(self.config.max_positions, ENCODER_ROPE_DIM, ENCODER_ROPE_THETA)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Encode, merge and adapt; see the class for shapes."""
        return self.adapt(self.merge(self.encode(log_mel)))

    def encode(self, log_mel: Tensor, bias: Tensor | None = None) -> Tensor:
        """``[B, n_mels, T]`` to ``[B, (T + 1) // 2, d_model]``, adapter norm included.

        ``bias`` as in :func:`ops.attention`.
        """
        return self.leave(self.through(self.enter(log_mel), bias=bias))

    def enter(self, log_mel: Tensor) -> State:
        """The convolutions; what comes before the first layer."""
        whisper = self.audio_encoder.whisper
        x = gelu(whisper.conv2(gelu(whisper.conv1(log_mel)))).transpose(1, 2)
        return (x if self.config.use_rope else whisper.embed_positions(x)), None

    def through(
        self, state: State, first: int = 0, last: int | None = None, bias: Tensor | None = None
    ) -> State:
        """The layers from ``first`` up to ``last``, which is not run."""
        x, delta = state
        rope = (self.rope_cos, self.rope_sin) if self.config.use_rope else None
        for layer in self.audio_encoder.whisper.layers[first:last]:
            normed, x = _next_norm(x, delta, layer.self_attn_layer_norm)
            delta = layer.self_attn(normed, rope, bias)
            normed, x = _next_norm(x, delta, layer.final_layer_norm)
            delta = layer.fc2(gelu(layer.fc1(normed)))
        return x, delta

    def leave(self, state: State) -> Tensor:
        """The adapter's norm of what comes after the last layer."""
        return _next_norm(*state, self.audio_encoder.layer_norm)[0]

    def merge(self, encoded: Tensor) -> Tensor:
        """``[B, S, d_model]`` to ``[B, N, merge_factor * d_model]``, frame order kept."""
        batch, length, width = encoded.shape
        factor = self.config.merge_factor
        n_audio = cast("int", torch.sym_max(length // factor, 1))
        filled = torch.cat((encoded, encoded.new_zeros(batch, factor - 1, width)), dim=1)
        return filled[:, : n_audio * factor].reshape(batch, n_audio, factor * width)

    def adapt(self, merged: Tensor) -> Tensor:
        """``[B, N, merge_factor * d_model]`` to ``[B, N, hidden]``."""
        up, _, down = self.audio_encoder.adapting
        return down(gelu(up(merged)))


def _next_norm(x: Tensor, delta: Tensor | None, norm: LayerNorm) -> tuple[Tensor, Tensor]:
    """Add the pending residual ``delta`` to ``x`` and normalise: ``(normed, sum)``."""
    if delta is None:
        return norm(x), x
    return add_layer_norm(x, delta, norm.weight, norm.bias, norm.eps)
