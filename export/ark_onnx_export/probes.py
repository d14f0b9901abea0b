"""Speech that every export is tried on, beside what the user gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ark_asr_onnx.audio import read
from ark_asr_onnx.errors import ExportError

F32 = npt.NDArray[np.float32]

# In an installed wheel beside this module, in a clone with the demo.
_HERE = Path(__file__).parent
_FOLDERS = (_HERE / "speech", _HERE.parents[1] / "models" / "demo" / "samples")


def builtin_speech() -> list[tuple[str, F32]]:
    """Six short clips of AN4, two to four seconds each: name and waveform ``[n]`` at 16 kHz."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if folder is None:
        raise ExportError(f"{_FOLDERS[0]}: missing; install ark-asr-onnx[export] again")
    return [(path.name, read(path)) for path in sorted(folder.glob("*.flac"))]
