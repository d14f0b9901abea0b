"""Opening packages: whole ones, and every way in which one can be broken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

import ark_asr_onnx
from ark_asr_onnx import PackageError
from ark_asr_onnx.model.layouts import native
from ark_asr_onnx.package.contract import MANIFEST_FILE, file_sha256
from ark_asr_onnx.package.opening import open_package

FILES = [
    "REPORT.md",
    "audio.onnx",
    "audio.onnx.data",
    "audio_narrow.onnx",
    "cpu_check.onnx",
    "decoder.onnx",
    "decoder.onnx.data",
    "embedding_fp32.data",
    "embedding_fp32.onnx",
    "prefix_fp32.data",
    "report.json",
    "tokenizer.json",
]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``audio.onnx`` be opened, not the graph that CPUs without exact sums need."""
    monkeypatch.setattr(native, "adds_exactly", lambda _: True)


@pytest.fixture
def package(tiny_package: Path, tmp_path: Path) -> Path:
    """A copy of a whole package, to be damaged."""
    return shutil.copytree(tiny_package, tmp_path / "package")


def read_manifest(package: Path) -> dict[str, Any]:
    return json.loads((package / MANIFEST_FILE).read_text(encoding="utf-8"))


def edit_manifest(package: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = read_manifest(package)
    change(manifest)
    (package / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")


def replace_file(package: Path, name: str, content: bytes) -> None:
    """Another content, which the manifest knows: whole by its checksum, wrong all the same."""
    path = package / name
    path.write_bytes(content)
    entry = {"bytes": len(content), "sha256": file_sha256(path)}
    edit_manifest(package, lambda manifest: manifest["files"].update({name: entry}))


def set_size(package: Path, key: str, value: int) -> None:
    edit_manifest(package, lambda manifest: manifest["sizes"].update({key: value}))


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def refusal(package: Path, *, verify: bool = False) -> str:
    """The message with which a package is refused."""
    with pytest.raises(PackageError) as caught:
        ark_asr_onnx.load(package, threads=1, verify=verify)
    return str(caught.value)


# Whole packages ----------------------------------------------------------------------------------


def test_a_package_opens_wherever_it_lies(package: Path) -> None:
    moved = package.rename(package.parent / "ein Modell, moved (größer)")
    for directory in (moved, str(moved)):
        opened = open_package(directory, verify=True)
        assert opened.directory == moved
        assert opened.path("audio.onnx") == moved / "audio.onnx"
    ark_asr_onnx.load(moved, threads=1)


def test_the_manifest_lists_every_other_file(package: Path) -> None:
    assert sorted(open_package(package).manifest.files) == FILES
    assert sorted(path.name for path in package.iterdir()) == sorted([*FILES, MANIFEST_FILE])


def test_files_that_the_manifest_does_not_list_are_ignored(package: Path) -> None:
    (package / "README.md").write_text("not listed")
    (package / "samples").mkdir()
    opened = open_package(package, verify=True)
    with pytest.raises(PackageError, match=r"the manifest lists no file 'README\.md'"):
        opened.path("README.md")


def test_a_package_of_symbolic_links_opens(package: Path, tmp_path: Path) -> None:
    # So the cache of huggingface_hub stores a download: links to files named by checksum.
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for path in package.iterdir():
        blob = path.rename(blobs / file_sha256(path))
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    ark_asr_onnx.load(snapshot, threads=1, verify=True)


@pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 24),
    reason="this onnxruntime follows every link",
)
def test_links_that_onnxruntime_does_not_follow_come_with_advice(
    package: Path, tmp_path: Path
) -> None:
    for path in package.glob("*.data"):
        moved = path.rename(tmp_path / f"moved {path.name}")
        path.symlink_to(moved)
    with pytest.raises(PackageError, match="weights are a symbolic link: link the whole folder"):
        ark_asr_onnx.load(package, threads=1)


# Files that are not as they were -----------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(package: Path, name: str) -> None:
    (package / name).unlink()
    assert f"{package / name}: missing from the package" in refusal(package)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_with_both_sizes(package: Path, name: str) -> None:
    path = package / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    expected = f"{path}: {size // 2} bytes, the manifest says {size}"
    assert expected in refusal(package)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_found_in_every_file_but_the_largest(package: Path, name: str) -> None:
    flip_byte(package / name)
    assert f"{package / name}: checksum differs from the manifest" in refusal(package)


