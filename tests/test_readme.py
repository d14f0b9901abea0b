"""Every command in the documents works, and shows the output that the document shows."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

DOCUMENTS = ("README.md", "README_INT8_ASR_USAGE.md", "models/demo/README.md")
WRAPPED = ("README.md", "README_INT8_ASR_USAGE.md")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A fenced command or program, and the output shown below it, if any."""

    document: str
    language: str
    code: str
    output: str | None


def examples() -> list[Example]:
    found: list[Example] = []
    for document in DOCUMENTS:
        fences = FENCE.findall((ROOT / document).read_text(encoding="utf-8"))
        for i, (language, code) in enumerate(fences):
            if language in ("sh", "python"):
                following = fences[i + 1] if i + 1 < len(fences) else ("", "")
                output = following[1] if following[0] == "text" else None
                found.append(Example(document, language, code, output))
    return found


def label(example: Example) -> str:
    return example.code.strip().splitlines()[0][:60]


INSTALLING = [e for e in examples() if "pip install" in e.code]
RUNNABLE = [e for e in examples() if "pip install" not in e.code]


@pytest.mark.parametrize("example", INSTALLING, ids=label)
def test_installing_commands_are_run_by_the_check_script(example: Example) -> None:
    check = (ROOT / "scripts" / "check").read_text(encoding="utf-8")
    for line in example.code.strip().splitlines():
        assert line in check


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone, to write into."""
    folder = tmp_path_factory.mktemp("clone")
    for name in (
        "models",
        "runtime",
        "export",
        "benchmarks",
        "examples",
        "infer_ark_audio_onnx.py",
    ):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.parametrize("example", RUNNABLE, ids=label)
def test_documented_commands_work(example: Example, clone: Path) -> None:
    if "ark-onnx-export" in example.code or "benchmarks/" in example.code:
        pytest.importorskip("torch")
    if "ark-asr evaluate" in example.code or "run_evaluation" in example.code:
        pytest.importorskip("jiwer")
        pytest.importorskip("whisper_normalizer")
    if "openai_client" in example.code:
        pytest.importorskip("openai", minversion="1.66")  # older ones have no streams
    if "ray_batch" in example.code:
        pytest.importorskip("ray")
    start = ["bash", "-euc"] if example.language == "sh" else [sys.executable, "-c"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if k != "ARK_ASR_MODEL"} | {"PATH": path}
    result = subprocess.run(
        [*start, example.code], cwd=clone, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    if example.output is not None:
        assert result.stdout == example.output


def anchors(document: Path) -> list[str]:
    """What a link to a heading of a document is called, heading by heading, as GitHub does it."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_to_headings_resolve(name: str) -> None:
    path = ROOT / name
    for file, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", path.read_text("utf-8")):
        assert anchor in anchors(path.parent / file if file else path), f"{file}#{anchor}"


def test_the_contents_of_the_manual_name_every_section() -> None:
    manual = (ROOT / "README_INT8_ASR_USAGE.md").read_text(encoding="utf-8")
    contents = manual.split("\n## Contents\n")[1].split("\n## ")[0]
    sections = re.findall(r"^## (.+)$", FENCE.sub("", manual), re.MULTILINE)
    assert re.findall(r"^- \[(.+?)\]", contents, re.MULTILINE) == sections[1:]


@pytest.mark.parametrize("name", WRAPPED)
def test_prose_is_wrapped(name: str) -> None:
    text = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 100 and " " in line.strip()[:95]] == []


def test_the_check_script_runs_the_readmes_test_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert any("-m pytest" in e.code and e.document == "README.md" for e in INSTALLING)
    assert "infer_ark_audio_onnx.py --audio models/demo/samples/" in readme


def wording(path: Path) -> list[str]:
    """The texts in a module, with … for what is filled in."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value.replace("{n}", "…"))
    return found


def test_what_the_table_of_failures_quotes_is_what_is_said() -> None:
    manual = (ROOT / "README_INT8_ASR_USAGE.md").read_text(encoding="utf-8")
    chapter = manual.split("\n## What can go wrong\n")[1]
    table = next(part for part in chapter.split("\n\n") if part.startswith("|"))
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    assert len(rows) > 40
    assert all(len(row) == 6 for row in rows)
    quotes = [quote for row in rows for quote in re.findall("`(.+?)`", row[2])]
    modules = [*ROOT.glob("runtime/**/*.py"), *ROOT.glob("export/**/*.py")]
    said = [text for path in modules for text in wording(path)]
    names = ("error", "finish_reason", "Retry-After")  # of fields
    unknown = [q for q in quotes if q not in names and not any(q in text for text in said)]
    assert unknown == []
