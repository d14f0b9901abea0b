"""Checkpoints by Hugging Face id, against a small server on 127.0.0.1 that answers like the hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import DEMO, ROOT
from hub_server import COMMIT, Hub, commit_of, running

pytest.importorskip("torch")

from ark_asr_onnx.package import repository
from ark_asr_onnx.package.contract import manifest_from_json
from ark_onnx_export import fetch

PATHS = (str(ROOT / "runtime"), str(ROOT / "export"))
ID = "someone/ARK-ASR-tiny"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NOT_NEEDED = {
    "README.md": b"a card",
    "modeling_arkasr.py": b"raise SystemExit('code of the checkpoint was run')",
    "ark_asr_int8_onnx/runtime_manifest.json": b"{}",
    "onnx/model.safetensors": b"another",
    "pytorch_model.bin": b"a pickle",
}


@pytest.fixture
def server() -> Iterator[Hub]:
    with running() as found:
        yield found


@pytest.fixture
def small(server: Hub) -> dict[str, bytes]:
    """A repository that is fetched quickly: what its weights hold is seen only after that."""
    checkpoint = DEMO / "checkpoint"
    found = {name: (checkpoint / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    server.files[ID] = {**found, SINGLE: bytes(200_000)}
    server.large = SINGLE
    return server.files[ID]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def command(
    server: Hub,
    work: Path,
    *arguments: object,
    limit: int | None = None,
    first: str = "",
    variables: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """The exporter's command in a folder, whose ``cache`` is that of the library."""
    path = [*PATHS, os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ, **server.environment(work / "cache"), "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_DOWNLOAD_TIMEOUT": "1", **(variables or {}),
    }  # fmt: skip
    begin = [] if limit is None else ["sh", "-c", f'ulimit -f {limit}; exec "$@"', "sh"]
    code = f"{first}\nimport sys\nfrom ark_onnx_export.cli import main\nsys.exit(main())"
    return subprocess.run(
        [*begin, sys.executable, "-c", code, *map(str, arguments), "--quiet"],
        env=environment, cwd=work, capture_output=True, text=True, check=False,
    )  # fmt: skip


def one_line(done: subprocess.CompletedProcess[str], work: Path) -> str:
    """What a command says that failed, says nothing else, and has left nothing."""
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert {path.name for path in work.iterdir()} <= {"cache"}
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def requested(server: Hub) -> set[str]:
    """Files whose content was asked for."""
    return {line.split("/", 5)[5] for line in server.log if line.startswith("GET /someone")}


