"""The table of recipes: every target is served, and what is chosen is right on its CPUs."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from ark_onnx_export.recipes import (
    ASKED,
    EXACT_TARGETS,
    PLAIN,
    RECIPES,
    SMOOTHED_FOR,
    TARGETS,
    Graph,
    Kind,
    Target,
    costs,
    fitting,
    fixed,
)

GRAPHS: tuple[Graph, ...] = ("audio", "decoder")
KINDS: dict[Graph, set[Kind]] = {
    "audio": {"rows", "blocks", "fp32"},
    "decoder": {"columns", "blocks", "two bytes", "fp32"},
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_target_has_recipes_from_the_cheapest_to_fp32(graph: Graph, target: Target) -> None:
    for shape in ((1280, 1280), (1280, 5120), (5120, 1280)):
        found = fitting(graph, target, *shape)
        assert list(found.values()) == sorted(found.values())
        assert {RECIPES[name].kind for name in found} == KINDS[graph]
        assert list(found)[-1] == "fp32"
        assert all(target in RECIPES[name].targets for name in found)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("asked", [asked for asked in ASKED if asked != "auto"])
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_asked_for_is_a_recipe_that_serves_the_target(
    asked: str, graph: Graph, target: Target
) -> None:
    recipe = RECIPES[fixed(asked, graph, target)]  # pyright: ignore[reportArgumentType]
    assert target in recipe.targets
    if asked == "rows":
        assert recipe.kind == ("rows" if graph == "audio" else "columns")
        assert (recipe.extra, recipe.segments) == (0, 1)
    assert asked in (recipe.name, "rows") or (asked, recipe.kind) == ("dynamic", "dynamic")


def test_sums_that_must_be_exact_are_for_cpus_that_have_them() -> None:
    for recipe in RECIPES.values():
        if recipe.exact_sums and recipe.kind != "rows":  # narrow.py has another graph for rows
            assert set(recipe.targets) <= set(EXACT_TARGETS), recipe
        if "avx2" in recipe.targets:
            assert not recipe.exact_sums, recipe


def test_every_cost_is_of_a_recipe_that_its_graph_may_have() -> None:
    text = resources.files("ark_onnx_export").joinpath("costs.json").read_text(encoding="utf-8")
    for graph, found in json.loads(text).items():
        part: Graph = "decoder" if graph == "decoder" else "audio"
        assert {RECIPES[name].kind for name in found} == KINDS[part]
        served = {name for name, recipe in RECIPES.items() if recipe.kind in KINDS[part]}
        assert found.keys() == served
    assert costs("audio", 10, 20) != costs("audio", 20, 10)


def test_calibration_can_try_what_it_rests_on() -> None:
    for graph in GRAPHS:
        assert {SMOOTHED_FOR[graph], PLAIN.name} <= costs(graph, 64, 64).keys()
