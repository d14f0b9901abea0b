"""What every request passes: its id, who sent it, how large it is, and how it is counted.

Pure ASGI: a middleware that wraps ``receive`` would hide from a handler that its client has gone.
"""

from __future__ import annotations

import asyncio
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
_DRAINED_BYTES = 1 << 20  # of a body that is refused: some clients read no answer before
_DRAIN_SECONDS = 0.2  # for its next part
_SECURITY = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Refused(Exception):
    """A request that is answered with a failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def refusal(failure: Failure) -> Response:
    """A failure as an answer."""
    return Response(
        failure.body(), failure.status, failure.headers(), media_type="application/json"
    )


class Gate:
    """In front of an application."""

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
        begin, status = time.perf_counter(), 500
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[\w.-]{1,64}", given) else uuid.uuid4().hex
        path = _path(scope)

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["x-request-id"] = request_id
                for name, value in _SECURITY.items():
                    added[name] = value
                if self._is_closing():
                    added["connection"] = "close"
            await send(message)

        body = _Body(receive, self._limits)
        try:
            if failure := self._refuse(scope, headers, path):
                self._metrics.rejected.labels(failure.code or "other").inc()
                await body.drain(headers)
                await refusal(failure)(scope, receive, counted_send)
            else:
                await self._app(scope, body.receive, counted_send)
        finally:
            seconds = time.perf_counter() - begin
            route = path if path in self._routes else "other"
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(seconds)
            _LOG.info(
                "%s %s %d %.0f ms %s",
                scope["method"],
                ascii(path)[1:-1][:80],
                status,
                1000 * seconds,
                request_id,
            )

    def _refuse(self, scope: Scope, headers: Headers, path: str) -> Failure | None:
        writes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        is_open = path in _OPEN or path.startswith("/ui/")
        if failure := self._access.refuse(headers, needs_key=not is_open, writes=writes):
            return failure
        length = headers.get("content-length", "")
        if writes and length.isdecimal() and int(length) > self._limits.max_upload_bytes:
            return too_large(self._limits, int(length))
        if writes and self._is_closing():
            return Failure(503, "the service is shutting down", "shutting_down", retry_after=5)
        return None


class _Body:
    """A request's body as it comes: counted, and not waited for without end."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._n_bytes = 0
        self._is_complete = False

    async def receive(self) -> Message:
        """The next message; :class:`Refused` for too many bytes, or none for too long."""
        if self._is_complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._limits.silent_seconds)
        except asyncio.TimeoutError:
            raise Refused(
                Failure(
                    408, f"nothing of the upload came for {self._limits.silent_seconds:g} s",
                    "upload_timeout",
                )
            ) from None  # fmt: skip
        self._n_bytes += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._n_bytes > self._limits.max_upload_bytes:
            raise Refused(too_large(self._limits, None))
        return message

    async def drain(self, headers: Headers) -> None:
        """Read a little of a body that nobody wants, so that its sender reads the answer."""
        if "expect" in headers:  # it waits for leave to send
            return
        try:
            while not self._is_complete and self._n_bytes < _DRAINED_BYTES:
                await asyncio.wait_for(self.receive(), _DRAIN_SECONDS)
        except (asyncio.TimeoutError, Refused):
            pass


def too_large(limits: Limits, n_bytes: int | None) -> Failure:
    """An upload beyond the limit."""
    most = limits.max_upload_bytes
    found = f"{n_bytes} bytes" if n_bytes is not None else "more"
    return Failure(
        413, f"Maximum content size limit ({most}) exceeded ({found} read): send a shorter file, "
        "or a compressed one (FLAC, Opus), or raise --max-upload-mb", "file_too_large",
        is_final=True,
    )  # fmt: skip


def _path(scope: Scope) -> str:
    """The path below the proxy's, without a slash at its end."""
    path, root = scope["path"], scope.get("root_path", "")
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    return path.rstrip("/") or "/"