def test_an_id_is_exported_as_its_folder_is_and_notes_the_commit(
    server: Hub, tiny_checkpoint: Path, tiny_fp32_package: Path, tmp_path: Path
) -> None:
    checkpoint = contents(tiny_checkpoint)
    server.files[ID] = {**checkpoint, **NOT_NEEDED}
    done = command(server, tmp_path, "--ckpt", ID, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ARK-ASR-tiny-onnx-fp32\n"
    assert requested(server) == set(checkpoint)
    out = tmp_path / "ARK-ASR-tiny-onnx-fp32"
    assert {path.name for path in tmp_path.iterdir()} == {"cache", out.name}
    for path in tiny_fp32_package.iterdir():
        if path.suffix in (".onnx", ".data"):
            assert (out / path.name).read_bytes() == path.read_bytes()
    manifest = manifest_from_json((out / "ark_manifest.json").read_text(), "manifest")
    assert manifest.name == "ARK-ASR-tiny"
    assert manifest.provenance.source == f"{ID}@{COMMIT}"
    assert f"Compared with {ID}@{COMMIT} (torch fp32)" in (out / "REPORT.md").read_text()
    # The same keys as in a package of a folder: whatever reads one reads the other.
    ours, theirs = (
        json.loads((folder / "ark_manifest.json").read_text())["provenance"]
        for folder in (out, tiny_fp32_package)
    )
    assert ours.keys() == theirs.keys()
    assert {key: type(value) for key, value in ours.items()} == {
        key: type(value) for key, value in theirs.items()
    }
    server.log.clear()
    options = ["verify", "--package", out, "--ckpt", ID, "--local-files-only"]
    clip = next((DEMO / "samples").glob("*.flac"))
    done = command(server, tmp_path, *options, "--audio", clip, "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert f"reference  {ID}@{COMMIT} (torch fp32)\n" in done.stdout
    assert "was made from these files" in done.stdout
    assert server.log == []


FETCH = """
import sys
from ark_onnx_export import fetch
source = fetch.resolve(sys.argv[1], revision=sys.argv[2] if len(sys.argv) > 2 else None)
print(source.origin)
print(source.directory)
sys.exit()
"""


def fetched(server: Hub, work: Path, *arguments: str) -> tuple[str, dict[str, bytes]]:
    """Where a checkpoint is from, and what its folder holds."""
    path = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", FETCH, *arguments], cwd=work, capture_output=True, text=True,
        env={**os.environ, **server.environment(work / "cache"), "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    origin, folder = done.stdout.splitlines()
    return origin, contents(Path(folder))


def test_all_is_of_one_commit_and_fetched_once(
    server: Hub, small: dict[str, bytes], tmp_path: Path
) -> None:
    server.files[ID] = {**small, **NOT_NEEDED}
    assert fetched(server, tmp_path, ID) == (f"{ID}@{COMMIT}", small)
    resolved = [line.split("/resolve/")[1] for line in server.log if "GET" in line[:3]
                and "/resolve/" in line]  # fmt: skip
    assert resolved == [
        "main/config.json", f"{COMMIT}/tokenizer.json", f"{COMMIT}/{SINGLE}"
    ]  # fmt: skip
    server.log.clear()
    assert fetched(server, tmp_path, ID) == (f"{ID}@{COMMIT}", small)
    assert server.log == []


def test_a_revision_is_taken_and_noted_as_its_commit(
    server: Hub, small: dict[str, bytes], tmp_path: Path
) -> None:
    older = {**small, SINGLE: bytes(1000)}
    server.files[f"{ID}@v1"] = older
    commit = commit_of(f"{ID}@v1")
    assert fetched(server, tmp_path, ID, "v1") == (f"{ID}@{commit}", older)
    server.log.clear()
    assert fetched(server, tmp_path, ID, commit) == (f"{ID}@{commit}", older)
    assert server.log == []
    assert fetched(server, tmp_path, ID) == (f"{ID}@{COMMIT}", small), "the main branch is another"


def test_a_checkpoint_in_a_folder_of_a_repository_is_fetched(
    server: Hub, small: dict[str, bytes], tmp_path: Path
) -> None:
    inside = {f"a/b/{name}": data for name, data in small.items()}
    server.files["someone/models"] = {**inside, SINGLE: b"another"}
    found = fetched(server, tmp_path, "someone/models/a/b")
    assert found == (f"someone/models/a/b@{COMMIT}", small)


@pytest.mark.parametrize("trouble", ["cut", "reset", "stalled", "401", "403"])
def test_weights_that_do_not_come_are_one_line(
    server: Hub, small: dict[str, bytes], tmp_path: Path, trouble: str
) -> None:
    server.trouble = trouble
    line = one_line(command(server, tmp_path, "--ckpt", ID), tmp_path)
    assert line.startswith(f"{ID}: fetching {SINGLE} failed (")
    if trouble.isdigit():
        assert trouble in line
    server.trouble = None
    assert fetched(server, tmp_path, ID)[1] == small


def test_a_download_that_breaks_off_goes_on_from_there(
    server: Hub, small: dict[str, bytes], tmp_path: Path
) -> None:
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    del small[SINGLE]
    # What has come of a file is kept in pieces of 10 MB.
    small |= {INDEX: SHARDS, first: bytes(1000), second: bytes(24 << 20)}
    server.large, server.trouble, server.sent = second, "cut", 15 << 20
    line = one_line(command(server, tmp_path, "--ckpt", ID), tmp_path)
    assert f"fetching {second} failed (" in line
    server.trouble = None
    server.resumed.clear()
    server.log.clear()
    kept = f"{hashlib.sha256(small[second]).hexdigest()}.incomplete"
    # Newer releases of the library begin the file anew, and leave no such file.
    resumed = [second for _ in tmp_path.glob(f"cache/hub/*/blobs/{kept}")]
    assert fetched(server, tmp_path, ID)[1] == small
    assert server.resumed == resumed
    weights = [name for name in requested(server) if name.endswith(".safetensors")]
    assert weights == [second]


WHISPER = json.dumps({"model_type": "whisper"}).encode()
SHARDS = json.dumps(
    {"weight_map": {f"w{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}}
).encode()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"config.json": None}, f"{ID}: the repository has no config.json; a checkpoint is needed"),
        ({"config.json": WHISPER}, "model_type is 'whisper', this exporter reads 'arkasr'"),
        ({"config.json": b"<html>Please log in</html>"}, "not readable as JSON"),
        ({"tokenizer.json": None}, f"{ID}: the repository has no vocab.json"),
        ({SINGLE: None, "pytorch_model.bin": b""}, f"{ID}: no {SINGLE} and no {INDEX}; only"),
        ({"adapter_config.json": b"{}"}, f"{ID}/adapter_config.json: an adapter"),
        ({INDEX: SHARDS}, f"{ID}: {SINGLE} and {INDEX} are two sets of weights"),
        ({SINGLE: None, INDEX: b"<html>"}, "not a safetensors index"),
        (
            {SINGLE: None, INDEX: SHARDS, "model-00001-of-00002.safetensors": bytes(1000)},
            f"{ID}: the repository has no model-00002-of-00002.safetensors",
        ),
    ],
    ids=range(9),
)
def test_what_is_no_checkpoint_is_one_line_before_any_weights(
    server: Hub, small: dict[str, bytes], tmp_path: Path, changed: dict, expected: str
) -> None:
    server.files[ID] = {k: v for k, v in {**small, **changed}.items() if v is not None}
    line = one_line(command(server, tmp_path, "--ckpt", ID), tmp_path)
    assert expected in line
    assert not any(name.endswith(".safetensors") for name in requested(server))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--ckpt", "someone/absent"], "someone/absent: no such folder here and no such repositor"),
        (["--ckpt", ID, "--revision", "v9"], f"{ID}: the repository has no revision v9"),
        (["--ckpt", ID, "--local-files-only"], f"{ID}: config.json is not in the cache, and down"),
        (
            ["--ckpt", ID, "--local-files-only", "--revision", "v9"],
            f"{ID}@v9: config.json is not in the cache, and downloading was not allowed",
        ),
    ],
    ids=range(4),
)
@pytest.mark.usefixtures("small")
def test_what_is_not_there_is_one_line(
    server: Hub, tmp_path: Path, options: list[str], expected: str
) -> None:
    line = one_line(command(server, tmp_path, *options), tmp_path)
    assert line.startswith(expected)
    if "--local-files-only" in options:
        assert server.log == []


