"""What is written appears whole or not at all, and what a killed process left is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ark_asr_onnx import files

posix = pytest.mark.skipif(os.name != "posix", reason="modes, links and signals of POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def forget_what_was_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swept", set())


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write(path, b"old")
    files.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    files.write(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, place, refuse)
            with pytest.raises(OSError, match="No space"):
                files.write(path, b"new")
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["a.txt"]


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    files.write(tmp_path / ("n" * 255), b"x")
    assert names(tmp_path) == ["n" * 255]


@posix
def test_modes_and_links_stay(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "new", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o600)
    (tmp_path / "link").symlink_to(target)
    files.write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600


@posix
def test_a_device_is_written_to() -> None:
    read, write = os.pipe()
    files.write(f"/dev/fd/{write}", b"text")
    assert os.read(read, 10) == b"text"
    os.close(read)
    os.close(write)


def test_a_staging_folder_goes_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.staging(tmp_path / "deep" / "er") as folder:
        (folder / "file").write_bytes(b"x")
        raise RuntimeError
    assert names(tmp_path / "deep" / "er") == []
    with files.staging(tmp_path) as folder:
        (folder / "file").write_bytes(b"x")
        folder.rename(tmp_path / "done")
    assert names(tmp_path) == ["deep", "done"]


@posix
def test_what_a_killed_process_left_is_removed_and_what_is_in_work_stays(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from ark_asr_onnx import files\n"
        "with files.staging(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'file').write_bytes(bytes(99))\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "ready\n"
    (left,) = tmp_path.iterdir()
    old = time.time() - 3600
    os.utime(left, (old, old))
    files.sweep(tmp_path)
    assert left.exists()
    child.send_signal(signal.SIGKILL)
    child.wait()
    single = tmp_path / f"{files._PREFIX}00"
    single.write_bytes(b"half")
    files._swept.clear()
    files.sweep(tmp_path)
    assert names(tmp_path) == [single.name], "what is new may be about to be locked"
    os.utime(single, (old, old))
    files._swept.clear()
    files.write(tmp_path / "a", b"")
    assert names(tmp_path) == ["a"]


@posix
def test_a_lock_is_free_when_its_holder_leaves_though_a_forked_child_lives(tmp_path: Path) -> None:
    with files.locked(tmp_path, "name"):
        if (child := os.fork()) == 0:
            time.sleep(600)
            os._exit(0)
    with files.locked(tmp_path, "name"), files.locked(tmp_path, "other"):
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == []
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@posix
def test_a_folder_is_removed_when_all_have_let_it_go(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"")
    claims = [files.Claim(folder, "file") for _ in range(2)]
    files.remove_unclaimed(folder)
    claims.pop()
    files.remove_unclaimed(folder)
    assert names(folder) == ["file"]
    claims.pop()
    files.remove_unclaimed(folder)
    assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        files.Claim(folder, "file")
