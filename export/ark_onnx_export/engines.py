"""Two ways to run the same model, torch and a package, with the stages open to comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import librosa
import numpy as np
import numpy.typing as npt
import torch

import ark_asr_onnx
from ark_asr_onnx import mel
from ark_asr_onnx.contract import Tokens
from ark_asr_onnx.text import clean

from . import reference
from .checkpoint import load_network, open_checkpoint, open_text

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Token ids and the logits each of them was, or could have been, chosen from."""

    token_ids: tuple[int, ...]
    logits: F32  # [n_tokens, vocab], before masking


class Engine(Protocol):
    """A model with its stages: waveform, log-mel, audio embeddings, tokens, text."""

    name: str
    precision: str  # fp32 or int8
    tokens: Tokens
    max_seconds: float

    def log_mel(self, waveform: F32) -> F32:
        """``[1, n_mels, T]`` of a waveform ``[n]`` at 16 kHz."""
        ...

    def encode(self, log_mel: F32) -> F32:
        """``audio_embeds [1, N, H]``."""
        ...

    def decode(
        self, audio_embeds: F32, max_new_tokens: int, forced: Sequence[int] | None = None
    ) -> Decoded:
        """Greedy tokens; or, teacher-forced, the logits before each of the ``forced`` ones."""
        ...

    def words(self, token_ids: Sequence[int]) -> str:
        """The text of a token sequence."""
        ...


class TorchEngine:
    """A checkpoint in torch, fp32: the reference. Nothing of the runtime computes here.

    Log-mel comes from ``torch.stft`` and librosa's filters.
    """

    precision = "fp32"

    def __init__(self, directory: Path, instruction: str) -> None:
        self.checkpoint = open_checkpoint(directory)
        self._text, self.tokens = open_text(self.checkpoint, instruction)
        config = self.checkpoint.config
        self.name = f"{directory} (torch fp32)"
        self.max_seconds = config.audio.max_frames / 100
        self._network = load_network(self.checkpoint, config.decoder.max_positions)

    def log_mel(self, waveform: F32) -> F32:
        """See :class:`Engine`."""
        n_mels = self.checkpoint.config.audio.n_mels
        window = torch.hann_window(400)
        spectrum = torch.stft(
            torch.from_numpy(waveform), 400, 160, window=window, return_complex=True
        )
        filters = torch.from_numpy(librosa.filters.mel(sr=16000, n_fft=400, n_mels=n_mels))
        power = filters @ spectrum[:, :-1].abs().square()
        log_power = power.clamp(min=1e-10).log10()
        return ((log_power.clamp(min=log_power.max() - 8) + 4) / 4).numpy()[None]

    def encode(self, log_mel: F32) -> F32:
        """See :class:`Engine`."""
        return reference.encode(self._network, log_mel)

    def decode(
        self, audio_embeds: F32, max_new_tokens: int, forced: Sequence[int] | None = None
    ) -> Decoded:
        """See :class:`Engine`; torch leads and is never forced."""
        assert forced is None
        found = reference.decode(self._network, self.tokens, audio_embeds, max_new_tokens)
        return Decoded(found.token_ids, found.logits)

    def words(self, token_ids: Sequence[int]) -> str:
        """See :class:`Engine`."""
        return clean(self._text.decode(spoken(token_ids, self.tokens)))


class PackageEngine:
    """A package of either layout, run by the runtime."""

    def __init__(self, directory: Path, threads: int | None = None) -> None:
        self.transcriber = ark_asr_onnx.load(directory, threads=threads, verify=True)
        manifest = self.transcriber.manifest
        self.name = f"{directory} ({manifest.layout} {manifest.precision})"
        self.precision = manifest.precision
        self.instruction = manifest.provenance.instruction
        self.tokens = manifest.tokens
        self.max_seconds = manifest.sizes.max_seconds

    def log_mel(self, waveform: F32) -> F32:
        """See :class:`Engine`."""
        return mel.log_mel(waveform, self.transcriber.manifest.sizes.n_mels)

    def encode(self, log_mel: F32) -> F32:
        """See :class:`Engine`."""
        return self.transcriber.model.encode_audio(log_mel)

    def decode(
        self, audio_embeds: F32, max_new_tokens: int, forced: Sequence[int] | None = None
    ) -> Decoded:
        """See :class:`Engine`."""
        model, tokens = self.transcriber.model, self.tokens
        prefix, suffix = (
            model.embed(np.array(ids, np.int64)) for ids in (tokens.prefix, tokens.suffix)
        )
        prompt = np.concatenate((prefix, audio_embeds, suffix), axis=1)
        n_prompt = prompt.shape[1]
        n_tokens = len(forced) if forced else max_new_tokens
        n_tokens = min(n_tokens, model.decoder.capacity - n_prompt + 1)
        decoding = model.decoder.start(1, n_prompt + n_tokens - 1)
        logits = decoding.prefill(0, prompt).copy()
        closed = reference.blocked(tokens, len(logits))
        rows, chosen = [logits], list[int]()
        while True:
            best = int(np.where(closed, -np.inf, logits).argmax())
            chosen.append(forced[len(chosen)] if forced else best)
            ended = forced is None and chosen[-1] in tokens.stop
            if ended or len(chosen) == n_tokens:
                return Decoded(tuple(chosen), np.stack(rows))
            logits = decoding.step(model.embed(np.array(chosen[-1:])))[0].copy()
            rows.append(logits)

    def words(self, token_ids: Sequence[int]) -> str:
        """See :class:`Engine`."""
        return clean(self.transcriber.text.decode(spoken(token_ids, self.tokens)))


def spoken(token_ids: Sequence[int], tokens: Tokens) -> list[int]:
    """The ids before end of turn."""
    return [i for i in token_ids if i not in tokens.stop]
