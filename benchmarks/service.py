"""The service under load: requests per second, waiting times, memory, and attacks.

    python benchmarks/service.py [--model models/demo] [--speech DIR]
        [--clients 200] [--seconds 60] [--requests 10000] [--attacks]

Starts ``ark-asr serve`` and sends requests over loopback: one client alone, ``--clients`` at the
same time for ``--seconds``, and then the rest of ``--requests``, four at a time, with the server's
resident memory before and after. ``--attacks`` adds uploads without an end, of a gigabyte, and of
hours of audio in a small file. Client and server share the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile  # pyright: ignore[reportMissingTypeStubs]
from outside import add_speech, rows

ROOT = Path(__file__).resolve().parent.parent
BOUNDARY = "ark-asr-benchmark"
_GIGABYTE = 10**9


@dataclass
class Found:
    """The measurements of the clients."""

    seconds: list[float] = field(default_factory=list)  # of answers with a text
    outside: list[float] = field(default_factory=list)  # of these, outside the engine
    statuses: Counter[int] = field(default_factory=Counter)
    elapsed: float = 0.0

    def line(self) -> str:
        """Requests per second, median and 99th percentile."""
        ordered = sorted(self.seconds)
        late = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
        return (
            f"{len(ordered) / self.elapsed:.1f} requests/s, median "
            f"{1000 * statistics.median(ordered):.0f} ms, 99 % within {1000 * late:.0f} ms, "
            f"statuses {dict(self.statuses)}"
        )


class Server:
    """``ark-asr serve`` in a separate process."""

    def __init__(self, model: Path, *options: object) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "ark_asr_onnx", "serve", "--model", model,
                   "--port", self.port, *options]  # fmt: skip
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    async def until_ready(self) -> None:
        """Wait until it answers."""
        while True:
            with contextlib.suppress(OSError):
                async with connection(self.port) as (reader, writer):
                    writer.write(b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n")
                    if (await answer(reader))[0] == 200:
                        return
            await asyncio.sleep(0.1)

    @property
    def megabytes(self) -> float:
        """Resident memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1e3

    @property
    def cpu_seconds(self) -> float:
        """CPU time used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("utf-8").rpartition(")")[2]
        ticks = sum(map(int, fields.split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """Stop it and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.asynccontextmanager
async def connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split()[1]), headers, body


def request(audio: bytes, *fields: tuple[str, str]) -> bytes:
    """A whole POST."""
    parts = [f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
             for name, value in fields]  # fmt: skip
    body = "".join(parts).encode() + (
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    ).encode() + audio + f"\r\n--{BOUNDARY}--\r\n".encode()  # fmt: skip
    return head(len(body)) + body


def head(length: int) -> bytes:
    """The headers of a POST with ``length`` bytes."""
    return (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: localhost\r\n"
        f"content-type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"content-length: {length}\r\n\r\n"
    ).encode()


async def ask(port: int, clips: Iterator[bytes], found: Found, until: float) -> None:
    """A client that sends one request after the other on one connection."""
    while time.perf_counter() < until and (clip := next(clips, None)) is not None:
        async with connection(port) as (reader, writer):
            begin = time.perf_counter()
            writer.write(clip)
            status, headers, body = await answer(reader)
            seconds = time.perf_counter() - begin
        found.statuses[status] += 1
        if status == 200:
            assert json.loads(body)["usage"]["type"] == "tokens"
            found.seconds.append(seconds)
            engine = float(headers["server-timing"].rpartition("=")[2]) / 1000
            found.outside.append(seconds - engine)
        elif status == 429:
            await asyncio.sleep(int(headers["retry-after"]))


async def load(
    port: int, clips: Sequence[bytes], clients: int, seconds: float = 1e9, requests: int = 10**9
) -> Found:
    """Many clients at the same time, for ``seconds`` or until ``requests`` are done."""
    found, begin = Found(), time.perf_counter()
    queue = itertools.islice(itertools.cycle(clips), requests)
    until = begin + seconds
    await asyncio.gather(*(ask(port, queue, found, until) for _ in range(clients)))
    found.elapsed = time.perf_counter() - begin
    return found


