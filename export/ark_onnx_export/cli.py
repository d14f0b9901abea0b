"""``ark-onnx-export``: the exporter's command line. Torch is imported when an export starts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import ark_asr_onnx
from ark_asr_onnx.audio import read
from ark_asr_onnx.errors import ArkError

_EXTRA = ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "tqdm")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["export"]:
        arguments = arguments[1:]
    options = _parser().parse_args(arguments)
    try:
        return _export(options)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        _say(
            f"error: {error.name} is not installed: pip install 'ark-asr-onnx[export]', "
            "or from a clone pip install '.[export]'"
        )
        return 2
    except ArkError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say("interrupted; nothing was written")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ark-onnx-export",
        description="Turn an ARK-ASR checkpoint (safetensors) into an ONNX package for the CPU.",
        usage="%(prog)s [export] --ckpt DIR [options]",
    )
    parser.add_argument(
        "--ckpt", type=Path, required=True, metavar="DIR", help="Hugging Face checkpoint folder"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="package folder to create (default: NAME-onnx-PRECISION here)",
    )
    parser.add_argument("--name", help="what the package calls itself (default: DIR's name)")
    parser.add_argument(
        "--layout",
        choices=("native", "published"),
        default="native",
        help="published: the folder format of upstream's own INT8 package",
    )
    parser.add_argument(
        "--embedding",
        choices=("fp32", "fp16"),
        default="fp32",
        help="type of the embedding table; fp16 halves it (default: fp32)",
    )
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    parser.add_argument(
        "--instruction",
        metavar="TEXT",
        help="text between audio and answer (default: the trained wording)",
    )
    parser.add_argument(
        "--probe",
        type=Path,
        action="append",
        default=[],
        metavar="AUDIO",
        help="also compare torch and the package on this audio (repeatable)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--version", action="version", version=ark_asr_onnx.__version__)
    return parser  # fmt: skip


def _export(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from . import pipeline
    from .stages import Meter

    meter = Meter()

    def progress(label: str, items: Sequence[Any]) -> Iterable[Any]:
        bar = tqdm(items, desc=label, file=sys.stderr, disable=options.quiet, unit="step")
        return meter(label, cast("Sequence[Any]", bar))

    kind = "onnx" if options.layout == "native" else options.layout
    name = f"{options.ckpt.resolve().name}-{kind}-{options.precision}"
    exported = pipeline.export(
        options.ckpt,
        options.out or Path(name),
        name=options.name,
        precision=options.precision,
        layout=options.layout,
        embedding=options.embedding,
        instruction=options.instruction or pipeline.INSTRUCTION,
        probes=[read(path) for path in options.probe],
        progress=progress,
    )
    if not options.quiet:
        _say(meter.table())
    _report(exported)
    return 0


def _report(exported: Any) -> None:
    """What was made, for people, on stderr; the folder alone on stdout."""
    for comparison, figures in exported.provenance.parity.items():
        values = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        _say(f"{comparison}: {values}")
    for note in exported.notes:
        _say(f"note: {note}")
    n_bytes = sum(path.stat().st_size for path in exported.directory.iterdir())
    _say(f"{exported.precision} package, {n_bytes / 1e6:.1f} MB:")
    print(exported.directory)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
