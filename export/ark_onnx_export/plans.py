"""A plan that was made for one network, carried over to another of the same kind.

What a real network needs can so be measured at a size of which there are no real weights: layers
answer each other by their depth, ``0`` of 6 to ``0`` to ``5`` of 32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ark_asr_onnx.errors import ExportError

from .quantize import RECIPES
from .smoothing import Graph, Site

_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")


def read_plan(path: Path, sites: Mapping[Graph, Sequence[Site]]) -> dict[str, str]:
    """Weight name -> recipe, by the choices in a package's ``report.json``.

    :class:`ExportError` when the file is none, or says nothing of a site.
    """
    try:
        choices = json.loads(path.read_text(encoding="utf-8"))["choices"]
        stated = {str(choice["site"]): str(choice["recipe"]) for choice in choices}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{path}: no plan ({error!r}); give the report.json of a package that was exported "
            "with --recipe auto"
        ) from error
    found: dict[str, str] = {}
    for some in sites.values():
        depth = _depth(site.name for site in some)
        source = _depth(name for name in stated if _graph(name) == _graph(some[0].name))
        answers = [str(i * source // depth) for i in range(depth)]
        for site in some:
            name = _LAYER.sub(lambda m, to=answers: to[int(m.group())], site.name)
            recipe = stated.get(name)
            if recipe not in RECIPES:
                raise ExportError(f"{path}: the plan has no known recipe for {name} ({recipe!r})")
            found |= dict.fromkeys(site.weights, recipe)
    return found


def _graph(site: str) -> bool:
    return site.startswith("audio_encoder.")


def _depth(names: Iterable[str]) -> int:
    """Layers in a list of sites, at least one."""
    return 1 + max((int(m.group()) for name in names if (m := _LAYER.search(name))), default=0)
