"""The exporter's command and its surroundings: streams, signals, warnings, too little memory."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from ark_asr_onnx.errors import PackageError  # noqa: E402
from ark_onnx_export import terminal  # noqa: E402

posix = pytest.mark.skipif(os.name != "posix", reason="shells and signals of POSIX")
COMMAND = [sys.executable, "-m", "ark_onnx_export"]
FAST = ["--precision", "fp32", "--quiet"]


def closed(streams: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a shell that closes some streams."""
    command = ["sh", "-c", f'exec "$@" {streams}', "sh", *COMMAND, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@posix
@pytest.mark.parametrize("streams", ["2>&-", "<&- 2>&-"])
def test_without_stderr_the_answer_alone_is_on_stdout(
    tiny_checkpoint: Path, tiny_fp32_package: Path, tmp_path: Path, streams: str
) -> None:
    out = tmp_path / "out"
    done = closed(streams, "--ckpt", tiny_checkpoint, "--out", out, "--precision", "fp32")
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    for path in sorted(out.iterdir()):
        same = tiny_fp32_package / path.name
        if path.suffix in (".onnx", ".data"):
            assert path.read_bytes() == same.read_bytes(), "nobody else wrote into it"
    done = closed(streams, "--ckpt", tiny_checkpoint, "--out", out)
    assert (done.returncode, done.stdout) == (1, "")
    done = closed(streams, "--nonsense")
    assert (done.returncode, done.stdout) == (2, "")


@posix
def test_without_stderr_a_comparison_is_on_stdout(
    tiny_package: Path, samples: list, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    options = ["--audio", samples[0].path, "--report", report, "--max-new-tokens", "4"]
    done = closed("2>&-", "verify", "--package", tiny_package, "--against", tiny_package, *options)
    assert done.returncode == 0
    assert done.stdout.startswith("package ") and done.stdout.endswith("within limits\n")
    assert json.loads(report.read_text())["verdict"] == "within limits"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names that are no UTF-8")
def test_names_that_are_no_text_are_told_at_once_and_safe_to_show(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9\x1b[2J"
    shutil.copytree(tiny_checkpoint, os.fsdecode(odd))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    for checkpoint, out in ((odd, "out"), (os.fsencode(tiny_checkpoint), odd + b"2")):
        command = [*COMMAND, "--ckpt", checkpoint, "--out", out, *FAST]
        done = subprocess.run(command, check=False, capture_output=True, env=environment)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"the name is not UTF-8" in done.stderr and done.stderr.count(b"\n") == 1
        assert b"\x1b" not in done.stderr
    out = str(tmp_path / "caf\N{LATIN SMALL LETTER E WITH ACUTE} 1")
    command = [*COMMAND, "--ckpt", str(tiny_checkpoint), "--out", out, *FAST]
    done = subprocess.run(command, check=False, capture_output=True, env=environment)
    assert (done.returncode, done.stdout) == (0, f"{out}\n".encode()), done.stderr


@posix
def test_a_reader_that_left_gets_no_traceback(tiny_checkpoint: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    arguments = ["--ckpt", str(tiny_checkpoint), "--out", str(tmp_path / "out"), *FAST]
    done = subprocess.run(
        [*COMMAND, *arguments], check=False, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.returncode == 1
    assert "error: standard output cannot be written (Broken pipe)\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "ark_manifest.json").is_file(), "the work is not lost"


def test_what_libraries_print_is_not_in_the_answer(capfd: pytest.CaptureFixture[str]) -> None:
    def run() -> tuple[int, str]:
        print("from Python")
        os.write(1, b"from a library\n")
        if os.name == "posix":
            ctypes.CDLL(None).puts(b"from C")
        return 0, "the answer"

    assert terminal.guarded(run) == 0
    out, err = capfd.readouterr()
    assert out == "the answer\n"
    assert "from Python\n" in err and "from a library\n" in err
    assert os.name != "posix" or "from C\n" in err


def test_only_our_own_warnings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> tuple[int, str]:
        for module in ("torch.onnx", "ark_asr_onnx.loading", "librosa", "ark_onnx_export.cli"):
            for kind in (UserWarning, FutureWarning, DeprecationWarning):
                text = f"{kind.__name__} of {module}"
                warnings.warn_explicit(text, kind, "file.py", 1, module=module)
        return 0, ""

    assert terminal.guarded(run) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: UserWarning of ark_asr_onnx.loading",
        "warning: UserWarning of ark_onnx_export.cli",
    ]


@pytest.mark.parametrize(
    ("options", "n_lines"),
    [
        (["--precision", "int8"], 7),
        (["--layout", "published"], 8),
        (["--recipe", "dynamic", "--allow-degraded"], 7),
    ],
    ids=str,
)
def test_every_line_on_the_terminal_is_ours(
    tiny_checkpoint: Path, tmp_path: Path, options: list[str], n_lines: int
) -> None:
    if "dynamic" in options:
        pytest.importorskip("optimum.onnxruntime")
    command = [*COMMAND, "--ckpt", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--quiet"]
    done = subprocess.run([*command, *options], check=False, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path / 'out'}\n"
    lines = done.stderr.splitlines()
    starts = ("torch to ", "note: ", "int8 package, ")
    assert all(line.startswith(starts) for line in lines), done.stderr
    assert len(lines) == n_lines


# What really comes where too much is asked for.
NO_MEMORY: dict[str, Callable[[], object]] = {
    "Python": lambda: bytearray(1 << 60),
    "the system": lambda: mmap.mmap(-1, 1 << 50),
    "torch": lambda: torch.empty(1 << 50),
}


@pytest.mark.parametrize("who", NO_MEMORY)
@pytest.mark.parametrize("wrapped", [False, True])
def test_too_little_memory_is_one_line_that_says_so(
    who: str, wrapped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> tuple[int, str]:
        try:
            NO_MEMORY[who]()
        except Exception as error:
            if wrapped:
                raise PackageError(f"cannot be opened ({error}); copy the package") from error
            raise
        raise AssertionError("there was enough")

    assert terminal.guarded(run) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not enough memory, or no more threads (")
    assert "copy" not in line


def test_what_nobody_expected_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        terminal.guarded(lambda: (1 // 0, ""))


def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> tuple[int, str]:
        return 0, (tmp_path / "absent").read_text()

    assert terminal.guarded(run) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent'}: No such file or directory\n"


@contextlib.contextmanager
def exporting(checkpoint: Path, out: Path, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """An export that has begun to write."""
    arguments = ["--ckpt", str(checkpoint), "--out", str(out), "--quiet"]
    command = [*prefix, *COMMAND, *arguments]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        while not list(out.parent.glob(".ark-asr-*/new/audio.onnx")):
            assert child.poll() is None
            time.sleep(0.01)
        yield child
    finally:
        child.kill()
        child.communicate()


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_an_export_as_ctrl_c_does(
    tiny_checkpoint: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with exporting(tiny_checkpoint, tmp_path / "new" / "out") as child:
        child.send_signal(number)
        child.send_signal(number)
        _, stderr = child.communicate(timeout=60)
        assert child.returncode == 128 + number
    assert stderr == f"ended by {number.name}; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


@posix
def test_nohup_is_respected(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    with exporting(tiny_checkpoint, tmp_path / "out", *ignoring) as child:
        child.send_signal(signal.SIGHUP)
        child.communicate(timeout=300)
        assert child.returncode == 0


def test_handlers_of_a_host_are_left_alone() -> None:
    def mine(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        found: list[object] = []

        def run() -> tuple[int, str]:
            found.append(signal.getsignal(signal.SIGTERM))
            return 0, ""

        assert terminal.guarded(run) == 0
        assert found == [mine]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert terminal.guarded(run) == 0
        assert found[1] not in (mine, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
