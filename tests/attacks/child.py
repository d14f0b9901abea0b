"""What runs in a child: each case for real, and what came of it as plain data.

Standard output and error are files, so that whatever anybody writes to them is seen.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import io
import json
import logging
import os
import re
import select
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .seeds import DEMO, ROOT

Found = dict[str, Any]  # plain data, see _watched
_OPTIONS: dict[str, Any] = {"max_new_tokens": 8}  # the texts do not matter, the time does
_SAMPLE = DEMO / "samples" / "an211-ftmj-b.flac"
_ANSWER_SECONDS = 20.0
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(kind: str, connection: Connection, output: str) -> None:
    """Answer cases until there are no more."""
    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    sys.path[:0] = [str(ROOT / name) for name in ("runtime", "export", "benchmarks", "tests")]
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # where do you hang?
    run = _RUNNERS[kind]()
    log = _Log()
    connection.send({"idle": megabytes("VmRSS")})
    with contextlib.suppress(EOFError):
        while True:
            folder, facts = connection.recv()
            log.told.clear()
            found = run(Path(folder), facts, lambda call: _watched(call, output))
            connection.send({"ways": found, "log": list(log.told)})
    os._exit(0)  # nothing of this process is worth an orderly end


def megabytes(name: str) -> float:
    """Resident memory of this process: now (``VmRSS``) or at most (``VmHWM``)."""
    found = re.search(rf"^{name}:\s+(\d+)", _STATUS.read_text("utf-8"), re.MULTILINE)
    return int(found[1]) / 1e3 if found else 0.0


class _Log(logging.Handler):
    """Tracebacks that went to a log."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what has a traceback."""
        if record.exc_info and record.exc_info[1] is not None:
            self.told.append(_frame(record.exc_info[1]))


def _watched(call: Callable[[], Found], output: str) -> Found:
    """What a call gives: outcome and message, and what it took."""
    from ark_asr_onnx import ArkError

    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # forget the peak so far
    before, n_written = megabytes("VmRSS"), Path(output).stat().st_size
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = call()
        except ArkError as error:
            found = {"outcome": "error", "message": str(error)}
        except Exception as error:
            trace = "".join(traceback.format_exception(error))[-3000:]
            found = {"outcome": "foreign", "message": _frame(error), "trace": trace}
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with Path(output).open("rb") as file:
        file.seek(n_written)
        written = file.read(2000).decode("utf-8", "replace")
    return {
        "warnings": [_kind(str(w.message)) for w in told if not _is_ours_to_ignore(w)],
        **found,
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - begin_cpu,
        "megabytes": megabytes("VmHWM") - before,
        "written": written,
    }


def _is_ours_to_ignore(warning: warnings.WarningMessage) -> bool:
    return issubclass(warning.category, (ResourceWarning, DeprecationWarning))


def _kind(message: str) -> str:
    """A warning without the name of what it is about, and without numbers."""
    return re.sub(r"\d+(\.\d+)?", "N", message.partition(": ")[2] or message)


