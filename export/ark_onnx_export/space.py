"""Where a package goes: a place that nothing has taken, on a disk that can hold it."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ark_asr_onnx.errors import ExportError

from .shapes import Shapes, count

MAX_ROWS = 1024  # kept in a file for each input of matrices, while an export calibrates
_STORED = 1.05  # bytes of a weight in 8 bits, with its scales, at most


@dataclass(frozen=True, slots=True)
class Need:
    """Space that something takes on a disk."""

    what: str
    bytes: int
    directory: Path  # there, or to be made
    remedy: str


def export_bytes(
    shapes: Shapes, *, is_int8: bool, is_calibrated: bool = True, is_half: bool = False
) -> int:
    """What an export takes at the worst moment, its package included; ``is_half`` is the table."""
    audio, decoder = count(shapes.audio), count(shapes.decoder)
    table = count([shapes.table]) * (2 if is_half else 4)
    if not is_int8:
        return 4 * (audio + decoder) + table
    kept = [4 * MAX_ROWS * sum(n_in for n_in, _ in s) for s in (shapes.audio, shapes.decoder)]
    of_encoder, of_decoder = kept if is_calibrated else (0, 0)
    stored_audio, stored_decoder = (int(_STORED * n) for n in (audio, decoder))
    return max(
        of_encoder + of_decoder,  # calibration of the decoder
        of_encoder + 4 * audio,  # the encoder in fp32
        stored_audio + 4 * decoder,  # the decoder in fp32
        stored_audio + stored_decoder + table,
    )


def export_need(n_bytes: int, parent: Path) -> Need:
    """So many bytes for an export, in ``parent``."""
    return Need("export", n_bytes + (1 << 20), parent, "give --out on another disk")


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


def free_memory() -> int | None:
    """Bytes of memory that programs can still have; ``None`` where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
