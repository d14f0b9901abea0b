"""Who may import whom, as ARCHITECTURE.md says: by reading imports, and by looking at a process."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEMO, ROOT

RUNTIME = ROOT / "runtime" / "ark_asr_onnx"
EXPORT = ROOT / "export" / "ark_onnx_export"
HEAVY = ("torch", "transformers", "onnx", "safetensors", "optimum", "librosa", "scipy")


def rooms() -> dict[str, tuple[set[str], set[str]]]:
    """Each room of the runtime, the rooms it may import, and the libraries."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.split("## Who may import whom")[1].split("\n## ")[0]
    found: dict[str, tuple[set[str], set[str]]] = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`"):
            libraries = {name.strip() for name in cells[3].split(",")} - {""}
            found[cells[0].strip("`")] = (set(re.findall("`(.+?)`", cells[2])), libraries)
    return found


def exported() -> set[str]:
    """What the exporter may import of the runtime."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("The exporter may import"))
    return set(re.findall("`(.+?)`", line))


ROOMS = rooms()


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(RUNTIME).with_suffix("").parts)


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Modules of the runtime, and outside packages, that a runtime module imports."""
    package = path.relative_to(RUNTIME).parent.parts
    own: set[str] = set()
    outside: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[tuple[tuple[str, ...], str]] = []
        if isinstance(node, ast.Import):
            names = [(tuple(alias.name.split(".")), "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ("ark_asr_onnx", *base) if node.level else ()
            module = (*start, *((node.module or "").split(".") if node.module else ()))
            names = [(module, alias.name) for alias in node.names]
        for module, name in names:
            if module[0] != "ark_asr_onnx":
                outside.add(module[0])
                continue
            inner = module[1:]
            for candidate in ((*inner, name), inner, (*inner, "__init__")):
                dotted = ".".join(part for part in candidate if part)
                if dotted and (RUNTIME / Path(*dotted.split("."))).with_suffix(".py").is_file():
                    own.add(dotted)
                    break
            else:
                own.add(".".join((*inner, "__init__")))
    return own, outside - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted(RUNTIME.rglob("*.py")), ids=module_name)
def test_runtime_modules_import_only_what_the_table_allows(path: Path) -> None:
    room = module_name(path).split(".")[0]
    own, outside = imports(path)
    allowed, libraries = ROOMS[room]
    assert {name.split(".")[0] for name in own} <= allowed | {room}
    assert outside <= libraries


def test_every_room_is_in_the_table_once_and_none_beside() -> None:
    there = {module_name(path).split(".")[0] for path in RUNTIME.rglob("*.py")}
    assert set(ROOMS) == there
    assert len(rooms()) == len(ROOMS)


def test_rooms_and_modules_have_no_circles() -> None:
    arrows = {module_name(path): imports(path)[0] for path in RUNTIME.rglob("*.py")}
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError
    graphlib.TopologicalSorter({room: allowed for room, (allowed, _) in ROOMS.items()}).prepare()


def test_a_room_is_entered_without_opening_its_cupboards() -> None:
    for path in RUNTIME.glob("*/__init__.py"):
        assert imports(path) == (set(), set())


def test_contract_and_errors_need_only_the_standard_library() -> None:
    for name in ("package/contract.py", "errors.py"):
        assert imports(RUNTIME / name)[1] == set()


def test_the_exporter_takes_little_from_the_runtime() -> None:
    for path in EXPORT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ark_asr_onnx"):
                inner = (node.module or "").partition(".")[2]
                for alias in node.names:
                    names = {inner or "__init__", f"{inner}.{alias.name}".strip(".")}
                    assert names & exported(), (path, names)


# Each module as the first of ours in its process. Forks, since importing torch takes seconds.
WATCH = """
import importlib, os, sys
from importlib.abc import MetaPathFinder
import onnx, onnxscript, torch

class Watch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "onnxruntime":
            print(sys.argv[-1], os.environ.get("ORT_DISABLE_TELEMETRY"), flush=True)

sys.meta_path.insert(0, Watch())
assert "onnxruntime" not in sys.modules
for module in list(sys.argv[1:]):
    child = os.fork()
    if not child:
        sys.argv.append(module)
        importlib.import_module(module)
        import onnxruntime
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, module
"""


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_whichever_module_of_the_exporter_comes_first_onnxruntime_does_not_call_home() -> None:
    pytest.importorskip("torch")
    paths = sorted(path for path in EXPORT.rglob("*.py") if path.name != "__main__.py")
    names = [".".join(path.relative_to(EXPORT.parent).with_suffix("").parts) for path in paths]
    roots = os.pathsep.join(map(str, (RUNTIME.parent, EXPORT.parent)))
    kept = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WATCH, *names],
        capture_output=True, text=True, check=True, env={**kept, "PYTHONPATH": roots},
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{name} 1" for name in names]


def loaded_by(code: str) -> set[str]:
    """Top-level packages in ``sys.modules`` after some code ran in a fresh interpreter."""
    prelude = f"import sys; sys.path.insert(0, {str(RUNTIME.parent)!r}); "
    tail = "; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", prelude + code + tail], capture_output=True, text=True, check=True
    )
    return set(result.stdout.splitlines()[-1].split())


def test_importing_the_runtime_loads_no_heavy_package() -> None:
    assert loaded_by("import ark_asr_onnx, ark_asr_onnx.commands.cli").isdisjoint(HEAVY)


def test_transcribing_loads_no_heavy_package() -> None:
    clip = next((DEMO / "samples").glob("*.flac"))
    code = f"import ark_asr_onnx; ark_asr_onnx.load({str(DEMO)!r}).transcribe({str(clip)!r})"
    assert loaded_by(code).isdisjoint(HEAVY)


def test_importing_the_exporter_loads_no_torch() -> None:
    code = f"sys.path.insert(0, {str(EXPORT.parent)!r}); import ark_onnx_export.cli"
    assert loaded_by(code).isdisjoint(HEAVY)
