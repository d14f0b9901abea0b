"""The search for recipes within a budget: a function of what its attempts cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

pytest.importorskip("torch")

from test_choose import finding

from ark_onnx_export import budget
from ark_onnx_export.budget import BUDGETS, Fitted, Trial
from ark_onnx_export.findings import Calibration
from ark_onnx_export.quantize import Matrix

WEIGHTS = [f"a{i}.weight" for i in range(16)]
CALIBRATION = Calibration(tuple(finding(f"a{i}", 0.0005) for i in range(16)), {})


def fitted(costs: list[float]) -> tuple[Fitted, list[dict[str, str]]]:
    """A search whose attempts cost these, one after the other."""
    asked: list[dict[str, str]] = []

    def attempt(recipe: Callable[[str], str]) -> Trial:
        asked.append(recipes := {name: recipe(name) for name in WEIGHTS})
        matrices = tuple(Matrix(name, recipes[name], (64, 64), 0, 0.01) for name in recipes)
        return Trial(matrices, costs[min(len(asked), len(costs)) - 1], 1000 + len(asked))

    return budget.fit(CALIBRATION, "decoder.onnx", "decoder", "any", attempt), asked


def test_a_choice_within_the_budget_is_the_last() -> None:
    found, asked = fitted([0.004])
    assert len(asked) == len(found.rungs) == 1
    assert found.shortfall == ""
    assert found.rungs[0].recipes == {"columns7": 16}
    assert found.rungs[0].cost == 0.004 and found.rungs[0].budget == BUDGETS["decoder"]
    assert {matrix.name: matrix.recipe for matrix in found.matrices} == asked[0]
    assert [choice.site for choice in found.choices] == [f"a{i}" for i in range(16)]


def test_what_cost_too_much_is_chosen_again_for_less() -> None:
    found, asked = fitted([0.02, 0.008, 0.004])
    assert len(asked) == len(found.rungs) == 3
    assert found.shortfall == ""
    changed = [sum(recipe != "columns7" for recipe in recipes.values()) for recipes in asked]
    assert changed[0] < changed[1] <= changed[2]
    assert {matrix.name: matrix.recipe for matrix in found.matrices} == asked[2]
    assert found.rungs[-1].bytes == 1003


def test_a_choice_is_not_measured_twice() -> None:
    _, asked = fitted([0.0051, 0.0051, 0.0051, 0.0051, 0.0051, 0.0051])
    assert all(a != b for a, b in itertools.pairwise(asked))


def test_a_budget_that_nothing_keeps_is_said_with_its_figures() -> None:
    found, asked = fitted([0.5])
    assert len(asked) <= 6
    assert found.shortfall == (
        "decoder.onnx: log-probabilities of tokens change on average by 0.5 (budget 0.005)"
    )


def test_it_gives_the_same_for_the_same() -> None:
    first, again = fitted([0.02, 0.004]), fitted([0.02, 0.004])
    assert first == again


def test_a_cost_that_is_no_number_is_over_the_budget() -> None:
    found, _ = fitted([float("nan")])
    assert "change on average by nan" in found.shortfall
