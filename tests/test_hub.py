"""Models by Hugging Face id, against a small server on 127.0.0.1 that answers like the hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import DEMO, ROOT
from hub_server import Hub, running

from ark_asr_onnx.package import hub


@pytest.fixture
def server() -> Iterator[Hub]:
    with running() as found:
        yield found


def package_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in DEMO.iterdir() if path.is_file()}


def transcribe(
    server: Hub,
    cache: Path,
    model: str,
    *options: str,
    limit: int | None = None,
    variables: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    clip = sorted((DEMO / "samples").glob("*.flac"))[0]
    environment = {
        **os.environ, **server.environment(cache),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "runtime"), os.environ.get("PYTHONPATH", "")]),
        **(variables or {}),
    }  # fmt: skip
    begin = [] if limit is None else ["sh", "-c", f'ulimit -f {limit}; exec "$@"', "sh"]
    command = [
        *begin,
        sys.executable,
        "-m",
        "ark_asr_onnx",
        "transcribe",
        "--model",
        model,
        *options,
    ]
    return subprocess.run(
        [*command, str(clip)], env=environment, cwd=cache, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_an_id_is_fetched_once_and_then_used_without_the_network(
    server: Hub, tmp_path: Path
) -> None:
    server.files["someone/ark-demo"] = {**package_files(), "huge.safetensors": b"not needed"}
    first = transcribe(server, tmp_path, "someone/ark-demo")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    assert any("audio.onnx.data" in line for line in server.log)
    assert not any("huge" in line or "README" in line for line in server.log)
    server.log.clear()
    again = transcribe(server, tmp_path, "someone/ark-demo")
    assert again.stdout == first.stdout
    assert server.log == []
    offline = transcribe(server, tmp_path, "someone/ark-demo", "--local-files-only")
    assert offline.stdout == first.stdout
    assert server.log == []


def test_a_package_in_a_folder_of_a_repository_is_fetched(server: Hub, tmp_path: Path) -> None:
    server.files["someone/models"] = {f"int8/{k}": v for k, v in package_files().items()}
    result = transcribe(server, tmp_path, "someone/models/int8")
    assert result.returncode == 0, result.stderr


def test_the_makers_folder_in_a_repository_is_found_and_what_is_faster_is_said(
    server: Hub, demo_published_package: Path, tmp_path: Path
) -> None:
    files = {f"ark_asr_int8_onnx/{p.name}": p for p in demo_published_package.iterdir()}
    server.files["someone/ARK"] = {k: p.read_bytes() for k, p in files.items()}
    server.files["someone/ARK"]["model.safetensors"] = b"not needed"
    told = (
        "note: someone/ARK{} holds its makers' package; an export of the checkpoint is faster: "
        "ark-onnx-export --ckpt someone/ARK\n"
    )
    for inside in ("", "/ark_asr_int8_onnx"):
        result = transcribe(server, tmp_path, f"someone/ARK{inside}")
        assert (result.returncode, result.stderr) == (0, told.format(inside))
        assert result.stdout.strip()
    assert not any("safetensors" in line for line in server.log)
    result = transcribe(server, tmp_path, str(demo_published_package))
    assert (result.returncode, result.stderr) == (0, ""), "a folder was opened knowingly"


def test_a_gated_repository_says_what_to_do(server: Hub, tmp_path: Path) -> None:
    server.files["someone/ark-demo"] = package_files()
    server.refusal = "GatedRepo", 403
    line = one_line(transcribe(server, tmp_path, "someone/ark-demo"))
    assert line == (
        "error: someone/ark-demo: its owner lets in who asks: accept the terms at "
        f"{server.endpoint}/someone/ark-demo, and log in with hf auth login"
    )


def test_a_download_that_breaks_off_is_resumed(server: Hub, tmp_path: Path) -> None:
    server.files["someone/ark-demo"] = package_files()
    server.cut.add("audio.onnx.data")
    results = [transcribe(server, tmp_path, "someone/ark-demo") for _ in range(2)]
    assert results[-1].returncode == 0, results[-1].stderr
    assert results[-1].stdout.strip()


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("someone/absent", [], "no such repository on the hub"),
        ("someone/empty", [], "has no ark_manifest.json or runtime_manifest.json"),
        ("someone/empty", [], "(export that with ark-onnx-export --ckpt someone/empty)"),
        ("someone/torn", [], "has no decoder.onnx"),
        ("someone/ark-demo", ["--local-files-only"], "not in the cache"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    server: Hub, tmp_path: Path, model: str, options: list[str], expected: str
) -> None:
    server.files["someone/empty"] = {"model.safetensors": b""}
    server.files["someone/torn"] = {
        k: v for k, v in package_files().items() if not k.startswith("decoder")
    }
    server.files["someone/ark-demo"] = package_files()
    result = transcribe(server, tmp_path, model, *options)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in result.stderr


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """What a command says that failed, and says nothing else."""
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("trouble", ["cut", "reset", "stalled", "401", "403"])
def test_a_download_that_fails_is_one_line(server: Hub, tmp_path: Path, trouble: str) -> None:
    server.files["someone/ark-demo"] = package_files()
    server.trouble = trouble
    line = one_line(
        transcribe(server, tmp_path, "someone/ark-demo", variables={"HF_HUB_DOWNLOAD_TIMEOUT": "1"})
    )
    assert line.startswith("error: someone/ark-demo: fetching audio.onnx.data failed (")
    if trouble.isdigit():
        assert trouble in line
    server.trouble = None
    assert transcribe(server, tmp_path, "someone/ark-demo").returncode == 0


@pytest.mark.parametrize("trouble", ["html", "redirect"])
def test_a_network_that_answers_nonsense_is_one_line(
    server: Hub, tmp_path: Path, trouble: str
) -> None:
    server.trouble = trouble
    line = one_line(transcribe(server, tmp_path, "someone/ark-demo"))
    assert line.startswith("error: someone/ark-demo: ")
    assert "ark_manifest.json" in line
    assert line.endswith("or give a folder")


@pytest.mark.parametrize(
    "manifest", [b"<html>Please log in</html>", b"[" * 100_000, b"\xff", b"", b"{}"], ids=range(5)
)
def test_a_manifest_that_is_none_is_one_line(server: Hub, tmp_path: Path, manifest: bytes) -> None:
    for name in ("ark_manifest.json", "runtime_manifest.json"):
        server.files["someone/ark-demo"] = {name: manifest}
        line = one_line(transcribe(server, tmp_path, "someone/ark-demo"))
        assert name in line
        server.files["someone/ark-demo"] = {}
        for path in tmp_path.iterdir():
            shutil.rmtree(path)


@pytest.mark.parametrize(
    "variables",
    [
        {"HF_ENDPOINT": "nonsense"},
        {"HF_ENDPOINT": "htp:/bad"},
        {"HF_ENDPOINT": "http://[::bad"},
        {"HF_HUB_DOWNLOAD_TIMEOUT": "soon"},
        {"HF_HOME": "/dev/null"},
        {"HTTP_PROXY": "htp://x:y", "http_proxy": "htp://x:y", "NO_PROXY": "", "no_proxy": ""},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_a_variable_that_makes_no_sense_is_one_line(
    server: Hub, tmp_path: Path, variables: dict[str, str]
) -> None:
    server.files["someone/ark-demo"] = package_files()
    line = one_line(transcribe(server, tmp_path, "someone/ark-demo", variables=variables))
    assert line.startswith("error: someone/ark-demo: ")


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_disk_that_is_full_is_one_line(server: Hub, tmp_path: Path) -> None:
    server.files["someone/ark-demo"] = package_files()
    line = one_line(transcribe(server, tmp_path, "someone/ark-demo", limit=500))
    assert "fetching audio.onnx.data failed (" in line


@pytest.mark.skipif(os.name != "posix", reason="users of POSIX")
def test_without_a_home_an_id_says_what_to_set(server: Hub, tmp_path: Path) -> None:
    server.files["someone/ark-demo"] = package_files()
    code = (
        "import os, sys\n"
        "import ark_asr_onnx, huggingface_hub\n"
        "try:\n"
        "    ark_asr_onnx.load('someone/ark-demo')\n"
        "except ark_asr_onnx.PackageError as error:\n"
        "    print(error, os.listdir())\n"
    )
    # No user has this home: so a user whom the system does not know looks to the library.
    patch = "import posixpath; posixpath.expanduser = lambda path: path\n"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    result = subprocess.run(
        [sys.executable, "-c", patch + code], cwd=tmp_path, capture_output=True, text=True,
        env=environment | {"HF_ENDPOINT": server.endpoint}, check=False,
    )  # fmt: skip
    expected = "someone/ark-demo: there is no home directory to keep a model in; set HF_HOME"
    assert result.stdout == f"{expected}, or give a folder []\n", result.stderr


def test_the_logger_of_the_library_stays_as_the_host_set_it(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["someone/ark-demo"] = package_files()
    code = (
        "import logging\n"
        "from huggingface_hub import hf_hub_download\n"
        "logger = logging.getLogger('huggingface_hub')\n"
        "logger.setLevel(logging.INFO)\n"
        "before = [(h, list(h.filters)) for h in logger.handlers]\n"
        "import ark_asr_onnx\n"
        "ark_asr_onnx.load('someone/ark-demo')\n"
        "assert logger.level == logging.INFO\n"
        "assert [(h, list(h.filters)) for h in logger.handlers] == before\n"
    )
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_network_the_message_says_so(server: Hub, tmp_path: Path) -> None:
    server.server.shutdown()
    server.server.server_close()
    result = transcribe(server, tmp_path, "someone/ark-demo")
    assert result.returncode == 1
    assert "no such folder here, and the hub cannot be reached" in result.stderr


@pytest.mark.parametrize(
    "model",
    [
        str(DEMO),
        ".",
        "absent",
        "./a/b",
        "/no/such",
        "models/typo",
        "models/typo/deeper",
        "models/demo/typo",
        "~/a",
        "C:/models/demo",
        "a\\b",
    ],
)
def test_folders_and_paths_ask_nobody(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(hub, "getter", lambda *_, **__: pytest.fail("asked the hub"))
    assert hub.resolve(model) == Path(model)
