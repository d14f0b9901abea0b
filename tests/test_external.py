"""A graph reads the files that it may read, however it names them, and no others."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from conftest import DEMO

import ark_asr_onnx
from ark_asr_onnx import PackageError
from ark_asr_onnx.package.contract import File, file_sha256, manifest_from_json, manifest_to_json
from ark_asr_onnx.package.external import check_data_files


def varint(value: int, *, n_bytes: int = 1) -> bytes:
    """Seven bits a byte, lowest first; with more bytes than it needs, which readers take."""
    found: list[int] = []
    while value or len(found) < n_bytes:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found[-1] &= 0x7F
    return bytes(found)


def field(number: int, value: bytes, *, n_bytes: int = 1) -> bytes:
    length = varint(len(value), n_bytes=n_bytes)
    return varint(number << 3 | 2, n_bytes=n_bytes) + length + value


def tensor(name: str, *, n_bytes: int = 1, backwards: bool = False) -> bytes:
    """A TensorProto with its data in a file."""
    key, value = (
        field(1, b"location", n_bytes=n_bytes),
        field(2, name.encode(), n_bytes=n_bytes),
    )
    entry = value + key if backwards else key + value
    offset = field(13, field(1, b"offset") + field(2, b"4096"))
    return b"\x08\x04" + field(13, entry, n_bytes=n_bytes) + offset + b"\x70\x01"


def node(attribute: bytes) -> bytes:
    return field(1, field(4, b"If") + field(5, attribute))


GRAPHS = {
    "initializer": field(7, field(5, tensor("w"))),
    "twice": field(7, field(5, tensor("w"))) + field(7, field(5, tensor("v"))),
    "long numbers": field(7, field(5, tensor("w", n_bytes=5), n_bytes=4), n_bytes=3),
    "cut number": varint((1 << 32) + (7 << 3 | 2)) + field(7, field(5, tensor("w")))[1:],
    "value first": field(7, field(5, tensor("w", backwards=True))),
    "sparse": field(7, field(15, field(1, tensor("w")))),
    "indices": field(7, field(15, field(2, tensor("w")))),
    "constant": field(7, node(field(5, tensor("w")))),
    "constants": field(7, node(field(10, tensor("w")))),
    "branch": field(7, node(field(6, field(5, tensor("w"))))),
    "branch of a branch": field(7, node(field(11, node(field(6, field(5, tensor("w"))))))),
    "function": field(25, field(7, field(5, field(5, tensor("w"))))),
    "training": field(20, field(1, field(5, tensor("w")))),
    "among others": b"\x08\x0a" + field(2, b"maker") + b"\x29" + bytes(8) + b"\x35" + bytes(4)
    + field(7, field(2, b"name") + field(5, tensor("w"))),
}  # fmt: skip


@pytest.mark.parametrize("kind", GRAPHS)
def test_every_place_of_a_graph_that_can_name_a_file_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(GRAPHS[kind])
    expected = {"w", "v"} if kind == "twice" else {"w"}
    assert check_data_files(path) == check_data_files(path, {"w", "v"}) == expected
    with pytest.raises(PackageError, match=r"a\.onnx: the manifest lists no file '.'"):
        check_data_files(path, {"x"})


@pytest.mark.parametrize(
    "name", ["../w", "/etc/passwd", "a/../../w", "*/_ORT_MEM_ADDR_/*", "C:\\w", "", "a\nb"]
)
def test_a_file_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(field(7, field(5, tensor(name))))
    with pytest.raises(PackageError, match="outside the package"):
        check_data_files(path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n", b"no graph", bytes(100), b"\xff" * 100, b"\x7b", GRAPHS["initializer"][:-1],
        field(7, field(5, tensor("w")))[:-4] + b"\xff\xff\xff\x7f",
        field(7, field(5, varint(13 << 3 | 2) + varint(1 << 40))),
        field(7, field(5, tensor("w")) * 200_000), field(7, b"\x08\x01" * 1_000_001),
    ],
    ids=range(11),
)  # fmt: skip
def test_what_is_no_graph_or_has_no_end_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(
        PackageError, match=r"a\.onnx: onnxruntime cannot open this graph"
    ) as caught:
        check_data_files(path)
    assert len(str(caught.value).splitlines()) == 1


def test_zeros_without_end_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.touch()
    os.truncate(path, 1 << 33)
    with pytest.raises(PackageError, match="cannot open this graph"):
        check_data_files(path)


def test_the_library_of_the_format_names_the_same_files() -> None:
    onnx = pytest.importorskip("onnx")
    found = {
        path.name: {
            entry.value
            for initializer in onnx.load(path, load_external_data=False).graph.initializer
            for entry in initializer.external_data
            if entry.key == "location"
        }
        for path in DEMO.glob("*.onnx")
    }
    assert found == {path.name: check_data_files(path) for path in DEMO.glob("*.onnx")}


@pytest.mark.parametrize("graph", ["audio.onnx", "decoder.onnx"])
def test_a_package_whose_graph_reads_what_is_not_listed_is_refused(
    tmp_path: Path, graph: str
) -> None:
    ignored = shutil.ignore_patterns("checkpoint", "recipe", "samples", "licences", "README.md")
    folder = shutil.copytree(DEMO, tmp_path / "package", ignore=ignored)
    listed, other = f"{graph}.data", f"{graph}.date"
    shutil.copy(folder / listed, folder / other)
    path = folder / graph
    path.write_bytes(path.read_bytes().replace(listed.encode(), other.encode()))
    manifest = manifest_from_json((folder / "ark_manifest.json").read_text(encoding="utf-8"))
    manifest.files[graph] = File(path.stat().st_size, file_sha256(path))
    (folder / "ark_manifest.json").write_text(manifest_to_json(manifest), encoding="utf-8")
    with pytest.raises(PackageError, match=f"{graph}: the manifest lists no file '{other}'"):
        ark_asr_onnx.load(folder, threads=1)
