"""A package folder appears whole or not at all, and only where it can be written."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from ark_asr_onnx import files
from ark_asr_onnx.errors import ExportError
from ark_onnx_export import cli, pipeline
from ark_onnx_export.write import staged

posix = pytest.mark.skipif(os.name != "posix", reason="modes and signals of POSIX")


@pytest.fixture(autouse=True)
def forget_what_was_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swept", set())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read_a_package(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with staged(tmp_path / "deep" / "out") as staging:
            (staging / "file").write_bytes(b"x")
    finally:
        os.umask(before)
    for path in (tmp_path / "deep", tmp_path / "deep" / "out"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE((tmp_path / "deep/out/file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("name", ["n" * 256, "é" * 128, "n" * 3000])
def test_a_name_that_the_disk_refuses_is_told_before_the_work(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(pipeline, "load_network", refuse)
    monkeypatch.setattr(pipeline, "file_sha256", refuse)
    out = tmp_path / name
    assert cli.main(["--ckpt", str(tiny_checkpoint), "--out", str(out), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {out}: ") and error.count("\n") == 1
    assert names(tmp_path) == []


def test_the_longest_name_is_a_name(tmp_path: Path) -> None:
    with staged(tmp_path / ("n" * 255)):
        pass
    assert names(tmp_path) == ["n" * 255]


def test_a_file_where_a_folder_is_wanted_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(ExportError, match=r"cannot write .*: "), staged(tmp_path / "file" / "out"):
        pass
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_link_to_nowhere_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ExportError, match="exists"), staged(tmp_path / "out"):
        pass


def test_work_is_kept_where_its_place_was_taken_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ExportError, match=r"the package is in .*out-2"), staged(out) as staging:
        (staging / "file").write_bytes(b"work")
        for taken in (out, tmp_path / "out-1"):
            taken.mkdir()
            (taken / "mine").write_bytes(b"precious")
    assert names(tmp_path) == ["out", "out-1", "out-2"]
    assert names(out) == ["mine"]
    assert (tmp_path / "out-2" / "file").read_bytes() == b"work"


@posix
def test_what_a_killed_export_left_goes_with_the_next(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys\n"
        "from ark_onnx_export.write import staged\n"
        "with staged(pathlib.Path(sys.argv[1])) as staging:\n"
        "    (staging / 'audio.onnx').write_bytes(bytes(1000))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    old = time.time() - 3600
    os.utime(left, (old, old))
    with staged(tmp_path / "other"):
        pass
    assert names(tmp_path) == ["other"]


def test_temporary_files_find_a_place_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", nowhere)
    with staged(tmp_path / "out") as staging, tempfile.TemporaryDirectory() as folder:
        assert shutil.disk_usage(folder) and Path(folder).parent.parent == tmp_path
        assert names(staging) == []
    assert names(tmp_path) == ["out"]
    assert tempfile.tempdir is None
