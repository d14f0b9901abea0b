"""What a reference hears in a sound: the truth of every comparison, and what calibration reads."""

from __future__ import annotations

from dataclasses import dataclass

from ark_asr_onnx.arrays import F32
from ark_asr_onnx.audio.mel import HOP_LENGTH, MIN_SAMPLES
from ark_asr_onnx.errors import AudioError, ExportError
from ark_asr_onnx.package.contract import Tokens

from .engines import Decoded, PackageEngine, Subject


@dataclass(frozen=True, slots=True)
class Encoded:
    """An audio as a reference's encoder hears it."""

    name: str
    waveform: F32
    log_mel: F32
    audio_embeds: F32


@dataclass(frozen=True, slots=True)
class Heard(Encoded):
    """What the reference made of one audio."""

    tokens: Tokens
    decoded: Decoded


def room(engine: Subject | PackageEngine, waveform: F32) -> int:
    """Most tokens that an utterance can have; :class:`ExportError` if that is none."""
    tokens, merge_factor = engine.tokens, engine.merge_factor
    n_audio = max((len(waveform) // HOP_LENGTH + 1) // 2 // merge_factor, 1)
    n_prompt = len(tokens.prefix) + n_audio + len(tokens.suffix)
    if n_prompt > engine.positions:
        raise ExportError(
            f"a prompt of {n_prompt} positions does not fit into {engine.positions}; give shorter "
            "audio"
        )
    return engine.positions - n_prompt + 1


def hear(expected: Subject, name: str, waveform: F32, n_tokens: int) -> Heard:
    """Run the reference on a waveform ``[n]`` at 16 kHz."""
    return decode(expected, encode(expected, name, waveform), n_tokens)


def encode(expected: Subject, name: str, waveform: F32) -> Encoded:
    """The first half of :func:`hear`."""
    if len(waveform) < MIN_SAMPLES:
        raise AudioError(f"{name}: audio is too short, {len(waveform)} samples at 16 kHz")
    log_mel = expected.log_mel(waveform)
    return Encoded(name, waveform, log_mel, expected.encode(log_mel))


def decode(expected: Subject, encoded: Encoded, n_tokens: int) -> Heard:
    """The second half of :func:`hear`."""
    name, waveform = encoded.name, encoded.waveform
    log_mel, audio_embeds = encoded.log_mel, encoded.audio_embeds
    decoded = expected.decode(waveform, audio_embeds, n_tokens)
    return Heard(name, waveform, log_mel, audio_embeds, expected.tokens, decoded)
