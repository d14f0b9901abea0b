"""``ark-asr``: transcripts on stdout, everything else on stderr."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import ark_asr_onnx

from .. import PackageError
from . import corpus, serve, transcribe
from .settings import PREPARED_VARIABLE, model_arguments, model_settings
from .terminal import Parser, guarded, printable, require_output, say

_SILENT = ("batch", "serve")  # commands that need no standard output


def main(argv: Sequence[str] | None = None) -> int:
    """``ark-asr``; returns its exit status.

    0: done; 1: failed; 2: wrong usage; 3: doubtful text or audio with ``--strict``; 130, 143, 129:
    ended by Ctrl-C, SIGTERM, SIGHUP.
    """
    multiprocessing.freeze_support()  # a frozen executable also runs its worker processes
    parser = Parser(prog="ark-asr", description="Speech to text with ARK-ASR on the CPU.")
    parser.add_argument("--version", action="version", version=ark_asr_onnx.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, what: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=what, description=what)

    transcribe.transcribe_arguments(add("transcribe", "audio files to text"))
    transcribe.mic_arguments(add("mic", "speech from a microphone to text, live"))
    corpus.batch_arguments(add("batch", "thousands of files to text, listed in JSON Lines"))
    corpus.evaluate_arguments(add("evaluate", "word and character error rates"))
    serve.serve_arguments(add("serve", "an HTTP service with a web page"))
    _prepare_arguments(add("prepare", "pack a model for this CPU, once"))
    _inspect_arguments(add("inspect", "describe a model folder"))
    return guarded(parser, _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command not in _SILENT and not getattr(arguments, "output_dir", None):
        require_output()
    return arguments.run(arguments)


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    model_arguments(parser)
    parser.add_argument(
        "--prepared-dir",
        metavar="DIR",
        type=Path,
        help="folder for the packed graphs, twice the size of the model's (default: "
        f"${PREPARED_VARIABLE}, else in the user's cache)",
    )
    parser.add_argument("--verify", action="store_true", help="check every checksum")
    parser.set_defaults(run=_prepare)


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    model_arguments(parser, has_threads=False)
    parser.add_argument("--verify", action="store_true", help="check every checksum")
    parser.set_defaults(run=_inspect)


def _prepare(arguments: argparse.Namespace) -> int:
    """Pack a model for this CPU and say how to use it."""
    model, directory = model_settings(arguments), arguments.prepared_dir or _default_prepared_dir()
    ark_asr_onnx.prepare(
        model.name,
        directory,
        threads=model.threads,
        verify=arguments.verify,
        local_files_only=model.local_files_only,
    )
    print(printable(str(directory)) if sys.stdout.isatty() else directory)
    say(f"prepared; open it with --prepared-dir {directory} or {PREPARED_VARIABLE}={directory}")
    return 0


def _default_prepared_dir() -> Path:
    """``$ARK_ASR_PREPARED_DIR``, else a folder in the user's cache."""
    if found := os.environ.get(PREPARED_VARIABLE):
        return Path(found)
    cache = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        folder = Path(cache) if cache else Path.home() / ".cache"
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():
        raise PackageError(
            "there is no home directory to keep prepared graphs in; pass --prepared-dir DIR or set "
            f"{PREPARED_VARIABLE}"
        )
    return folder / "ark-asr-onnx" / "prepared"


def _inspect(arguments: argparse.Namespace) -> int:
    """Print the manifest for people."""
    model = model_settings(arguments)
    package = ark_asr_onnx.open_package(
        model.name, verify=arguments.verify, local_files_only=model.local_files_only
    )
    manifest = package.manifest
    sizes, tokens, made = manifest.sizes, manifest.tokens, manifest.provenance
    n_bytes = sum(path.stat().st_size for path in package.paths.values())
    n_blocked = sum(last - first + 1 for first, last in tokens.blocked)
    checked = "all" if arguments.verify else "of small files; --verify: all"
    rows = [
        ("name", f"{manifest.name} ({manifest.model_type}, {manifest.layout} layout)"),
        ("precision", f"{manifest.precision}, embedding {manifest.embedding}"),
        ("size", f"{n_bytes / 1e6:.1f} MB in {len(package.paths)} files"),
        ("audio", f"{sizes.n_mels} mel bands, at most {sizes.max_seconds:g} s at once"),
        ("decoder", f"{sizes.n_layers} layers x {sizes.hidden_size}, {sizes.max_positions} "
                    f"positions, {sizes.n_logits} of {sizes.vocab_size} ids scored"),
        ("blocked ids", f"{n_blocked}, all from {tokens.block_from_id} up but end of turn"),
        ("stop ids", ", ".join(map(str, tokens.stop))),
        ("instruction", made.instruction),
        ("quality", manifest.degraded or "within its limits"),
        ("made by", made.exporter),
        ("recipe", ", ".join(f"{k}: {v}" for k, v in made.recipe.items())),
        *((comparison, ", ".join(f"{k} {v:.3g}" for k, v in figures.items()))
          for comparison, figures in made.parity.items()),
        ("checksums", f"checked: {checked}" if package.has_checksums else "none in this layout"),
    ]  # fmt: skip
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:{width}}  {printable(str(value))}")
    return 0
