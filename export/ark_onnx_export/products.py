"""What a product of each recipe computes, in torch: calibration tries recipes without a graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .recipes import Recipe
from .rows import GELU_FLOOR, further, offsets, parts, places


def product(rows: Tensor, weight: Tensor, recipe: Recipe, *, after_gelu: bool = False) -> Tensor:
    """``rows [..., n_in] @ weight.T``, ``weight [n_out, n_in]``, as a recipe computes it."""
    if recipe.kind == "fp32":
        return rows @ weight.T
    if recipe.kind == "rows":
        return _rows_product(rows, weight, recipe, after_gelu=after_gelu)
    if recipe.kind == "columns":
        levels = recipe.levels
        return _coded(rows, levels.activations) @ _coded(weight, levels.weights).T
    block = recipe.block_size(weight.shape[1])
    x, stored = _blocks(rows, block), _blocks(weight, block)
    if recipe.kind == "two bytes":
        x = x + _blocks(rows - x, block)
    if recipe.rest:
        stored = stored + _blocks(weight - stored, block, 7)
    return x @ stored.T


def _rows_product(rows: Tensor, weight: Tensor, recipe: Recipe, *, after_gelu: bool) -> Tensor:
    """As :mod:`row_products`, each weight rounded for itself."""
    floor = GELU_FLOOR if after_gelu else 0.0
    lifted = rows + floor
    counts = torch.from_numpy(places(lifted.flatten(0, -2).numpy(), recipe, unsigned=after_gelu))
    steps = recipe.levels.activations * (2 if after_gelu else 1)
    total = torch.zeros(())
    for part in parts(weight.shape[1], recipe):
        m = counts[part]
        step = (lifted[..., part] / m).abs().amax(dim=-1, keepdim=True).clamp(min=1e-20) / steps
        x = _in_places(lifted[..., part] / step / m, counts[part]) * step
        grid = weight[:, part].abs().amax(dim=1, keepdim=True).clamp(min=1e-20)
        grid = grid / recipe.levels.weights / m
        stored = (weight[:, part] / grid).round() * grid
        total = total + x @ stored.T - floor * stored.sum(dim=1)
    return total


def _in_places(x: Tensor, counts: Tensor) -> Tensor:
    """Shares ``[..., n_in]`` rounded in each of their places: the sums of the codes."""
    total = x.round()
    inputs, _ = further(counts.numpy())
    if len(inputs):
        lifts, index = torch.from_numpy(offsets(counts.numpy())), torch.from_numpy(inputs)
        total.index_add_(-1, index, (x[..., index] + lifts).round() - lifts)
    return total


def _coded(x: Tensor, level: int) -> Tensor:
    """Rounded to ``level`` steps on each side of zero, for each run along the last axis."""
    step = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-20) / level
    return (x / step).round() * step


def _blocks(x: Tensor, block: int, level: int = 127) -> Tensor:
    width = x.shape[-1]
    padded = F.pad(x, (0, -width % block))
    return _coded(padded.unflatten(-1, (-1, block)), level).flatten(-2)[..., :width]
