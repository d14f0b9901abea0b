"""``ark-onnx-export``: the exporter's command line. Torch is imported when work starts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import ark_asr_onnx
from ark_asr_onnx import files
from ark_asr_onnx.audio.sources import read
from ark_asr_onnx.errors import ExportError
from ark_asr_onnx.package.repository import id_of

from . import fetch
from .config import shown
from .recipes import ASKED, TARGETS
from .terminal import guarded, prepare_streams, say, stopped

_CKPT = "Hugging Face checkpoint: its folder, or an id, which is downloaded once"
_OUTSIDE_LIMITS, _INTERRUPTED = 3, 130  # exit status


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; exit status 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Ended by a signal it is 128 and the signal's number. ``verify`` exits with 3 when the package
    is outside the limits.
    """
    prepare_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments[:1] in (["export"], ["verify"]) else "export"
    parser, run = (
        (_verify_parser(), _verify) if command == "verify" else (_export_parser(), _export)
    )
    options = parser.parse_args(arguments)
    return guarded(lambda: run(options))


def _export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ark-onnx-export",
        description="Turn an ARK-ASR checkpoint (safetensors) into an ONNX package for the CPU.",
        usage="%(prog)s [export] --ckpt CKPT [options]",
        epilog="ark-onnx-export verify compares a package with its checkpoint on your own audio; "
        "see ark-onnx-export verify --help",
    )
    parser.add_argument(
        "--ckpt",
        required=True,
        metavar="CKPT",
        help=f"{_CKPT} (OWNER/NAME, OWNER/NAME/FOLDER)",
    )
    _hub_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="package folder to create (default: NAME-onnx-PRECISION here)",
    )
    parser.add_argument("--name", help="what the package calls itself (default: the name in CKPT)")
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
        "--recipe",
        choices=ASKED,
        default="auto",
        help="how INT8 stores the matrices (default: auto, for each what calibration shows)",
    )
    parser.add_argument(
        "--target",
        choices=TARGETS,
        default="any",
        help="kind of CPU the package may count on (default: any, right everywhere)",
    )
    parser.add_argument(
        "--calib",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="AUDIO",
        help="speech to calibrate on, 30 s of each at most (default: nine built-in clips)",
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="store the matrices as another package's report.json says, also one of another depth",
    )
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
    parser.add_argument(
        "--references",
        type=Path,
        metavar="JSONL",
        help="words of probes (rows with audio and text): the report then has word error rates",
    )
    parser.add_argument(
        "--allow-degraded",
        action="store_true",
        help="publish a package that is outside its limits; its manifest and its users are told",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--version", action="version", version=ark_asr_onnx.__version__)
    return parser  # fmt: skip


def _verify_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ark-onnx-export verify",
        description="Compare a package with its checkpoint in torch, or with another package, "
        "stage by stage on your own audio. Exit status 3: outside the limits.",
    )
    parser.add_argument("--package", type=Path, required=True, metavar="DIR")
    against = parser.add_mutually_exclusive_group(required=True)
    against.add_argument(
        "--ckpt", metavar="CKPT", help="the checkpoint, folder or id, run in torch and fp32"
    )
    against.add_argument(
        "--against", type=Path, metavar="DIR", help="another package, taken as the truth"
    )
    _hub_arguments(parser)
    parser.add_argument(
        "--audio",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="speech; the first 30 s of each are compared",
    )
    parser.add_argument(
        "--report",
        type=Path,
        default=Path("report.json"),
        metavar="FILE",
        help="all figures as JSON (default: report.json)",
    )
    parser.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _hub_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--revision",
        metavar="REV",
        help="branch, tag or commit of an id (default: what the cache holds, else the main branch)",
    )
    parser.add_argument("--local-files-only", action="store_true", help="never download")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _verify(options: argparse.Namespace) -> tuple[int, str]:
    from tqdm import tqdm

    from . import report as texts
    from . import verify
    from .engines import PackageEngine

    _check_paths(options)
    found = PackageEngine(options.package)
    if options.ckpt:
        source = _source(options)
        from .oracle import TorchEngine

        instruction = found.manifest.provenance.instruction
        expected = TorchEngine.open(source.directory, instruction, source.shown)
        weights = expected.origin(found.manifest.provenance)
        for note in expected.notes:
            say(f"note: {shown(note)}")
    else:
        expected, weights = PackageEngine(options.against), "two packages were compared"
    paths = tqdm(options.audio, desc="compare", file=sys.stderr, disable=options.quiet, unit="clip")
    results: list[verify.Comparison | verify.Failure] = []
    status = 0
    try:
        results.extend(verify.compare(found, expected, paths, options.max_new_tokens))
    except KeyboardInterrupt as stop:
        if not results:
            raise
        status = stopped(stop)
        say(f"interrupted after {len(results)} of {len(options.audio)} files")
    report = verify.Report(
        package=found.name,
        reference=expected.name,
        weights=weights,
        limits=verify.limits(found.precision, expected.precision),
        clips=tuple(r for r in results if isinstance(r, verify.Comparison)),
        failures=tuple(r for r in results if isinstance(r, verify.Failure)),
    )
    answer, figures = texts.report_to_text(report), texts.report_to_json(report)
    try:
        files.write(options.report, figures.encode(errors="backslashreplace"))
    except OSError as error:
        say(f"error: cannot write {options.report}: {error.strerror}; it is printed instead")
        return 1, f"{answer}\n\n{figures}"
    say(f"all figures, tokens and texts: {options.report}")
    return status or (0 if report.passed else _OUTSIDE_LIMITS), answer


