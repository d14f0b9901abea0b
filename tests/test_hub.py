"""Models by Hugging Face id, against a small server on 127.0.0.1 that answers like the hub."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO, ROOT

from ark_asr_onnx.package import hub

COMMIT = "a" * 40


class Hub:
    """Repositories in memory, and a log of the requests."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.log: list[str] = []
        self.cut: set[str] = set()  # files whose first download breaks off half-way
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
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", request.path)
        if match is None or match[1] not in self.files:
            self.refuse(request, "RepoNotFound")
            return
        data = self.files[match[1]].get(match[2])
        if data is None:
            self.refuse(request, "EntryNotFound")
            return
        begin = 0
        if wanted := request.headers.get("Range"):
            begin = int(wanted.removeprefix("bytes=").split("-")[0])
        request.send_response(206 if begin else 200)
        request.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(len(data) - begin))
        request.end_headers()
        if not body:
            return
        part = data[begin:]
        if match[2] in self.cut:
            self.cut.remove(match[2])
            part = part[: len(part) // 2]
        request.wfile.write(part)

    def refuse(self, request: BaseHTTPRequestHandler, code: str) -> None:
        request.send_response(404)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()


@pytest.fixture
def server() -> Iterator[Hub]:
    hub_server = Hub()
    yield hub_server
    hub_server.server.shutdown()
    hub_server.server.server_close()


def package_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in DEMO.iterdir() if path.is_file()}


def transcribe(
    server: Hub, cache: Path, model: str, *options: str
) -> subprocess.CompletedProcess[str]:
    clip = sorted((DEMO / "samples").glob("*.flac"))[0]
    environment = {
        **os.environ, "HF_ENDPOINT": server.endpoint, "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT / "runtime"),
    }  # fmt: skip
    command = [sys.executable, "-m", "ark_asr_onnx", "transcribe", "--model", model, *options]
    return subprocess.run(
        [*command, str(clip)], env=environment, cwd=cache, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_an_id_is_fetched_once_and_then_used_without_the_network(
    server: Hub, tmp_path: Path
) -> None:
    server.files["someone/ark-demo"] = {**package_files(), "huge.safetensors": b"not needed"}
    first = transcribe(server, tmp_path, "someone/ark-demo")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    assert any("audio.onnx.data" in line for line in server.log)
    assert not any("huge" in line or "README" in line for line in server.log)
    server.log.clear()
    again = transcribe(server, tmp_path, "someone/ark-demo")
    assert again.stdout == first.stdout
    assert server.log == []
    offline = transcribe(server, tmp_path, "someone/ark-demo", "--local-files-only")
    assert offline.stdout == first.stdout
    assert server.log == []


def test_a_package_in_a_folder_of_a_repository_is_fetched(server: Hub, tmp_path: Path) -> None:
    server.files["someone/models"] = {f"int8/{k}": v for k, v in package_files().items()}
    result = transcribe(server, tmp_path, "someone/models/int8")
    assert result.returncode == 0, result.stderr


def test_a_download_that_breaks_off_is_resumed(server: Hub, tmp_path: Path) -> None:
    server.files["someone/ark-demo"] = package_files()
    server.cut.add("audio.onnx.data")
    results = [transcribe(server, tmp_path, "someone/ark-demo") for _ in range(2)]
    assert results[-1].returncode == 0, results[-1].stderr
    assert results[-1].stdout.strip()


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("someone/absent", [], "no such repository on the hub"),
        ("someone/empty", [], "has no ark_manifest.json or runtime_manifest.json"),
        ("someone/torn", [], "has no decoder.onnx"),
        ("someone/ark-demo", ["--local-files-only"], "not in the cache"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    server: Hub, tmp_path: Path, model: str, options: list[str], expected: str
) -> None:
    server.files["someone/empty"] = {"model.safetensors": b""}
    server.files["someone/torn"] = {
        k: v for k, v in package_files().items() if not k.startswith("decoder")
    }
    server.files["someone/ark-demo"] = package_files()
    result = transcribe(server, tmp_path, model, *options)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in result.stderr


def test_without_a_network_the_message_says_so(server: Hub, tmp_path: Path) -> None:
    server.server.shutdown()
    server.server.server_close()
    result = transcribe(server, tmp_path, "someone/ark-demo")
    assert result.returncode == 1
    assert "no such folder here, and the hub cannot be reached" in result.stderr


@pytest.mark.parametrize("model", [str(DEMO), ".", "absent", "./a/b", "/no/such", "models/typo"])
def test_folders_and_paths_ask_nobody(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(hub, "_getter", lambda *_, **__: pytest.fail("asked the hub"))
    assert hub.resolve(model) == Path(model)
