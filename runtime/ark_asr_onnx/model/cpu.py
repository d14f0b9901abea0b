"""Does this CPU add products of bytes exactly? Those without VNNI, and not of ARM's, do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..package import contract
from .graph import Graph


def adds_exactly(check: Path) -> bool:
    """Whether the graph ``check``, a package's ``cpu_check.onnx``, gives the true sums here."""
    graph = Graph(check, threads=1)
    graph.expect({contract.CODES: contract.CODES_SHAPE}, [contract.SUMS])
    codes = np.full(contract.CODES_SHAPE, 255, np.uint8)
    (sums,) = graph.run({contract.CODES: codes}, [contract.SUMS])
    return bool((sums == contract.EXACT_SUM).all())