@pytest.mark.usefixtures("small")
def test_a_part_in_the_cache_is_not_enough_without_the_network(server: Hub, tmp_path: Path) -> None:
    server.trouble = "403"
    one_line(command(server, tmp_path, "--ckpt", ID), tmp_path)
    server.log.clear()
    line = one_line(command(server, tmp_path, "--ckpt", ID, "--local-files-only"), tmp_path)
    assert line.startswith(f"{ID}: ")
    assert f"no {SINGLE} and no {INDEX}" in line
    assert line.endswith(", and downloading was not allowed")
    assert server.log == []


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("GatedRepo", 401, "its owner lets in who asks: accept the terms at http://127.0.0.1"),
        ("GatedRepo", 403, "its owner lets in who asks: accept the terms at http://127.0.0.1"),
        ("RepoNotFound", 401, "no such repository on the hub (or it is private: log in with"),
        ("", 403, "403"),
        ("", 503, "503"),
    ],
)
@pytest.mark.usefixtures("small")
def test_a_hub_that_refuses_is_one_line(
    server: Hub, tmp_path: Path, code: str, status: int, expected: str
) -> None:
    server.refusal = code, status
    line = one_line(command(server, tmp_path, "--ckpt", ID), tmp_path)
    assert line.startswith(f"{ID}: ")
    assert expected in line


@pytest.mark.parametrize("trouble", ["html", "redirect", "garbage"])
@pytest.mark.usefixtures("small")
def test_a_network_that_answers_nonsense_is_one_line(
    server: Hub, tmp_path: Path, trouble: str
) -> None:
    server.trouble = trouble
    line = one_line(command(server, tmp_path, "--ckpt", ID), tmp_path)
    assert line.startswith(f"{ID}: ")
    assert "config.json" in line
    assert line.endswith("or give a folder")


