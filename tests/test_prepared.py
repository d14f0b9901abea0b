"""Graphs packed for this CPU: the same text, and never trusted when stale or damaged."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import DEMO, Sample

import ark_asr_onnx
from ark_asr_onnx import PackageError, files
from ark_asr_onnx.commands.cli import main
from ark_asr_onnx.model import graph, ort, prepared
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


def flip_last(path: Path) -> None:
    """Damage a file, which keeps its size and its time of change."""
    times, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def graphs(folder: Path) -> dict[str, int]:
    """Inodes of the prepared graphs, which tell whether they were made again."""
    return {path.name: path.stat().st_ino for path in home(folder).glob("*.onnx*")}


def copy(source: Path, target: Path) -> Path:
    """A copy whose times of change are others, an hour ago."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for path in [p for p in target.rglob("*") if p.is_file()]:
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return target


def test_large_files_are_hashed_when_their_time_differs_and_on_request(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "ALWAYS_HASHED_BYTES", 0)
    folder = tmp_path / "p"
    ark_asr_onnx.prepare(package, folder)
    path = home(folder) / f"{AUDIO}.data"
    flip_last(path)
    before = stamp(folder)
    ark_asr_onnx.prepare(package, folder)
    assert stamp(folder) == before  # as with packages, damage that hides is found on request
    ark_asr_onnx.prepare(package, folder, verify=True)
    assert stamp(folder) != before
    flip_last(path)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    before = graphs(folder)
    ark_asr_onnx.prepare(package, folder)
    assert graphs(folder) != before


def test_a_copy_is_used_and_hashed_once(
    demo_package_of_each_layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "ALWAYS_HASHED_BYTES", 0)
    ark_asr_onnx.prepare(demo_package_of_each_layout, tmp_path / "p")
    ignored = shutil.ignore_patterns("checkpoint", "recipe", "samples")
    shutil.copytree(demo_package_of_each_layout, tmp_path / "source", ignore=ignored)
    package = copy(tmp_path / "source", tmp_path / "other name")
    folder = copy(tmp_path / "p", tmp_path / "copy")
    before = graphs(folder)
    ark_asr_onnx.prepare(package, folder)
    assert graphs(folder) == before
    assert len(list(folder.iterdir())) == 1
    flip_last(home(folder) / "decoder.onnx.data" if (package / "decoder.onnx").exists()
              else next(home(folder).glob("*.onnx")))  # fmt: skip
    ark_asr_onnx.prepare(package, folder)
    assert graphs(folder) == before  # seen whole at this time: not hashed again
    ark_asr_onnx.prepare(package, folder, verify=True)
    assert graphs(folder) != before


def test_times_in_whole_seconds_are_the_same_times(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So archives and layers of images keep them.
    monkeypatch.setattr(prepared, "ALWAYS_HASHED_BYTES", 0)
    folder = tmp_path / "p"
    ark_asr_onnx.prepare(package, folder)
    for path in home(folder).iterdir():
        seconds = path.stat().st_mtime_ns // 10**9
        os.utime(path, (seconds, seconds))
    before = stamp(folder)
    ark_asr_onnx.prepare(package, folder)
    assert stamp(folder) == before


def test_another_published_package_of_the_same_sizes_has_its_own(
    demo_published_package: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(demo_published_package, tmp_path / "other")
    path = other / "llm_kv_cpu_fp32_int8.onnx"
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_quantized"):
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.uint8) ^ 1).tobytes()
    onnx.save(model, str(path))
    ark_asr_onnx.prepare(demo_published_package, tmp_path / "p")
    before = stamp(tmp_path / "p")
    ark_asr_onnx.prepare(other, tmp_path / "p")
    ark_asr_onnx.prepare(demo_published_package, tmp_path / "p")
    assert before.items() < stamp(tmp_path / "p").items()


