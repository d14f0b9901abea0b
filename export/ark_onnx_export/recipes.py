"""What an INT8 recipe is: each has its entry here, and its name stands nowhere else.

A new recipe of a known kind is an entry in :data:`RECIPES` and its cost in ``costs.json``. A new
kind also needs a function that edits the graph (:mod:`quantize`) and one that computes the same in
torch (:mod:`products`).

``costs.json`` is written by ``benchmarks/recipes.py --write`` on a CPU with VNNI, recipes in turn,
medians: in the encoder the time at 250 to 1500 rows and the shapes of 0.6B, in the decoder that of
a step. A recipe that adds passes over the outputs costs more where a matrix has many of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal, get_args

Graph = Literal["audio", "decoder"]
Target = Literal["any", "vnni", "avx2", "arm64"]
Asked = Literal["auto", "rows", "blocks8", "fine8", "dynamic"]
Kind = Literal["rows", "columns", "blocks", "two bytes", "dynamic", "fp32"]
Costs = Mapping[str, float]  # recipe -> cost, as a multiple of the plainest product

ASKED: tuple[Asked, ...] = get_args(Asked)
TARGETS: tuple[Target, ...] = get_args(Target)
# CPUs that add products of bytes in 32 bits; packages for them are right nowhere else.
EXACT_TARGETS: tuple[Target, ...] = ("vnni", "arm64")
FINE_BLOCK = 32
# Smoothing is chosen for the recipe that most matrices of a graph will have.
SMOOTHED_FOR: Mapping[Graph, str] = {"audio": "rows8+5", "decoder": "columns7"}


@dataclass(frozen=True, slots=True)
class Levels:
    """Largest codes: activations and weights are ``scale * -n..n``."""

    activations: int
    weights: int


FULL = Levels(127, 127)
# CPUs without VNNI add two products of an unsigned and a signed byte in 16 bits, which saturate
# at 32767: 2 * (2 * 90) * 91 = 32760 does not. Those with VNNI and those of ARM add in 32 bits.
# Of rows the activations are the unsigned ones, of columns the weights.
NARROW_ROWS, _NARROW_COLUMNS = Levels(90, 91), Levels(91, 90)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to store a matrix and to multiply with it."""

    name: str
    kind: Kind
    targets: tuple[Target, ...] = TARGETS  # kinds of CPU that it may be chosen for
    levels: Levels = FULL
    exact_sums: bool = False  # it is right only on CPUs that add products of bytes in 32 bits
    extra: float = 0.0  # rows: places beyond one for each input, as a share of the inputs
    segments: int = 1  # rows: runs of inputs with a scale of their own
    fine: bool = False  # blocks: of 32 inputs throughout
    rest: bool = False  # two bytes: what 8 bits leave of a weight is stored in 4 more
    preset: str = ""  # dynamic: Optimum's name for the kind of CPU

    def block_size(self, n_in: int) -> int:
        """Inputs that share a scale: 128 where it divides (twice as fast to decode), else 32."""
        return 128 if n_in % 128 == 0 and n_in >= 512 and not self.fine else FINE_BLOCK


def _family(plain: Recipe) -> list[Recipe]:
    """Products of rows: plain ones, with further places for some inputs, with segments."""
    extras = {"+5": 0.05, "+10": 0.1, "+25": 0.25, "+100": 1.0}
    return [
        plain,
        *(replace(plain, name=plain.name + end, extra=extra) for end, extra in extras.items()),
        *(replace(plain, name=f"{plain.name}/{n}", segments=n) for n in (4, 8)),
    ]


_ALL = [
    # These saturate on some CPUs. A package for any CPU has a second graph for them: narrow.py.
    *_family(Recipe("rows8", "rows", ("any", "vnni", "arm64"), exact_sums=True)),
    *_family(Recipe("rows7", "rows", ("avx2",), NARROW_ROWS)),
    Recipe("columns8", "columns", ("vnni", "arm64"), exact_sums=True),
    Recipe("columns7", "columns", ("any", "avx2"), _NARROW_COLUMNS),
    Recipe("blocks8", "blocks"),
    Recipe("fine8", "blocks", fine=True),
    Recipe("blocks8a16", "two bytes"),
    Recipe("blocks12a16", "two bytes", rest=True),
    Recipe("fp32", "fp32"),
    Recipe("dynamic-any", "dynamic", ("any",), preset="avx2"),
    Recipe("dynamic-avx2", "dynamic", ("avx2",), preset="avx2"),
    Recipe("dynamic-vnni", "dynamic", ("vnni",), exact_sums=True, preset="avx512_vnni"),
    Recipe("dynamic-arm64", "dynamic", ("arm64",), exact_sums=True, preset="arm64"),
]
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
# Calibration measures what this recipe does to the output. It also takes the matrices that other
# recipes cannot store.
PLAIN = RECIPES["blocks8"]

_COSTS: Any = json.loads(
    resources.files("ark_onnx_export").joinpath("costs.json").read_text(encoding="utf-8")
)


def costs(graph: Graph, n_in: int, n_out: int) -> Costs:
    """The recipes that may serve a matrix ``[n_in, n_out]`` of a graph."""
    if graph == "decoder":
        return _COSTS["decoder"]
    return _COSTS["audio, more outputs than inputs" if n_out > n_in else "audio"]


def fitting(graph: Graph, target: Target, n_in: int, n_out: int) -> Costs:
    """Those of them that serve a kind of CPU, the cheapest first."""
    found = costs(graph, n_in, n_out)
    ordered = sorted(found, key=lambda name: found[name])
    return {name: found[name] for name in ordered if target in RECIPES[name].targets}


def fixed(asked: Asked, graph: Graph, target: Target) -> str:
    """The one recipe for all matrices of a graph, where one was asked for."""
    rows: Kind = "rows" if graph == "audio" else "columns"
    kinds: dict[str, Kind] = {"rows": rows, "dynamic": "dynamic"}
    if asked not in kinds:
        return asked
    served = (r for r in RECIPES.values() if r.kind == kinds[asked] and target in r.targets)
    return next(served).name
