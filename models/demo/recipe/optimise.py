"""Updates the weights: rates over the schedule, two optimisers, the average of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True, slots=True)
class Rates:
    """Peak learning rates."""

    matrix_lr: float = 3e-3  # Muon
    other_lr: float = 2e-3  # AdamW: embedding, convolutions, norms, biases
    weight_decay: float = 0.05  # of the matrices


def lr_scale_at(done: float) -> float:
    """Warm-up over the first hundredth, then a cosine to zero."""
    return min(1.0, done / 0.01 + 0.02) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Optimisers:
    """Muon for the matrices, AdamW for the rest, and an exponential average of all weights."""

    def __init__(self, model: nn.Module, rates: Rates) -> None:
        matrices, others = [], []
        for name, p in model.named_parameters():
            is_matrix = p.dim() == 2 and "lm_head" not in name
            (matrices if is_matrix else others).append(p)
        self.params = [*matrices, *others]
        self._muon = torch.optim.Muon(
            matrices,
            lr=rates.matrix_lr,
            weight_decay=rates.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adam = torch.optim.AdamW(
            others, lr=rates.other_lr, betas=(0.9, 0.98), weight_decay=0.0
        )
        self._base = (rates.matrix_lr, rates.other_lr)
        self.average = [p.detach().clone() for p in self.params]

    def step(self, scale: float, step: int) -> float:
        """Average gradients over processes, clip, update; ``scale`` multiplies both rates."""
        flat = torch.cat([p.grad.flatten() for p in self.params])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        norm = float(flat.norm())
        if not math.isfinite(norm):
            return norm
        flat *= min(1.0, 2.0 / (norm + 1e-6))
        for p, part in zip(self.params, flat.split([p.numel() for p in self.params]), strict=True):
            p.grad.copy_(part.view_as(p))
        for optimiser, base in zip((self._muon, self._adam), self._base, strict=True):
            optimiser.param_groups[0]["lr"] = base * scale
            optimiser.step()
        decay = min(0.998, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.params], 1.0 - decay)
        return norm

    def swap_average(self) -> None:
        """Exchange the weights and their average."""
        for p, average in zip(self.params, self.average, strict=True):
            kept = p.detach().clone()
            p.data.copy_(average)
            average.copy_(kept)

    def state(self) -> dict[str, Any]:
        """Everything to continue from."""
        states = [self._muon.state_dict(), self._adam.state_dict()]
        return {"optimisers": states, "average": self.average}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state`."""
        self._muon.load_state_dict(state["optimisers"][0])
        self._adam.load_state_dict(state["optimisers"][1])
        self.average = state["average"]
