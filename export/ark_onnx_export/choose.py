"""Which recipe for which matrix: the cheapest choice whose predicted error is within the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .calibrate import Calibration, Finding
from .smoothing import F32, Graph

# Products of rows: the full range of codes only where sums do not saturate.
ROWS = {"any": "rows7", "avx2": "rows7", "vnni": "rows8", "arm64": "rows8"}

COLUMNS = {"any": "columns7", "avx2": "columns7", "vnni": "columns8", "arm64": "columns8"}

# Cost of a weight by benchmarks/recipes.py: in the encoder its time at 250 to 1500 rows, in the
# decoder that of a step, a little less where prompts gain. fp32 counts double: it is four times
# the memory too.
_ENCODER = {"rows8": 1.0, "rows7": 1.0, "blocks8": 1.65, "fine8": 2.4, "fp32": 7.0}
_DECODER = {"columns8": 0.9, "columns7": 0.9, "blocks8": 1.0, "fine8": 1.2, "fp32": 6.0}
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
class Plan:
    """Choices for one graph."""

    choices: tuple[Choice, ...]
    predicted: float  # in the budget's unit

    def recipes(self, calibration: Calibration) -> dict[str, str]:
        """Weight name -> recipe."""
        chosen = {choice.site: choice.recipe for choice in self.choices}
        return {w: chosen[f.site] for f in calibration.findings for w in f.weights}


def recipes_for(graph: Graph, target: str) -> dict[str, float]:
    """The recipes that may serve a graph on a kind of CPU, and their cost."""
    costs, own = (_ENCODER, ROWS[target]) if graph == "audio" else (_DECODER, COLUMNS[target])
    return {r: c for r, c in costs.items() if not r.startswith(("rows", "columns")) or r == own}


def choose(
    calibration: Calibration, graph: Graph, target: str, budget: float, scale: float = 1.0
) -> Plan:
    """Start with the fastest recipe everywhere, then mend what helps most for its price.

    Errors of different products are taken as independent: their squares add up. ``scale`` corrects
    the predictions by what an earlier choice really cost.
    """
    costs = recipes_for(graph, target)
    ladder = sorted(costs, key=lambda recipe: costs[recipe])
    findings = calibration.findings
    # A head multiplies the last position of a prompt only: what is good for many serves it not.
    head = [recipe for recipe in ladder if not recipe.startswith("columns")]
    allowed = [_allowed(f, head if f.site == "lm_head" else ladder) for f in findings]
    current = [recipes[0] for recipes in allowed]
    reasons = [
        FASTEST
        if recipes[0] in (ladder[0], head[0]) and finding.errors[ladder[0]] <= _WORST_PRODUCT
        else f"{ladder[0]} errs by more than {_WORST_PRODUCT:.0%}"
        for finding, recipes in zip(findings, allowed, strict=True)
    ]

    def square(i: int, recipe: str) -> F32:
        return np.square(findings[i].predicted(recipe) * np.float32(scale))

    total = np.sum([square(i, r) for i, r in enumerate(current)], axis=0)
    while moves := [
        (float((square(i, current[i]) - square(i, recipe)).mean())
         / ((costs[recipe] - costs[current[i]]) * finding.n_weights), i, recipe)
        for i, finding in enumerate(findings)
        for recipe in allowed[i]
        if costs[recipe] > costs[current[i]]
    ]:  # fmt: skip
        worth, i, recipe = max(moves)
        price = sum(costs[r] * f.n_weights for r, f in zip(current, findings, strict=True))
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
    return Plan(choices, float(np.sqrt(total).mean()))


def _allowed(finding: Finding, ladder: Sequence[str]) -> list[str]:
    """Recipes worth trying, cheapest first: each more exact than the ones before."""
    kept: list[str] = []
    for recipe in ladder:
        error = finding.errors[recipe]
        if error <= _WORST_PRODUCT and (not kept or error < 0.95 * finding.errors[kept[-1]]):
            kept.append(recipe)
    return kept
