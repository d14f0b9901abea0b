"""Layers that compute in the type of their input while their weights stay as stored.

A bf16 checkpoint mapped from disk then serves fp32 arithmetic without an fp32 copy in memory: each
call widens one weight at a time. Where weights are fp32 already, nothing happens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """``nn.Linear``, computing in the input's type."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class Conv1d(nn.Conv1d):
    """``nn.Conv1d`` with bias, computing in the input's type."""

    def forward(self, input: Tensor) -> Tensor:
        """``[B, in, T]`` to ``[B, out, T']``."""
        assert self.bias is not None
        return self._conv_forward(input, self.weight.to(input.dtype), self.bias.to(input.dtype))


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm``, computing in the input's type."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., width]`` to the same shape."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)
