"""``ark-asr`` and ``infer_ark_audio_onnx.py``: transcripts on stdout, everything else on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ark_asr_onnx
from ark_asr_onnx import ArkError, Options, PackageError, Transcriber, Transcript

MODEL_VARIABLE = "ARK_ASR_MODEL"


def main(argv: Sequence[str] | None = None) -> int:
    """``ark-asr``; returns its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="ark-asr", description="Speech to text with ARK-ASR on the CPU."
    )
    parser.add_argument("--version", action="version", version=ark_asr_onnx.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    transcribe = commands.add_parser("transcribe", help="audio files to text")
    transcribe.add_argument("audio", nargs="+", help="audio file (WAV, FLAC, OGG, Opus, MP3 …)")
    _model_argument(transcribe)
    transcribe.add_argument(
        "-f",
        "--format",
        choices=sorted(_FORMATS),
        default="txt",
        help="txt: a line of text per file; json: a line with all there is",
    )
    transcribe.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N")
    transcribe.add_argument("--begin", type=float, metavar="SECONDS", help="start of the part")
    transcribe.add_argument("--end", type=float, metavar="SECONDS", help="end of the part")
    transcribe.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="threads (default: the cores this process may use, at most 8)",
    )
    transcribe.add_argument("-v", "--verbose", action="store_true", help="time per stage on stderr")
    inspect = commands.add_parser("inspect", help="what a model folder holds")
    _model_argument(inspect)
    inspect.add_argument("--verify", action="store_true", help="check every checksum")
    arguments = parser.parse_args(argv)  # fmt: skip
    return _guarded(lambda: {"transcribe": _transcribe, "inspect": _inspect}[arguments.command](
        arguments
    ))  # fmt: skip


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
    add("--model-dir", "--runtime-root", dest="model", metavar="DIR", help="model folder")
    add("--max-new-tokens", "--asr-max-new-tokens", type=_positive, default=256, metavar="N")
    add("--begin-time", type=float, default=-1.0, metavar="SECONDS", help="-1: from the start")
    add("--end-time", type=float, default=-1.0, metavar="SECONDS", help="-1: to the end")
    add(
        "--max-audio-seconds",
        type=float,
        metavar="SECONDS",
        help="refuse longer audio (default and most: the model's limit)",
    )
    add(
        "--asr-block-token-id-from",
        type=int,
        metavar="ID",
        help="block every id from here up (default: the package's)",
    )
    add(
        "--main-model-precision",
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
    arguments.format, arguments.verbose = "txt", False
    if arguments.model is None and MODEL_VARIABLE not in os.environ:
        own = (script_dir / "ark_manifest.json").is_file()
        arguments.model = script_dir if own else script_dir / "models" / "demo"
    return _guarded(lambda: _transcribe(arguments))  # fmt: skip


def _model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", "--model-dir", metavar="DIR",
                        help=f"model folder (default: ${MODEL_VARIABLE})")  # fmt: skip


def _transcribe(arguments: argparse.Namespace) -> int:
    """Transcribe every file; one that fails is reported and does not stop the others."""
    transcriber = _load(arguments)
    options = Options(
        max_new_tokens=arguments.max_new_tokens,
        block_from_id=getattr(arguments, "asr_block_token_id_from", None),
    )
    failed = 0
    for path in arguments.audio:
        try:
            transcript = transcriber.transcribe(
                path,
                begin_seconds=arguments.begin,
                end_seconds=arguments.end,
                max_seconds=getattr(arguments, "max_audio_seconds", None),
                options=options,
            )
        except ArkError as error:
            _say(f"error: {error}")
            failed += 1
            continue
        print(_FORMATS[arguments.format](transcript), flush=True)
        if transcript.finish_reason == "length":
            _say(f"warning: {path}: stopped after {arguments.max_new_tokens} tokens, "
                 "the text may be cut; raise --max-new-tokens")  # fmt: skip
        if arguments.verbose:
            _say(f"{path}: {_timing_line(transcript)}")
    if failed and len(arguments.audio) > 1:
        _say(f"{failed} of {len(arguments.audio)} files failed")
    return 1 if failed else 0


def _load(arguments: argparse.Namespace) -> Transcriber:
    directory = arguments.model or os.environ.get(MODEL_VARIABLE)
    if not directory:
        raise PackageError(
            f"no model given: pass --model DIR or set {MODEL_VARIABLE}; "
            "a clone of the project has one in models/demo"
        )
    transcriber = ark_asr_onnx.load(directory, threads=arguments.threads)
    wanted = getattr(arguments, "main_model_precision", None)
    if wanted and wanted != transcriber.manifest.precision:
        raise PackageError(
            f"{directory} is {transcriber.manifest.precision}, --main-model-precision asks for "
            f"{wanted}"
        )
    return transcriber


def _inspect(arguments: argparse.Namespace) -> int:
    """Print the manifest in words."""
    arguments.threads = None
    directory = arguments.model or os.environ.get(MODEL_VARIABLE) or ""
    if not directory:
        _load(arguments)
    manifest = ark_asr_onnx.load(directory, verify=arguments.verify).manifest
    sizes, tokens, made = manifest.sizes, manifest.tokens, manifest.provenance
    n_bytes = sum(file.bytes for file in manifest.files.values())
    n_blocked = sum(last - first + 1 for first, last in tokens.blocked)
    rows = [
        ("name", f"{manifest.name} ({manifest.model_type}, {manifest.layout} layout)"),
        ("precision", manifest.precision),
        ("size", f"{n_bytes / 1e6:.1f} MB in {len(manifest.files)} files"),
        ("audio", f"{sizes.n_mels} mel bands, at most {sizes.max_seconds:g} s at once"),
        ("decoder", f"{sizes.n_layers} layers x {sizes.hidden_size}, {sizes.n_logits} of "
                    f"{sizes.vocab_size} ids can come out, "
                    f"{sizes.max_positions} positions"),
        ("blocked ids", f"{n_blocked}, all from {tokens.block_from_id} up but end of turn"),
        ("stop ids", ", ".join(map(str, tokens.stop))),
        ("instruction", made.instruction),
        ("made by", made.exporter),
        ("recipe", ", ".join(f"{k} {v}" for k, v in made.recipe.items())),
        *((comparison, ", ".join(f"{k} {v:.3g}" for k, v in figures.items()))
          for comparison, figures in made.parity.items()),
        ("checksums", "all checked" if arguments.verify else "small files checked; --verify: all"),
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
    try:
        return run()
    except ArkError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output is gone; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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


def _say(line: str) -> None:
    print(line, file=sys.stderr)


_FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": lambda transcript: transcript.text,
    "json": ark_asr_onnx.transcript_to_json,
}
