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

DOCUMENTS = (
    "README.md",
    "README_INT8_ASR_USAGE.md",
    "models/demo/README.md",
    "runtime/EMBEDDING.md",
)
PAGE = "The first ten minutes with the real weights"
STAND_INS = {  # for what its reader has
    "--ckpt AutoArk-AI/ARK-ASR-0.6B": "--ckpt models/demo/checkpoint",
    "--model AutoArk-AI/ARK-ASR-0.6B": "--model models/demo",
    "talk.wav": "models/demo/samples/an68-meht-b.flac",
    "meeting.wav": "models/demo/samples/an66-meht-b.flac",
}
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
        text = (ROOT / document).read_text(encoding="utf-8")
        if f"\n## {PAGE}\n" in text:
            page = section(text, PAGE)
            text = text.replace(page, with_stand_ins(page))
        fences = FENCE.findall(text)
        for i, (language, code) in enumerate(fences):
            if language in ("sh", "python"):
                following = fences[i + 1] if i + 1 < len(fences) else ("", "")
                output = following[1] if following[0] == "text" else None
                found.append(Example(document, language, code, output))
    return found


def section(text: str, heading: str) -> str:
    """What is below a heading of the second level."""
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def with_stand_ins(page: str) -> str:
    """A page with the demo in the place of the real weights and of recordings."""
    for what, instead in STAND_INS.items():
        assert what in page
        page = page.replace(what, instead)
    return page


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


def test_the_contents_of_the_manual_name_every_section() -> None:
    manual = (ROOT / "README_INT8_ASR_USAGE.md").read_text(encoding="utf-8")
    contents = section(manual, "Contents")
    sections = re.findall(r"^## (.+)$", FENCE.sub("", manual), re.MULTILINE)
    assert re.findall(r"^- \[(.+?)\]", contents, re.MULTILINE) == sections[1:]


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


def table_below(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of the manual, without its two first rows."""
    manual = (ROOT / "README_INT8_ASR_USAGE.md").read_text(encoding="utf-8")
    parts = manual.split(f"# {heading}\n")[1].split("\n\n")
    table = next(part for part in parts if part.startswith("|"))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_what_the_tables_of_failures_quote_is_what_is_said() -> None:
    rows, first_page = table_below("What can go wrong"), table_below("If something fails")
    assert len(rows) > 40
    assert all(len(row) == 4 for row in rows)
    cells = [row[1] for row in rows] + [row[0] for row in first_page]
    quotes = [quote for cell in cells for quote in re.findall("`(.+?)`", cell)]
    modules = [*ROOT.glob("runtime/**/*.py"), *ROOT.glob("export/**/*.py")]
    said = [text for path in modules for text in wording(path)]
    names = ("error", "finish_reason", "Retry-After")  # of fields
    unknown = [q for q in quotes if q not in names and not any(q in text for text in said)]
    assert unknown == []
