"""The main interface: a loaded model turns audio into text, window by window."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from . import values
from .arrays import F32
from .audio import level, mel, sources
from .audio.account import OnWarning
from .audio.sources import AudioSource
from .audio.split import Splitter, Splitting, Window
from .decoding.clips import Clip, Take, nothing_heard, tasks_of, too_short
from .decoding.clock import Clock, timings
from .decoding.greedy import Options
from .decoding.hotwords import Hotwords
from .decoding.job import Job, feed
from .decoding.line import End, Line, Task
from .decoding.pool import Pool
from .decoding.second_look import expected
from .decoding.slots import DEFAULT_SLOTS
from .errors import ArkError, ClosedError, PackageError
from .model.layouts import LAYOUTS
from .model.resident import Resident
from .model.seam import Model
from .package.contract import ALIGN_FILE
from .package.opening import Package
from .package.text import Text
from .transcript import Segment, Transcript, join

_LISTS = 8  # lists of hotwords whose tokens are cached


@dataclass(frozen=True, slots=True)
class Status:
    """The present state of a transcriber."""

    is_loaded: bool  # the model is in memory; else the next call opens it
    n_active: int  # windows being decoded
    n_waiting: int  # calls and jobs that wait for their first slot
    stalled_seconds: float  # since the last step, while there is work; else 0


class Transcriber:
    """A loaded model. Safe to use from several threads; as a context manager, closes itself.

    ``has_words``: whether the package gives times of words. ``manifest``, ``text`` (its tokenizer)
    and ``model`` are for tools that examine one stage; transcribing needs none of them.
    """

    reopen: Callable[[], Transcriber] | None = None  # opens another transcriber like this one

    def __init__(
        self,
        package: Package,
        threads: int,
        *,
        idle_unload_seconds: float | None = None,
        max_waiting: int | None = None,
        max_waiting_seconds: float | None = None,
    ) -> None:
        self.manifest = package.manifest
        build = LAYOUTS[package.manifest.layout].build
        self._resident = Resident(lambda: build(package, threads), idle_unload_seconds)
        # Open the model now, so that its errors appear here. A large tokenizer takes as long to
        # read as the graphs, and holds the interpreter's lock, so the graphs begin first.
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(lambda: self.model)
            wait([opening], timeout=0.02)
            self.text = Text(package.tokenizer_dir)
            self.has_words = opening.result().can_align
        self._pool = Pool(
            self._resident, self.manifest, self.text, max_waiting, max_waiting_seconds
        )
        tokens_of = functools.partial(expected, text=self.text, manifest=self.manifest)
        self._tokens_of = functools.lru_cache(_LISTS)(tokens_of)

    def __reduce__(self) -> tuple[Callable[[], Transcriber], tuple[()]]:
        """Pickle the arguments of :func:`load`, from which it is opened again."""
        if self.reopen is None:
            raise PackageError("only a transcriber from load() can be pickled; use load()")
        return self.reopen, ()

    @property
    def model(self) -> Model:
        """The opened model; a reference to it keeps it in memory."""
        with self._resident.use() as model:
            return model

    @property
    def status(self) -> Status:
        """Its present state, for monitoring."""
        pool = self._pool
        return Status(self._resident.is_open, pool.n_active, pool.n_waiting, pool.stalled_seconds)

    def check(self, options: Options) -> None:
        """Refuse options that this package does not support.

        Raises :class:`PackageError` if ``words`` are requested and the package has no times of
        words, ``ValueError`` for hotwords that the model may not write.
        """
        if options.words and not self.has_words:
            raise PackageError(
                f"{self.manifest.name}: this package cannot tell when words are said (it has no "
                f"{ALIGN_FILE}); export the model again, or ask without words"
            )
        self._hotwords(options)

    def close(self) -> None:
        """End the work after the current step, and free the memory.

        Waiting calls and later ones raise :class:`ClosedError`.
        """
        self._pool.close()
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
        splitting: Splitting | None = None,
        slots: int = DEFAULT_SLOTS,
        words: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> Transcript:
        """Transcript of a path, bytes, binary file object, or array with ``sample_rate`` in Hz.

        The audio may have any length: it is read as a stream and split into windows according to
        ``splitting``; at most ``slots`` windows are decoded together. ``begin_seconds`` and
        ``end_seconds`` select a part. ``words`` requests times of words (:attr:`Segment.words`).
        ``on_progress`` is called with the seconds of audio that are done.

        Raises :class:`AudioError` for audio that cannot be read or is longer than ``max_seconds``
        (default: no limit), :class:`DecodeError` if the model fails, and :class:`PackageError`
        for ``words`` if the package has no times of words.
        """
        job = self._job(
            Clip(source, sample_rate, begin_seconds, end_seconds),
            max_seconds, self._how(options, words), splitting, slots,
        )  # fmt: skip

        def show(seconds: float) -> None:
            if on_progress is not None:
                on_progress(seconds)

        transcript = job.run(lambda segment: show(segment.end - (begin_seconds or 0.0)))
        show(transcript.duration)
        return transcript

    def stream(
        self,
        source: AudioSource,
        sample_rate: int | None = None,
        *,
        begin_seconds: float | None = None,
        end_seconds: float | None = None,
        max_seconds: float | None = None,
        options: Options | None = None,
        splitting: Splitting | None = None,
        slots: int = DEFAULT_SLOTS,
        words: bool = False,
    ) -> Job:
        """The segments of :meth:`transcribe`, in order, each as soon as it is finished.

        The work begins when the first segment is requested, and continues in the background.
        Closing stops it after the current step. An error is raised at its place in the audio, after
        the segments before it.
        """
        return self._job(
            Clip(source, sample_rate, begin_seconds, end_seconds),
            max_seconds, self._how(options, words), splitting, slots,
        )  # fmt: skip

    def submit(
        self,
        source: AudioSource,
        sample_rate: int | None = None,
        *,
        begin_seconds: float | None = None,
        end_seconds: float | None = None,
        max_seconds: float | None = None,
        options: Options | None = None,
        splitting: Splitting | None = None,
        slots: int = DEFAULT_SLOTS,
        words: bool = False,
    ) -> Job:
        """As :meth:`stream`, but the work begins at once; for services with many jobs.

        Raises :class:`QueueFullError` if the limits of :func:`load` are reached.
        """
        job = self._job(
            Clip(source, sample_rate, begin_seconds, end_seconds),
            max_seconds, self._how(options, words), splitting, slots,
        )  # fmt: skip
        job.start()
        return job

    def listen(
        self,
        blocks: Iterable[npt.NDArray[Any]],
        sample_rate: int,
        *,
        options: Options | None = None,
        splitting: Splitting | None = None,
        partial_seconds: float | None = None,
        on_warning: OnWarning | None = None,
        words: bool = False,
    ) -> Iterator[Segment]:
        """Segments of live audio, each when its speech has ended.

        ``blocks`` are arrays of any length, such as a microphone gives. Speech ends with a pause
        of ``splitting.pause_seconds``. With ``partial_seconds``, unfinished speech gives a
        segment that is not ``is_final`` each time this much audio has come. ``on_warning`` is
        called with warnings about the audio; without it, Python's ``warnings`` reports them.
        """
        if partial_seconds is not None:
            values.positive("partial_seconds", partial_seconds)
        splitting = splitting or Splitting()
        splitting.longest(self.manifest.sizes.max_seconds)
        waveform = sources.blocks(blocks, sample_rate, on_warning=on_warning)
        tell = on_warning or functools.partial(sources.python_warning, "audio stream")
        how = self._how(options, words)
        return self._listen(waveform, how, splitting, partial_seconds, tell)

    def transcribe_many(
        self,
        clips: Iterable[Clip | AudioSource],
        *,
        options: Options | None = None,
        splitting: Splitting | None = None,
        slots: int = DEFAULT_SLOTS,
        words: bool = False,
    ) -> Iterator[Transcript | ArkError]:
        """Transcripts of several clips, lazily and in order; windows of all share the slots.

        A clip is a :class:`Clip`, or a source without further parameters. A clip that fails gives
        its error as a value, and the clips after it are still transcribed.
        The timings of a transcript are its share of the work.
        """
        if isinstance(clips, (str, bytes, Clip)):
            raise ValueError(f"clips is one {type(clips).__name__}, must be a list of clips")
        slots = values.whole("slots", slots)
        how = self._how(options, words)
        return self._many(iter(clips), how, splitting or Splitting(), slots)

    def _how(self, options: Options | None, words: bool) -> Options:
        """The options of a call, checked."""
        found = options or Options()
        if words:
            found = replace(found, words=True)
        self.check(found)
        return found

    def _hotwords(self, options: Options) -> Hotwords | None:
        """The hotwords of options; cached, so that it is fast after :meth:`check`."""
        if not options.hotwords:
            return None
        return self._tokens_of(options.hotwords, options.block_from_id)

    def _job(
        self,
        clip: Clip,
        max_seconds: float | None,
        how: Options,
        splitting: Splitting | None,
        slots: int,
    ) -> Job:
        cut = splitting or Splitting()
        slots = values.whole("slots", slots)
        take = self._take(clip, cut, max_seconds)

        def open_line(is_own: bool) -> Line:
            return self._pool.open(
                how, cut, slots, take.expected_seconds, is_own=is_own, hotwords=self._hotwords(how)
            )

        return Job(self._pool, take, open_line)

    def _many(
        self,
        clips: Iterable[Clip | AudioSource],
        options: Options,
        splitting: Splitting,
        slots: int,
    ) -> Generator[Transcript | ArkError]:
        started: deque[Take] = deque()

        def items() -> Generator[Task | End]:
            for clip in clips:
                one = clip if isinstance(clip, Clip) else Clip(clip)
                started.append(self._take(one, splitting))
                yield from tasks_of(started[-1], line)

        line = self._pool.open(options, splitting, slots, hotwords=self._hotwords(options))
        try:
            feed(line, items())
            segments: list[Segment] = []
            error: ArkError | None = None
            while (result := line.take()) is not None:
                if isinstance(result, Segment):
                    segments.append(result)
                elif isinstance(result, ArkError):
                    error = error or result
                else:
                    take, error = started.popleft(), error or result.error
                    spent = timings((take.clock, take.decoding))
                    yield error or join(segments, take.seconds, spent, take.warnings)
                    segments, error = [], None
        finally:
            line.cancel()

    def _listen(
        self,
        blocks: Iterator[F32],
        options: Options,
        splitting: Splitting,
        partial_seconds: float | None,
        on_warning: OnWarning,
    ) -> Generator[Segment]:
        splitter = Splitter(splitting, self.manifest.sizes.max_seconds)
        hotwords = self._hotwords(options)
        line = self._pool.open(options, splitting, 1, is_own=True, hotwords=hotwords)

        def texts(windows: Iterable[Window]) -> Iterator[Segment]:
            nonlocal has_text
            for window in windows:
                line.put(Task(window, Clock()))
                line.put(End())
                while True:
                    self._pool.drive_for(line)
                    if isinstance(result := line.take(), End):
                        break
                    if not isinstance(result, Segment):
                        raise result or ClosedError("the transcriber was closed")
                    has_text = has_text or bool(result.text)
                    yield result

        n_samples = n_since = 0
        loudest, has_text = 0.0, False
        try:
            for block in blocks:
                n_samples += len(block)
                loudest = max(loudest, level.peak(block))
                found = splitter.push(block)
                yield from texts(found)
                n_since = 0 if found else n_since + len(block)
                if partial_seconds and n_since >= partial_seconds * mel.SAMPLE_RATE:
                    if (window := splitter.open_window()) is not None:
                        for segment in texts([window]):
                            yield replace(segment, is_final=False)
                    n_since = 0
            yield from texts(splitter.flush())
            if n_samples < mel.MIN_SAMPLES:
                raise too_short("audio stream", n_samples)
            for warning in [] if has_text else nothing_heard(loudest, splitting):
                on_warning(warning)
        finally:
            line.cancel()

    def _take(self, clip: Clip, splitting: Splitting, max_seconds: float | None = None) -> Take:
        return Take(clip, splitting, self.manifest.sizes.max_seconds, max_seconds)
