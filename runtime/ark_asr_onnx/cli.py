"""``ark-asr`` and ``infer_ark_audio_onnx.py``: transcripts on stdout, everything else on stderr."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import ark_asr_onnx
from ark_asr_onnx import ArkError, Options, PackageError, Transcript

MODEL_VARIABLE = "ARK_ASR_MODEL"
PREPARED_VARIABLE = "ARK_ASR_PREPARED_DIR"


def main(argv: Sequence[str] | None = None) -> int:
    """``ark-asr``; returns its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="ark-asr", description="Speech to text with ARK-ASR on the CPU."
    )
    parser.add_argument("--version", action="version", version=ark_asr_onnx.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _transcribe_arguments(commands.add_parser("transcribe", help="audio files to text"))
    _prepare_arguments(commands.add_parser("prepare", help="pack a model for this CPU, once"))
    _inspect_arguments(commands.add_parser("inspect", help="what a model folder holds"))
    arguments = parser.parse_args(argv)
    runs = {"transcribe": _transcribe, "prepare": _prepare, "inspect": _inspect}
    run = runs[arguments.command]
    return _guarded(lambda: run(arguments))


def _transcribe_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("audio", nargs="+", help="audio file (WAV, FLAC, OGG, Opus, MP3 …)")
    _model_arguments(parser)
    add(
        "-f",
        "--format",
        choices=("txt", "json"),
        default="txt",
        help="txt: a line of text per file; json: a line with all there is",
    )
    add("--max-new-tokens", type=_positive, default=256, metavar="N")
    add("--begin", type=float, metavar="SECONDS", help="start of the part")
    add("--end", type=float, metavar="SECONDS", help="end of the part")
    _threads_argument(parser)
    add(
        "--prepared-dir",
        metavar="DIR",
        default=os.environ.get(PREPARED_VARIABLE),
        help="open the graphs packed for this CPU from here, see ark-asr prepare (default: "
        f"${PREPARED_VARIABLE})",
    )
    add("-v", "--verbose", action="store_true", help="time per stage on stderr")
    parser.set_defaults(max_audio_seconds=None, block_from_id=None, precision=None)  # fmt: skip


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    parser.add_argument(
        "--prepared-dir",
        metavar="DIR",
        type=Path,
        help="folder for the packed graphs, twice the size of the model's (default: "
        f"${PREPARED_VARIABLE}, else in the user's cache)",
    )
    parser.add_argument("--verify", action="store_true", help="check every checksum")
    _threads_argument(parser)


def _threads_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="threads (default: the physical cores this process may use, at most 8)",
    )


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    parser.add_argument("--verify", action="store_true", help="check every checksum")


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "--model",
        "--model-dir",
        metavar="MODEL",
        help=f"model folder or Hugging Face id (default: ${MODEL_VARIABLE})",
    )
    parser.add_argument("--local-files-only", action="store_true",
                        help="never download a model")  # fmt: skip


def infer_main(script_dir: Path, argv: Sequence[str] | None = None) -> int:
    """The published script's command line, over our runtime; flags with ``-`` or ``_``.

    The model is ``--model-dir``, else ``$ARK_ASR_MODEL``, else the script's own folder when it
    is a package, else ``models/demo`` beside the script.
    """
    parser = argparse.ArgumentParser(
        prog="infer_ark_audio_onnx.py", description="Transcribe audio files with ARK-ASR."
    )
    add = parser.add_argument
    add(
        "--audio",
        "--asr-audio",
        action="append",
        required=True,
        metavar="FILE",
        help="audio file; may be given several times",
    )
    add(
        "--model-dir",
        "--runtime-root",
        dest="model",
        metavar="DIR",
        help="model folder or Hugging Face id",
    )
    add("--max-new-tokens", "--asr-max-new-tokens", type=_positive, default=256, metavar="N")
    add("--begin-time", type=float, default=-1.0, metavar="SECONDS", help="-1: from the start")
    add("--end-time", type=float, default=-1.0, metavar="SECONDS", help="-1: to the end")
    add(
        "--max-audio-seconds",
        type=_seconds,
        metavar="SECONDS",
        help="refuse longer audio (default and most: the model's limit)",
    )
    add(
        "--asr-block-token-id-from",
        dest="block_from_id",
        type=int,
        metavar="ID",
        help="block every id from here up (default, and if negative: the package's)",
    )
    add(
        "--main-model-precision",
        dest="precision",
        choices=("fp32", "fp16", "int8", "int4"),
        help="refuse a model folder of another precision",
    )
    add("--task", choices=("asr",), default="asr")
    add("--threads", type=_positive, metavar="N")
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args([_dashes(argument) for argument in given])
    begin, end = arguments.begin_time, arguments.end_time
    arguments.begin = begin if begin >= 0 else None
    arguments.end = end if end > max(begin, 0) else None
    if arguments.block_from_id is not None and arguments.block_from_id < 0:
        arguments.block_from_id = None
    arguments.format, arguments.verbose, arguments.local_files_only = "txt", False, False
    arguments.prepared_dir = os.environ.get(PREPARED_VARIABLE)
    if not arguments.model and not os.environ.get(MODEL_VARIABLE):
        manifests = ("ark_manifest.json", "runtime_manifest.json", "model/runtime_manifest.json")
        own = any((script_dir / name).is_file() for name in manifests)
        arguments.model = script_dir if own else script_dir / "models" / "demo"
    return _guarded(lambda: _transcribe(arguments))  # fmt: skip


