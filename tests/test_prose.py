"""Documents read well in a terminal, and what they link to exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator

import pytest
from conftest import ROOT

COLUMNS = 100
# Written by programs: their lines are as long as they come.
GENERATED = {"models/demo/REPORT.md", "benchmarks/results/demo_wer.md"}
# tests/test_arrows.py reads this list as a line.
ONE_LINE = "The exporter may import"
# And folders whose names begin with a dot.
SKIPPED = {"build", "dist", "node_modules", "site-packages"}

# What is not broken: a link, what is left of one that began on the line before, code, a tag.
UNBROKEN = re.compile(r"!?\[[^\]]*\]\([^)]*\)|\]\([^)]*\)|`[^`]*`|<[^>]*>")
LINK = re.compile(
    r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|<(?:img|a|source)[^>]*(?:src|href|srcset)=\"([^\"]+)\""
)


def documents() -> list[str]:
    """Markdown files: those that git tracks, or all where this is no clone."""
    if (ROOT / ".git").exists() and shutil.which("git") is not None:
        command = ["git", "ls-files", "-z", "*.md"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        names = [name for name in listed.stdout.split("\0") if name]
    else:
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
        names = [
            path.as_posix()
            for path in paths
            if not any(part in SKIPPED or part.startswith(".") for part in path.parts)
        ]
    return sorted(name for name in names if (ROOT / name).is_file())


DOCUMENTS = documents()


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Numbers and lines outside of fenced code."""
    is_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield number, line


def can_be_shorter(line: str) -> bool:
    """Whether a line has a space to break it at."""
    text = re.sub(r"^\s*([-*]|\d+\.)?\s+", "", line)
    return len(UNBROKEN.sub("x", text).split()) > 1


def is_too_long(line: str) -> bool:
    if len(line) <= COLUMNS or line.startswith(("|", ONE_LINE)):
        return False
    return can_be_shorter(line)


def test_what_is_too_long() -> None:
    words, url = "word " * 30, "https://example.org/" + "a" * 100
    assert is_too_long(words)
    assert is_too_long("- " + words)
    assert is_too_long(f"See [this page]({url}).")
    assert is_too_long(f"of this page]({url}).")
    assert not is_too_long("word " * 20)
    assert not is_too_long(f"| {words} |")
    assert not is_too_long(f"- [this page]({url}),")
    assert not is_too_long(f"page]({url}),")
    assert not is_too_long(f"  `{words}`")


@pytest.mark.parametrize("name", sorted({*DOCUMENTS} - GENERATED))
def test_prose_fits_the_columns(name: str) -> None:
    lines = prose((ROOT / name).read_text(encoding="utf-8"))
    assert [f"{name}:{n}: {len(line)}" for n, line in lines if is_too_long(line)] == []


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    found: dict[str, int] = {}
    names: set[str] = set()
    for _, line in prose(text):
        if heading := re.match(r"#{1,6} +(.*)", line):
            name = anchor(heading[1])
            count = found[name] = found.get(name, -1) + 1
            names.add(f"{name}-{count}" if count else name)
        names |= set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", line))
    return names


def anchor(heading: str) -> str:
    """A heading as an anchor: letters, digits, hyphens for spaces, nothing else."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().rstrip("#").rstrip())
    kept = (
        c
        for c in text.lower()
        if c in " -_" or unicodedata.category(c)[0] in "LN" or unicodedata.category(c) == "Mn"
    )
    return "".join(kept).replace(" ", "-")


def test_anchors_are_those_of_github() -> None:
    assert anchor("How well it hears") == "how-well-it-hears"
    assert anchor("Graphs, and `align.onnx`: what?") == "graphs-and-alignonnx-what"
    assert anchor("`block_from_id` is computed, not copied") == (
        "block_from_id-is-computed-not-copied"
    )
    assert anchors("# One\n# One\n```\n# Two\n```\n") == {"one", "one-1"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_and_headings(name: str) -> None:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    outside_code = "\n".join(re.sub(r"`[^`]*`", "x", line) for _, line in prose(text))
    missing: list[str] = []
    for found in LINK.finditer(outside_code):
        link = found[1] or found[2]
        if re.match(r"[a-z]+:", link):
            continue
        target, _, part = link.partition("#")
        there = path.parent / target if target else path
        is_there = there.exists() and there.resolve().is_relative_to(ROOT.resolve())
        if is_there and part and there.suffix == ".md":
            is_there = part in anchors(there.read_text(encoding="utf-8"))
        if not is_there:
            missing.append(link)
    assert missing == []


def test_there_are_documents() -> None:
    assert {"README.md", "ARCHITECTURE.md", "DECISIONS.md", "runtime/PACKAGE.md"} <= {*DOCUMENTS}
