"""Time and peak memory of each stage of an export."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

try:
    import resource
except ImportError:  # only POSIX has it
    resource = None

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage took."""

    label: str
    seconds: float
    peak_bytes: int | None  # largest resident set while it ran; without /proc the largest so far


class Meter:
    """Collects a :class:`Stage` for each labelled sequence that is worked through."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def __call__(self, label: str, items: Sequence[T]) -> Iterable[T]:
        """``items``, noting how long it took until they were used up."""
        return self._measured(label, items)

    def _measured(self, label: str, items: Iterable[Any]) -> Iterator[Any]:
        _forget_peak()
        start = time.perf_counter()
        yield from items
        self.stages.append(Stage(label, time.perf_counter() - start, peak_bytes()))

    def table(self) -> str:
        """The stages for a terminal."""
        lines = [f"{'stage':44} {'seconds':>8} {'peak MB':>8}"]
        seconds = sum(stage.seconds for stage in self.stages)
        peaks = [stage.peak_bytes for stage in self.stages if stage.peak_bytes is not None]
        lines += [
            f"{s.label:44} {s.seconds:8.1f} {_megabytes(s.peak_bytes):>8}"
            for s in (*self.stages, Stage("all", seconds, max(peaks, default=None)))
        ]
        return "\n".join(lines)


def _megabytes(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else f"{n_bytes / 1e6:.0f}"


def peak_bytes() -> int | None:
    """Largest resident set of this process since the last :func:`_forget_peak`.

    ``None`` where the system does not tell, as Windows.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> None:
    """Let the kernel count the peak anew; only Linux can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