READ_ONLY = """
import sys, warnings
import ark_asr_onnx
warnings.simplefilter("error")
print(ark_asr_onnx.load(sys.argv[1], prepared_dir=sys.argv[2]).transcribe(sys.argv[3]).text)
"""


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_folder_for_reading_alone_is_used(
    package: Path, tmp_path: Path, samples: list[Sample]
) -> None:
    ark_asr_onnx.prepare(package, tmp_path / "p")
    folder = copy(tmp_path / "p", tmp_path / "copy")
    before = stamp(folder)
    command = [sys.executable, "-c", READ_ONLY, package, folder, samples[0].path]
    if os.geteuid() == 0:  # to whom modes say nothing
        mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", mount, folder, *command]
        if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
            pytest.skip("nothing can be mounted here")
    else:
        for path in [*folder.rglob("*"), folder]:
            path.chmod(path.stat().st_mode & 0o555)
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == (f"{samples[0].text}\n", "")
    assert stamp(folder) == before


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
        patch.setattr(prepared.ort, "version", lambda: "99.0")
        ark_asr_onnx.prepare(package, folder)
    assert len(list(folder.iterdir())) == 2  # one environment has this release, one that
    before = stamp(folder)
    ark_asr_onnx.prepare(package, folder)
    assert stamp(folder) == before
    change(package)
    ark_asr_onnx.prepare(package, folder)
    assert not first.exists()  # of what the package was before
    assert len(list(folder.iterdir())) == 2


def change(package: Path) -> None:
    """Another package in the same place."""
    manifest = package / "ark_manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "', '"name": "changed '))


