"""uvicorn's connections, with time limits where uvicorn would wait for ever.

A client that connects and sends nothing, sends its headers too slowly, or goes on sending after the
answer would hold a connection for ever. The number of connections is limited here, too, because
uvicorn's own answer beyond a limit does not have the shape of this service's errors.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .answers import Failure
from .gate import refusal


class Connection(H11Protocol):
    """A connection of a service; :func:`bounded` sets its limits."""

    silent_seconds = 30.0  # for the headers to arrive, or the rest of a body after its answer
    most = 1000  # connections at the same time
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        super().connection_made(cast("asyncio.Transport", transport))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        is_full = len(self.connections) > self.most
        self.app: Any = _busy if is_full else cast("Any", self.config).loaded_app
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Called by uvicorn."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP, unless an answer has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = Failure(400, f"{msg} It breaks the rules of HTTP/1.1.", "bad_request").body()
            headers = {"content-type": "application/json", "connection": "close"}
            head = h11.Response(
                status_code=400,
                headers=list({**headers, "content-length": str(len(body))}.items()),
                reason=b"Bad Request",
            )
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """Run a timer while the service waits for headers, or for a body that it has answered."""
        theirs = self.conn.their_state
        is_answered = theirs is h11.SEND_BODY and self.conn.our_state is not h11.SEND_RESPONSE
        if not (theirs is h11.IDLE or is_answered):
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.silent_seconds, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bounded(silent_seconds: float, most: int) -> type[Connection]:
    """The class of connections with these limits."""
    bounds = {"silent_seconds": silent_seconds, "most": most}
    return cast("type[Connection]", type("Bounded", (Connection,), bounds))


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer to every request while there are too many connections."""
    failure = Failure(503, "too many connections; try again", "busy", retry_after=5)
    await refusal(failure)(scope, receive, send)
