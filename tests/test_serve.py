"""``ark-asr serve``: a process, its signals, its files and what it says."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile  # pyright: ignore[reportMissingTypeStubs]
from conftest import DEMO, ROOT, Sample
from serving import form

from ark_asr_onnx.audio import sources
from ark_asr_onnx.server import process
from ark_asr_onnx.server.process import Background
from ark_asr_onnx.server.run import Address

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Command:
    """``ark-asr serve`` on a port, with a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.host = folder, free_port(), "127.0.0.1"

    def arguments(self, *more: object) -> list[str]:
        return [
            sys.executable, "-m", "ark_asr_onnx", "serve", "--model", str(DEMO), "--threads", "1",
            "--port", str(self.port), "--run-dir", str(self.folder), *map(str, more),
        ]  # fmt: skip

    def run(self, *more: object) -> tuple[int, str]:
        found = subprocess.run(
            self.arguments(*more), capture_output=True, text=True, check=False, env=environment()
        )
        return found.returncode, found.stdout + found.stderr

    def ask(
        self, path: str, body: bytes | None = None, kind: str = "", **headers: str
    ) -> tuple[int, bytes]:
        with contextlib.closing(
            http.client.HTTPConnection(self.host, self.port, timeout=60)
        ) as connection:
            given = {"content-type": kind} if body is not None else {}
            method = "POST" if body is not None else "GET"
            connection.request(method, path, body, {**given, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def is_ready(self) -> bool:
        try:
            return self.ask("/ready")[0] == 200
        except OSError:
            return False


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "runtime"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    found = Command(tmp_path / "runs")
    yield found
    found.run("stop")


def wait_until(condition: object, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # pyright: ignore
        assert time.monotonic() < until
        time.sleep(0.05)


def test_start_status_stop(command: Command, samples: list[Sample]) -> None:
    assert command.run("status") == (3, "not running\n")
    assert command.run("stop") == (0, "was not running\n")
    status, said = command.run("--alias", "start", "start")
    assert (status, f"http://127.0.0.1:{command.port}" in said) == (0, True)
    assert b'"start"' in command.ask("/v1/models")[1]
    status, said = command.run("status")
    assert (status, ", ready, since 20" in said) == (0, True)
    body, kind = form({"file": samples[0].path})
    assert samples[0].text.encode() in command.ask("/asr", body, kind)[1]
    status, said = command.run("start")
    assert (status, said.startswith("error: already running: process ")) == (3, True)
    assert command.run("restart")[0] == 0
    assert command.run("stop") == (0, "stopped\n")
    assert command.run("stop") == (0, "was not running\n")
    assert [p.suffix for p in command.folder.iterdir()] == [".log"]


def test_a_stale_file_is_no_process(command: Command) -> None:
    command.folder.mkdir()
    pid_file = command.folder / f"ark_asr_{command.port}.pid"
    here = os.getpid()
    for content in (f"{here} another", f"{here}", "999999999 1", "999999999", "damaged", ""):
        pid_file.write_text(content)
        assert command.run("status")[0] == 3
    assert command.run("stop") == (0, "was not running\n")  # and this process goes on
    assert not pid_file.exists()


@pytest.mark.parametrize("content", ["-1", "0", "-1 1", "\0", "1" * 5000])
def test_a_file_of_many_processes_is_of_none(tmp_path: Path, content: str) -> None:
    background = Background(tmp_path, Address())
    background.pid_file.write_text(content)
    assert background.process() is None


def test_when_a_process_began_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.getpid()
    found = process._began_by_ps(here)
    assert re.fullmatch(r"\w+-\w+-\d+-\d+:\d+:\d+-\d+", found)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert process._began_by_ps(here) == found
    assert process._began_by_ps(999999999) == ""
    monkeypatch.setenv("PATH", "")
    assert process._began_by_ps(here) == ""


def test_where_a_service_listens_is_remembered(command: Command) -> None:
    command.host = "127.0.0.2"
    assert command.run("start", "--host", command.host)[0] == 0
    status, said = command.run("status")
    assert (status, f"http://127.0.0.2:{command.port}, ready" in said) == (0, True)
    assert command.run("stop") == (0, "stopped\n")


def test_two_starts_at_once(command: Command) -> None:
    both = [
        subprocess.Popen(command.arguments("start"), env=environment(), stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    assert sorted(one.wait(60) for one in both) == [0, 3]
    said = b"".join(one.communicate()[1] for one in both)
    assert b"is in use: another start" in said or b"already running" in said
    assert command.run("status")[0] == 0
    assert command.run("stop") == (0, "stopped\n")
    assert command.run("status")[0] == 3
    assert not command.is_ready()


def test_a_service_of_another_folder_is_not_taken_for_this_one(
    command: Command, tmp_path: Path
) -> None:
    with running(command):
        status, said = command.run("start", "--run-dir", tmp_path / "other")
        assert (status, said.count("\n")) == (3, 1)
        assert "cannot be used" in said


def test_a_process_that_cannot_be_remembered_is_ended(command: Command) -> None:
    command.folder.mkdir()
    (command.folder / f"ark_asr_{command.port}.pid").symlink_to(command.folder / "no" / "where")
    status, said = command.run("start")
    assert (status, said.count("\n")) == (3, 1)
    assert "cannot be written" in said
    with pytest.raises(ConnectionRefusedError):
        command.ask("/health")
    (command.folder / f"ark_asr_{command.port}.pid").unlink()


def test_a_port_in_use(command: Command) -> None:
    with socket.create_server(("127.0.0.1", command.port)):
        status, said = command.run()
        assert (status, said.count("\n")) == (3, 1)
        assert f"error: port {command.port} of 127.0.0.1 cannot be used" in said
        status, said = command.run("start", "--wait", 20)
        assert status == 3
        assert "cannot be used" in said


def test_a_model_that_is_not_there_is_told_before_anything_listens(command: Command) -> None:
    status, said = command.run("start", "--model", command.folder / "none", "--wait", 20)
    assert status == 3
    assert "does not exist" in said
    assert command.run("status")[0] == 3


@pytest.fixture(scope="module")
def long(samples: list[Sample]) -> bytes:
    """Minutes of speech."""
    once = [np.append(sources.read(s.path), np.zeros(16000, np.float32)) for s in samples]
    data = io.BytesIO()
    soundfile.write(data, np.tile(np.concatenate(once), 30), 16000, format="FLAC")
    return data.getvalue()


@contextlib.contextmanager
def running(
    command: Command, *more: object, host: str = "127.0.0.1", quiet: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A service in the foreground, ready; what it says is kept unless it is to be quiet."""
    command.host = host
    here = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's way would be inherited
    process = subprocess.Popen(
        command.arguments(*more), env=environment(), text=True,
        stderr=subprocess.DEVNULL if quiet else subprocess.PIPE,
    )  # fmt: skip
    signal.signal(signal.SIGHUP, here)
    try:
        wait_until(command.is_ready)
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def asked(command: Command, body: bytes, kind: str) -> Iterator[http.client.HTTPConnection]:
    """A transcription that was asked for."""
    connection = http.client.HTTPConnection("127.0.0.1", command.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/audio/transcriptions", body, {"content-type": kind})
        yield connection


def test_the_end_lets_requests_finish(command: Command, samples: list[Sample], long: bytes) -> None:
    with (
        running(command) as process,
        asked(command, *form({"file": long, "stream": "true"})) as connection,
    ):
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: ")  # it is in the middle of the work
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: command.ask("/ready")[0] == 503)
        small, small_kind = form({"file": samples[0].path})
        status, said = command.ask("/asr", small, small_kind)
        assert (status, b"shutting_down" in said) == (503, True)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        assert process.wait(30) == 0


def test_the_end_of_the_grace_is_told(command: Command, long: bytes) -> None:
    with (
        running(command, "--grace", 1) as process,
        asked(command, *form({"file": long, "stream": "true"})) as stream,
        asked(command, *form({"file": long})) as plain,
    ):
        events = stream.getresponse()
        assert events.readline().startswith(b"data: ")
        process.send_signal(signal.SIGTERM)
        assert b'"code":"shutting_down"' in events.read().splitlines()[-2]
        answer = plain.getresponse()
        assert (answer.status, answer.getheader("retry-after")) == (503, "5")
        assert b"shutting_down" in answer.read()
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_service_without_work_ends_at_once(command: Command, number: int) -> None:
    with running(command) as process:
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_service_that_is_killed_leaves_nothing(
    command: Command, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary := tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    assert command.run("start")[0] == 0
    pid = int((command.folder / f"ark_asr_{command.port}.pid").read_text().split()[0])
    body, _ = form({"file": b"RIFF" + bytes(3_000_000)})
    with socket.create_connection(("127.0.0.1", command.port)) as client:
        head = f"POST /asr HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        kind = "content-type: multipart/form-data; boundary=" + body[2:34].decode()
        client.sendall(f"{head}{kind}\r\n\r\n".encode() + body[:-100])
        time.sleep(0.3)  # it is on disk by now
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: command.run("status")[0] == 3)
    assert list(temporary.iterdir()) == []
    assert command.run("start")[0] == 0  # the stale file is no hindrance
    found, kind = form({"file": samples[0].path})
    assert command.ask("/asr", found, kind)[0] == 200


def test_upstreams_environment(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARK_ASR_MODEL_PATH", str(command.folder / "nowhere"))
    monkeypatch.delenv("ARK_ASR_MODEL", raising=False)
    found = subprocess.run(
        [sys.executable, "-m", "ark_asr_onnx", "serve", "--port", str(command.port)],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert found.returncode == 3
    assert "nowhere does not exist" in found.stderr


def test_usage_that_makes_no_sense(command: Command, tmp_path: Path) -> None:
    (empty := tmp_path / "keys").write_text("\n")
    (strange := tmp_path / "strange").write_text("schlüssel\n", "utf-8")
    for options, what in (
        (("--api-key-file", empty), "holds no key"),
        (("--api-key-file", strange), "other characters than ASCII"),
        (("--api-key-file", tmp_path / "no"), "cannot be read"),
        (("--port", 0), "1 to 65535"),
        (("--port", "x"), "invalid port value"),
        (("--ssl-keyfile", empty), "needs --ssl-certfile"),
        (("--cors-origin", "example.org"), "is no origin, such as https://example.org"),
        (("--cors-origin", "https://example.org/page"), "is no origin"),
        (("--allowed-host", "["), "is no name"),
        (("--hotwords", "go,<|user|>"), "hotwords has '<|user|>', which this model may not write"),
    ):
        for action in ((), ("start",)):
            status, said = command.run(*options, *action)
            assert status == 2
            assert f"error: {'argument ' * ('port' in what or '65535' in what)}" in said
            assert what in said.splitlines()[-1]
    assert not list(command.folder.glob("*"))


def test_addresses_as_people_write_them(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (keys := tmp_path / "keys").write_text("\ufeffone\r\ntwo\r\n", "utf-8")
    monkeypatch.setenv("ARK_ASR_ALLOWED_HOST", "ASR.example.org:8443, other.example")
    monkeypatch.setenv("ARK_ASR_ALIAS", "mine")
    monkeypatch.setenv("ARK_ASR_NO_UI", "1")
    options = ("--cors-origin", "https://Page.example/", "--root-path", "speech/",
               "--api-key-file", keys, "--host", "127.0.0.2")  # fmt: skip
    with running(command, *options, host="127.0.0.2"):
        assert command.ask("/")[0] == 404
        for host, status in (("asr.EXAMPLE.org", 200), ("x.example", 403), ("localhost", 200)):
            assert command.ask("/health", host=host)[0] == status
        assert command.ask("/v1/models", authorization="Bearer one")[1].count(b'"id":"mine"') == 1
        assert command.ask("/asr", b"", origin="https://page.example")[0] == 401
        assert command.ask("/asr", b"", origin="https://x.example")[0] == 403


def test_listening_for_everybody_without_a_key_is_told(command: Command) -> None:
    process = subprocess.Popen(
        [*command.arguments(), "--host", "0.0.0.0"], env=environment(), stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        wait_until(command.is_ready)
    finally:
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert "is open to everybody who can reach it" in said
