"""A service in a thread of the test, and plain HTTP to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")
pytest.importorskip("prometheus_client")

import uvicorn

import ark_asr_onnx
from ark_asr_onnx import Transcriber
from ark_asr_onnx.server.app import create_app
from ark_asr_onnx.server.run import Address, configure, listen
from ark_asr_onnx.server.service import Service, ServiceSettings


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error, whose shape is checked on the way."""
        found = self.json
        assert set(found) == {"error", "detail"}
        assert set(found["error"]) == {"message", "type", "param", "code"}
        assert found["detail"] == found["error"]["message"]
        assert "\n" not in found["detail"]
        return found["error"]


@dataclass
class Served:
    """A running service."""

    port: int
    service: Service
    server: uvicorn.Server
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, None, headers)

    def post(self, path: str, fields: Any, /, **headers: str) -> Answer:
        """A form: a mapping or pairs; a value of bytes or a path is a file."""
        body, kind = form(fields)
        return self.request("POST", path, body, {"content-type": kind, **headers})

    def request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        with contextlib.closing(self.connect()) as connection:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, {**self.headers, **given})
            found = connection.getresponse()
            names = {name.lower(): value for name, value in found.getheaders()}
            return Answer(found.status, names, found.read())

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)


def form(fields: Any) -> tuple[bytes, str]:
    """A multipart body and its content type; ``(name, bytes, type)`` says both of a file."""
    boundary = uuid.uuid4().hex
    lines: list[bytes] = []
    for name, value in fields.items() if isinstance(fields, dict) else fields:
        kind: str | None = "application/octet-stream"
        if isinstance(value, Path):
            file_name, content = value.name, value.read_bytes()
        elif isinstance(value, tuple):
            file_name, content, kind = value
        elif isinstance(value, bytes):
            file_name, content = "upload", value
        else:
            file_name, content, kind = None, str(value).encode(), None
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"'
        head += f'; filename="{file_name}"' if file_name is not None else ""
        head += f"\r\ncontent-type: {kind}" if kind else ""
        lines += [head.encode(), b"", content]
    lines += [f"--{boundary}--".encode(), b""]
    return b"\r\n".join(lines), f"multipart/form-data; boundary={boundary}"


@contextlib.contextmanager
def served(
    settings: ServiceSettings | None = None,
    load: Callable[[], Transcriber] | None = None,
    *,
    wait: bool = True,
    root_path: str = "",
) -> Iterator[Served]:
    """A service of the demo, or of what ``load`` gives."""
    settings, address = settings or ServiceSettings(), Address(port=0, root_path=root_path)
    app = create_app(load or (lambda: ark_asr_onnx.load(DEMO, threads=1)), settings)
    server = uvicorn.Server(configure(app, settings.limits, address))
    with listen(address, settings.limits.silent_seconds) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        found = Served(listener.getsockname()[1], app.state.service, server)
        try:
            until = time.monotonic() + 30
            while not server.started or (wait and found.get("/ready").status != 200):
                assert time.monotonic() < until
                time.sleep(0.01)
            yield found
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()
