"""The pictures beside the documents show what is true today."""

from __future__ import annotations

import importlib
import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import ROOT

PICTURES = ROOT / "scripts" / "pictures"
RESULTS = ROOT / "benchmarks" / "results"
DRAWN = sorted([*PICTURES.glob("*.svg"), *RESULTS.glob("*.svg")])
SVG = "{http://www.w3.org/2000/svg}"
TIME = re.compile(r"\d\d:\d\d\.\d{3}")  # of a word; another CPU may find one beside it


def without_spaces(text: str) -> str:
    """What is left where lines may be broken anywhere."""
    return TIME.sub("00:00.000", "".join(text.split()))


def test_the_terminal_shows_what_its_commands_print() -> None:
    pytest.importorskip("rich")
    recorded = runpy.run_path(str(PICTURES / "terminal.py"))["record"]()
    drawn = ET.parse(PICTURES / "terminal.svg").getroot()
    matrix = next(g for g in drawn.iter(f"{SVG}g") if g.get("class", "").endswith("-matrix"))
    expected = "".join(f"$ {command}\n{output}" for command, output in recorded)
    assert without_spaces("".join(matrix.itertext())) == without_spaces(expected)


def test_the_architecture_is_drawn_by_its_script_and_names_what_exists() -> None:
    script = runpy.run_path(str(PICTURES / "architecture.py"))
    assert (PICTURES / "architecture.svg").read_text(encoding="utf-8") == script["draw"]()
    steps = [(box, "export/ark_onnx_export") for box in script["EXPORT"]]
    for row in ("AUDIO", "POOL", "RESULTS"):
        steps += [(box, "runtime/ark_asr_onnx") for box in script[row]]
    files = [name for name, _ in script["PACKAGE"]]
    for box, room in steps:
        assert box.file in files or (ROOT / room / box.file).is_file(), box
    specified = (ROOT / "runtime" / "PACKAGE.md").read_text(encoding="utf-8")
    assert [name for name in files if f"`{name}`" not in specified] == []


def test_plots_are_drawn_from_the_tables_as_they_are() -> None:
    pytest.importorskip("matplotlib")
    plots = importlib.import_module("plots")
    for name, picture in plots.PICTURES.items():
        drawn = (RESULTS / f"{name}.svg").read_text(encoding="utf-8")
        assert f"<dc:identifier>{picture.checksum()}<" in drawn, "run benchmarks/plots.py"


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.name)
def test_a_picture_is_whole_and_loads_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert root.get("viewBox")
    assert root.find(f"{SVG}title") is not None
    assert not re.search("(href|src) *= *['\"][^#]|url[(][^#]|@import", text)