async def attacks(server: Server) -> list[str]:
    """Run the attacks; returns lines with their costs."""
    lines: list[str] = []
    before, begin = server.megabytes, time.perf_counter()
    async with connection(server.port) as (reader, writer):
        writer.write(head(_GIGABYTE))
        status, *_ = await answer(reader)
    lines.append(f"a gigabyte, announced: {status} after "
                 f"{1000 * (time.perf_counter() - begin):.0f} ms")  # fmt: skip
    begin = time.perf_counter()
    async with connection(server.port) as (reader, writer):
        announced = head(1).replace(b"content-length: 1", b"transfer-encoding: chunked")
        start = (f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="a"'
                 "\r\n\r\n").encode()  # fmt: skip
        writer.write(announced + f"{len(start):x}\r\n".encode() + start + b"\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < _GIGABYTE:
                writer.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
                await writer.drain()
                sent += 1 << 20
                if reader.at_eof() or len(reader._buffer):  # pyright: ignore
                    break
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            status, *_ = await answer(reader)
    lines.append(f"a gigabyte, in chunks: {status} after {sent / 1e6:.0f} MB")
    bomb = io.BytesIO()
    soundfile.write(bomb, np.zeros(16000 * 3600 * 5, np.int16), 16000, format="FLAC")
    begin = time.perf_counter()
    async with connection(server.port) as (reader, writer):
        writer.write(request(bomb.getvalue()))
        status, *_ = await answer(reader)
    lines.append(f"five hours in {len(bomb.getvalue()) / 1e6:.1f} MB: {status} after "
                 f"{1000 * (time.perf_counter() - begin):.0f} ms")  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(connection(server.port)) for _ in range(40)]
        begin = time.perf_counter()
        for _, writer in slow:
            writer.write(head(1000) + b"--")
        statuses = Counter([(await answer(reader))[0] for reader, _ in slow])
    lines.append(f"40 uploads that stop: {dict(statuses)} after "
                 f"{time.perf_counter() - begin:.1f} s")  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(connection(server.port)) for _ in range(40)]
        begin = time.perf_counter()
        for _, writer in slow:
            writer.write(b"POST /asr HTTP/1.1\r\nx: ")
        for reader, _ in slow:
            with contextlib.suppress(ConnectionError):
                await reader.read()
    lines.append(f"40 heads that stop: ended after {time.perf_counter() - begin:.1f} s")
    lines.append(f"resident memory {before:.0f} MB before, {server.megabytes:.0f} MB after")
    return lines


async def measure(options: argparse.Namespace) -> None:
    """Run all measurements, one after the other."""
    fields = (("max_new_tokens", str(options.tokens)),) if options.tokens else ()
    found = rows(options.speech, "sentences/dev")
    clips = [request(row["path"].read_bytes(), *fields) for row in found]
    server = Server(options.model, "--max-waiting", options.clients, "--threads", 2,
                    "--upload-timeout", 3)  # fmt: skip
    try:
        await server.until_ready()
        await load(server.port, clips, 1, requests=5)
        alone = await load(server.port, clips, 1, requests=options.alone)
        print(f"one client: {alone.line()}; outside the engine, median "
              f"{1000 * statistics.median(alone.outside):.1f} ms")  # fmt: skip
        before = server.megabytes
        many = await load(server.port, clips, options.clients, options.seconds)
        print(f"{options.clients} clients for {options.seconds:g} s: {many.line()}")
        after = server.megabytes
        rest = options.requests - options.alone - sum(many.statuses.values())
        if rest > 0:
            await load(server.port, clips, 4, requests=rest)
        print(f"resident memory: {before:.0f} MB before, {after:.0f} MB after them, "
              f"{server.megabytes:.0f} MB after {max(options.requests, 0)} requests")  # fmt: skip
        await asyncio.sleep(10)
        begin = server.cpu_seconds
        await asyncio.sleep(10)
        print(f"idle: {10 * (server.cpu_seconds - begin):.2f} % of a core")
        if options.attacks:
            for line in await attacks(server):
                print(line)
    finally:
        print(f"exit status {server.stop()}")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, default=ROOT / "models" / "demo")
    add_speech(parser, "sentences/dev")
    add("--clients", type=int, default=200)
    add("--seconds", type=float, default=60.0)
    add("--requests", type=int, default=10_000)
    add("--alone", type=int, default=50)
    add("--tokens", type=int, default=0, help="most of a window, for random weights")
    add("--attacks", action="store_true")
    asyncio.run(measure(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
