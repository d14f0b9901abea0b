"""Whether this CPU adds products of bytes exactly; x86 CPUs without VNNI do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DecodeError, PackageError
from ..package import contract
from .graph import Graph


def adds_exactly(check: Path) -> bool:
    """Whether the graph ``check``, a package's ``cpu_check.onnx``, gives the exact sums here.

    Raises :class:`PackageError` if it cannot be run.
    """
    graph = Graph(check, threads=1)
    graph.expect({contract.CODES: contract.CODES_SHAPE}, [contract.SUMS])
    codes = np.full(contract.CODES_SHAPE, 255, np.uint8)
    try:
        (sums,) = graph.run({contract.CODES: codes}, [contract.SUMS])
    except DecodeError as error:
        raise PackageError(f"{check}: cannot run this graph: {error}") from error
    return bool((sums == contract.EXACT_SUM).all())