def _transcribe(arguments: argparse.Namespace) -> int:
    """Transcribe every file; one that fails is reported and does not stop the others."""
    model = _model(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        transcriber = ark_asr_onnx.load(
            model,
            threads=arguments.threads,
            local_files_only=arguments.local_files_only,
            prepared_dir=arguments.prepared_dir,
        )
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    precision = transcriber.manifest.precision
    if arguments.precision not in (None, precision):
        raise PackageError(
            f"{model} is {precision}, --main-model-precision asks for {arguments.precision}"
        )
    options = Options(arguments.max_new_tokens, arguments.block_from_id)
    failed = 0
    for path in arguments.audio:
        try:
            transcript = transcriber.transcribe(
                path,
                begin_seconds=arguments.begin,
                end_seconds=arguments.end,
                max_seconds=arguments.max_audio_seconds,
                options=options,
            )
        except ArkError as error:
            _say(f"error: {error}")
            failed += 1
            continue
        print(_line(path, transcript, arguments.format), flush=True)
        if transcript.finish_reason == "length":
            _say(
                f"warning: {path}: stopped after {len(transcript.token_ids)} tokens, the text may "
                "be cut; raise --max-new-tokens"
            )
        if arguments.verbose:
            _say(f"{path}: {_timing_line(transcript)}")
    if failed and len(arguments.audio) > 1:
        _say(f"{failed} of {len(arguments.audio)} files failed")
    return 1 if failed else 0


def _model(arguments: argparse.Namespace) -> str | Path:
    """The model named on the command line or by the environment."""
    model = arguments.model or os.environ.get(MODEL_VARIABLE)
    if not model:
        raise PackageError(
            f"no model given: pass --model DIR or set {MODEL_VARIABLE}; "
            "a clone of the project has one in models/demo"
        )
    return model


def _line(path: str, transcript: Transcript, output: str) -> str:
    """What is printed for a file."""
    if output == "txt":
        return transcript.text
    fields = json.loads(ark_asr_onnx.transcript_to_json(transcript))
    return json.dumps({"audio": path, **fields}, ensure_ascii=False)


def _prepare(arguments: argparse.Namespace) -> int:
    """Pack a model for this CPU and say how to use it."""
    model, directory = _model(arguments), arguments.prepared_dir or _default_prepared_dir()
    ark_asr_onnx.prepare(
        model,
        directory,
        threads=arguments.threads,
        verify=arguments.verify,
        local_files_only=arguments.local_files_only,
    )
    print(directory)
    _say(f"prepared; open it with --prepared-dir {directory} or {PREPARED_VARIABLE}={directory}")
    return 0


def _default_prepared_dir() -> Path:
    """``$ARK_ASR_PREPARED_DIR``, else a folder in the user's cache."""
    if found := os.environ.get(PREPARED_VARIABLE):
        return Path(found)
    cache = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return Path(cache or Path.home() / ".cache") / "ark-asr-onnx" / "prepared"


def _inspect(arguments: argparse.Namespace) -> int:
    """Print the manifest in words."""
    package = ark_asr_onnx.open_package(
        _model(arguments), verify=arguments.verify, local_files_only=arguments.local_files_only
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
        ("checksums", f"checked: {checked}" if manifest.files else "none in this layout"),
    ]  # fmt: skip
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:{width}}  {value}")
    return 0


def _timing_line(transcript: Transcript) -> str:
    t, n = transcript.timings, len(transcript.token_ids)
    per_token = 1000 * t.decode / max(n - 1, 1)
    return (
        f"{transcript.duration:.2f} s audio in {t.total:.3f} s (RTFx {transcript.rtfx:.1f}): "
        f"read {t.read:.3f}, features {t.features:.3f}, encode {t.encode:.3f}, "
        f"prefill {t.prefill:.3f}, decode {t.decode:.3f} s ({n} tokens, {per_token:.1f} ms/token)"
    )


def _guarded(run: Callable[[], int]) -> int:
    """One line instead of a traceback for what can be expected to go wrong."""
    if hasattr(sys.stdout, "reconfigure"):  # not when a test or a notebook has replaced it
        sys.stdout.reconfigure(encoding="utf-8")  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    try:
        return run()
    except ArkError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except OSError as error:  # of stdout: its reader is gone, or its disk is full
        # Python would try, and complain, again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _say(f"error: the output cannot be written ({error.strerror})")
        return 1


def _dashes(argument: str) -> str:
    """``--max_new_tokens=5`` as ``--max-new-tokens=5``; values keep their underscores."""
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if argument.startswith("--") else argument


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be positive")
    return value


def _say(line: str) -> None:
    print(line, file=sys.stderr)
