"""This searches for recipes whose measured cost is within the budget of their graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import choose
from .findings import Calibration
from .quantize import Matrix
from .recipes import Graph, Target

# What storing in 8 bits may cost, by graph: relative error of the audio embeddings, worst clip;
# mean change of a token's log-probability.
BUDGETS: Mapping[Graph, float] = {"audio": 0.03, "decoder": 0.005}
_COSTS: Mapping[Graph, str] = {
    "audio": "the audio embeddings of speech are off by",
    "decoder": "log-probabilities of tokens change on average by",
}
_MAX_RUNGS = 6  # choices of recipes tried for one graph
# What error feedback leaves of the error that is predicted with each weight rounded for itself.
_FEEDBACK: Mapping[Graph, float] = {"audio": 0.9, "decoder": 1.0}


@dataclass(frozen=True, slots=True)
class Trial:
    """A graph that was stored by some recipes, and what that costs speech."""

    matrices: tuple[Matrix, ...]
    cost: float
    bytes: int  # of the graph with its weights


@dataclass(frozen=True, slots=True)
class Rung:
    """One choice of recipes for one graph, and what it cost."""

    graph: str
    recipes: dict[str, int]  # recipe -> matrices
    predicted: float | None  # cost, where it was chosen by calibration
    cost: float  # measured on speech: see BUDGETS
    budget: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """The recipes of a graph: those of the last rung."""

    matrices: tuple[Matrix, ...] = ()
    rungs: tuple[Rung, ...] = ()  # in the order tried
    choices: tuple[choose.Choice, ...] = ()
    shortfall: str = ""  # by how much the budget is missed


def fit(
    calibration: Calibration,
    file: str,
    graph: Graph,
    target: Target,
    attempt: Callable[[Callable[[str], str]], Trial],
) -> Fitted:
    """Choose recipes, measure what they cost, and correct the prediction, until it is enough.

    ``attempt`` stores the graph, by a function from weights to recipes, and measures. A choice that
    the correction does not change is not measured again.
    """
    budget, scale = BUDGETS[graph], _FEEDBACK[graph]
    rungs: list[Rung] = []
    fitted: Fitted | None = None
    tried: dict[str, str] = {}
    for _ in range(_MAX_RUNGS):
        chosen = choose.choose(calibration, graph, target, budget, scale)
        recipes = chosen.recipes(calibration)
        if recipes == tried:
            scale *= 1.2
            continue
        tried, trial = recipes, attempt(recipes.__getitem__)
        rungs.append(rung(file, graph, trial, chosen.predicted))
        fitted = Fitted(trial.matrices, tuple(rungs), chosen.choices, _shortfall(rungs[-1], graph))
        if not fitted.shortfall:
            break
        scale *= max(trial.cost / max(chosen.predicted, 1e-12), 1.05)
    assert fitted is not None
    return fitted


def rung(file: str, graph: Graph, trial: Trial, predicted: float | None = None) -> Rung:
    """A trial for the report."""
    counts = Counter(matrix.recipe for matrix in trial.matrices)
    return Rung(file, dict(counts), predicted, trial.cost, BUDGETS[graph], trial.bytes)


def _shortfall(last: Rung, graph: Graph) -> str:
    if last.cost <= last.budget:
        return ""
    return f"{last.graph}: {_COSTS[graph]} {last.cost:.3g} (budget {last.budget:g})"
