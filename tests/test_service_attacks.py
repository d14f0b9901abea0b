"""What attackers send: every one gets an error in our shape, and the next client its text."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile  # pyright: ignore[reportMissingTypeStubs]
from conftest import Sample
from serving import Answer, Served, form, served
from test_serve import Command, running
from test_webm import cluster, file, track_entry

from ark_asr_onnx.audio import webm

# Starlette leaves the file of a form that was cut off to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
OPENAI = "/v1/audio/transcriptions"
MULTIPART = b"multipart/form-data; boundary=x"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as found:
        yield found


def part(disposition: bytes, content: bytes, *more: bytes) -> bytes:
    head = b"\r\n".join([b"content-disposition: " + disposition, *more])
    return b"--x\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def request(kind: bytes, body: bytes, *more: bytes) -> bytes:
    """A whole request, as raw as it comes."""
    lines = [b"POST /v1/audio/transcriptions HTTP/1.1", b"host: localhost"]
    lines += [b"content-type: " + kind] * bool(kind)
    lines += more or [b"content-length: %d" % len(body)]
    return b"\r\n".join([*lines, b"", body])


def chunked(kind: bytes, body: bytes) -> bytes:
    return request(kind, body, b"transfer-encoding: chunked")


AUDIO = part(b'form-data; name="file"; filename="a.wav"', b"RIFF")
END = b"--x--\r\n"

ATTACKS = {
    # Malformed multipart.
    "nothing": (400, request(MULTIPART, b"")),
    "no boundary in it": (400, request(MULTIPART, b"\0\xff" * 1000)),
    "only its end": (400, request(MULTIPART, END)),
    "no end": (400, request(MULTIPART, AUDIO)),
    "cut in a head": (400, request(MULTIPART, AUDIO[:30])),
    "another boundary": (400, request(MULTIPART, AUDIO.replace(b"--x", b"--y") + END)),
    "line feeds alone": (400, request(MULTIPART, (AUDIO + END).replace(b"\r\n", b"\n"))),
    "no disposition": (400, request(MULTIPART, b"--x\r\na: b\r\n\r\nc\r\n" + END)),
    "an empty disposition": (400, request(MULTIPART, part(b"", b"a") + END)),
    "a head of zeros": (400, request(MULTIPART, b"--x\r\n" + bytes(100) + b"\r\n\r\na\r\n" + END)),
    "no name": (400, request(MULTIPART, part(b'form-data; filename="a"', b"a") + END)),
    "zeros in names": (
        400, request(MULTIPART, part(b'form-data; name="file\0"; filename="a\0"', b"a") + END)
    ),
    "a name in an alphabet that is none": (
        400, request(MULTIPART, part(b"form-data; name*=undefined''x", b"a") + END)
    ),
    "a head without end": (400, request(MULTIPART, b"--x\r\na: " + b"b" * 100_000)),
    "many heads": (400, request(MULTIPART, b"--x\r\n" + b"a: b\r\n" * 10_000)),
    "many parts": (400, request(MULTIPART, part(b'form-data; name="a"', b"") * 10_000 + END)),
    "many files": (400, request(MULTIPART, AUDIO * 10_000 + END)),
    "a huge field": (
        400, request(MULTIPART, part(b'form-data; name="prompt"', b"a" * 5_000_000) + END)
    ),
    "a huge name": (400, request(MULTIPART, part(b'form-data; name="%b"' % (b"a" * 60_000), b""))),
    "text after the end": (400, request(MULTIPART, AUDIO + END + b"a" * 1_000_000)),
    "text before the beginning": (400, request(MULTIPART, b"a" * 1_000_000 + AUDIO + END)),
    # Other content types.
    "no type": (415, request(b"", b"{}")),
    "JSON": (415, request(b"application/json", b'{"file": "x"}')),
    "a form of another kind": (415, request(b"application/x-www-form-urlencoded", b"file=x")),
    "audio as it is": (415, request(b"audio/wav", b"RIFF")),
    "almost the type": (415, request(b"multipart/form-datax; boundary=x", AUDIO + END)),
    "a mixture": (415, request(b"multipart/mixed; boundary=x", AUDIO + END)),
    "two types": (400, request(MULTIPART, AUDIO + END, b"content-type: text/plain",
                               b"content-length: %d" % len(AUDIO + END))),
    "no boundary": (400, request(b"multipart/form-data", AUDIO + END)),
    "an empty boundary": (400, request(b"multipart/form-data; boundary=", AUDIO + END)),
    "half a boundary": (400, request(b'multipart/form-data; boundary="', AUDIO + END)),
    "a long boundary": (400, request(MULTIPART + b"x" * 5000, AUDIO + END)),
    "a boundary that is no text": (400, request(b"multipart/form-data; boundary=\xff", AUDIO)),
    **{
        f"a charset {name}": (
            400,
            request(
                MULTIPART + b"; charset=" + name.encode(),
                part(b'form-data; name="model"', b"\xff+2AA-\\x") + END,
            ),
        )
        for name in ("undefined", "idna", "utf-7", "utf-16", "unicode_escape", "base64", "none")
    },
    # Lengths that are wrong, and what is no HTTP at all.
    "a negative length": (400, request(MULTIPART, b"", b"content-length: -1")),
    "a length of letters": (400, request(MULTIPART, b"", b"content-length: abc")),
    "a length beyond numbers": (400, request(MULTIPART, b"", b"content-length: " + b"9" * 50)),
    "two lengths": (400, request(MULTIPART, b"ab", b"content-length: 1", b"content-length: 2")),
    "a length beyond the limit": (413, request(MULTIPART, b"", b"content-length: 999999999999")),
    "a chunk of no size": (400, chunked(MULTIPART, b"zz\r\n")),
    "a chunk of negative size": (400, chunked(MULTIPART, b"-1\r\n")),
    "a chunk size without end": (400, chunked(MULTIPART, b"1" * 100_000)),
    "another coding": (400, request(MULTIPART, b"", b"transfer-encoding: gzip")),
    "a squeezed body": (400, request(MULTIPART, b"\x1f\x8b\x08" + bytes(100),
                                     b"content-encoding: gzip", b"content-length: 103")),
    "a head of one line without end": (400, b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "zeros": (400, bytes(1000)),
    "a method in small letters": (405, b"post /asr HTTP/1.1\r\nhost: localhost\r\n\r\n"),
    "a path of zeros": (404, b"GET /%00%ff%0d%0a HTTP/1.1\r\nhost: localhost\r\n\r\n"),
}  # fmt: skip


def raw(port: int, sent: bytes) -> Answer:
    """What comes back, as far as it comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        with contextlib.suppress(ConnectionError):  # refused before all was sent
            client.sendall(sent)
        found = b""
        while b"\r\n\r\n" not in found:
            found += client.recv(65_536)
        head, _, body = found.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        while len(body) < int(headers["content-length"]):
            body += client.recv(65_536)
    return Answer(int(status.split()[1]), headers, body)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_damage_is_a_clear_refusal(
    server: Served, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, sent = ATTACKS[name]
    found = raw(server.port, sent)
    assert found.status == status
    assert found.headers["content-type"] == "application/json"
    assert found.error["type"] == "invalid_request_error"
    assert len(found.error["message"]) < 400
    assert not [record for record in caplog.records if record.exc_info]


def test_the_next_client_has_its_text(server: Served, samples: list[Sample]) -> None:
    for _, sent in ATTACKS.values():
        client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        with client, contextlib.suppress(ConnectionError):
            client.sendall(sent)
    assert server.post(OPENAI, {"file": samples[0].path}).json["text"] == samples[0].text
    assert server.get("/ready").json["active"] == 0


# What is small on the wire and large in memory ---------------------------------------------------

MEGABYTE = 1 << 20
RATE = 16000


def flac_of_hours(length_known: bool) -> bytes:
    """Two hours of silence: 460 MB of samples."""
    data = io.BytesIO()
    with soundfile.SoundFile(data, "w", RATE, 1, format="FLAC") as stream:
        for _ in range(120):
            stream.write(np.zeros(60 * RATE, np.int16))
    found = bytearray(data.getvalue())
    if not length_known:  # 36 bits of its first block: 0 says that nobody knows
        found[21] &= 0xF0
        found[22:26] = bytes(4)
    return bytes(found)


def webm_of_hours() -> bytes:
    """Four hours of pauses, 120 ms each."""
    head = b"OpusHead" + struct.pack("<BBHIHB", 1, 1, 312, 48000, 0, 0)
    pause = b"\xa3\x86\x81\0\0\x80\x9b\x06"  # a block of one packet of six empty frames
    return file(track_entry(head), cluster(pause * 120_000, live=True), live=True)


def wav_of_channels() -> bytes:
    """18 MB: a second of 1,024 channels would be 4 GB."""
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 18_000_036, b"WAVE", b"fmt ", 16, 1, 1024,
                       1_000_000, 1_024_000_000, 1024, 8, b"data", 18_000_000)  # fmt: skip
    return head + b"\x80" * 18_000_000


