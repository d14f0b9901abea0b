"""The ways a package can store the model. Nothing above this dictionary knows there are several."""

from __future__ import annotations

from collections.abc import Callable

from ..model import Model
from ..package import Package
from . import native, published

LAYOUTS: dict[str, Callable[[Package, int], Model]] = {
    "native": native.build,
    "published": published.build,
}
