"""Graphs packed for this CPU: the same text, and never trusted when stale or damaged."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import DEMO, Sample

import ark_asr_onnx
from ark_asr_onnx import PackageError
from ark_asr_onnx.commands.cli import main
from ark_asr_onnx.model import graph, prepared
from ark_asr_onnx.model.layouts import native

AUDIO = native.graphs(ark_asr_onnx.open_package(DEMO))[-1]  # which one depends on the CPU

Stamp = dict[str, tuple[int, int]]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A demo package that may be changed."""
    folder = tmp_path / "package"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("checkpoint", "recipe", "samples"))
    return folder


def stamp(folder: Path) -> Stamp:
    """Which files there are: inode and time of change."""
    found = {str(p.relative_to(folder)): p.stat() for p in folder.rglob("*") if p.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def home(folder: Path) -> Path:
    (index,) = folder.glob("*/prepared.json")
    return index.parent


def test_the_same_tokens_in_both_layouts(
    demo_package_of_each_layout: Path, tmp_path: Path, samples: list[Sample]
) -> None:
    plain = ark_asr_onnx.load(demo_package_of_each_layout)
    ark_asr_onnx.prepare(demo_package_of_each_layout, tmp_path / "p")
    before = stamp(tmp_path / "p")
    mapped = ark_asr_onnx.load(demo_package_of_each_layout, prepared_dir=tmp_path / "p")
    for sample in samples:
        expected, found = plain.transcribe(sample.path), mapped.transcribe(sample.path)
        assert found.token_ids == expected.token_ids
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert stamp(tmp_path / "p") == before  # used, not made again


def test_loading_prepares_what_is_missing(package: Path, tmp_path: Path) -> None:
    ark_asr_onnx.load(package, prepared_dir=tmp_path / "new" / "p")
    assert {p.name for p in home(tmp_path / "new" / "p").iterdir()} == {
        AUDIO, f"{AUDIO}.data", "decoder.onnx", "decoder.onnx.data", "prepared.json",
    }  # fmt: skip


def test_a_damaged_one_is_made_again(package: Path, tmp_path: Path, samples: list[Sample]) -> None:
    folder = tmp_path / "p"
    ark_asr_onnx.prepare(package, folder)

    def truncate(path: Path) -> None:
        os.truncate(path, path.stat().st_size - 1)

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x40
        times = path.stat()
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def garble(path: Path) -> None:
        path.write_text("{")

    for name, damage in [
        (AUDIO, truncate), ("decoder.onnx.data", truncate), (f"{AUDIO}.data", flip),
        ("decoder.onnx", Path.unlink), ("prepared.json", garble), ("prepared.json", Path.unlink),
    ]:  # fmt: skip
        good = home(folder)
        damage(good / name)
        transcriber = ark_asr_onnx.load(package, prepared_dir=folder)
        assert transcriber.transcribe(samples[0].path).text == samples[0].text
        index = json.loads((home(folder) / "prepared.json").read_text())
        sizes = {n: (home(folder) / n).stat().st_size for n in index["files"]}
        assert sizes == {n: f["bytes"] for n, f in index["files"].items()}
    assert [p.name for p in folder.iterdir()] == [home(folder).name]  # no litter


def test_large_files_are_compared_by_time_and_on_request_by_checksum(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "ALWAYS_HASHED_BYTES", 0)
    folder = tmp_path / "p"
    ark_asr_onnx.prepare(package, folder)
    path = home(folder) / f"{AUDIO}.data"
    times, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    before = stamp(folder)
    ark_asr_onnx.prepare(package, folder)
    assert stamp(folder) == before  # as with packages, damage that hides is found on request
    ark_asr_onnx.prepare(package, folder, verify=True)
    assert stamp(folder) != before
    os.utime(home(folder) / f"{AUDIO}.data")
    before = stamp(folder)
    ark_asr_onnx.prepare(package, folder)
    assert stamp(folder) != before


def test_other_packages_libraries_and_cpus_get_their_own(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "p"
    ark_asr_onnx.prepare(package, folder)
    first = home(folder)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "_cpu", lambda: "another CPU")
        ark_asr_onnx.prepare(package, folder)
    assert first.exists()  # a shared folder serves both
    (other,) = set(folder.iterdir()) - {first}
    shutil.rmtree(other)
    with monkeypatch.context() as patch:
        patch.setattr(prepared.graph, "version", lambda: "99.0")
        ark_asr_onnx.prepare(package, folder)
    newer = home(folder)
    assert newer != first
    assert not first.exists()  # the same computer has a new onnxruntime: the old one is litter
    manifest = package / "ark_manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "', '"name": "changed '))
    ark_asr_onnx.prepare(package, folder)
    assert home(folder) != newer


def test_the_cpu_is_told_apart_by_its_features() -> None:
    text = prepared._cpu()
    if Path("/proc/cpuinfo").exists():
        assert "flags" in text or "Features" in text
        assert "MHz" not in text  # would be another CPU every second
    assert prepared._cpu() == text


def test_two_at_once_leave_one_whole(package: Path, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=ark_asr_onnx.prepare, args=(package, tmp_path / "p"))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = stamp(tmp_path / "p")
    assert len({Path(name).parent for name in before}) == 1
    ark_asr_onnx.load(package, prepared_dir=tmp_path / "p")
    assert stamp(tmp_path / "p") == before


def test_a_folder_that_cannot_be_written_does_not_stop_loading(
    package: Path, tmp_path: Path, samples: list[Sample]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PackageError, match=r"file.*cannot hold the prepared graphs.*another"):
        ark_asr_onnx.prepare(package, tmp_path / "file")
    with pytest.warns(UserWarning, match="opened without"):
        transcriber = ark_asr_onnx.load(package, prepared_dir=tmp_path / "file")
    assert transcriber.transcribe(samples[0].path).text == samples[0].text


def test_the_commands(
    package: Path, tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "p"
    assert main(["prepare", "--model", str(package), "--prepared-dir", str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{folder}\n"
    assert f"--prepared-dir {folder}" in printed.err
    before = stamp(folder)
    clip = str(samples[0].path)
    monkeypatch.setenv("ARK_ASR_PREPARED_DIR", str(folder))
    assert main(["transcribe", "--model", str(package), clip]) == 0
    assert capsys.readouterr().out == f"{samples[0].text}\n"
    assert main(["prepare", "--model", str(package)]) == 0
    assert stamp(folder) == before
    monkeypatch.delenv("ARK_ASR_PREPARED_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["prepare", "--model", str(package)]) == 0
    assert home(tmp_path / "cache" / "ark-asr-onnx" / "prepared").is_dir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["prepare", "--model", str(package), "--prepared-dir", clip]) == 1
    assert "cannot hold the prepared graphs" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux only")
def test_mapped_weights_are_given_back_and_come_again(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcriber = ark_asr_onnx.load(package, prepared_dir=tmp_path / "p")

    def resident(name: str = AUDIO) -> float:
        """Share of a graph's mapped weights that is in memory; how many are mapped depends on
        onnxruntime."""
        lines = Path("/proc/self/smaps").read_text().splitlines()
        data = str(home(tmp_path / "p") / f"{name}.data")
        kilobytes = {"Size:": 0, "Rss:": 0}
        for start in (i for i, line in enumerate(lines) if line.endswith(data)):
            for line in lines[start : start + 8]:
                if line.split()[0] in kilobytes:
                    kilobytes[line.split()[0]] += int(line.split()[1])
        return kilobytes["Rss:"] / kilobytes["Size:"]

    assert resident("decoder.onnx") < 0.1
    # Encoding comes first. 1.22 reads rows of bytes when they are multiplied, not at opening.
    if not graph.version().startswith("1.22."):
        assert resident() > 0.1
    log_mel = np.random.default_rng(0).standard_normal(
        (1, transcriber.manifest.sizes.n_mels, 200), np.float32
    )
    expected = transcriber.model.encode(log_mel)
    assert resident() > 0.8
    monkeypatch.setattr(native, "_LONG_AUDIO", 200)
    np.testing.assert_array_equal(transcriber.model.encode(log_mel), expected)
    assert resident() < 0.1
    np.testing.assert_array_equal(transcriber.model.encode(log_mel), expected)


def test_mappings_that_were_written_to_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 8192, access=mmap.ACCESS_COPY)
    assert mapped[0] == 0
    assert [length for _, length in graph._untouched_mappings(str(path))] == [8192]
    mapped[0] = 1
    assert list(graph._untouched_mappings(str(path))) == []
    mapped.close()
