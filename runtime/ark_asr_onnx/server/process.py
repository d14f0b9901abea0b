"""A service in the background: its process, its log, and the file that says which it is."""

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

from ..errors import ServiceError

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told apart from a later one with the same number by when it began."""

    pid: int
    began: str  # as the system says it

    @property
    def is_running(self) -> bool:
        """Whether it is still there."""
        return _began(self.pid) == self.began


@dataclass(frozen=True, slots=True)
class Background:
    """The service of a port, as the run folder knows it."""

    run_dir: Path
    host: str
    port: int
    uses_tls: bool = False

    @property
    def pid_file(self) -> Path:
        """Holds its number, and when it began."""
        return self.run_dir / f"ark_asr_{self.port}.pid"

    @property
    def log_file(self) -> Path:
        """What it says; each start appends."""
        return self.run_dir / f"ark_asr_{self.port}.log"

    def process(self) -> Process | None:
        """The process, if it runs; a file of one that is gone counts as none."""
        try:
            pid, _, began = self.pid_file.read_text("utf-8").strip().partition(" ")
            found = Process(int(pid), began)
        except (OSError, ValueError):
            return None
        return found if found.is_running else None

    def start(self, arguments: Sequence[str], wait_seconds: float) -> Process:
        """Start it and wait until it is ready; :class:`ServiceError` if it does not get there."""
        if (running := self.process()) is not None:
            raise ServiceError(f"already running: process {running.pid}, port {self.port}")
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            log = self.log_file.open("ab")
        except OSError as error:
            raise ServiceError(f"{self.run_dir}: cannot be written ({error.strerror})") from error
        with log:
            begin = log.seek(0, os.SEEK_END)
            child = subprocess.Popen(
                [sys.executable, "-m", "ark_asr_onnx", "serve", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process = Process(child.pid, _began(child.pid))
        _write(self.pid_file, f"{process.pid} {process.began}\n")
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

    def stop(self, grace_seconds: float) -> bool:
        """Let it end, and end it when it does not; whether there was one."""
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
                break
        self.pid_file.unlink(missing_ok=True)
        return True

    def readiness(self) -> int | None:
        """The status of ``/ready``; None when nobody answers."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        if self.uses_tls:
            connection = http.client.HTTPSConnection(
                host, self.port, timeout=5, context=_trusting()
            )
        else:
            connection = http.client.HTTPConnection(host, self.port, timeout=5)
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
        """The last lines of what it said since a place in its log."""
        with self.log_file.open("rb") as log:
            log.seek(begin)
            lines = log.read()[-4000:].decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-10:])


def _began(pid: int) -> str:
    """When a process began, in the system's own words; empty when it is not there."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return ""
    found = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return "" if found.startswith("Z") else "-".join(found.split()[1:])


def _send(process: Process, number: int) -> None:
    if process.is_running:  # never to another that has its number now
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _reap(pid: int) -> None:
    """Of a child of ours that has ended, which else stays a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def _trusting() -> ssl.SSLContext:
    """Of this machine's own service, whatever its certificate says."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
