"""A transcriber in another process: in a pickle, after a fork, where something is short."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import DEMO, Sample

import ark_asr_onnx
from ark_asr_onnx import PackageError, Transcriber


def test_a_pickle_opens_again_what_was_opened(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DEMO.parent)
    transcriber = ark_asr_onnx.load("demo", threads=1, prepared_dir=os.path.relpath(tmp_path))
    stored = pickle.dumps(transcriber)
    transcriber.close()
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(stored)
    assert again.transcribe(samples[0].path).text == samples[0].text
    assert len(list(tmp_path.iterdir())) == 1  # the graphs that were prepared before
    assert copy.deepcopy(again).transcribe(samples[0].path).text == samples[0].text


def test_a_spawned_worker_gets_one(samples: list[Sample]) -> None:
    transcriber = ark_asr_onnx.load(DEMO, threads=1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(Transcriber.transcribe, (transcriber, samples[0].path))
    assert found.text == samples[0].text


def test_a_pickle_of_a_folder_that_is_gone_says_so(tmp_path: Path) -> None:
    (tmp_path / "demo").symlink_to(DEMO)
    stored = pickle.dumps(ark_asr_onnx.load(tmp_path / "demo", threads=1))
    (tmp_path / "demo").unlink()
    with pytest.raises(PackageError, match="does not exist"):
        pickle.loads(stored)


def test_what_load_did_not_give_cannot_be_pickled() -> None:
    transcriber = Transcriber(ark_asr_onnx.open_package(DEMO), 1)
    with pytest.raises(PackageError, match=r"use load\(\)"):
        pickle.dumps(transcriber)


@pytest.mark.parametrize("name", ["prefix_fp32.data", "embedding_fp32.data", "decoder.onnx"])
def test_a_file_that_goes_after_loading_is_named(
    tmp_path: Path, samples: list[Sample], name: str
) -> None:
    ignored = shutil.ignore_patterns("checkpoint", "recipe", "samples")
    folder = shutil.copytree(DEMO, tmp_path / "package", ignore=ignored)
    transcriber = ark_asr_onnx.load(folder, threads=1, idle_unload_seconds=0)
    (folder / name).rename(tmp_path / name)
    while transcriber.status.is_loaded:
        time.sleep(0.01)
    with pytest.raises(PackageError, match=name):
        transcriber.transcribe(samples[0].path)
    (tmp_path / name).rename(folder / name)
    assert transcriber.transcribe(samples[0].path).text == samples[0].text


# Forks -------------------------------------------------------------------------------------------

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks of POSIX")

FORKING = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
import ark_asr_onnx
model, clip, prepared = sys.argv[1], sys.argv[2], sys.argv[3] or None

def forked(work):
    if (pid := os.fork()) == 0:
        work()
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0

def load():
    return ark_asr_onnx.load(model, threads=2, prepared_dir=prepared)

def transcribe(transcriber):
    print(transcriber.transcribe(clip).text, flush=True)

"""


def forking(code: str, clip: Path, prepared: str = "") -> str:
    """What a program says that forks; it and its children must end."""
    command = [sys.executable, "-c", FORKING + code, str(DEMO), str(clip), prepared]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout


@posix
def test_a_child_that_was_forked_after_the_import_works_and_ends(samples: list[Sample]) -> None:
    code = "forked(lambda: None); forked(lambda: transcribe(load()))"
    assert forking(code, samples[0].path) == f"{samples[0].text}\n"


@posix
def test_a_child_opens_files_though_a_thread_of_the_parent_was_opening_one(
    samples: list[Sample],
) -> None:
    code = """
import io
from ark_asr_onnx.audio import sources
started, go = threading.Event(), threading.Event()
class Slow(io.BytesIO):
    def readinto(self, buffer):
        started.set()
        go.wait()
        return super().readinto(buffer)
with open(clip, "rb") as file:
    slow = Slow(file.read())
thread = threading.Thread(target=lambda: sources.soundfile.SoundFile(slow))
thread.start()
started.wait()
forked(lambda: transcribe(load()))
go.set()
thread.join()
"""
    assert forking(code, samples[0].path) == f"{samples[0].text}\n"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_child_has_its_stderr_though_a_thread_of_the_parent_discards_it(
    samples: list[Sample],
) -> None:
    code = """
from ark_asr_onnx.audio import quiet
with quiet.allowed(), quiet.quiet():
    forked(lambda: print(os.readlink("/proc/self/fd/2") == os.devnull, flush=True))
"""
    assert forking(code, samples[0].path) == "False\n"


