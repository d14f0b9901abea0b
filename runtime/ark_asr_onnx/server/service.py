"""The model behind the service, and the requests that it has accepted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from .. import ClosedError, Options, Splitting, Transcriber
from . import answers, fields
from .answers import Failure
from .gate import Refused
from .limits import Access, Limits
from .metrics import Metrics
from .requests import Work

_LOG = logging.getLogger("ark_asr_onnx.server")


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """The settings of a service."""

    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    slots: int = 8
    options: Options = field(default_factory=Options)  # defaults for requests
    splitting: Splitting = field(default_factory=Splitting)
    names: tuple[str, ...] = ("ark-asr",)  # of the model; the first is its main name
    is_strict: bool = False  # refuse other names
    has_page: bool = True


class Service:
    """A model that is loaded in the background, and the requests that it has accepted."""

    def __init__(self, load: Callable[[], Transcriber], settings: ServiceSettings) -> None:
        self.settings, self._load = settings, load
        self.metrics = Metrics()
        self.is_closing = False
        self.error: Exception | None = None  # the reason why the model could not be loaded
        self.n_requests = 0  # accepted and not yet answered
        self.created = int(time.time())
        self._transcriber: Transcriber | None = None
        self._model: answers.Model | None = None
        self._executor = ThreadPoolExecutor(settings.limits.max_active, "ark-asr-request")
        self._typical_seconds = 1.0  # of a request: a moving average
        self._watch()

    def start(self) -> None:
        """Load the model in a thread."""
        threading.Thread(target=self._open, name="ark-asr-load", daemon=True).start()

    def _open(self) -> None:
        try:
            transcriber = self._load()
            tokens, text = transcriber.manifest.tokens, transcriber.text
            self._model = answers.Model(tokens, text.token_bytes)
            self._transcriber = transcriber
            if self.is_closing:  # closed while it was loading
                transcriber.close()
            _LOG.info("ready")
        except Exception as error:
            self.error = error

    def close(self) -> None:
        """End all jobs and close the model; may be called more than once."""
        self.is_closing = True
        if self._transcriber is not None:
            self._transcriber.close()
        self._executor.shutdown(wait=True)

    @property
    def transcriber(self) -> Transcriber:
        """The model. Raises :class:`Refused` until it is loaded."""
        if self._transcriber is None:
            if self.error is not None:
                raise Refused(Failure(503, "the model could not be loaded; see the log", "failed"))
            raise Refused(Failure(503, "the model is being loaded", "loading", retry_after=2))
        return self._transcriber

    @property
    def model(self) -> answers.Model:
        """The facts about the model that answers contain."""
        assert self.transcriber is not None and self._model is not None
        return self._model

    @contextlib.contextmanager
    def place(self) -> Generator[None]:
        """Accept a request before its audio is read. Raises :class:`Refused` beyond the limit."""
        limits = self.settings.limits
        if self.n_requests >= limits.max_requests:
            n_rounds = limits.max_waiting / limits.max_active + 1
            after = retry_after(self._typical_seconds * n_rounds)
            raise Refused(
                Failure(
                    429, f"{self.n_requests} requests are in work or wait; try again in {after} s",
                    "queue_full", retry_after=after,
                )
            )  # fmt: skip
        self.n_requests += 1
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.n_requests -= 1
            self._typical_seconds += 0.2 * (time.perf_counter() - begin - self._typical_seconds)

    @property
    def n_waiting(self) -> int:
        """Accepted requests that wait for a thread."""
        return max(0, self.n_requests - self.settings.limits.max_active)

    def options(self, asked: fields.Request) -> Options:
        """The options for a request. Raises ``ValueError`` for too many hotwords together."""
        options = self.settings.options
        strength = asked.hotword_strength
        return replace(
            options,
            max_new_tokens=asked.max_new_tokens,
            words=asked.needs_words,
            hotwords=(*options.hotwords, *asked.hotwords),
            hotword_strength=options.hotword_strength if strength is None else strength,
        )

    async def check(self, asked: fields.Request) -> None:
        """Refuse hotwords that the model may not write; in a thread, since it may take 0.5 s."""
        self._require_words(asked)
        try:
            await asyncio.to_thread(self.transcriber.check, self.options(asked))
        except ValueError as error:
            raise Refused(Failure(400, str(error), param="hotwords")) from error

    def _require_words(self, asked: fields.Request) -> None:
        if asked.needs_words and not self.transcriber.has_words:
            raise Refused(_no_words(asked))

    def work(self, source: BinaryIO, asked: fields.Request) -> Work:
        """Begin to transcribe."""
        limits = self.settings.limits
        self._require_words(asked)
        job = self.transcriber.stream(
            source,
            begin_seconds=asked.begin_seconds,
            end_seconds=asked.end_seconds,
            max_seconds=limits.max_audio_seconds,
            options=self.options(asked),
            splitting=replace(self.settings.splitting, **asked.splitting),
            slots=self.settings.slots,
        )
        try:
            return Work(job, self._executor)
        except RuntimeError as error:  # the executor was shut down
            raise ClosedError("the service was closed") from error

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Status and body of ``/ready``."""
        found = self._transcriber.status if self._transcriber is not None else None
        if found is None:
            model = "failed" if self.error is not None else "loading"
        else:
            model = "loaded" if found.is_loaded else "unloaded"
        stalled = found.stalled_seconds if found is not None else 0.0
        is_ready = (
            found is not None
            and not self.is_closing
            and stalled < self.settings.limits.stalled_seconds
        )
        return 200 if is_ready else 503, {
            "ready": is_ready,
            "model": model,
            "words": self._transcriber is not None and self._transcriber.has_words,
            "active": self.n_requests - self.n_waiting,
            "queued": self.n_waiting,
            "stalled_s": round(stalled, 1),
        }

    def _watch(self) -> None:
        def of(name: str) -> Callable[[], float]:
            def value() -> float:
                found = self._transcriber
                return float(getattr(found.status, name)) if found is not None else 0.0

            return value

        watch = self.metrics.watch
        watch("ark_asr_slots", "Windows decoded together at most", lambda: self.settings.slots)
        watch("ark_asr_slots_active", "Windows being decoded", of("n_active"))
        watch("ark_asr_model_loaded", "Whether the model is in memory", of("is_loaded"))
        watch("ark_asr_jobs_waiting", "Requests that wait for a thread", lambda: self.n_waiting)


def _no_words(asked: fields.Request) -> Failure:
    """The failure if the model gives no times of words."""
    param, wish = "max_line_width", "without max_line_width, max_line_count and max_cue_seconds"
    if asked.wants_words:
        param, wish = "timestamp_granularities", "for timestamp_granularities=segment"
    message = f"this model gives no times of words; ask {wish}"
    return Failure(400, message, "unsupported_value", param)


def retry_after(seconds: float) -> int:
    """Whole seconds in the range that all clients respect."""
    return min(max(math.ceil(seconds), 1), 60)
