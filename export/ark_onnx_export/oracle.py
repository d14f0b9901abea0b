"""The checkpoint itself, in torch and fp32: what a package is compared with.

Nothing of the runtime computes here: log-mel comes from ``torch.stft`` and librosa's filters.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numba
import torch

from ark_asr_onnx.arrays import F32
from ark_asr_onnx.package.contract import Provenance, Tokens, file_sha256
from ark_asr_onnx.package.text import Text, clean

from . import reference
from .checkpoint import Checkpoint, Network, load_network, open_checkpoint, open_text
from .config import MAX_POSITIONS
from .engines import Decoded

_SCIPY_BYTES = 1 << 29


def _librosa_filters() -> Any:
    """``librosa.filters``, of which nothing that is used here is compiled.

    Importing it as usual fails where numba finds no folder that it can write to, and where there
    is no home.
    """
    config = cast("Any", numba).config
    jit, cache = config.DISABLE_JIT, os.environ.get("XDG_CACHE_HOME")
    mmap.mmap(-1, _SCIPY_BYTES).close()  # SciPy's BLAS tries for ever where memory is short
    try:
        config.DISABLE_JIT = 1
        os.environ.setdefault("XDG_CACHE_HOME", os.devnull)  # nothing is fetched, so none is needed
        from librosa import filters
    finally:
        config.DISABLE_JIT = jit
        if cache is None:
            del os.environ["XDG_CACHE_HOME"]
    return filters


_filters = _librosa_filters()


class TorchEngine:
    """A checkpoint folder as an :class:`engines.Subject`."""

    precision = "fp32"

    def __init__(
        self, checkpoint: Checkpoint, network: Network, text: Text, tokens: Tokens
    ) -> None:
        self._checkpoint, self._network, self.text = checkpoint, network, text
        self.tokens = tokens
        config = checkpoint.config
        self.name = f"{checkpoint.directory} (torch fp32)"
        self.max_seconds = config.audio.max_frames / 100
        self.merge_factor = config.audio.merge_factor
        self.notes = network.notes
        self.positions = network.decoder.max_positions

    @classmethod
    def open(cls, directory: Path, instruction: str, shown: str | None = None) -> TorchEngine:
        """Read a checkpoint folder; ``shown`` is what to call it (default: by its path)."""
        checkpoint = open_checkpoint(directory)
        text, tokens = open_text(checkpoint, instruction)
        positions = min(checkpoint.config.decoder.max_positions, MAX_POSITIONS)
        network = load_network(checkpoint, positions)
        engine = cls(checkpoint, network, text, tokens)
        engine.name = f"{shown or directory} (torch fp32)"
        return engine

    def log_mel(self, waveform: F32) -> F32:
        """See :class:`engines.Subject`."""
        window = torch.hann_window(400)
        spectrum = torch.stft(
            torch.from_numpy(waveform), 400, 160, window=window, return_complex=True
        )
        n_mels = self._checkpoint.config.audio.n_mels
        filters = torch.from_numpy(_filters.mel(sr=16000, n_fft=400, n_mels=n_mels))
        power = filters @ spectrum[:, :-1].abs().square()
        log_power = power.clamp(min=1e-10).log10()
        return ((log_power.clamp(min=log_power.max() - 8) + 4) / 4).numpy()[None]

    def encode(self, log_mel: F32) -> F32:
        """See :class:`engines.Subject`."""
        return reference.encode(self._network, log_mel)

    def decode(self, waveform: F32, audio_embeds: F32, max_new_tokens: int) -> Decoded:  # noqa: ARG002
        """See :class:`engines.Subject`."""
        found = reference.decode(self._network, self.tokens, audio_embeds, max_new_tokens)
        spoken = [i for i in found.token_ids if i not in self.tokens.stop]
        return Decoded(found.token_ids, found.logits, clean(self.text.decode(spoken)))

    def page_out(self) -> None:
        """See :meth:`Network.page_out`."""
        self._network.page_out()

    def attention(self, audio_embeds: F32, token_ids: Sequence[int]) -> F32:
        """Where every head looked when it wrote each token ``[layers, heads, T, N]``."""
        return reference.attention(self._network, self.tokens, audio_embeds, token_ids)

    def origin(self, provenance: Provenance) -> str:
        """Whether a package says that it was made from these files."""
        if not provenance.source_sha256:
            return "the package does not say which files it was made from"
        ours = {path.name: file_sha256(path) for path in self._checkpoint.files}
        which = "these" if provenance.source_sha256 == ours else "OTHER"
        return f"the package was made from {which} files, by names and checksums in its manifest"