def _frame(error: BaseException) -> str:
    """An exception's type and message, and where in the project it came from."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "ark_asr_onnx" in f.filename]
    where = f" in {Path(ours[-1].filename).name}:{ours[-1].name}" if ours else ""
    return f"{type(error).__name__}{where}: {str(error)[:200]}"


Watch = Callable[[Callable[[], Found]], Found]


class _Audio:
    """A file by several ways."""

    def __init__(self) -> None:
        import ark_asr_onnx
        from ark_asr_onnx.audio import quiet

        self._options = ark_asr_onnx.Options(**_OPTIONS)
        self._split = ark_asr_onnx.Splitting(split_short=True)
        self._transcriber = ark_asr_onnx.load(DEMO, threads=1)
        # This process is its own, as that of a command is: libraries need not print into it.
        self._kept = contextlib.ExitStack()
        self._kept.enter_context(quiet.allowed())
        self._heard(_SAMPLE)

    def __call__(self, folder: Path, facts: Found, watch: Watch) -> dict[str, Found]:
        path = next(folder.glob("audio*"))
        found = {way: watch(functools.partial(self._by, way, path)) for way in facts["ways"]}
        if "stdin" in found and found["stdin"].get("text") != found["path"].get("text"):
            # It is cut at pauses, however short it is.
            found["split"] = watch(lambda: self._heard(path, splitting=self._split))
        return found

    def _by(self, way: str, path: Path) -> Found:
        if way == "stdin":
            return _by_command(path)
        with contextlib.ExitStack() as open_files:
            if way == "bytes":
                return self._heard(path.read_bytes())
            if way == "stream":
                return self._heard(io.BytesIO(path.read_bytes()))
            if way == "pipe":
                return self._heard(open_files.enter_context(_pipe(path.read_bytes())))
            return self._heard(path)

    def _heard(self, source: Any, **how: Any) -> Found:
        transcript = self._transcriber.transcribe(source, options=self._options, **how)
        found: Found = {
            "outcome": "transcript",
            "text": transcript.text,
            "duration": transcript.duration,
        }
        if transcript.warnings:
            found["warnings"] = [warning.kind for warning in transcript.warnings]
        return found


@contextlib.contextmanager
def _pipe(content: bytes) -> Generator[io.BufferedReader]:
    """A stream that cannot go back."""
    reading, writing = os.pipe()

    def fill() -> None:
        with contextlib.suppress(OSError), os.fdopen(writing, "wb") as stream:
            stream.write(content)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        with os.fdopen(reading, "rb") as stream:
            yield stream
    finally:
        thread.join()


def _by_command(path: Path) -> Found:
    """``ark-asr transcribe -``, in this process."""
    from ark_asr_onnx.commands.cli import main as command

    out, err = io.StringIO(), io.StringIO()
    with _pipe(path.read_bytes()) as stream, contextlib.ExitStack() as replaced:
        replaced.enter_context(contextlib.redirect_stdout(out))
        replaced.enter_context(contextlib.redirect_stderr(err))
        before, sys.stdin = sys.stdin, io.TextIOWrapper(stream)
        try:
            n_tokens = _OPTIONS["max_new_tokens"]
            status = command(["transcribe", "-", "-f", "jsonl", "--model", str(DEMO),
                              "--threads", "1", "--max-new-tokens", str(n_tokens)])  # fmt: skip
        finally:
            sys.stdin.detach()
            sys.stdin = before
    lines = [line for line in err.getvalue().splitlines() if line]
    if status:
        return {"outcome": "error", "message": lines[-1] if lines else f"status {status}"}
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    flagged = re.compile(r"\d s: (stopped after|began to repeat|there is speech)")
    told = [line for line in lines if not flagged.search(line)]
    return {
        "outcome": "transcript",
        "text": " ".join(row["text"] for row in rows if row["text"]),
        "duration": None,
        "warnings": [_kind(line.removeprefix("warning: ")) for line in told],
    }


def _package(folder: Path, facts: Found, watch: Watch) -> dict[str, Found]:  # noqa: ARG001
    """Open it, transcribe with it."""
    return {"package": watch(lambda: _with(folder / "package"))}


def _prepared(folder: Path, facts: Found, watch: Watch) -> dict[str, Found]:  # noqa: ARG001
    """The demo, with its graphs from a folder."""
    return {"prepared": watch(lambda: _with(DEMO, prepared_dir=folder / "package"))}


def _with(model: Path, **how: Any) -> Found:
    import ark_asr_onnx

    with ark_asr_onnx.load(model, threads=1, **how) as transcriber:
        transcript = transcriber.transcribe(_SAMPLE, options=ark_asr_onnx.Options(**_OPTIONS))
    return {"outcome": "transcript", "text": transcript.text, "duration": transcript.duration}


def _open_once(run: Callable[..., Any]) -> Callable[..., Any]:
    """What the first opening imports and keeps is no case's doing."""
    _with(DEMO)
    return run


