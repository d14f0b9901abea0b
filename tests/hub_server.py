"""A small server on 127.0.0.1 that answers like the hub of Hugging Face."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40


def commit_of(repository: str) -> str:
    """The commit of a key of :attr:`Hub.files`."""
    return hashlib.sha1(repository.encode()).hexdigest() if "@" in repository else COMMIT


class Hub:
    """Repositories in memory, and a log of the requests."""

    def __init__(self) -> None:
        # "owner/name", its main branch, or "owner/name@revision" -> its files
        self.files: dict[str, dict[str, bytes]] = {}
        self.log: list[str] = []
        self.resumed: list[str] = []  # files of which a rest was asked for
        self.cut: set[str] = set()  # files whose first download breaks off half-way
        self.trouble: str | None = None  # with the large file, or with everything
        self.large = "audio.onnx.data"
        self.sent = 1000  # bytes of it that come, however often it is asked for
        self.list_trouble: str | None = None  # with lists of files
        self.refusal: tuple[str, int] | None = None  # code and status, for all files
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                outer.answer(self, body=False)

            def do_GET(self) -> None:
                outer.answer(self, body=True)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: ARG002
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        self.log.append(f"{request.command} {request.path}")
        if self.trouble in ("html", "garbage", "redirect"):
            self.nonsense(request, body=body)
            return
        listed = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/?]+)\?.*", request.path)
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", request.path) or listed
        if match is None or match[1] not in self.files:
            self.refuse(request, "RepoNotFound")
            return
        key = self.key(match[1], match[2])
        if key is None:
            self.refuse(request, "RevisionNotFound")
            return
        if listed:
            self.list(request, key)
            return
        if self.refusal:
            self.refuse(request, *self.refusal)
            return
        data = self.files[key].get(match[3])
        if data is None:
            self.refuse(request, "EntryNotFound")
            return
        is_bad = body and match[3] == self.large and self.trouble is not None
        if is_bad and str(self.trouble).isdigit():
            self.refuse(request, "", int(str(self.trouble)))
            return
        begin = 0
        if wanted := request.headers.get("Range"):
            begin = int(wanted.removeprefix("bytes=").split("-")[0])
            self.resumed.append(match[3])
        request.send_response(206 if begin else 200)
        request.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        request.send_header("X-Repo-Commit", commit_of(key))
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(len(data) - begin))
        request.end_headers()
        if not body:
            return
        part = data[begin:]
        if match[3] in self.cut:
            self.cut.remove(match[3])
            part = part[: len(part) // 2]
        if is_bad:
            request.wfile.write(data[begin : self.sent])
            request.wfile.flush()
            request.close_connection = True
            if self.trouble == "stalled":
                time.sleep(3)
            if self.trouble == "reset":
                linger = struct.pack("ii", 1, 0)
                request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                request.connection.close()
            return
        request.wfile.write(part)

    def key(self, repository: str, revision: str) -> str | None:
        """The key of a branch, tag or commit."""
        found = (key for key in self.files if key.partition("@")[0] == repository)
        names = ((key, {key.partition("@")[2] or "main", commit_of(key)}) for key in found)
        return next((key for key, known in names if revision in known), None)

    def list(self, request: BaseHTTPRequestHandler, key: str) -> None:
        """All files of a commit, with their sizes."""
        if self.list_trouble == "stalled":
            time.sleep(3)
        if self.list_trouble == "html":
            self.nonsense(request, body=True)
            return
        if self.list_trouble and self.list_trouble.isdigit():
            self.refuse(request, "", int(self.list_trouble))
            return
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": "0",
                "lfs": {
                    "size": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "pointerSize": 1,
                },
            }
            for name, data in self.files[key].items()
        ]
        record = {"id": key.partition("@")[0], "sha": commit_of(key), "siblings": siblings}
        content = json.dumps(record).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def nonsense(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        page = b"<html>Welcome to this network. Please log in.</html>"
        if self.trouble == "garbage":
            request.wfile.write(b"\0\xff\r\n\r\n")
            request.close_connection = True
            return
        request.send_response(302 if self.trouble == "redirect" else 200)
        request.send_header("Location", request.path)
        request.send_header("Content-Length", str(len(page)))
        request.end_headers()
        if body:
            request.wfile.write(page)

    def refuse(self, request: BaseHTTPRequestHandler, code: str, status: int = 404) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def environment(self, cache: Path) -> dict[str, str]:
        """What makes a process ask this server."""
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        }  # fmt: skip


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A server, for as long as it is needed."""
    hub_server = Hub()
    yield hub_server
    hub_server.server.shutdown()
    hub_server.server.server_close()
