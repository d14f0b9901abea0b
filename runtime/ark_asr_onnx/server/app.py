"""The service's routes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping

from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .. import (
    AudioError,
    AudioTooLongError,
    ClosedError,
    EmptyAudioError,
    MissingExtraError,
    QueueFullError,
    Transcriber,
    Transcript,
)
from . import answers, fields, forms
from .answers import Events, Failure
from .gate import SHUTTING_DOWN, Gate, Refused, refusal
from .metrics import CONTENT_TYPE, Metrics
from .requests import Item, Work
from .service import Service, ServiceSettings, retry_after

_LOG = logging.getLogger("ark_asr_onnx.server")
_FIRST_SECONDS = 10.0  # until a stream's headers are sent, even without a first text
_HEARTBEAT_SECONDS = 10.0
_PAGE_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src blob:; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def create_app(load: Callable[[], Transcriber], settings: ServiceSettings) -> Starlette:
    """The ASGI application of a service; its ``state.service`` is the :class:`Service`."""
    service = Service(load, settings)
    routes = _Routes(service)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)

    table = _table(routes, settings.has_page)
    names = frozenset(route.path for route in table)
    gate = Middleware(
        Gate, settings.access, settings.limits, service.metrics, names, lambda: service.is_closing
    )
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.access.origins,
        allow_methods=["GET", "POST", "OPTIONS"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after", "ark-ignored", "ark-warnings"],
        allow_private_network=True,  # pages on https may use this machine
    )
    app = Starlette(
        routes=table,
        middleware=[*([cors] if settings.access.origins else []), gate],
        exception_handlers={Refused: _refused, HTTPException: _http_error},
        lifespan=lifespan,
    )
    app.state.service = service
    return app


def _table(routes: _Routes, has_page: bool) -> list[Route]:
    table = [
        Route("/health", routes.health),
        Route("/ready", routes.ready),
        Route("/metrics", routes.metrics),
        Route("/token-mask", routes.token_mask),
        Route("/asr", routes.asr, methods=["POST"]),
    ]
    for prefix in ("/v1", ""):
        table += [
            Route(f"{prefix}/audio/transcriptions", routes.transcriptions, methods=["POST"]),
            Route(f"{prefix}/audio/translations", routes.translations, methods=["POST"]),
            Route(f"{prefix}/models", routes.models),
            Route(f"{prefix}/models/{{name:path}}", routes.one_model),
            Route(f"{prefix}/audio/models", routes.models),
        ]
    if has_page:
        table += [Route("/", routes.page), Route("/ui", routes.page)]
        table.append(Route("/ui/{name}", routes.page))
    return table


class _Routes:
    """A handler for each route."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._mask: bytes | None = None
        page = importlib.resources.files("ark_asr_onnx.server") / "page"
        self._page = {item.name: item.read_bytes() for item in page.iterdir() if item.is_file()}

    async def health(self, _: Request) -> Response:
        """Only liveness, as upstream does."""
        return _json(b'{"status":"ok"}')

    async def ready(self, _: Request) -> Response:
        """Whether requests can be served now."""
        status, found = self._service.readiness()
        return _json(answers.to_json(found), status)

    async def metrics(self, _: Request) -> Response:
        """Metrics for Prometheus."""
        return Response(self._service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def token_mask(self, _: Request) -> Response:
        """The ids that may be chosen."""
        if self._mask is None:  # counting a large vocabulary takes a while
            transcriber = self._service.transcriber
            n_ids = transcriber.manifest.sizes.vocab_size
            model = self._service.model
            self._mask = answers.token_mask(model, n_ids, transcriber.text.id)
        return _json(self._mask)

    async def models(self, _: Request) -> Response:
        """The model's names."""
        return _json(answers.models(self._service.settings.names, self._service.created))

    async def one_model(self, request: Request) -> Response:
        """One of the model's names."""
        name = request.path_params["name"]
        if name not in self._service.settings.names:
            raise Refused(forms.no_model(name))
        return _json(answers.to_json(answers.model(name, self._service.created)))

    async def translations(self, _: Request) -> Response:
        """Always refused: this model does not translate."""
        raise Refused(
            Failure(400, "this model transcribes, it does not translate", "unsupported_value")
        )

    async def page(self, request: Request) -> Response:
        """The page and its files."""
        name = request.path_params.get("name", "index.html")
        content = self._page.get(name)
        if content is None:
            raise HTTPException(404)
        kind = _PAGE_TYPES[name.rpartition(".")[2]]
        headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
        return Response(content, headers=headers, media_type=kind)

    async def asr(self, request: Request) -> Response:
        """Upstream's endpoint."""
        begin = time.perf_counter()

        def answer(transcript: Transcript, asked: fields.Request) -> Response:
            seconds = time.perf_counter() - begin
            model = self._service.model
            return _json(answers.upstream(transcript, asked, model, seconds))

        return await self._transcribe(request, fields.asr, ("file", "audio_file"), 422, answer)

    async def transcriptions(self, request: Request) -> Response:
        """OpenAI's endpoint."""

        def answer(transcript: Transcript, asked: fields.Request) -> Response:
            kind = answers.MEDIA_TYPES[asked.response_format]
            content = answers.body(transcript, asked, self._service.model)
            return Response(content, headers={"content-type": kind})

        return await self._transcribe(request, fields.transcription, ("file",), 400, answer)

    async def _transcribe(
        self,
        request: Request,
        parse: Callable[[fields.Form, int], fields.Request],
        names: tuple[str, ...],
        unreadable: int,
        answer: Callable[[Transcript, fields.Request], Response],
    ) -> Response:
        service = self._service
        service.transcriber  # noqa: B018 - raises before the upload while the model is loading
        held = contextlib.ExitStack()
        held.enter_context(service.place())
        form: FormData | None = None
        work: Work | None = None
        try:
            form = await forms.read(request)
            asked = forms.asked_of(form, parse, service.settings, unreadable)
            if asked.hotwords or service.settings.options.hotwords:
                await service.check(asked)
            work = service.work(forms.audio(form, names, unreadable), asked)
            if asked.is_stream:
                stream = _Stream(service, work, asked, form, held)
                await stream.begin(request.receive)
                held, form, work = contextlib.ExitStack(), None, None  # the stream owns them now
                return stream
            while not isinstance(item := await work.next(request.receive), Transcript):
                if isinstance(item, BaseException):
                    raise item
            service.metrics.count(item, work.queue_seconds)
            if asked.layout is None:
                response = answer(item, asked)
            else:  # making cues for hours of audio takes a second
                response = await asyncio.to_thread(answer, item, asked)
            response.headers.update(_told(asked, work, item))
            return response
        except (ConnectionResetError, ClientDisconnect):
            service.metrics.cancelled.inc()
            return Response(status_code=499)
        except Exception as error:
            raise Refused(_failure(error)) from error
        finally:
            await _release(work, form, held)


class _Stream(Response):
    """A transcription as server-sent events."""

    def __init__(
        self,
        service: Service,
        work: Work,
        asked: fields.Request,
        form: FormData,
        held: contextlib.ExitStack,
    ) -> None:
        super().__init__(
            headers={
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
                **_told(asked),
            }
        )
        del self.headers["content-length"]
        self._service, self._work, self._form, self._held = service, work, form, held
        self._events = Events(asked, service.model)
        self._first: Item | None = None

    async def begin(self, receive: Receive) -> None:
        """Wait for the first text, so that an earlier failure gets its proper status."""
        self._first = await self._work.next(receive, _FIRST_SECONDS)
        if isinstance(self._first, BaseException):
            raise self._first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """ASGI."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with contextlib.aclosing(self._chunks(receive)) as chunks:
                async for chunk in chunks:
                    if chunk:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except OSError:  # the client has disconnected
            self._service.metrics.cancelled.inc()
        finally:
            await _release(self._work, self._form, self._held)

    async def _chunks(self, receive: Receive) -> AsyncGenerator[bytes]:
        item = self._first
        while True:
            try:
                chunk = self._chunk(item)
            except Exception as error:
                item, chunk = error, _failure(error).event()
            yield chunk
            if isinstance(item, (Transcript, BaseException)):
                return
            item = await self._work.next(receive, _HEARTBEAT_SECONDS)

    def _chunk(self, item: Item | None) -> bytes:
        if item is None:
            return answers.KEEP_ALIVE
        if isinstance(item, Transcript):
            self._service.metrics.count(item, self._work.queue_seconds)
            return self._events.done(item)
        if isinstance(item, BaseException):
            return _failure(item).event()
        return self._events.delta(item)


async def _release(work: Work | None, form: FormData | None, held: contextlib.ExitStack) -> None:
    """End the work, close the audio, and free the request's place."""

    async def release() -> None:
        with held:
            if work is not None:
                await work.end()
            if form is not None:
                await form.close()

    await asyncio.shield(asyncio.ensure_future(release()))


def _told(
    asked: fields.Request, work: Work | None = None, transcript: Transcript | None = None
) -> Mapping[str, str]:
    found = {"ark-ignored": ", ".join(asked.ignored)} if asked.ignored else {}
    if work is not None:
        found["ark-queue-ms"] = f"{1000 * work.queue_seconds:.0f}"
    if transcript is not None and transcript.timings.total:
        found["ark-rtfx"] = f"{transcript.rtfx:.1f}"
        found["server-timing"] = f"engine;dur={1000 * transcript.timings.total:.1f}"
    if transcript is not None and transcript.warnings:
        kinds = dict.fromkeys(warning.kind for warning in transcript.warnings)
        found["ark-warnings"] = ", ".join(kinds)
    return found


def _failure(error: BaseException) -> Failure:
    """The failure that a client gets for an error; an unexpected error goes to the log."""
    if isinstance(error, Refused):
        return error.failure
    message = str(error).replace("audio stream: ", "")
    if isinstance(error, AudioTooLongError):
        return Failure(413, message, "audio_too_long", "file", is_final=True)
    if isinstance(error, EmptyAudioError):
        return Failure(400, message, "empty_audio", "file")
    if isinstance(error, (AudioError, MissingExtraError)):
        return Failure(400, message, "invalid_audio", "file")
    if isinstance(error, QueueFullError):
        return Failure(429, message, "queue_full", retry_after=retry_after(error.retry_after))
    if isinstance(error, ClosedError):
        return SHUTTING_DOWN
    _LOG.error("a request failed", exc_info=error)
    return Failure(500, "the model could not transcribe this audio", is_final=True)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    if error.failure.status in (429, 503):
        metrics: Metrics = request.app.state.service.metrics
        metrics.rejected.labels(error.failure.code).inc()
    return refusal(error.failure)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        path = ascii(request.url.path)[1:-1][:80]
        failure = Failure(404, f"no such path: {path}; transcribe with POST "
                          "/v1/audio/transcriptions or /asr", "not_found")  # fmt: skip
    elif error.status_code == 405:
        failure = Failure(405, "this path has another method; see Allow", "method_not_allowed")
    else:
        failure = Failure(error.status_code, str(error.detail))
    response = refusal(failure)
    response.headers.update(error.headers or {})
    return response


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="application/json")