def test_what_another_release_made_goes_when_nobody_opens_it_for_a_month(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "p"
    for days, release in ((0, "97.0"), (29, "98.0"), (31, "99.0")):
        with monkeypatch.context() as patch:
            patch.setattr(prepared.ort, "version", lambda release=release: release)
            ark_asr_onnx.prepare(package, folder)
        (made,) = [
            p for p in folder.iterdir() if f"{release!r}" in (p / "prepared.json").read_text()
        ]
        then = time.time() - days * 86400
        os.utime(made, (then, then))
    ark_asr_onnx.prepare(package, folder)
    releases = {json.loads(p.read_text())["onnxruntime"] for p in folder.glob("*/prepared.json")}
    assert releases == {"97.0", "98.0", ort.version()}


IN_USE = """
import sys
import ark_asr_onnx
t = ark_asr_onnx.load(sys.argv[1], prepared_dir=sys.argv[2], idle_unload_seconds=0)
print(t.transcribe(sys.argv[3]).text, flush=True)
for line in sys.stdin:
    print(t.transcribe(sys.argv[3]).text, flush=True)
"""


def test_what_a_process_uses_is_not_taken_away(
    package: Path, tmp_path: Path, samples: list[Sample]
) -> None:
    folder = tmp_path / "p"
    ark_asr_onnx.prepare(package, folder)
    first = home(folder)
    command = [sys.executable, "-c", IN_USE, package, folder, samples[0].path]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == f"{samples[0].text}\n"
        change(package)
        ark_asr_onnx.prepare(package, folder)
        assert first.exists()
        child.stdin.write("\n")  # it opens them again, being idle meanwhile
        child.stdin.flush()
        assert child.stdout.readline() == f"{samples[0].text}\n"
    change(package)
    ark_asr_onnx.prepare(package, folder)
    assert not first.exists()
    assert len(list(folder.iterdir())) == 1


def test_the_cpu_is_told_apart_by_its_features() -> None:
    text = prepared._cpu()
    if Path("/proc/cpuinfo").exists():
        assert "flags" in text or "Features" in text
        assert "MHz" not in text  # would be another CPU every second
    assert prepared._cpu() == text


PACKING = """
import os, sys, time
import ark_asr_onnx
from ark_asr_onnx.model import prepared
pack = prepared.graph.pack
def slowly(*arguments):
    print("packs", flush=True)
    time.sleep(float(sys.argv[3]))
    pack(*arguments)
prepared.graph.pack = slowly
ark_asr_onnx.prepare(sys.argv[1], sys.argv[2])
print("done", flush=True)
"""


def packing(package: Path, folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PACKING, str(package), str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_several_processes_one_packs_and_the_others_wait(package: Path, tmp_path: Path) -> None:
    children = [packing(package, tmp_path / "p", 0.5) for _ in range(4)]
    said = [child.communicate()[0].split() for child in children]
    assert sorted(said) == [["done"]] * 3 + [["packs", "packs", "done"]]
    assert [p.name for p in (tmp_path / "p").iterdir()] == [home(tmp_path / "p").name]


def test_of_several_threads_one_packs(package: Path, tmp_path: Path) -> None:
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


def test_a_process_that_dies_while_it_packs_makes_nobody_wait(
    package: Path, tmp_path: Path
) -> None:
    with packing(package, tmp_path / "p", 600) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "packs\n"
        child.kill()
    ark_asr_onnx.prepare(package, tmp_path / "p")
    assert home(tmp_path / "p").is_dir()


@pytest.mark.parametrize("what", ["fifo", "device", "nested"])
@pytest.mark.parametrize("name", ["prepared.json", "decoder.onnx"])
@pytest.mark.skipif(sys.platform == "win32", reason="has no such files")
def test_what_cannot_be_read_to_its_end_is_made_again(
    package: Path, tmp_path: Path, name: str, what: str
) -> None:
    ark_asr_onnx.prepare(package, tmp_path / "prepared", threads=1)
    (place,) = (tmp_path / "prepared").rglob(name)
    place.unlink()
    if what == "fifo":
        os.mkfifo(place)
    elif what == "device":
        place.symlink_to("/dev/zero")
    else:
        place.write_text("[" * 100_000)
    ark_asr_onnx.prepare(package, tmp_path / "prepared", threads=1)
    (again,) = (tmp_path / "prepared").rglob(name)
    assert again.is_file()
    assert not again.is_symlink()


def test_what_a_killed_process_left_goes_though_nothing_is_to_be_done(
    package: Path, tmp_path: Path
) -> None:
    ark_asr_onnx.prepare(package, tmp_path, threads=1)
    (left := tmp_path / f"{files._PREFIX}0123456789abcdef" / "new").mkdir(parents=True)
    old = time.time() - 3600
    os.utime(left.parent, (old, old))
    files._swept.clear()
    ark_asr_onnx.prepare(package, tmp_path, threads=1)
    assert not left.parent.exists()


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
    # Encoding comes first. Old ones read rows of bytes when they are multiplied, not at opening.
    if not ort.version().startswith(("1.22.", "1.23.")):
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


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux only")
def test_what_others_map_of_the_same_file_is_left_alone(package: Path, tmp_path: Path) -> None:
    ark_asr_onnx.prepare(package, tmp_path / "p")
    path = home(tmp_path / "p") / AUDIO
    data = path.with_name(f"{AUDIO}.data")
    with data.open("rb") as file:
        other = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    assert sum(other[::4096]) > 0  # all of it is in memory
    whole = np.frombuffer(other, np.uint8)
    begin, end = whole.ctypes.data, whole.ctypes.data + len(whole)

    def resident() -> int:
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if match := graph._MAPPING.match(line):
                inside = begin <= int(match[1], 16) < end
            elif line.startswith("Rss:") and inside:
                return int(line.split()[1])
        raise AssertionError("it is mapped")

    before = resident()
    graphs = [graph.Graph(path, 1, is_prepared=True) for _ in range(2)]
    for one in graphs:
        one.give_back()
    assert resident() == before > 0
    first, second = (one._mapped for one in graphs)
    assert first and second
    assert graph._without(first, second) == first  # each has its own
    assert graph._without(first, [(begin, end)]) == first


def test_mappings_that_were_written_to_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 8192, access=mmap.ACCESS_COPY)
    assert mapped[0] == 0
    ((begin, end),) = graph._untouched_mappings(str(path))
    assert end - begin == 8192
    mapped[0] = 1
    assert graph._untouched_mappings(str(path)) == []
    mapped.close()


@pytest.mark.skipif(os.name != "posix", reason="users of POSIX")
@pytest.mark.parametrize("home_variable", [None, "relative"])
def test_without_a_home_the_command_says_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home_variable: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME", "ARK_ASR_PREPARED_DIR"):
        monkeypatch.delenv(name, raising=False)
    if home_variable is not None:
        monkeypatch.setenv("HOME", home_variable)
    else:  # a user whom the system does not know
        monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert main(["prepare", "--model", str(DEMO)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no home directory to keep prepared graphs in; pass --prepared-dir" in line
    assert list(tmp_path.iterdir()) == []
