"""Whole audio files in every format and encoding that is at hand, of the demo's speech."""

from __future__ import annotations

import importlib.util
import io
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ark_asr_onnx.audio import sources

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo"
_RATES = (16000, 8000, 44100, 48000, 22050)  # Hz
_PLAIN = (1, 16000)  # channels and rate that every encoding can store
# SoundDesigner keeps its header in a second file, the others have none at all.
_UNREADABLE = ("SD2", "RAW", "SDS")
# Their headers do not say how much audio follows: of these, what is missing leaves no trace.
_WITHOUT_LENGTH = ("PVF", "PAF", "IRCAM", "AAC")
# Container, codec and sample format for the extra ``media``.
_MEDIA = (
    ("webm", "libopus", "flt", ".webm"),
    ("mp4", "aac", "fltp", ".m4a"),
    ("mov", "aac", "fltp", ".mov"),
    ("adts", "aac", "fltp", ".aac"),
    ("matroska", "libopus", "flt", ".mkv"),
    ("matroska", "aac", "fltp", ".mka"),
    ("matroska", "pcm_s16le", "s16", ".mkv"),
)

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seed:
    """A whole file."""

    format: str  # as libsndfile calls it, or the container
    name: str  # format, encoding, channels, rate
    ending: str
    content: bytes
    seconds: float  # of audio that was written

    @property
    def says_length(self) -> bool:
        """Whether a part that is missing can be noticed."""
        return self.format not in _WITHOUT_LENGTH


def speech() -> F32:
    """All samples of the demo, one after the other, ``[n]`` at 16 kHz."""
    clips = sorted((DEMO / "samples").glob("*.flac"))
    return np.concatenate([sources.read(clip) for clip in clips])


def audio_seeds(seed: int, variants: int = 1) -> list[Seed]:
    """So many files of each format and encoding, with 1 to 3 channels, 8 to 48 kHz."""
    chance = random.Random(seed)
    words = speech()
    found: list[Seed] = []
    for _ in range(variants):
        for name in soundfile.available_formats():
            for encoding in soundfile.available_subtypes(name):
                if name not in _UNREADABLE:
                    found += itertools.islice(_written(name, encoding, words, chance), 1)
        if importlib.util.find_spec("av") is not None:
            found += [_media(*how, words, chance) for how in _MEDIA]
    return found


def _clip(words: F32, seconds: float, chance: random.Random) -> F32:
    n = round(seconds * 16000)
    at = chance.randrange(len(words) - n)
    return words[at : at + n]


def _columns(words: F32, channels: int, rate: int, chance: random.Random) -> tuple[F32, float]:
    """Some speech ``[n, channels]``, and its seconds; short clips are more likely."""
    seconds = 0.3 + 5.7 * chance.random() ** 3
    waveform = _clip(words, seconds, chance)
    if rate != 16000:
        waveform = soxr.resample(waveform, 16000, rate).astype(np.float32)
    gains = np.array([1.0, 0.7, 0.4][:channels], np.float32)
    return waveform[:, None] * gains, len(waveform) / rate


def _written(name: str, encoding: str, words: F32, chance: random.Random) -> Iterator[Seed]:
    """The file with some channels and rate, and, where these cannot be, others."""
    rate = 44100 if name == "XI" else chance.choice(_RATES)  # XI has no other
    wanted = (chance.choice((1, 1, 2, 3)), rate)
    for channels, rate in (wanted, (1, wanted[1]), _PLAIN):
        samples, seconds = _columns(words, channels, rate, chance)
        target = io.BytesIO()
        try:
            soundfile.write(target, samples, rate, format=name, subtype=encoding)
        except (soundfile.LibsndfileError, ValueError):
            continue
        what = f"{name} {encoding} {channels} x {rate}"
        yield Seed(name, what, f".{name.lower()}", target.getvalue(), seconds)


def _media(
    container: str, codec: str, sample_format: str, ending: str, words: F32, chance: random.Random
) -> Seed:
    import av

    rate = 48000 if codec == "libopus" else chance.choice((16000, 44100, 48000))
    channels = chance.choice((1, 2))
    samples, seconds = _columns(words, channels, rate, chance)
    target = io.BytesIO()
    library: Any = av
    with library.open(target, "w", format=container) as output:
        layout = "mono" if channels == 1 else "stereo"
        stream = output.add_stream(codec, rate=rate, layout=layout)
        resampler = library.AudioResampler(format=sample_format, layout=layout, rate=rate)
        frame = library.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples).reshape(1, -1), format="flt", layout=layout
        )
        frame.sample_rate = rate
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    what = f"{container} {codec} {channels} x {rate}"
    name = "AAC" if container == "adts" else container
    return Seed(name, what, ending, target.getvalue(), seconds)
