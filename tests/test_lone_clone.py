"""A clone with nothing beside it: what its programs need is in it, made by them, or asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import outside
import pytest
from conftest import ROOT

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
if not (ROOT / ".git").exists() or shutil.which("git") is None:
    pytest.skip("which files are tracked is not known here", allow_module_level=True)

OUTSIDE = re.compile(r"\.\./shared|[\"']shared[\"']|shared/(speech|tokenizer)|/work/(main|shared)")
# Where the folder beside the repository is looked for, and where that is explained.
EXPLAINED = {"benchmarks/outside.py", "CONTRIBUTING.md", "tests/test_lone_clone.py"}
# What scripts need beside the speech that they lack.
LISTENERS: dict[str, tuple[str, ...]] = {
    "benchmarks/demo_wer.py": (),
    "benchmarks/haswell.py": (),
    "benchmarks/hotwords.py": (),
    "benchmarks/long_form.py": (),
    "benchmarks/openvino_fidelity.py": ("--peers-python", "x", "--checkpoint", "x"),
    "benchmarks/pool.py": (),
    "benchmarks/real_int8.py": ("--checkpoint", "x"),
    "benchmarks/real_peers.py": ("--package", "x", "--wheels", "x", "--peers-python", "x"),
    "benchmarks/robust.py": (),
    "benchmarks/service.py": (),
    "benchmarks/word_times.py": (),
    "models/demo/recipe/train.py": ("--out", "x"),
    "models/real/prepare.py": ("--out", "x"),
    "models/real/train.py": ("--features", "x", "--out", "x"),
}


def tracked() -> list[str]:
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def programs() -> list[str]:
    folders = ("benchmarks/", "models/")
    names = [n for n in tracked() if n.endswith(".py") and n.startswith(folders)]
    return [n for n in names if "__main__" in (ROOT / n).read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files, in a folder that holds nothing else."""
    folder = tmp_path_factory.mktemp("lone") / "clone"
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(clone: Path, *command: str) -> subprocess.CompletedProcess[str]:
    roots = ("runtime", "export", "benchmarks")
    variables = (outside.SPEECH, outside.TOKENIZER)
    environment = {k: v for k, v in os.environ.items() if k not in variables}
    environment["PYTHONPATH"] = os.pathsep.join(str(clone / name) for name in roots)
    return subprocess.run(
        [sys.executable, *command], cwd=clone, env=environment, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, check=False, timeout=300,
    )  # fmt: skip


def all_of(
    clone: Path, commands: Iterable[tuple[str, ...]]
) -> list[tuple[str, subprocess.CompletedProcess[str]]]:
    """What programs did, by their names; some at a time, because most of it is importing."""
    commands = list(commands)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(lambda command: run(clone, *command), commands)
        return [(command[0], result) for command, result in zip(commands, done, strict=True)]


def test_no_file_speaks_of_what_is_not_in_the_repository() -> None:
    speaking: list[str] = []
    for name in set(tracked()) - EXPLAINED:
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:  # audio, weights
            continue
        speaking += [f"{name}: {line}" for line in text.splitlines() if OUTSIDE.search(line)]
    assert speaking == []


def test_every_program_tells_what_it_does(clone: Path) -> None:
    names = programs()
    assert len(names) > 30
    for name, done in all_of(clone, ((name, "--help") for name in names)):
        if name == "benchmarks/openvino_encoder.py" and done.returncode:  # of another Python
            assert done.stderr.splitlines() == [
                "error: No module named 'openvino'; take a Python with benchmarks/peers.txt"
            ]
        else:
            assert (done.returncode, done.stderr) == (0, ""), name
        assert len(done.stdout) > 100, name


def test_programs_without_speech_say_in_a_line_what_they_need(clone: Path) -> None:
    asking = re.compile(r"add_speech\(parser|speech\(options\.speech")
    assert {n for n in programs() if asking.search((ROOT / n).read_text("utf-8"))} == {*LISTENERS}
    for name, done in all_of(clone, ((name, *more) for name, more in LISTENERS.items())):
        assert done.returncode == 1, name
        (line,) = done.stderr.splitlines()
        assert re.fullmatch(
            r"error: no recorded speech: (\w+/\w+\.jsonl \([\w ]+\)(, )?)+; give --speech DIR or "
            r"set ARK_ASR_SPEECH, see Recorded speech in CONTRIBUTING\.md", line
        ), name  # fmt: skip


def test_a_peer_that_needs_a_tokenizer_asks_for_one(clone: Path) -> None:
    done = run(clone, "benchmarks/make_peers.py", "genai_int8", "x")
    assert done.returncode == 1
    assert done.stderr == (
        "error: genai's builder reads a tokenizer; give a checkpoint: --tokenizer\n"
    )


def test_the_comparison_makes_its_checkpoint(clone: Path, tmp_path: Path) -> None:
    code = (
        "import sys, compare\n"
        "options = compare.arguments('').parse_args(['--size', 'small', '--work', sys.argv[1]])\n"
        "print(compare.opened(options).checkpoint)"
    )
    done = run(clone, "-c", code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "model.safetensors").is_file()


def test_a_folder_of_speech_is_the_named_one_the_variables_or_the_one_beside(
    monkeypatch: pytest.MonkeyPatch, own_speech: Path, tmp_path: Path
) -> None:
    monkeypatch.delenv(outside.SPEECH, raising=False)
    monkeypatch.setattr(outside, "_BESIDE", tmp_path / "shared")
    assert outside.speech("") == tmp_path / "shared" / "speech"
    with pytest.raises(SystemExit, match=r"no recorded speech: sentences/dev\.jsonl \(AN4\);"):
        outside.speech("", "sentences/dev")
    assert outside.speech(str(own_speech), "sentences/dev") == own_speech
    monkeypatch.setenv(outside.SPEECH, str(own_speech))
    assert outside.speech("", "sentences/dev") == own_speech
    with pytest.raises(SystemExit, match=r"own has no read/dev\.jsonl \(read English\);"):
        outside.speech("", "sentences/dev", "read/dev")
    monkeypatch.setenv(outside.SPEECH, str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match=r"ARK_ASR_SPEECH names .*nowhere, which is no folder"):
        outside.speech("", "sentences/dev")
    assert outside.speech(str(own_speech)) == own_speech
