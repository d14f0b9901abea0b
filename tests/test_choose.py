"""Choosing recipes: the fastest within the budget, mended where it helps most for its price."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("torch")

from ark_onnx_export import choose
from ark_onnx_export.calibrate import Calibration, Finding
from ark_onnx_export.recipes import RECIPES, Graph, Target

ROWS = [recipe.name for recipe in RECIPES.values() if recipe.kind == "rows"]
ERRORS = {
    **{name: 0.012 if "8" in name[:5] else 0.017 for name in ROWS},
    "columns8": 0.011, "columns7": 0.016, "blocks8": 0.01, "fine8": 0.008, "fp32": 0.0,
    "blocks8a16": 0.006, "blocks12a16": 0.0005,
}  # fmt: skip


def finding(site: str, at_output: float, n_weights: int = 1000, **errors: float) -> Finding:
    """A site at which ``blocks8`` costs ``at_output``."""
    return Finding(
        site=site, weights=(f"{site}.weight",), n_weights=n_weights, channels=64, rows=100,
        largest=1.0, outlier_channels=0, outlier_rows=0, strength=None,
        errors={**ERRORS, **errors}, at_output=(at_output,),
    )  # fmt: skip


def chosen(findings: list[Finding], graph: Graph, budget: float, **more: object) -> dict[str, str]:
    calibration = Calibration(tuple(findings), {})
    target = cast("Target", more.get("target", "any"))
    plan = choose.choose(calibration, graph, target, budget, float(str(more.get("scale", 1))))
    recipes = plan.recipes(calibration)
    return {name.removesuffix(".weight"): recipe for name, recipe in recipes.items()}


@pytest.mark.parametrize(
    ("target", "rows", "columns"),
    [("any", "8", "7"), ("avx2", "7", "7"), ("vnni", "8", "8"), ("arm64", "8", "8")],
)
def test_within_the_budget_the_fastest_recipe_of_the_target_is_taken(
    target: str, rows: str, columns: str
) -> None:
    findings = [finding(f"a{i}", 0.001) for i in range(4)]
    found = chosen(findings, "audio", 0.03, target=target)
    assert set(found.values()) == {f"rows{rows}"}
    found = chosen([*findings, finding("lm_head", 0.001)], "decoder", 0.03, target=target)
    assert found.pop("lm_head") == "blocks8"  # it never multiplies many rows
    assert set(found.values()) == {f"columns{columns}"}


def test_the_site_that_decides_the_output_is_mended_and_no_other() -> None:
    findings = [finding("loud", 0.05), *(finding(f"a{i}", 0.001) for i in range(9))]
    found = chosen(findings, "decoder", 0.03)
    assert found.pop("loud") == "blocks12a16"
    assert set(found.values()) == {"columns7"}


def test_the_prediction_is_within_the_budget_and_adds_squares() -> None:
    findings = [finding(f"a{i}", 0.01) for i in range(16)]
    calibration = Calibration(tuple(findings), {})
    plan = choose.choose(calibration, "decoder", "any", 0.07)
    assert plan.predicted == pytest.approx(0.064)  # sqrt(16) * 0.016, all in the fastest
    plan = choose.choose(calibration, "decoder", "any", 0.05)
    assert plan.predicted <= 0.05
    costs = [choice.at_output for choice in plan.choices]
    assert plan.predicted == pytest.approx(np.sqrt(np.square(costs).sum()))
    assert {choice.recipe for choice in plan.choices} == {"columns7", "blocks8"}


def test_what_an_earlier_choice_really_cost_corrects_the_next() -> None:
    findings = [finding(f"a{i}", 0.01) for i in range(16)]
    assert set(chosen(findings, "decoder", 0.065).values()) == {"columns7"}
    assert set(chosen(findings, "decoder", 0.065, scale=1.5).values()) != {"columns7"}


def test_a_recipe_that_wrecks_a_product_is_not_taken_even_where_the_output_does_not_mind() -> None:
    bad: dict[str, Any] = dict.fromkeys(ROWS, 0.4)
    findings = [finding("wild", 1e-6, **bad, blocks8=0.2), finding("calm", 1e-6)]
    assert chosen(findings, "audio", 0.03) == {"wild": "fine8", "calm": "rows8"}


def test_a_slower_recipe_that_is_no_better_is_never_taken() -> None:
    same = dict.fromkeys(("columns7", "fine8", "blocks8a16", "blocks12a16"), 0.01)
    findings = [finding("a", 0.02, **same), finding("b", 0.001)]
    assert chosen(findings, "decoder", 0.015)["a"] == "fp32"  # blocks of 32 are blocks of 32


def test_a_bargain_is_taken_in_the_encoder_though_the_budget_is_kept() -> None:
    findings = [finding("small", 0.005, n_weights=10), *(finding(f"a{i}", 0.001) for i in range(9))]
    found = chosen(findings, "audio", 0.03)
    assert found.pop("small") != "rows8"
    assert set(found.values()) == {"rows8"}


def test_every_choice_has_a_reason() -> None:
    findings = [
        finding("loud", 0.05),
        finding("wild", 0.0001, columns7=0.4, blocks8=0.3),
        finding("calm", 0.001),
    ]
    calibration = Calibration(tuple(findings), {})
    plan = choose.choose(calibration, "decoder", "any", 0.03)
    reasons = {choice.site: choice.reason for choice in plan.choices}
    assert reasons["calm"] == choose.FASTEST
    assert "at the output" in reasons["loud"]
    assert "errs by more than" in reasons["wild"]
