"""The gate that every request passes: it sets the id, checks access and size, and counts.

Plain ASGI: a middleware that wraps ``receive`` would hide from a handler that its client has
disconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import Failure
from .limits import Access, Limits
from .metrics import Metrics

_LOG = logging.getLogger("ark_asr_onnx.server")
_OPEN = ("/health", "/ready", "/", "/ui")  # without a key
_DRAINED_BYTES = 1 << 20  # of a refused body: some clients send it before they read the answer
_DRAIN_SECONDS = 0.5  # for reading them
_LEAST_BYTES_PER_SECOND = 500.0  # of an upload; any live recording is faster
SHUTTING_DOWN = Failure(503, "the service is shutting down", "shutting_down", retry_after=5)
_SECURITY = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Refused(Exception):
    """Raised for a request that is answered with a failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def refusal(failure: Failure) -> Response:
    """The response for a failure."""
    return Response(
        failure.body(), failure.status, failure.headers(), media_type="application/json"
    )


class Gate:
    """An ASGI application around another, which checks and counts requests."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        limits: Limits,
        metrics: Metrics,
        routes: frozenset[str],
        is_closing: Callable[[], bool],
    ) -> None:
        self._app, self._access, self._limits, self._metrics = app, access, limits, metrics
        self._routes, self._is_closing = routes, is_closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = _path(scope)
        if path != "/ui":  # its final slash is kept, as the page's links need it
            scope = {**scope, "path": f"{scope.get('root_path', '')}{path}"}
        begin, headers = time.perf_counter(), Headers(scope=scope)
        answer = _Answer(send, _request_id(headers), self._is_closing)
        body = _Body(receive, self._limits)
        try:
            if failure := self._refuse(scope, headers, path):
                self._metrics.rejected.labels(failure.code or "other").inc()
                await body.drain(headers)
                await refusal(failure)(scope, receive, answer.send)
            else:
                await self._app(scope, body.receive, answer.send)
        except Exception:
            _LOG.exception("request %s failed", answer.request_id)
            if answer.status is not None:
                raise  # the answer has begun: too late for a failure
            failure = Failure(500, "the service failed at this request", is_final=True)
            await refusal(failure)(scope, receive, answer.send)
        finally:
            self._count(scope["method"], path, answer, time.perf_counter() - begin)

    def _count(self, method: str, path: str, answer: _Answer, seconds: float) -> None:
        route = path if path in self._routes else "other"
        status = answer.status or 500
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        name = ascii(path)[1:-1][:80]
        _LOG.info("%s %s %d %.0f ms %s", method, name, status, 1000 * seconds, answer.request_id)

    def _refuse(self, scope: Scope, headers: Headers, path: str) -> Failure | None:
        writes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        is_open = path in _OPEN or path.startswith("/ui/")
        if failure := self._access.refuse(headers, needs_key=not is_open, writes=writes):
            return failure
        length = headers.get("content-length", "")
        if writes and length.isdecimal() and int(length) > self._limits.max_upload_bytes:
            return too_large(self._limits, int(length))
        if writes and self._is_closing():
            return SHUTTING_DOWN
        return None


class _Answer:
    """Sends an answer, and adds the headers that every answer has."""

    def __init__(self, send: Send, request_id: str, is_closing: Callable[[], bool]) -> None:
        self._send, self.request_id, self._is_closing = send, request_id, is_closing
        self.status: int | None = None  # None until the answer has begun

    async def send(self, message: Message) -> None:
        """ASGI."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = MutableHeaders(scope=message)
            added["x-request-id"] = self.request_id
            for name, value in _SECURITY.items():
                added[name] = value
            if self._is_closing():
                added["connection"] = "close"
        await self._send(message)


class _Body:
    """Reads a request's body: counts its bytes, and limits the time to wait for them."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._n_bytes = 0
        self._waited = 0.0  # seconds, for all parts
        self._is_complete = False

    async def receive(self) -> Message:
        """The next message. Raises :class:`Refused` if it is too large or too slow."""
        if self._is_complete:
            return await self._receive()
        begin = time.monotonic()
        try:
            message = await self._next(self._patience())
        except asyncio.TimeoutError:
            waited = self._waited + time.monotonic() - begin
            raise Refused(
                Failure(
                    408, f"the upload is too slow: {self._n_bytes} bytes in {waited:.1f} s",
                    "upload_timeout",
                )
            ) from None  # fmt: skip
        self._waited += time.monotonic() - begin
        if self._n_bytes > self._limits.max_upload_bytes:
            raise Refused(too_large(self._limits, None))
        return message

    async def _next(self, seconds: float) -> Message:
        message = await asyncio.wait_for(self._receive(), seconds)
        self._n_bytes += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        return message

    def _patience(self) -> float:
        """Seconds to wait for the next part."""
        silent = self._limits.silent_seconds
        return min(silent, silent + self._n_bytes / _LEAST_BYTES_PER_SECOND - self._waited)

    async def drain(self, headers: Headers) -> None:
        """Read a part of a refused body, so that its sender reads the answer."""
        if "expect" in headers:  # the client waits for permission to send
            return
        until = time.monotonic() + _DRAIN_SECONDS
        with contextlib.suppress(asyncio.TimeoutError):
            while not self._is_complete and self._n_bytes < _DRAINED_BYTES:
                await self._next(max(0.0, until - time.monotonic()))


def too_large(limits: Limits, n_bytes: int | None) -> Failure:
    """The failure for an upload beyond the limit."""
    most = limits.max_upload_bytes
    found = f"{n_bytes} bytes" if n_bytes is not None else "more"
    return Failure(
        413, f"Maximum content size limit ({most}) exceeded ({found} read): send a shorter file, "
        "or a compressed one (FLAC, Opus), or raise --max-upload-mb", "file_too_large",
        is_final=True,
    )  # fmt: skip


def _request_id(headers: Headers) -> str:
    """The client's id if it is safe to log and to send back; else a new one."""
    given = headers.get("x-request-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", given) else uuid.uuid4().hex


def _path(scope: Scope) -> str:
    """The path below the proxy's root, without double or final slashes, which clients write."""
    path, root = scope["path"], scope.get("root_path", "")
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"