BOMBS: dict[str, Callable[[], bytes]] = {
    "FLAC": lambda: flac_of_hours(True),
    "FLAC of unknown length": lambda: flac_of_hours(False),
    "WebM": webm_of_hours,
    "Ogg": lambda: b"".join(webm.to_ogg(io.BytesIO(webm_of_hours()), "x", print)),
    "WebM of tracks": lambda: file(b"\xae\x80" * 400_000, b""),
    "WAV of channels": wav_of_channels,
}


class Guarded(Command):
    """A service with small limits, whose memory is looked at."""

    pid: int

    def megabytes(self, what: str) -> float:
        """``VmRSS``: resident now; ``VmHWM``: the most since :meth:`forget`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(rf"{what}:\s+(\d+)", status)[0]) / 1024

    @contextlib.contextmanager
    def takes_less_than(self, megabytes: float) -> Iterator[None]:
        """Of memory, at any moment of what is done within."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # forget the most so far
        before = self.megabytes("VmRSS")
        yield
        assert self.megabytes("VmHWM") - before < megabytes

    def transcribes(self, sample: Sample) -> bool:
        status, body = self.ask(OPENAI, *form({"file": sample.path}))
        return (status, json.loads(body)["text"]) == (200, sample.text)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> Iterator[Guarded]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("looks at memory as Linux tells it")
    command = Guarded(tmp_path_factory.mktemp("guarded"))
    limits = ("--max-audio-seconds", 60, "--max-upload-mb", 20, "--max-active", 4)
    with running(command, *limits, quiet=True) as process:
        command.pid = process.pid
        for sample in samples:
            assert command.transcribes(sample)
        yield command


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_no_memory(guarded: Guarded, samples: list[Sample], name: str) -> None:
    bomb = BOMBS[name]()
    assert len(bomb) < 19_000_000
    with guarded.takes_less_than(100):
        for fields in ({}, {"stream": "true"}, {"begin_time": 5, "end_time": 30}):
            status, body = guarded.ask(OPENAI, *form({"file": bomb, **fields}))
            if "end_time" in fields or "WAV" in name:  # which is 18 ms
                assert status in (200, 400)
            else:
                assert status in (400, 413)
                assert json.loads(body)["error"]["code"] in ("audio_too_long", "invalid_audio")
    assert guarded.transcribes(samples[0])


