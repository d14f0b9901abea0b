"""``infer_ark_audio_onnx.py``: the published script's command line, with this runtime."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import Options
from ..package.opening import is_package
from . import transcribe
from .settings import (
    MODEL_VARIABLE,
    PREPARED_VARIABLE,
    ModelSettings,
    Settings,
    few,
    number,
    positive,
    seconds,
    splitting,
    whole,
)
from .terminal import Parser, guarded, require_output
from .transcribe import Transcription


def infer_main(script_dir: Path, argv: Sequence[str] | None = None) -> int:
    """Run the published script's command line; flags may contain ``-`` or ``_``.

    The model is ``--model-dir``, else ``$ARK_ASR_MODEL``, else the script's folder if that is a
    package, else ``models/demo`` beside the script. Returns the exit status.
    """
    multiprocessing.freeze_support()
    parser = Parser(
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
    add("--max-new-tokens", "--asr-max-new-tokens", type=positive, default=256, metavar="N")
    add("--begin-time", type=number, default=-1.0, metavar="SECONDS", help="-1: from the start")
    add("--end-time", type=number, default=-1.0, metavar="SECONDS", help="-1: to the end")
    add(
        "--max-audio-seconds",
        type=seconds,
        metavar="SECONDS",
        help="refuse longer audio (default: no limit)",
    )
    add(
        "--asr-block-token-id-from",
        dest="block_from_id",
        type=whole,
        metavar="ID",
        help="block this id and all above it (default, and if negative: the package's)",
    )
    add(
        "--main-model-precision",
        dest="precision",
        choices=("fp32", "fp16", "int8", "int4"),
        help="refuse a model folder of another precision",
    )
    add("--window", type=seconds, metavar="SECONDS", help="longest part in one pass (15)")
    add("--no-retry", action="store_true", help="do not decode doubtful parts again")
    add(
        "--strict",
        action="store_true",
        help="exit with 3 if a part of the text, or the audio, is doubtful",
    )
    add("--task", choices=("asr",), default="asr")
    add("--threads", type=few, metavar="N")
    given = list(sys.argv[1:] if argv is None else argv)

    def run(arguments: argparse.Namespace) -> int:
        require_output()
        return transcribe.transcribe(_told(arguments, script_dir))

    return guarded(parser, run, [_dashes(argument) for argument in given])


def _told(arguments: argparse.Namespace, script_dir: Path) -> Transcription:
    model = arguments.model
    if not model and not os.environ.get(MODEL_VARIABLE):
        model = script_dir if is_package(script_dir) else script_dir / "models" / "demo"
    blocked = arguments.block_from_id
    begin, end = arguments.begin_time, arguments.end_time
    return Transcription(
        Settings(
            ModelSettings(model, threads=arguments.threads),
            prepared_dir=os.environ.get(PREPARED_VARIABLE),
            options=Options(
                arguments.max_new_tokens,
                None if blocked is None or blocked < 0 else blocked,
                retry=not arguments.no_retry,
            ),
            splitting=splitting(arguments.window),
        ),
        tuple(arguments.audio),
        begin if begin >= 0 else None,
        end if end >= 0 else None,
        arguments.max_audio_seconds,
        arguments.precision,
        is_strict=arguments.strict,
    )


def _dashes(argument: str) -> str:
    """``--max_new_tokens=5`` as ``--max-new-tokens=5``; values keep their underscores."""
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if argument.startswith("--") else argument
