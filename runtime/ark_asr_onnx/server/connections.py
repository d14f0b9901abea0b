"""Connections: uvicorn's, with an end for what it would wait for without end.

Who connects and says nothing, or sends a head in drops, or goes on sending what was answered
already, would hold one for ever; of those there is a limit, which uvicorn's own answer to does not
tell in our shape.
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
    """A connection of a service; :func:`bounded` gives it its bounds."""

    silent_seconds = 30.0  # for a head to be whole, or for the rest of a body that nobody wants
    most = 1000  # connections at once
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio calls it."""
        super().connection_made(cast("asyncio.Transport", transport))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it."""
        is_full = len(self.connections) > self.most
        self.app: Any = _busy if is_full else cast("Any", self.config).loaded_app
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """As uvicorn calls it."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio calls it."""
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless an answer is on its way already."""
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
        """Have a timer run while it is the client's turn, and nothing useful can come of it."""
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
    """Connections with these bounds."""
    bounds = {"silent_seconds": silent_seconds, "most": most}
    return cast("type[Connection]", type("Bounded", (Connection,), bounds))


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer to everybody while there are too many."""
    failure = Failure(503, "too many connections; try again", "busy", retry_after=5)
    await refusal(failure)(scope, receive, send)
