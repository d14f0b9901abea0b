"""Speech that every export is tried on, beside what the user gives."""

from __future__ import annotations

import json
from pathlib import Path

from ark_asr_onnx.arrays import F32
from ark_asr_onnx.audio.sources import read
from ark_asr_onnx.errors import ExportError

PROBE_TOKENS = 24  # written for each clip, at most

# In an installed wheel beside this module, in a clone with the demo.
_HERE = Path(__file__).parent
_FOLDERS = (_HERE / "speech", _HERE.parents[1] / "models" / "demo" / "samples")


def builtin_speech() -> list[tuple[str, F32]]:
    """Six short clips of AN4, two to four seconds each: name and waveform ``[n]`` at 16 kHz."""
    return [(path.name, read(path)) for path in sorted(_folder().glob("*.flac"))]


def calibration_speech() -> list[tuple[str, F32]]:
    """Three longer clips of other speakers and another language, to calibrate on."""
    folder = _HERE / "calibration"
    return [(path.name, read(path)) for path in sorted(folder.glob("*.flac"))]


def builtin_references() -> dict[str, str]:
    """What is said in :func:`builtin_speech`: name -> words."""
    return read_references(_folder() / "samples.jsonl")


def read_references(path: Path) -> dict[str, str]:
    """``audio`` -> ``text`` of each line of a JSONL file; :class:`ExportError` if it is none."""
    try:
        rows = [
            json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line
        ]
        return {str(row["audio"]): str(row["text"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(
            f"{path}: not a JSONL file of rows with audio and text ({error!r})"
        ) from error


def _folder() -> Path:
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if folder is None:
        raise ExportError(f"{_FOLDERS[0]}: missing; install ark-asr-onnx[export] again")
    return folder