def _records(folder: Path, facts: Found, watch: Watch) -> dict[str, Found]:  # noqa: ARG001
    """A batch, and whether its output is the list's."""
    return {"batch": watch(lambda: _batch(folder))}


def _batch(folder: Path) -> Found:
    import ark_asr_onnx
    from ark_asr_onnx.corpus.batch import run_batch

    output = folder / "out.jsonl"
    before = output.read_bytes() if output.is_file() else b""
    try:
        result = run_batch(
            functools.partial(ark_asr_onnx.load, DEMO, threads=1),
            folder / "list.jsonl",
            output,
            options=ark_asr_onnx.Options(**_OPTIONS),
        )
    except ark_asr_onnx.ArkError as error:
        after = output.read_bytes() if output.is_file() else b""
        lost = "" if after.startswith(before) else ", and the output is no longer what it was"
        return {"outcome": "foreign" if lost else "error", "message": f"{error}{lost}"}
    rows = [json.loads(line) for line in output.read_bytes().splitlines()]
    if len(rows) != result.n_records:
        message = f"{len(rows)} rows for {result.n_records} records"
        return {"outcome": "foreign", "message": message}
    return {"outcome": "transcript", "text": str(len(rows)), "duration": None}


class _Http:
    """A service in this process."""

    def __init__(self) -> None:
        from serving import served

        from ark_asr_onnx.audio import quiet

        self._served = contextlib.ExitStack()
        self._served.enter_context(quiet.allowed())  # as the command allows it
        self._port = self._served.enter_context(served()).port

    def __call__(self, folder: Path, facts: Found, watch: Watch) -> dict[str, Found]:
        content = (folder / "request").read_bytes()
        return {"request": watch(lambda: self._ask(content, is_whole=facts["is_whole"]))}

    def _ask(self, content: bytes, *, is_whole: bool) -> Found:
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            with contextlib.suppress(OSError):  # it may answer, and hang up, before all is sent
                connection.sendall(content)
            # Who waits for more would do so for long. Ending what is whole would cancel it.
            if not is_whole and not select.select([connection], [], [], 0.5)[0]:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(1 << 16):
                    answer += part
        status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else None
        if status == 200:
            return {"outcome": "transcript", "text": "", "duration": None}
        if status is None:
            outcome = "foreign" if is_whole else "error"
            return {"outcome": outcome, "message": f"no answer, but {answer[:80]!r}"}
        outcome = "foreign" if status >= 500 else "error"
        body = answer.partition(b"\r\n\r\n")[2][:300].decode("latin-1")
        return {"outcome": outcome, "message": f"{status}: {body}"}


def _broken(folder: Path, facts: Found, watch: Watch) -> dict[str, Found]:  # noqa: ARG001
    """Does what must not be, for the judge to see."""
    return {"broken": watch(lambda: _breaks(facts["does"]))}


def _breaks(how: str) -> Found:
    from ark_asr_onnx import ArkError

    if how == "crash":
        os.abort()
    elif how == "hang":
        threading.Event().wait()
    elif how == "foreign":
        raise KeyError("no error of ours")
    elif how == "memory":
        assert len(bytearray(os.urandom(1)) * 600_000_000)
    elif how == "output":
        os.write(1, b"a line of somebody else's\n")
    elif how == "slow":
        until = time.process_time() + 6
        while time.process_time() < until:
            pass
    raise ArkError("refused")


_RUNNERS: dict[str, Callable[[], Callable[..., Any]]] = {
    "audio": _Audio,
    "native": functools.partial(_open_once, _package),
    "published": functools.partial(_open_once, _package),
    "prepared": functools.partial(_open_once, _prepared),
    "records": functools.partial(_open_once, _records),
    "http": _Http,
    "broken": lambda: _broken,
}
