"""Audio to text: one straight line of stages over an opened package."""

from __future__ import annotations

import math
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from . import audio, contract, greedy, mel, prepared, prompt
from .audio import AudioSource
from .errors import AudioError, PackageError
from .graph import require_onnxruntime
from .greedy import Options
from .layouts import LAYOUTS
from .mel import F32
from .model import Model
from .package import Package, open_package
from .resident import Resident
from .text import Text, clean
from .threads import default_threads
from .transcript import Segment, Timings, Transcript


def load(
    model: str | os.PathLike[str],
    *,
    threads: int | None = None,
    verify: bool = False,
    local_files_only: bool = False,
    prepared_dir: str | os.PathLike[str] | None = None,
    idle_unload_seconds: float | None = None,
) -> Transcriber:
    """Open a package folder, or a Hugging Face id, and return a :class:`Transcriber` for it.

    An id (``owner/name`` or ``owner/name/folder``) is downloaded once; ``local_files_only`` uses
    the cache alone. A folder never causes a network call.

    ``threads`` defaults to the physical cores this process may use, at most 8; ``verify`` compares
    the checksums of the weights too. ``prepared_dir`` is where :func:`prepare` keeps graphs packed
    for this CPU: they are used from there, and made there first if they are missing, stale or
    damaged. ``idle_unload_seconds`` gives the memory back after so long without work; the next
    call opens the model again. Raises :class:`PackageError`.
    """
    package = open_package(model, verify=verify, local_files_only=local_files_only)
    threads = default_threads() if threads is None else threads
    if prepared_dir is not None:
        try:
            package = _prepared(package, prepared_dir, threads, verify=verify)
        except PackageError as error:
            warnings.warn(f"{error}; opened without", stacklevel=2)
    return Transcriber(package, threads, idle_unload_seconds=idle_unload_seconds)


def prepare(
    model: str | os.PathLike[str],
    prepared_dir: str | os.PathLike[str],
    *,
    threads: int | None = None,
    verify: bool = False,
    local_files_only: bool = False,
) -> None:
    """Write a package's graphs, packed for this CPU and this onnxruntime, into ``prepared_dir``.

    :func:`load` with that folder then maps them instead of packing them anew: it takes a fraction
    of the time and almost no memory of its own. Up to date, nothing is done. ``verify`` compares
    every checksum, of package and prepared graphs. Raises :class:`PackageError`.
    """
    package = open_package(model, verify=verify, local_files_only=local_files_only)
    threads = default_threads() if threads is None else threads
    _prepared(package, prepared_dir, threads, verify=verify)


def _prepared(
    package: Package, directory: str | os.PathLike[str], threads: int, *, verify: bool
) -> Package:
    _check_usable(package, threads)
    names = LAYOUTS[package.manifest.layout].graphs(package)
    return prepared.prepare(package, names, Path(directory), threads, verify=verify)


class Transcriber:
    """A loaded model. Safe to use from several threads at once; a context manager that closes it.

    ``manifest`` and ``model``, its three callables, are for tools that look at one stage;
    transcribing needs neither.
    """

    def __init__(
        self, package: Package, threads: int, *, idle_unload_seconds: float | None = None
    ) -> None:
        manifest = package.manifest
        _check_usable(package, threads)
        if manifest.degraded:
            warnings.warn(
                f"{package.directory}: this package is outside its quality limits: "
                f"{manifest.degraded}",
                stacklevel=3,
            )
        self.manifest = manifest
        build = LAYOUTS[manifest.layout].build
        self._resident = Resident(lambda: build(package, threads), idle_unload_seconds)
        # What cannot be opened is told now. A large tokenizer takes as long to read as the graphs,
        # and holds the interpreter's lock: theirs comes first, and is free once they are mapped.
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(lambda: self.model)
            wait([opening], timeout=0.02)
            self._text = Text(package.path(contract.TOKENIZER_FILE).parent)
            opening.result()

    @property
    def model(self) -> Model:
        """The opened model; whoever holds it keeps it in memory."""
        with self._resident.use() as model:
            return model

    def close(self) -> None:
        """Give the memory back, at once or when the calls in progress have ended.

        Further calls raise :class:`ClosedError`.
        """
        self._resident.close()

    def __enter__(self) -> Transcriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        sizes = self.manifest.sizes
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
        with self._resident.use() as model:
            chosen = self._decode(model, log_mel, options, clock)
        begin = begin_seconds or 0.0
        segment = self._segment(chosen, begin, begin + duration)
        return Transcript(segment.text, (segment,), duration, clock.timings())

    def _decode(
        self, model: Model, log_mel: F32, options: Options, clock: _Clock
    ) -> list[greedy.Token]:
        """Tokens of one pass."""
        sizes, tokens = self.manifest.sizes, self.manifest.tokens
        audio_embeds = model.encode_audio(log_mel)
        clock.lap("encode")
        inputs_embeds = prompt.splice(tokens, audio_embeds, model.embed, model.n_cached)
        # The last token is not fed back, so it needs no position.
        n_prompt = model.n_cached + inputs_embeds.shape[1]
        capacity = model.decoder.capacity
        n_tokens = max(1, min(options.max_new_tokens, capacity - n_prompt + 1))
        decoding = model.decoder.start(1, n_prompt + n_tokens - 1)
        mask = greedy.token_mask(tokens, sizes.n_logits, options.block_from_id)
        chosen: list[greedy.Token] = []
        for token in greedy.decode(decoding, inputs_embeds, model.embed, tokens, mask, n_tokens):
            if not chosen:
                clock.lap("prefill")
            chosen.append(token)
        clock.lap("decode")
        return chosen

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


def _check_usable(package: Package, threads: int) -> None:
    """Refuse what this version cannot open, or not with so many threads."""
    if threads < 1:
        raise ValueError(f"threads is {threads}, must be at least 1")
    layout = package.manifest.layout
    if layout not in LAYOUTS:
        raise PackageError(
            f"{package.directory}: layout {layout!r} is unknown, expected one of "
            f"{', '.join(LAYOUTS)}; upgrade ark-asr-onnx"
        )
    require_onnxruntime(package.manifest.min_onnxruntime)


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