@pytest.mark.parametrize("trouble", ["html", "stalled", "403", "404", "503"])
@pytest.mark.usefixtures("small")
def test_a_list_of_files_that_does_not_come_is_one_line(
    server: Hub, tmp_path: Path, trouble: str
) -> None:
    server.list_trouble = trouble
    line = one_line(command(server, tmp_path, "--ckpt", ID), tmp_path)
    assert line.startswith(f"{ID}: fetching the list of its files failed (")
    assert SINGLE not in requested(server)


def test_without_a_network_the_message_says_so(server: Hub, tmp_path: Path) -> None:
    server.server.shutdown()
    server.server.server_close()
    line = one_line(command(server, tmp_path, "--ckpt", ID), tmp_path)
    assert line.startswith(f"{ID}: there is no such folder here, and the hub cannot be reached")


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.usefixtures("small")
def test_a_disk_that_fills_up_is_one_line(server: Hub, tmp_path: Path) -> None:
    line = one_line(command(server, tmp_path, "--ckpt", ID, limit=100), tmp_path)
    assert line.startswith(f"{ID}: fetching {SINGLE} failed (")


@pytest.mark.usefixtures("small")
def test_a_disk_too_small_for_download_and_export_is_told_before(
    server: Hub, tmp_path: Path
) -> None:
    # Enough for either, not for both.
    first = (
        "import shutil; usage = shutil.disk_usage('.')\n"
        "shutil.disk_usage = lambda _: usage._replace(free=38519632)"
    )
    line = one_line(command(server, tmp_path, "--ckpt", ID, first=first), tmp_path)
    assert "GB free, the download needs about 0.00 GB and the export needs about 0.04 GB" in line
    assert line.endswith("; free some or set HF_HOME to a folder on another disk or give --out on "
                         "another disk")  # fmt: skip
    assert SINGLE not in requested(server)


@pytest.mark.usefixtures("small")
def test_an_output_that_is_there_is_told_before_anything_is_asked(
    server: Hub, tmp_path: Path
) -> None:
    (tmp_path / "ARK-ASR-tiny-onnx-int8").mkdir()
    done = command(server, tmp_path, "--ckpt", ID)
    assert (done.returncode, done.stdout) == (1, "")
    expected = "error: ARK-ASR-tiny-onnx-int8 exists; give another --out or remove it first\n"
    assert done.stderr == expected
    assert server.log == []


@pytest.mark.usefixtures("small")
def test_a_missing_extra_is_told_before_anything_is_asked(server: Hub, tmp_path: Path) -> None:
    first = "import sys; sys.modules['librosa'] = None"
    done = command(server, tmp_path, "--ckpt", ID, first=first)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: librosa is not installed: pip install 'ark-asr-onnx[exp")
    assert server.log == []


@pytest.mark.usefixtures("small")
def test_a_local_folder_wins(server: Hub, tmp_path: Path) -> None:
    (tmp_path / ID).mkdir(parents=True)
    done = command(server, tmp_path, "--ckpt", ID)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no config.json; --ckpt wants the folder" in done.stderr
    done = command(server, tmp_path, "--ckpt", ID, "--revision", "main")
    assert done.stderr == f"error: --revision is for Hugging Face ids, {ID} is a folder's name\n"
    assert server.log == []


@pytest.mark.parametrize(
    "ckpt", [".", "absent", "./a/b", "/no/such", "models/typo", "models/demo/typo", "a\\b"]
)
def test_folders_and_paths_ask_nobody(ckpt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(fetch, "getter", lambda *_, **__: pytest.fail("asked the hub"))
    source = fetch.resolve(ckpt)
    assert source.directory == Path(ckpt)
    assert source.origin == Path(ckpt).resolve().name


def test_what_an_earlier_download_left_is_not_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--someone--ARK-ASR-tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "whole").write_bytes(bytes(1000))
    (blobs / "half.incomplete").write_bytes(bytes(400))
    files = {name: repository.Remote(1000, name) for name in ("whole", "half", "none")}
    assert repository.missing_bytes(ID, COMMIT, files) == 600 + 1000
