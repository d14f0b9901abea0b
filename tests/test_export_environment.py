"""The exporter where things are missing: ``resource``, ``/proc``, a home, a terminal, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

# A tiny export in a child, as fast as one gets.
EXPORT = ["--precision", "fp32"]
MAIN = "\nfrom ark_onnx_export.cli import main\nsys.exit(main())\n"


def child(
    code: str, *arguments: object, without: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """The exporter's command after some preparations, with fewer environment variables."""
    command = [sys.executable, "-B", "-c", f"import sys\n{code}{MAIN}", *map(str, arguments)]
    kept = {key: value for key, value in os.environ.items() if key not in without}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=kept)


WINDOWS = """
sys.modules["resource"] = None
def hook(event, arguments):
    if event == "open" and str(arguments[0]).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])
sys.addaudithook(hook)
"""


def test_a_system_without_resource_and_proc_exports(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = child(WINDOWS, "--ckpt", tiny_checkpoint, "--out", tmp_path / "out", *EXPORT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "ark_manifest.json").is_file()
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("all  "))
    assert line.endswith(" -"), "nobody says how much memory was used"


# Where a container's user has a number and nothing else.
HOMELESS = ("HOME", "XDG_CACHE_HOME", "LOGNAME", "USER", "LNAME", "USERNAME")
NOBODY = """
import pwd
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
"""
READ_ONLY = """
import os
at = sys.argv.index("--out") + 1
allowed = (sys.argv[at], "/dev/null")
sys.argv[at] += "/package"
def hook(event, arguments):
    if event == "open":
        writes = isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    else:
        writes = event in ("os.mkdir", "os.remove", "os.rename") and arguments[-1] == -1
    path = os.path.abspath(arguments[0]) if writes else ""
    if writes and not path.startswith(allowed):
        raise OSError(30, "Read-only file system", path)
sys.addaudithook(hook)
"""


def test_nothing_but_the_output_need_be_writable(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--ckpt", tiny_checkpoint, "--out", tmp_path, "--quiet"]
    done = child(NOBODY + READ_ONLY, *arguments, without=HOMELESS)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


LITTLE_MEMORY = """
import resource
from ark_onnx_export import pipeline
spare = int(sys.argv.pop(1)) * 1_000_000
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit of address space")
@pytest.mark.parametrize("megabytes", [10, 60])
def test_too_little_memory_ends_in_one_line(
    tiny_checkpoint: Path, tmp_path: Path, megabytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # OpenMP ends the process where it gets no thread
    arguments = ["--ckpt", tiny_checkpoint, "--out", tmp_path / "out", "--quiet"]
    done = child(LITTLE_MEMORY, megabytes, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: not enough memory, or no more threads (")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
