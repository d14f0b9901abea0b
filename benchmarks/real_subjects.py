"""Engines that transcribe real speech, each in a separate process; see subjects.py.

real_peers.py asks them. Log-mels come as files, so that encoders are timed on the same input.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np


def peak_memory() -> float:
    """Peak resident memory of this process so far, in megabytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1e3


class Transcriber:
    """A package of ours; ``prepared`` is a folder of packed graphs, or None."""

    def __init__(self, model: str, threads: int, prepared: str | None = None) -> None:
        import ark_asr_onnx

        self.transcriber = ark_asr_onnx.load(model, threads=threads, prepared_dir=prepared)

    def encode_file(self, log_mel: str) -> float:
        """Seconds from a log-mel to audio embeddings."""
        numbers, model = np.load(log_mel), self.transcriber.model
        begin = time.perf_counter()
        model.encode(numbers)
        return time.perf_counter() - begin

    def save(self, log_mel: str, out: str) -> None:
        """Write the audio embeddings of a log-mel to a file."""
        np.save(out, self.transcriber.model.encode(np.load(log_mel)))

    def transcribe(self, path: str) -> tuple[float, str]:
        """Seconds from a file to its text, and the text."""
        begin = time.perf_counter()
        text = self.transcriber.transcribe(path).text
        return time.perf_counter() - begin, text

    def peak(self) -> float:
        """As :func:`peak_memory`."""
        return peak_memory()


class Whisper:
    """faster-whisper, which is CTranslate2: greedy English without timestamps."""

    def __init__(self, model: str, threads: int, compute_type: str) -> None:
        from ctranslate2 import StorageView
        from faster_whisper import WhisperModel

        self.storage = StorageView
        self.model = WhisperModel(
            model, device="cpu", compute_type=compute_type, cpu_threads=threads, num_workers=1
        )

    def _encoded(self, log_mel: np.ndarray) -> np.ndarray:
        return np.array(self.model.model.encode(self.storage.from_array(log_mel)))

    def encode_file(self, log_mel: str) -> float:
        """Seconds from a log-mel of at most 30 s to the encoder's output."""
        numbers = np.load(log_mel)
        begin = time.perf_counter()
        self._encoded(numbers)
        return time.perf_counter() - begin

    def save(self, log_mel: str, out: str) -> None:
        """Write the encoder's output for a log-mel to a file."""
        np.save(out, self._encoded(np.load(log_mel)))

    def transcribe(self, path: str) -> tuple[float, str]:
        """As :meth:`Transcriber.transcribe`."""
        begin = time.perf_counter()
        segments, _ = self.model.transcribe(
            path, language="en", beam_size=1, temperature=0.0, without_timestamps=True,
            condition_on_previous_text=False,
        )  # fmt: skip
        text = " ".join(segment.text.strip() for segment in segments)
        return time.perf_counter() - begin, text

    def peak(self) -> float:
        """As :func:`peak_memory`."""
        return peak_memory()