def _source(options: argparse.Namespace, **target: Any) -> fetch.Source:
    """The checkpoint that is named, fetched if need be."""
    return fetch.resolve(
        options.ckpt,
        revision=options.revision,
        local_files_only=options.local_files_only,
        quiet=options.quiet,
        **target,
    )


def _check_paths(options: argparse.Namespace) -> None:
    """Find mistyped names before models are opened."""
    if options.revision is not None and not options.ckpt:
        raise ExportError("--revision is of a checkpoint: give --ckpt, or leave it out")
    folders = [options.package, options.against]
    if options.ckpt and id_of(options.ckpt) is None:
        folders.append(Path(options.ckpt))
    for folder in filter(None, folders):
        if not folder.is_dir():
            raise ExportError(f"folder {folder} does not exist")
    for path in options.audio:
        if not path.is_file():
            raise ExportError(f"{path}: no such file")
    _require_writable(options.report)


def _require_writable(path: Path) -> None:
    """Write a file as it will be written, with the content that it has; :class:`ExportError`."""
    try:
        if path.is_file() or path.is_dir():
            files.write(path, path.read_bytes())
        elif not path.exists():  # devices and pipes are left alone
            files.write(path, b"")
            path.unlink()
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from error


def _export(options: argparse.Namespace) -> tuple[int, str]:
    from tqdm import tqdm

    from .probes import read_references
    from .stages import Meter

    chosen = options.recipe != "auto" or options.target != "any" or options.calib or options.plan
    if chosen and (options.precision == "fp32" or options.layout == "published"):
        raise ExportError(
            "--recipe, --plan, --target and --calib are for INT8 in the native layout: leave them "
            "out"
        )
    if options.plan and options.recipe != "auto":
        raise ExportError(f"--recipe {options.recipe} needs no --plan: leave one of them out")
    if options.calib and options.recipe != "auto":
        raise ExportError(f"--recipe {options.recipe} needs no --calib: leave one of them out")
    probes = [(str(path), read(path)) for path in options.probe]
    calibration = [(str(path), read(path, end_seconds=30)) for path in options.calib]
    references = read_references(options.references) if options.references else {}
    kind = "onnx" if options.layout == "native" else options.layout
    name = Path(options.ckpt).resolve().name  # of an id, too
    out = options.out or Path(f"{name}-{kind}-{options.precision}")
    source = _source(options, precision=options.precision, out=out)

    from . import pipeline

    meter = Meter()

    def progress(label: str, items: Sequence[Any]) -> Iterable[Any]:
        bar = tqdm(items, desc=label, file=sys.stderr, disable=options.quiet, unit="step")
        return meter(label, cast("Sequence[Any]", bar))

    settings = pipeline.Settings(
        name=options.name or name,
        source=source.origin,
        precision=options.precision,
        layout=options.layout,
        embedding=options.embedding,
        instruction=options.instruction or pipeline.INSTRUCTION,
        probes=probes,
        references=references,
        recipe=options.recipe,
        target=options.target,
        calibration=calibration,
        plan=options.plan,
        allow_degraded=options.allow_degraded,
    )
    tell = (lambda _: None) if options.quiet else say
    exported = pipeline.export(source.directory, out, settings, progress, tell)
    if not options.quiet:
        say(meter.table())
    _report(exported)
    return 0, str(exported.directory)


def _report(exported: Any) -> None:
    """What was made, for people, on stderr."""
    for comparison, figures in exported.provenance.parity.items():
        values = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        say(f"{comparison}: {values}")
    for note in exported.notes:
        say(f"note: {shown(note)}")
    n_bytes = sum(path.stat().st_size for path in exported.directory.iterdir())
    say(f"{exported.precision} package, {n_bytes / 1e6:.1f} MB:")