def test_a_flipped_byte_in_large_weights_is_found_only_by_verifying(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = package / "audio.onnx.data"
    monkeypatch.setattr("ark_asr_onnx.package.opening.ALWAYS_HASHED_BYTES", path.stat().st_size - 1)
    flip_byte(path)
    open_package(package)
    with pytest.raises(PackageError, match=r"audio\.onnx\.data: checksum differs"):
        open_package(package, verify=True)


@pytest.mark.parametrize("name", ["../evil", "graphs/../../evil", "/etc/hostname"])
def test_a_file_outside_the_package_is_never_touched(package: Path, name: str) -> None:
    (package.parent / "evil").write_bytes(b"evil")
    entry = {"bytes": 4, "sha256": file_sha256(package.parent / "evil")}
    edit_manifest(package, lambda manifest: manifest["files"].update({name: entry}))
    assert f"the manifest names {name!r}, outside the package" in refusal(package)


def test_a_file_the_layout_needs_must_be_listed(package: Path) -> None:
    edit_manifest(package, lambda manifest: manifest["files"].pop("decoder.onnx"))
    assert "the manifest lists no file 'decoder.onnx'" in refusal(package)


def test_a_tokenizer_must_be_listed(package: Path) -> None:
    edit_manifest(package, lambda manifest: manifest["files"].pop("tokenizer.json"))
    assert "the manifest lists no tokenizer; copy the package or export it" in refusal(package)


# Whole by their checksums, and wrong -------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "other", "odd"),
    [
        ("audio.onnx", "embedding_fp32.onnx", "input_ids|log_mel"),
        ("decoder.onnx", "embedding_fp32.onnx", "input_ids|inputs_embeds"),
        ("decoder.onnx", "audio.onnx", "log_mel|inputs_embeds"),
    ],
)
def test_a_graph_with_another_interface_is_refused_by_graph_and_input(
    package: Path, graph: str, other: str, odd: str
) -> None:
    replace_file(package, graph, (package / other).read_bytes())
    assert re.search(rf"{re.escape(str(package / graph))}: .*'({odd})'", refusal(package))


@pytest.mark.parametrize(
    ("key", "graph", "name"),
    [
        ("n_mels", "audio.onnx", "log_mel"),
        ("n_layers", "decoder.onnx", "past_key_values.2.key"),
        ("n_kv_heads", "decoder.onnx", "past_key_values.0.key"),
        ("head_dim", "decoder.onnx", "past_key_values.0.key"),
    ],
)
def test_a_graph_of_another_size_is_refused_by_graph_and_input(
    package: Path, key: str, graph: str, name: str
) -> None:
    set_size(package, key, read_manifest(package)["sizes"][key] + 1)
    message = refusal(package)
    assert message.startswith(f"{package / graph}: ")
    assert f"'{name}'" in message


def test_a_decoder_of_another_vocabulary_is_refused(package: Path) -> None:
    n_logits = read_manifest(package)["sizes"]["n_logits"]
    set_size(package, "n_logits", n_logits + 1)
    expected = f"decoder.onnx: {n_logits} logits, the manifest says"
    assert f"{expected} {n_logits + 1}" in refusal(package)


@pytest.mark.parametrize("graph", ["audio.onnx", "decoder.onnx"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 100], ids=["empty", "garbage"])
def test_a_file_that_is_no_graph_is_refused(package: Path, graph: str, content: bytes) -> None:
    replace_file(package, graph, content)
    message = refusal(package)
    assert message.startswith(f"{package / graph}: onnxruntime ")
    assert "cannot open this graph" in message


@pytest.mark.parametrize("graph", ["audio.onnx", "decoder.onnx"])
def test_weights_that_are_not_listed_are_refused(package: Path, graph: str) -> None:
    (package / f"{graph}.data").unlink()
    edit_manifest(package, lambda manifest: manifest["files"].pop(f"{graph}.data"))
    assert f"the manifest lists no file '{graph}.data'" in refusal(package)


@pytest.mark.parametrize("graph", ["audio.onnx", "decoder.onnx"])
def test_weights_too_few_for_their_graph_are_refused(package: Path, graph: str) -> None:
    replace_file(package, f"{graph}.data", bytes(1000))
    assert f"{package / graph}: onnxruntime " in refusal(package)


@pytest.mark.parametrize("more", [-4, 1, 256])
def test_an_embedding_of_another_size_is_refused(package: Path, more: int) -> None:
    table = (package / "embedding_fp32.data").read_bytes()
    replace_file(package, "embedding_fp32.data", table[:more] if more < 0 else table + bytes(more))
    message = refusal(package)
    assert f"embedding_fp32.data: {len(table) + more} bytes, expected {len(table)}" in message


def test_a_layout_nobody_knows_is_refused_with_those_that_are_known(package: Path) -> None:
    edit_manifest(package, lambda manifest: manifest.update(layout="sideways"))
    assert "layout 'sideways' is unknown, expected one of native" in refusal(package)


