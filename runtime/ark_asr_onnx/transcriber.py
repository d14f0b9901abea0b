"""Audio to text: one straight line of stages over an opened package."""

from __future__ import annotations

import math
import os
import time
import warnings

from . import audio, contract, greedy, mel, prompt
from .audio import AudioSource
from .errors import AudioError, PackageError
from .graph import default_threads, require_onnxruntime
from .greedy import Options
from .layouts import LAYOUTS
from .package import Package, open_package
from .text import Text, clean
from .transcript import Segment, Timings, Transcript


def load(
    model: str | os.PathLike[str],
    *,
    threads: int | None = None,
    verify: bool = False,
    local_files_only: bool = False,
) -> Transcriber:
    """Open a package folder, or a Hugging Face id, and return a :class:`Transcriber` for it.

    An id (``owner/name`` or ``owner/name/folder``) is downloaded once; ``local_files_only`` uses
    the cache alone. A folder never causes a network call.

    ``threads`` defaults to the cores this process may use, at most 8; ``verify`` compares the
    checksums of the weights too. Raises :class:`PackageError`.
    """
    package = open_package(model, verify=verify, local_files_only=local_files_only)
    return Transcriber(package, default_threads() if threads is None else threads)


class Transcriber:
    """A loaded model. Safe to use from several threads at once.

    ``manifest`` and ``model``, its three callables, are for tools that look at one stage;
    transcribing needs neither.
    """

    def __init__(self, package: Package, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}, must be at least 1")
        manifest = package.manifest
        if manifest.layout not in LAYOUTS:
            raise PackageError(
                f"{package.directory}: layout {manifest.layout!r} is unknown, expected one of "
                f"{', '.join(LAYOUTS)}; upgrade ark-asr-onnx"
            )
        require_onnxruntime(manifest.min_onnxruntime)
        if manifest.degraded:
            warnings.warn(
                f"{package.directory}: this package is outside its quality limits: "
                f"{manifest.degraded}",
                stacklevel=3,
            )
        self.manifest = manifest
        self._text = Text(package.path(contract.TOKENIZER_FILE).parent)
        self.model = LAYOUTS[manifest.layout](package, threads)

    def transcribe(
        self,
        source: AudioSource,
        sample_rate: int | None = None,
        *,
        begin_seconds: float | None = None,
        end_seconds: float | None = None,
        max_seconds: float | None = None,
        options: Options | None = None,
    ) -> Transcript:
        """Text of a path, bytes, binary file object, or array with its ``sample_rate``.

        ``begin_seconds`` and ``end_seconds`` select a part of the audio. Raises
        :class:`AudioError` for audio that cannot be read or is longer than ``max_seconds``
        (default and most: one pass of the model, 30 s for the published ones), and
        :class:`DecodeError` when the model fails.
        """
        options = options or Options()
        if max_seconds is not None and not 0 < max_seconds < math.inf:
            raise ValueError(f"max_seconds is {max_seconds}, must be positive and finite")
        sizes, tokens = self.manifest.sizes, self.manifest.tokens
        clock = _Clock()
        waveform = audio.read(
            source, sample_rate, begin_seconds=begin_seconds, end_seconds=end_seconds
        )
        duration = len(waveform) / mel.SAMPLE_RATE
        _check_duration(
            audio.describe(source),
            duration,
            min(max_seconds or math.inf, sizes.max_seconds),
        )
        clock.lap("read")
        log_mel = mel.log_mel(waveform, sizes.n_mels)
        clock.lap("features")
        audio_embeds = self.model.encode_audio(log_mel)
        clock.lap("encode")
        inputs_embeds = prompt.splice(tokens, audio_embeds, self.model.embed, self.model.n_cached)
        # The last token is not fed back, so it needs no position.
        n_prompt = self.model.n_cached + inputs_embeds.shape[1]
        capacity = self.model.decoder.capacity
        n_tokens = max(1, min(options.max_new_tokens, capacity - n_prompt + 1))
        decoding = self.model.decoder.start(1, n_prompt + n_tokens - 1)
        mask = greedy.token_mask(tokens, sizes.n_logits, options.block_from_id)
        chosen: list[greedy.Token] = []
        for token in greedy.decode(
            decoding, inputs_embeds, self.model.embed, tokens, mask, n_tokens
        ):
            if not chosen:
                clock.lap("prefill")
            chosen.append(token)
        clock.lap("decode")
        begin = begin_seconds or 0.0
        segment = self._segment(chosen, begin, begin + duration)
        return Transcript(segment.text, (segment,), duration, clock.timings())

    def _segment(self, chosen: list[greedy.Token], start: float, end: float) -> Segment:
        ids = tuple(token.id for token in chosen)
        finish_reason = chosen[-1].finish_reason
        assert finish_reason is not None
        # However end of turn is spelled, it is no part of the text.
        spoken = ids[:-1] if finish_reason == "stop" else ids
        return Segment(
            start=start,
            end=end,
            text=clean(self._text.decode(spoken)),
            raw_text=self._text.decode(ids),
            token_ids=ids,
            logprobs=tuple(token.logprob for token in chosen),
            finish_reason=finish_reason,
        )


def _check_duration(name: str, duration: float, max_seconds: float) -> None:
    """Refuse what one pass cannot hold, rather than losing its end."""
    if duration > max_seconds:
        raise AudioError(
            f"{name}: {duration:.4f} s long, at most {max_seconds:g} s can be transcribed at "
            "once; select a part with begin and end"
        )


class _Clock:
    """Time per stage, from lap to lap."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._laps[stage] = now - self._last
        self._last = now

    def timings(self) -> Timings:
        return Timings(**self._laps, total=self._last - self._start)
