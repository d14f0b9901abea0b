"""A service in the foreground: a socket, uvicorn, and a shutdown that lets requests finish."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from .. import Transcriber
from ..errors import ServiceError
from .app import create_app
from .connections import bounded
from .limits import Limits
from .service import Service, ServiceSettings

_TICK_SECONDS = 1.0
_LAST_SECONDS = 2.0  # after the grace period: to answer requests, and again to close connections
_OTHER_CONNECTIONS = 64  # in addition to those of requests: for health, metrics and the page


@dataclass(frozen=True, slots=True)
class Address:
    """Where a service listens."""

    host: str = "127.0.0.1"
    port: int = 8025
    certificate: str | None = None
    key: str | None = None
    root_path: str = ""

    @property
    def url(self) -> str:
        """The URL to show to people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{self.port}{self.root_path}"


def run(
    load: Callable[[], Transcriber],
    settings: ServiceSettings,
    address: Address,
    on_listening: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises :class:`ServiceError` if it cannot begin."""
    listener = listen(address, settings.limits.silent_seconds)
    app = create_app(load, settings)
    try:
        config = configure(app, settings.limits, address)
        config.load()
    except OSError as error:
        listener.close()
        raise ServiceError(f"the certificate cannot be used ({error})") from error
    on_listening(address.url)
    server = _Server(config, app.state.service)
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
    if app.state.service.error is not None:
        raise ServiceError(f"the model could not be loaded: {app.state.service.error}")


def configure(app: Starlette, limits: Limits, address: Address) -> uvicorn.Config:
    """The configuration of uvicorn for an application."""
    return uvicorn.Config(
        app,
        http=bounded(limits.silent_seconds, limits.max_requests + _OTHER_CONNECTIONS),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        root_path=address.root_path,
        timeout_graceful_shutdown=round(_LAST_SECONDS),
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
    )


class _Server(uvicorn.Server):
    """A server that keeps listening while requests finish, so that new ones get an answer."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._n_signals = 0
        self._until = math.inf  # the end of the grace period
        self._end: asyncio.Task[None] | None = None  # closes the service after the grace period
        self._signalled = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Handle SIGHUP as well, unless it is ignored, as under nohup."""
        hangup = getattr(signal, "SIGHUP", None)
        is_main = threading.current_thread() is threading.main_thread()
        with super().capture_signals():
            if not (hangup and is_main) or signal.getsignal(hangup) is signal.SIG_IGN:
                yield
                return
            before = signal.signal(hangup, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(hangup, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let requests finish at the first signal; end at once at the second."""
        self._n_signals += 1
        self._until = time.monotonic() + self._service.settings.limits.grace_seconds
        self._service.is_closing = True
        if self._n_signals > 1:
            super().handle_exit(sig, frame)
        if self._loop is not None:  # wake it from its system call
            self._loop.call_soon_threadsafe(self._signalled.set)

    async def main_loop(self) -> None:
        """Run until the end; unlike uvicorn's loop, it does not wake ten times a second."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            if self._n_signals:
                await asyncio.sleep(0.05)
            else:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._signalled.wait(), _TICK_SECONDS)

    async def on_tick(self, counter: int) -> bool:
        """Called every second, and more often at the end; tick 0 renews the date of answers."""
        late = time.monotonic() - self._until
        if late > 0 and self._end is None:  # its jobs fail, so their requests get answers
            self._end = asyncio.create_task(asyncio.to_thread(self._service.close))
        is_over = not self._service.n_requests or late > _LAST_SECONDS
        self.should_exit |= self._service.error is not None or (self._n_signals > 0 and is_over)
        return await super().on_tick(counter)


def listen(address: Address, silent_seconds: float = 30.0) -> socket.socket:
    """A socket that listens. Raises :class:`ServiceError` if the address cannot be used.

    On Linux, a connection ends if its client accepts no data for ``silent_seconds``.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = min(round(1000 * silent_seconds), 2**31 - 1)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        found.bind((address.host, address.port))
        found.listen(2048)
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
        found.close()
        raise ServiceError(
            f"port {address.port} of {address.host} cannot be used "
            f"({getattr(error, 'strerror', None) or error}); choose another with --port"
        ) from error
    return found
