"""Voices that read a text: three engines of Debian, with many settings.

``espeak-ng`` (formants; a GPL-3 program, whose output is not under the GPL), ``flite`` (CMU's free
licence; ``awb``, ``rms`` and ``slt`` were made from recorded readers, ``kal16`` from diphones) and
``pico2wave`` (Apache-2.0, in Debian's non-free because its data has no source). Changing the
sampling rate afterwards makes other speakers from each voice.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ark_asr_onnx.audio.mel import SAMPLE_RATE

F32 = npt.NDArray[np.float32]
Rng = np.random.Generator

PACKAGES = ("espeak-ng", "flite", "libttspico-utils")
_ESPEAK = ("en-us", "en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc")
_ESPEAK_SPEAKERS = """m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt4 adam Alex Alicia Andrea
Andy Annie belinda benjamin boris caleb david edward edward2 Gene grandma iven john Lee linda Marco
Michael Mike pablo paul pedro quincy rob robert sandro shelby steph travis victor zac"""
_SHARES = {"espeak": 0.22, "slt": 0.14, "rms": 0.14, "awb": 0.12, "kal16": 0.06}
_SHARES |= {"pico-en-US": 0.16, "pico-en-GB": 0.16}


class VoiceError(RuntimeError):
    """An engine is missing."""


@dataclass(frozen=True, slots=True)
class Speech:
    """A waveform at 16 kHz and its speaker."""

    waveform: F32
    voice: str


def speak(text: str, rng: Rng, scratch: Path) -> Speech | None:
    """``text`` read by a random voice; None if the engine cannot read it.

    ``scratch`` is a file to write to.
    """
    names = list(_SHARES)
    name = names[int(rng.choice(len(names), p=list(_SHARES.values())))]
    # Playing faster or slower changes the vocal tract. Engines with a speed option compensate.
    factor = float(np.clip(rng.normal(1.0, 0.08), 0.82, 1.2))
    stretch = factor * float(np.clip(rng.normal(1.0, 0.12), 0.75, 1.35))
    if name == "espeak":
        command, name, factor = _espeak(text, rng, scratch)
    elif name.startswith("pico"):
        command = ["pico2wave", "-l", name.removeprefix("pico-"), "-w", str(scratch), text]
    else:
        command = ["flite", "-voice", name, "--setf", f"duration_stretch={stretch:.2f}"]
        command += ["-t", text, "-o", str(scratch)]
    recorded = _run(command, scratch)
    return None if recorded is None else Speech(_played(*recorded, factor), name)


def _espeak(text: str, rng: Rng, scratch: Path) -> tuple[list[str], str, float]:
    language = _ESPEAK[int(rng.integers(len(_ESPEAK)))]
    speakers = _ESPEAK_SPEAKERS.split()
    name = f"{language}+{speakers[int(rng.integers(len(speakers)))]}"
    command = ["espeak-ng", "-v", name, "-s", str(int(rng.integers(120, 191)))]
    command += ["-p", str(int(rng.integers(25, 76))), "-w", str(scratch), text]
    return command, name, float(np.clip(rng.normal(1.0, 0.05), 0.9, 1.1))


def _run(command: list[str], scratch: Path) -> tuple[F32, int] | None:
    """Waveform and rate of a command's speech."""
    scratch.unlink(missing_ok=True)
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        waveform, rate = soundfile.read(scratch, dtype="float32")
    except FileNotFoundError as error:
        needed = " ".join(PACKAGES)
        raise VoiceError(f"no {command[0]} here: apt-get install {needed}") from error
    except (subprocess.SubprocessError, soundfile.LibsndfileError):
        return None
    return waveform, rate


def _played(waveform: F32, rate: int, factor: float) -> F32:
    """The waveform at 16 kHz, played ``factor`` times as fast."""
    return soxr.resample(waveform, rate * factor, SAMPLE_RATE, quality="HQ").astype(np.float32)
