"""A service in the background: its process, its log, and its pid file."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from .. import files
from ..errors import ServiceError
from .run import Address, listen

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Process:
    """A process; its start time distinguishes it from a later one with the same number."""

    pid: int
    began: str  # start time as the system writes it

    @property
    def is_running(self) -> bool:
        """Whether it still runs; false if its start time is unknown."""
        return bool(self.began) and _began(self.pid) == self.began


@dataclass(frozen=True, slots=True)
class Background:
    """The service of an address, with its files in the run folder."""

    run_dir: Path
    address: Address

    @property
    def pid_file(self) -> Path:
        """The file with its process number, start time and URL."""
        return self.run_dir / f"ark_asr_{self.address.port}.pid"

    @property
    def log_file(self) -> Path:
        """The file with its output; each start appends to it."""
        return self.run_dir / f"ark_asr_{self.address.port}.log"

    def process(self) -> Process | None:
        """The process if it runs; None if not, even if it has left its pid file."""
        try:
            line = self.pid_file.read_text("utf-8").partition("\n")[0]
            pid, _, began = line.strip().partition(" ")
            found = Process(int(pid), began)
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            raise ServiceError(f"{self.pid_file}: cannot be read ({error.strerror})") from error
        return found if found.is_running else None

    @property
    def url(self) -> str:
        """The URL from its pid file; without that file, from this address."""
        try:
            return self.pid_file.read_text("utf-8").splitlines()[1]
        except (OSError, ValueError, IndexError):
            return self.address.url

    def start(self, arguments: Sequence[str], wait_seconds: float) -> Process:
        """Start it and wait until it is ready. Raises :class:`ServiceError` if it fails to be."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            log = self.log_file.open("ab")
        except OSError as error:
            raise ServiceError(f"{self.run_dir}: cannot be written ({error.strerror})") from error
        with log:
            self._check_alone(log)
            begin = log.seek(0, os.SEEK_END)
            child = subprocess.Popen(
                [sys.executable, "-m", "ark_asr_onnx", "serve", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process = self._remember(child)
        until = time.monotonic() + wait_seconds
        while time.monotonic() < until:
            if child.poll() is not None:
                self.pid_file.unlink(missing_ok=True)
                raise ServiceError(f"it ended with status {child.returncode}\n{self._tail(begin)}")
            if self.readiness() == 200:
                return process
            time.sleep(_POLL_SECONDS)
        raise ServiceError(
            f"not ready after {wait_seconds:g} s, process {process.pid} goes on; see "
            f"{self.log_file}\n{self._tail(begin)}"
        )

    def _check_alone(self, log: BinaryIO) -> None:
        """Lock the log, and with it the port, for the service that inherits the lock."""
        is_alone = files.lock(log)
        if (running := self.process()) is not None:
            raise ServiceError(f"already running: process {running.pid}, port {self.address.port}")
        if not is_alone:
            raise ServiceError(
                f"{self.log_file} is in use: another start is at work, or the service runs "
                f"though {self.pid_file.name} is gone"
            )
        listen(self.address).close()  # raises if another service has the port

    def _remember(self, child: subprocess.Popen[bytes]) -> Process:
        """Write the pid file; if that fails, end the process, which no command could end later."""
        process = Process(child.pid, _began(child.pid))
        try:
            if not process.began and child.poll() is None:
                raise ServiceError(
                    "this system does not tell when a process began (neither /proc nor ps): "
                    "run ark-asr serve in the foreground"
                )
            try:
                content = f"{process.pid} {process.began}\n{self.address.url}\n"
                files.write(self.pid_file, content.encode())
            except OSError as error:
                raise ServiceError(
                    f"{self.pid_file}: cannot be written ({error.strerror})"
                ) from error
        except ServiceError:
            child.kill()
            child.wait()
            raise
        return process

    def stop(self, grace_seconds: float) -> bool:
        """Ask it to end, and kill it if it does not; returns whether it was running."""
        process = self.process()
        if process is None:
            self.pid_file.unlink(missing_ok=True)
            return False
        for number in (signal.SIGTERM, signal.SIGKILL):
            _send(process, number)
            until = time.monotonic() + grace_seconds
            while process.is_running and time.monotonic() < until:
                _reap(process.pid)
                time.sleep(_POLL_SECONDS)
            if not process.is_running:
                self.pid_file.unlink(missing_ok=True)
                return True
        raise ServiceError(f"process {process.pid} does not end")

    def readiness(self) -> int | None:
        """The status of ``/ready``; None without an answer."""
        parts = urlsplit(self.url)
        name = parts.hostname or ""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(name, name)
        connection = (
            http.client.HTTPSConnection(host, parts.port, timeout=5, context=_trusting())
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, parts.port, timeout=5)
        )
        try:
            connection.request("GET", "/ready", headers={"host": "localhost"})
            answer = connection.getresponse()
            json.loads(answer.read())
            return answer.status
        except (OSError, ValueError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _tail(self, begin: int) -> str:
        """The last lines of its log after a position."""
        with self.log_file.open("rb") as log:
            log.seek(begin)
            lines = log.read()[-4000:].decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-10:])


def _began(pid: int) -> str:
    """The start time of a process, as the system writes it; empty if it does not run."""
    return _began_by_proc(pid) if Path("/proc/self/stat").exists() else _began_by_ps(pid)


def _began_by_proc(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return ""


def _began_by_ps(pid: int) -> str:
    """The same without ``/proc``; in the C locale and UTC, so that it is the same for all users."""
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        ).stdout.split()
    except OSError:
        return ""
    return "" if not found or found[0].startswith("Z") else "-".join(found[1:])


def _send(process: Process, number: int) -> None:
    if not process.is_running:  # its number may now belong to another process
        return
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise ServiceError(f"process {process.pid} belongs to another user") from error


def _reap(pid: int) -> None:
    """Reap a child that has ended, which would stay a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _trusting() -> ssl.SSLContext:
    """A context that accepts any certificate, for the service on this machine."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
