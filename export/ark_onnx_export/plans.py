"""A plan that was made for one network, carried over to another of the same kind.

What a real network needs can so be measured at a size of which there are no real weights. The
first layer answers the first, the last the last, those between by their relative depth: two real
encoders, of 4 and of 6 layers, want more in the first layer and in the last, not in a share of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ark_asr_onnx.errors import ExportError

from .config import read_object
from .recipes import RECIPES, Graph, Target
from .smoothing import Site

_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")


def read_plan(
    path: Path, sites: Mapping[Graph, Sequence[Site]], target: Target = "any"
) -> dict[str, str]:
    """Weight name -> recipe, by the choices in a package's ``report.json``.

    :class:`ExportError` when the file is no plan, misses a site, or has a recipe that is wrong on
    CPUs of the kind ``target``.
    """
    try:
        choices = read_object(path)["choices"]
        stated = {str(choice["site"]): str(choice["recipe"]) for choice in choices}
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{path}: no plan ({error!r}); give the report.json of a package that was exported "
            "with --recipe auto"
        ) from error
    found: dict[str, str] = {}
    for some in sites.values():
        depth = _depth(site.name for site in some)
        source = _depth(name for name in stated if _graph(name) == _graph(some[0].name))
        answer = answers(source, depth)
        for site in some:
            name = _LAYER.sub(lambda m, to=answer: str(to[int(m.group())]), site.name)
            recipe = stated.get(name, "")
            if recipe not in RECIPES or RECIPES[recipe].kind == "dynamic":
                raise ExportError(f"{path}: the plan has no known recipe for {name} ({recipe!r})")
            if RECIPES[recipe].exact_sums and target not in RECIPES[recipe].targets:
                raise ExportError(
                    f"{path}: the plan has {recipe} for {name}, which is wrong on CPUs of the kind "
                    f"{target!r}; take another --target"
                )
            found |= dict.fromkeys(site.weights, recipe)
    return found


def answers(source: int, depth: int) -> list[int]:
    """For each of ``depth`` layers the one of ``source`` layers whose recipes it gets."""
    if min(source, depth) < 3:
        return [i * source // depth for i in range(depth)]
    inner = [1 + i * (source - 2) // (depth - 2) for i in range(depth - 2)]
    return [0, *inner, source - 1]


def _graph(site: str) -> bool:
    return site.startswith("audio_encoder.")


def _depth(names: Iterable[str]) -> int:
    """Layers in a list of sites, at least one."""
    return 1 + max((int(m.group()) for name in names if (m := _LAYER.search(name))), default=0)
