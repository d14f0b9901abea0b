"""The layouts of packages. No code above this dictionary depends on which one a package has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...package.opening import Package
from ..seam import Model
from . import native, published


@dataclass(frozen=True, slots=True)
class Layout:
    """How to open a package of one layout."""

    build: Callable[[Package, int], Model]  # package and threads
    graphs: Callable[[Package], tuple[str, ...]]  # the graphs that it opens, for Package.path


LAYOUTS = {
    "native": Layout(native.build, native.graphs),
    "published": Layout(published.build, published.graphs),
}
