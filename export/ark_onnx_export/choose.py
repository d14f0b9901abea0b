"""Which recipe for which matrix: the cheapest choice whose predicted error is within the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ark_asr_onnx.arrays import F32

from .findings import Calibration, Finding
from .recipes import RECIPES, Costs, Graph, Target, fitting

# The encoder is mended even within the budget where a share of its cost buys this many times as
# large a share of the squared error. A step of the decoder reads every weight for one token.
_BARGAIN = {"audio": 4.0, "decoder": float("inf")}
FASTEST = "fastest"  # the reason of a choice that needs none
_WORST_PRODUCT = 0.1  # relative error at the product that no recipe may exceed, whatever it costs


@dataclass(frozen=True, slots=True)
class Choice:
    """A recipe for the matrices of one site."""

    site: str
    recipe: str
    error: float  # predicted, relative, at the product
    at_output: float  # predicted, of this site alone, in the budget's unit
    reason: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """Choices for one graph."""

    choices: tuple[Choice, ...]
    predicted: float  # in the budget's unit

    def recipes(self, calibration: Calibration) -> dict[str, str]:
        """Weight name -> recipe."""
        chosen = {choice.site: choice.recipe for choice in self.choices}
        return {w: chosen[f.site] for f in calibration.findings for w in f.weights}


def choose(
    calibration: Calibration, graph: Graph, target: Target, budget: float, scale: float = 1.0
) -> Chosen:
    """Start with the fastest recipe everywhere, then mend what helps most for its price.

    Errors of different products are taken as independent: their squares add up. ``scale`` corrects
    the predictions by what an earlier choice really cost.
    """
    findings = calibration.findings
    ladders = [_ladder(graph, target, finding) for finding in findings]
    allowed = [_allowed(f, list(ladder)) for f, ladder in zip(findings, ladders, strict=True)]
    current = [recipes[0] for recipes in allowed]
    reasons = [
        FASTEST
        if recipes[0] == next(iter(ladder))
        else f"{next(iter(ladder))} errs by more than {_WORST_PRODUCT:.0%}"
        for ladder, recipes in zip(ladders, allowed, strict=True)
    ]

    def square(i: int, recipe: str) -> F32:
        return np.square(findings[i].predicted(recipe) * np.float32(scale))

    total = np.sum([square(i, r) for i, r in enumerate(current)], axis=0)
    while moves := [
        (float((square(i, current[i]) - square(i, recipe)).mean())
         / ((ladders[i][recipe] - ladders[i][current[i]]) * finding.n_weights), i, recipe)
        for i, finding in enumerate(findings)
        for recipe in allowed[i]
        if ladders[i][recipe] > ladders[i][current[i]]
    ]:  # fmt: skip
        worth, i, recipe = max(moves)
        price = sum(
            ladder[r] * f.n_weights for ladder, r, f in zip(ladders, current, findings, strict=True)
        )
        bargain = worth * price > _BARGAIN[graph] * float(total.mean())
        if worth <= 0 or (float(np.sqrt(total).mean()) <= budget and not bargain):
            break
        cost = float(np.sqrt(square(i, current[i])).mean())
        reasons[i] = f"{current[i]} alone costs {cost:.2g} at the output"
        total = np.maximum(total - square(i, current[i]) + square(i, recipe), 0)
        current[i] = recipe
    choices = tuple(
        Choice(f.site, r, f.errors[r], float(np.sqrt(square(i, r)).mean()), why)
        for i, (f, r, why) in enumerate(zip(findings, current, reasons, strict=True))
    )
    return Chosen(choices, float(np.sqrt(total).mean()))


def _ladder(graph: Graph, target: Target, finding: Finding) -> Costs:
    """Recipes for a site. A head multiplies one position of a prompt: columns do not help it."""
    found = fitting(graph, target, finding.channels, finding.n_weights // finding.channels)
    if finding.site != "lm_head":
        return found
    return {name: cost for name, cost in found.items() if RECIPES[name].kind != "columns"}


def _allowed(finding: Finding, ladder: Sequence[str]) -> list[str]:
    """Recipes worth trying, cheapest first: each more exact than the ones before."""
    kept: list[str] = []
    for recipe in ladder:
        error = finding.errors[recipe]
        if error <= _WORST_PRODUCT and (not kept or error < 0.95 * finding.errors[kept[-1]]):
            kept.append(recipe)
    return kept