def test_four_bombs_at_once_take_no_memory(guarded: Guarded, samples: list[Sample]) -> None:
    body, kind = form({"file": BOMBS["FLAC of unknown length"]()})
    with guarded.takes_less_than(150), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: guarded.ask(OPENAI, body, kind)[0], range(4)))
    assert found == [413] * 4
    assert guarded.transcribes(samples[0])


@pytest.mark.parametrize(
    "head", [b'name="file"; filename="a"', b'name="prompt"', b'name="file"; filename=""\r\na: b']
)
def test_uploads_without_end_take_no_memory(
    guarded: Guarded, samples: list[Sample], head: bytes
) -> None:
    opening = b"--x\r\ncontent-disposition: form-data; " + head + b"\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (MEGABYTE, bytes(MEGABYTE))
    with (
        guarded.takes_less_than(60),
        socket.create_connection(("127.0.0.1", guarded.port), timeout=20) as client,
    ):
        client.sendall(chunked(MULTIPART, b"%x\r\n%b\r\n" % (len(opening), opening)))
        answer = b""
        for _ in range(200):  # ten times what is allowed
            with contextlib.suppress(ConnectionError):
                client.sendall(chunk)
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                answer = client.recv(65_536)
                break
            client.settimeout(20)
    assert answer[:12] in (b"HTTP/1.1 413", b"HTTP/1.1 400")
    assert guarded.transcribes(samples[0])


def test_a_claimed_length_takes_no_memory(guarded: Guarded, samples: list[Sample]) -> None:
    with guarded.takes_less_than(30):
        claim = request(MULTIPART, b"", b"content-length: 999999999999")
        assert raw(guarded.port, claim).status == 413
    assert guarded.transcribes(samples[0])
