"""What all commands share: arguments, messages on stderr, progress, and how they end."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import ark_asr_onnx

from .. import ArkError, Options, PackageError, Splitting, Transcriber
from ..decoding.slots import DEFAULT_SLOTS
from ..package.contract import Manifest

MODEL_VARIABLE = "ARK_ASR_MODEL"
PREPARED_VARIABLE = "ARK_ASR_PREPARED_DIR"


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--local-files-only``."""
    parser.add_argument(
        "-m",
        "--model",
        "--model-dir",
        metavar="MODEL",
        help=f"model folder or Hugging Face id (default: ${MODEL_VARIABLE})",
    )
    parser.add_argument("--local-files-only", action="store_true",
                        help="never download a model")  # fmt: skip


def threads_argument(parser: argparse.ArgumentParser) -> None:
    """``--threads``."""
    parser.add_argument(
        "--threads",
        type=few,
        metavar="N",
        help="threads (default: the physical cores this process may use, at most 8)",
    )


def engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything about opening the model, cutting the audio and decoding."""
    add = parser.add_argument
    model_arguments(parser)
    threads_argument(parser)
    add(
        "--prepared-dir",
        metavar="DIR",
        default=os.environ.get(PREPARED_VARIABLE),
        help="open the graphs packed for this CPU from here, see ark-asr prepare (default: "
        f"${PREPARED_VARIABLE})",
    )
    add(
        "--slots",
        type=few,
        default=DEFAULT_SLOTS,
        metavar="N",
        help=f"windows decoded together ({DEFAULT_SLOTS})",
    )
    add(
        "--window",
        type=seconds,
        metavar="SECONDS",
        help="longest part heard at once (default: 15, or the model's limit if that is less)",
    )
    add("--no-vad", action="store_true", help="do not look for speech; cut at quiet points")
    add("--split-short", action="store_true", help="look for speech in short audio too")
    add("--pause", type=seconds, metavar="SECONDS",
        help="silence that ends a part (default: 0.7)")  # fmt: skip
    add("--max-new-tokens", type=positive, default=256, metavar="N", help="most of one part (256)")
    add("--no-guards", action="store_true",
        help="let the model repeat itself, and give any number of tokens a second")  # fmt: skip
    add("--no-retry", action="store_true", help="do not try doubtful parts again")


def options_of(arguments: argparse.Namespace) -> Options:
    """How to decode, as the arguments say."""
    guards = {"max_tokens_per_second": None, "max_repeats": None} if arguments.no_guards else {}
    return Options(
        arguments.max_new_tokens,
        getattr(arguments, "block_from_id", None),
        retry=not arguments.no_retry,
        **guards,
    )


def splitting_of(arguments: argparse.Namespace) -> Splitting:
    """How to cut, as the arguments say."""
    if arguments.no_vad:
        return Splitting(arguments.window, vad=None)
    pause = {} if arguments.pause is None else {"pause_seconds": arguments.pause}
    return Splitting(arguments.window, split_short=arguments.split_short, **pause)


def named_model(arguments: argparse.Namespace) -> str | Path:
    """The model named on the command line or by the environment."""
    model = arguments.model or os.environ.get(MODEL_VARIABLE)
    if not model:
        raise PackageError(
            f"no model given: pass --model DIR or set {MODEL_VARIABLE}; "
            "a clone of the project has one in models/demo"
        )
    return model


def opened(arguments: argparse.Namespace, model: str | Path | None = None) -> Transcriber:
    """The model, for windows as the arguments say."""
    transcriber = ark_asr_onnx.load(
        model or named_model(arguments),
        threads=arguments.threads,
        local_files_only=arguments.local_files_only,
        prepared_dir=arguments.prepared_dir,
    )
    check_window(arguments, transcriber.manifest)
    return transcriber


def check_window(arguments: argparse.Namespace, manifest: Manifest) -> None:
    """Refuse a window that makes no sense, or not with this model."""
    try:
        splitting_of(arguments).longest(manifest.sizes.max_seconds)
    except ValueError as error:
        raise PackageError(f"--window: {error}") from error


class Progress:
    """A bar on stderr; nothing where that is no terminal, or the end is not known."""

    def __init__(self, total: float | None, show: Callable[[float], str], label: str = "") -> None:
        self._total, self._show, self._label = total, show, label
        self._begin = self._last = time.monotonic()
        self.is_shown = bool(total) and sys.stderr.isatty()

    def __call__(self, done: float) -> None:
        """So much is done."""
        now = time.monotonic()
        if not self.is_shown or not self._total or (now - self._last < 0.1 and done < self._total):
            return
        self._last = now
        share = min(done / self._total, 1.0)
        bar = "#" * round(20 * share)
        left = (now - self._begin) * (1 - share) / share if share else 0
        line = f"[{bar:20}] {self._show(done)} of {self._show(self._total)}, {hms(left)} left"
        rewrite(f"{self._label}{line}")

    def clear(self) -> None:
        """Make room for another line."""
        if self.is_shown:
            rewrite("")


def rewrite(line: str) -> None:
    """Put the end of a line, as much as fits, in the place of the last one on a terminal."""
    columns = shutil.get_terminal_size().columns
    print(f"\r\033[K{line[-(columns - 1) :]}", end="", file=sys.stderr, flush=True)


def hms(seconds: float) -> str:
    """``1:02:03``, ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def guarded(run: Callable[[], int]) -> int:
    """One line instead of a traceback for what can be expected to go wrong."""
    if hasattr(sys.stdout, "reconfigure"):  # not when a test or a notebook has replaced it
        sys.stdout.reconfigure(encoding="utf-8")  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - it was closed
        say("error: standard output is closed")
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning
            return run()
    except ArkError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except OSError as error:
        if error.filename is not None:
            say(f"error: {error.filename}: {error.strerror}")
            return 1
        # Of stdout: its reader is gone, or its disk is full.
        # Python would try, and complain, again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            say(f"error: the output cannot be written ({error.strerror})")
        return 1


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    say(f"warning: {message}")


def positive(text: str) -> int:
    """An argument that counts."""
    value = int(text)
    if not 1 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError("must be at least 1, and at most a million")
    return value


def few(text: str) -> int:
    """An argument that counts what a machine has few of."""
    value = positive(text)
    if value > 1024:
        raise argparse.ArgumentTypeError("must be at most 1024")
    return value


def seconds(text: str) -> float:
    """An argument that is a duration."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be positive")
    return value


def say(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr)