@posix
def test_a_child_that_was_forked_after_loading_works_and_ends(
    samples: list[Sample], tmp_path: Path
) -> None:
    code = """
t = load()
forked(lambda: transcribe(t))
transcribe(t)
forked(lambda: transcribe(t))
forked(lambda: None)
forked(lambda: forked(lambda: transcribe(t)))
transcribe(t)
"""
    for prepared in ("", str(tmp_path)):
        assert forking(code, samples[0].path, prepared) == f"{samples[0].text}\n" * 5


@posix
def test_a_child_that_was_forked_while_others_load_works_and_ends(
    samples: list[Sample], tmp_path: Path
) -> None:
    code = """
is_over = False
def work():
    while not is_over:
        load()
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(4):
    forked(lambda: transcribe(load()))
is_over = True
for thread in threads:
    thread.join()
"""
    for prepared in ("", str(tmp_path)):
        assert forking(code, samples[0].path, prepared) == f"{samples[0].text}\n" * 4


@pytest.mark.parametrize("prepared", [False, True])
def test_what_a_child_needs_is_imported_with_the_package(
    samples: list[Sample], tmp_path: Path, prepared: bool
) -> None:
    """A child that was forked while another thread imported a module waits for it for ever."""
    code = """
before = set(sys.modules)
with load() as transcriber:
    transcriber.transcribe(clip, words=True)
    list(transcriber.stream(clip))
print(sorted(set(sys.modules) - before))
"""
    assert forking(code, samples[0].path, str(tmp_path) if prepared else "") == "[]\n"


# What is short -----------------------------------------------------------------------------------

LITTLE_MEMORY = """
import resource, sys, warnings
from pathlib import Path
import ark_asr_onnx
warnings.simplefilter("ignore")
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
for megabytes in range(4, 400, 12):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").open())
    now = int(status["VmSize"].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), hard))
    try:
        transcriber = ark_asr_onnx.load(sys.argv[1], threads=2, prepared_dir=sys.argv[2] or None)
        found = "opened"
    except ark_asr_onnx.PackageError as error:
        found = error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    print(found)
    transcriber = None
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("is_prepared", [False, True])
def test_too_little_memory_is_called_so(tmp_path: Path, is_prepared: bool) -> None:
    folder = str(tmp_path) if is_prepared else ""
    found = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(DEMO), folder],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (0, "")
    lines = found.stdout.splitlines()
    assert len(lines) == 33
    assert lines[-1] == "opened"
    failures = [line for line in lines if line != "opened"]
    assert failures
    for line in failures:
        assert "too little memory" in line or "no more threads" in line
        assert "copy" not in line


NO_THREADS = """
import os, resource, sys
import numpy as np
import ark_asr_onnx
transcriber = ark_asr_onnx.load(sys.argv[1], threads=1)
if os.geteuid() == 0:  # whom no limit stops
    os.setgid(54321)
    os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
sound = np.zeros(16000, np.float32)
for work in (
    lambda: transcriber.transcribe(sound, 16000),
    lambda: list(transcriber.stream(sound, 16000)),
    lambda: transcriber.submit(sound, 16000),
    lambda: list(transcriber.transcribe_many([ark_asr_onnx.Clip(sound, 16000)])),
):
    try:
        work()
    except ark_asr_onnx.DecodeError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_lack_of_threads_is_called_so() -> None:
    found = subprocess.run(
        [sys.executable, "-c", NO_THREADS, str(DEMO)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (0, "")
    assert (
        found.stdout.splitlines()
        == ["no more threads can be started; allow more (ulimit -u), or use fewer (threads=1)"] * 4
    )
