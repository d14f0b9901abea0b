"""Where a package goes: a place that nothing has taken, on a disk that can hold it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ark_asr_onnx.errors import ExportError

from .config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Need:
    """Space that something takes on a disk."""

    what: str
    bytes: int
    directory: Path  # there, or to be made
    remedy: str


def export_need(n_values: int, config: DecoderConfig, precision: str, parent: Path) -> Need:
    """What an export of so many numbers takes in ``parent`` at the worst moment.

    That is the table, and the larger graph once in fp32.
    """
    n_values += config.vocab_size * config.hidden_size  # the head, where it is not stored
    n_bytes = int(n_values * (4.0 if precision == "fp32" else 3.0)) + (1 << 20)
    return Need("export", n_bytes, parent, "give --out on another disk")


def require_absent(out: Path) -> None:
    """Refuse to write over anything."""
    if os.path.lexists(out):
        raise ExportError(f"{out} exists; give another --out or remove it first")


def require_space(*needs: Need) -> None:
    """Refuse to start what the disks cannot hold, together where they share one."""
    disks: dict[int, list[tuple[Path, Need]]] = {}
    for need in needs:
        parents = (need.directory, *need.directory.absolute().parents)
        existing = next(path for path in parents if os.path.lexists(path))
        disks.setdefault(existing.stat().st_dev, []).append((existing, need))
    for found in disks.values():
        existing = found[0][0]
        free = shutil.disk_usage(existing).free
        if free < sum(need.bytes for _, need in found):
            parts = [f"the {need.what} needs about {need.bytes / 1e9:.2f} GB" for _, need in found]
            remedies = ["free some", *(need.remedy for _, need in found)]
            raise ExportError(
                f"{existing}: {free / 1e9:.2f} GB free, {' and '.join(parts)}; "
                + " or ".join(remedies)
            )