def test_a_package_for_a_newer_onnxruntime_says_what_to_install(package: Path) -> None:
    edit_manifest(package, lambda manifest: manifest.update(min_onnxruntime="99.1.0"))
    assert "pip install 'onnxruntime>=99.1.0'" in refusal(package)


# Messages ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """A way to break a package, what its refusal says, and the remedy."""

    breaks: Callable[[Path], object]
    found: str
    remedy: str


def without(package: Path, name: str) -> None:
    (package / name).unlink()


def into_a_file(package: Path) -> None:
    shutil.rmtree(package)
    package.write_bytes(b"not a folder")


def manifest_bytes(content: bytes) -> Callable[[Path], object]:
    return lambda package: (package / MANIFEST_FILE).write_bytes(content)


def manifest_into_a_folder(package: Path) -> None:
    (package / MANIFEST_FILE).unlink()
    (package / MANIFEST_FILE).mkdir()


AGAIN = "copy .*again|export .*again"
MAKE_ONE = "ark-onnx-export"

DAMAGES = {
    "folder missing": Damage(shutil.rmtree, "does not exist", MAKE_ONE),
    "file, no folder": Damage(into_a_file, "is a file, not a folder", MAKE_ONE),
    "no manifest": Damage(lambda p: without(p, MANIFEST_FILE), "no ark_manifest.json", MAKE_ONE),
    "manifest is a folder": Damage(manifest_into_a_folder, "cannot be read", AGAIN),
    "manifest no UTF-8": Damage(manifest_bytes(b'{"schema": "\xff"}'), "cannot be read", AGAIN),
    "manifest no JSON": Damage(manifest_bytes(b'{"schema"'), "not valid JSON", AGAIN),
    "manifest no object": Damage(manifest_bytes(b"[]"), "expected", AGAIN),
    "unknown key": Damage(
        lambda p: edit_manifest(p, lambda m: m.update(extra=1)), "unknown key 'extra'", AGAIN
    ),
    "missing key": Damage(
        lambda p: edit_manifest(p, lambda m: m["sizes"].pop("n_mels")),
        "sizes: missing key 'n_mels'",
        AGAIN,
    ),
    "wrong type": Damage(
        lambda p: set_size(p, "n_mels", "80"),  # pyright: ignore[reportArgumentType] - on purpose
        "sizes: n_mels: expected int, found '80'",
        AGAIN,
    ),
    "newer schema": Damage(
        lambda p: edit_manifest(p, lambda m: m.update(schema=2)), "schema is 2", "upgrade"
    ),
    "missing file": Damage(lambda p: without(p, "tokenizer.json"), "missing", AGAIN),
    "incomplete file": Damage(
        lambda p: (p / "tokenizer.json").write_bytes(b"{"), "1 bytes, the manifest says", AGAIN
    ),
    "flipped byte": Damage(lambda p: flip_byte(p / "audio.onnx"), "checksum differs", AGAIN),
    "file outside": Damage(
        lambda p: edit_manifest(
            p, lambda m: m["files"].update({"../evil": {"bytes": 1, "sha256": ""}})
        ),
        "'../evil', outside the package",
        AGAIN,
    ),
    "file not listed": Damage(
        lambda p: edit_manifest(p, lambda m: m["files"].pop("decoder.onnx")),
        "lists no file 'decoder.onnx'",
        AGAIN,
    ),
    "unknown layout": Damage(
        lambda p: edit_manifest(p, lambda m: m.update(layout="sideways")),
        "layout 'sideways' is unknown",
        "upgrade",
    ),
    "other graph": Damage(
        lambda p: replace_file(p, "audio.onnx", (p / "embedding_fp32.onnx").read_bytes()),
        "audio.onnx: ",
        AGAIN,
    ),
    "other size": Damage(lambda p: set_size(p, "n_mels", 128), "audio.onnx: ", AGAIN),
    "no graph": Damage(lambda p: replace_file(p, "audio.onnx", b"no"), "audio.onnx: ", AGAIN),
    "other table": Damage(
        lambda p: replace_file(p, "embedding_fp32.data", bytes(4)), "4 bytes, expected", AGAIN
    ),
    "no tokenizer": Damage(
        lambda p: replace_file(p, "tokenizer.json", b"{}"), "not a tokenizer file", AGAIN
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_refusal_is_one_line_that_says_where_what_and_what_to_do(
    package: Path, name: str
) -> None:
    damage = DAMAGES[name]
    damage.breaks(package)
    message = refusal(package)
    assert len(message.splitlines()) == 1
    assert str(package) in message
    assert damage.found in message
    assert re.search(damage.remedy, message), message
