"""The arguments of the commands, and their typed values for the library."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

import ark_asr_onnx

from .. import ArkError, Options, Package, PackageError, Splitting, Transcriber
from ..decoding.hotwords import MAX_STRENGTH
from ..decoding.second_look import expected
from ..decoding.slots import DEFAULT_SLOTS
from ..package.contract import Manifest
from ..package.text import Text

MODEL_VARIABLE = "ARK_ASR_MODEL"
PREPARED_VARIABLE = "ARK_ASR_PREPARED_DIR"
_MAX_BYTES = 1 << 20  # of a file of hotwords
_PUBLISHED_VARIABLE = "ARK_ASR_MODEL_PATH"  # of upstream's service


class UsageError(Exception):
    """The arguments do not fit together; the command ends with status 2."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The model, and whether it may be downloaded."""

    model: str | Path | None = None  # None: from the environment
    local_files_only: bool = False
    threads: int | None = None

    @property
    def name(self) -> str | Path:
        """The model of the command line or the environment. Raises :class:`UsageError`."""
        model = self.model or os.environ.get(MODEL_VARIABLE) or os.environ.get(_PUBLISHED_VARIABLE)
        if not model:
            raise PackageError(
                f"no model given: pass --model DIR or set {MODEL_VARIABLE}; "
                "a clone of the project has one in models/demo"
            )
        return model


@dataclass(frozen=True, slots=True)
class Settings:
    """The model, and how to open it, split audio and decode."""

    model: ModelSettings = ModelSettings()
    prepared_dir: str | None = None
    slots: int = DEFAULT_SLOTS
    options: Options = field(default_factory=Options)
    splitting: Splitting = field(default_factory=Splitting)

    def load(
        self,
        model: str | Path | None = None,
        *,
        threads: int | None = None,
        idle_unload_seconds: float | None = None,
    ) -> Transcriber:
        """Open this model, or another one with the same settings, and check the window."""
        transcriber = ark_asr_onnx.load(
            model or self.model.name,
            threads=threads or self.model.threads,
            local_files_only=self.model.local_files_only,
            prepared_dir=self.prepared_dir,
            idle_unload_seconds=idle_unload_seconds,
        )
        self.check_window(transcriber.manifest)
        with _about_hotwords():
            transcriber.check(self.options)
        return transcriber

    def check_window(self, manifest: Manifest) -> None:
        """Raise :class:`UsageError` for a window that this model does not allow."""
        try:
            self.splitting.longest(manifest.sizes.max_seconds)
        except ValueError as error:
            raise UsageError(f"--window: {error}") from error

    def check_hotwords(self, package: Package) -> None:
        """Raise :class:`UsageError` for hotwords that a model may not write; does not open it."""
        if self.options.hotwords:
            with _about_hotwords():
                text = Text(package.tokenizer_dir)
                options = self.options
                expected(options.hotwords, options.block_from_id, text, package.manifest)


@contextlib.contextmanager
def _about_hotwords() -> Generator[None]:
    """Name the option in the error about a wrong hotword."""
    try:
        yield
    except ArkError:  # some of these are also ValueErrors
        raise
    except ValueError as error:
        raise UsageError(f"--hotwords: {error}") from error


def model_arguments(parser: argparse.ArgumentParser, *, has_threads: bool = True) -> None:
    """Add ``--model``, ``--local-files-only``, and ``--threads`` for commands that compute."""
    add = parser.add_argument
    add(
        "-m",
        "--model",
        "--model-dir",
        metavar="MODEL",
        help=f"model folder or Hugging Face id (default: ${MODEL_VARIABLE})",
    )
    add("--local-files-only", action="store_true", help="never download a model")
    parser.set_defaults(threads=None)
    if has_threads:
        add(
            "--threads",
            type=few,
            metavar="N",
            help="threads (default: the physical cores that this process may use, at most 8)",
        )


def model_settings(arguments: argparse.Namespace) -> ModelSettings:
    """The values of :func:`model_arguments`."""
    return ModelSettings(arguments.model, arguments.local_files_only, arguments.threads)


def arguments_of_all(parser: argparse.ArgumentParser, *, has_files: bool = True) -> None:
    """Add all arguments for opening the model, splitting the audio and decoding.

    Live audio is always split, and gives one window after the other, so two options need files.
    """
    add = parser.add_argument
    model_arguments(parser)
    add(
        "--prepared-dir",
        metavar="DIR",
        default=os.environ.get(PREPARED_VARIABLE),
        help="open the graphs packed for this CPU from this folder, see ark-asr prepare (default: "
        f"${PREPARED_VARIABLE})",
    )
    parser.set_defaults(slots=DEFAULT_SLOTS, split_short=False)
    if has_files:
        add(
            "--slots",
            type=few,
            default=DEFAULT_SLOTS,
            metavar="N",
            help=f"parts that are decoded together ({DEFAULT_SLOTS})",
        )
        add("--split-short", action="store_true", help="split short files at pauses too")
    add(
        "--window",
        type=seconds,
        metavar="SECONDS",
        help="longest part in one pass (default: 15, or the model's limit if that is less)",
    )
    add("--no-vad", action="store_true", help="do not detect speech; cut at quiet points")
    add("--pause", type=seconds, metavar="SECONDS",
        help="silence that ends a part (default: 0.7)")  # fmt: skip
    add("--max-new-tokens", type=positive, default=256, metavar="N",
        help="most tokens of a part (256)")  # fmt: skip
    add("--no-guards", action="store_true",
        help="allow repetitions, and any number of tokens per second")  # fmt: skip
    add("--no-retry", action="store_true", help="do not decode doubtful parts again")
    add(
        "--hotwords",
        type=phrases,
        action="extend",
        metavar="WORDS",
        help="expected words and phrases that are often misheard, separated by commas, or "
        "@FILE with one on each line",
    )
    add("--hotword-strength", type=strength, metavar="NATS",
        help=f"nats per word by which a hotword may be less likely and is still preferred "
        f"({Options().hotword_strength:g})")  # fmt: skip


def settings(arguments: argparse.Namespace, *, words: bool = False) -> Settings:
    """The values of :func:`arguments_of_all`; ``words`` requests times of words."""
    options = Options(arguments.max_new_tokens, retry=not arguments.no_retry, words=words)
    if arguments.no_guards:
        options = replace(options, max_tokens_per_second=None, max_repeats=None)
    if arguments.hotwords:
        with _about_hotwords():
            options = replace(options, hotwords=tuple(arguments.hotwords))
    if arguments.hotword_strength is not None:
        if not arguments.hotwords:
            raise UsageError("--hotword-strength needs --hotwords")
        options = replace(options, hotword_strength=arguments.hotword_strength)
    return Settings(
        model_settings(arguments),
        arguments.prepared_dir,
        arguments.slots,
        options,
        splitting(arguments.window, arguments),
    )


def splitting(window: float | None, arguments: argparse.Namespace | None = None) -> Splitting:
    """How to split audio: into windows of at most ``window`` seconds, and by the arguments."""
    try:
        if arguments is None:
            return Splitting(window)
        if arguments.no_vad:
            if arguments.split_short or arguments.pause is not None:
                raise UsageError("--no-vad looks for no speech: without --split-short and --pause")
            return Splitting(window, vad=None)
        pause = {} if arguments.pause is None else {"pause_seconds": arguments.pause}
        return Splitting(window, split_short=arguments.split_short, **pause)
    except ValueError as error:
        raise UsageError(f"--window: {error}") from error


def whole(text: str) -> int:
    """An argument that is a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_quoted(text)} is no whole number") from None


def positive(text: str) -> int:
    """An argument that is a count, at least 1."""
    return _within(text, 1_000_000)


def few(text: str) -> int:
    """An argument that counts a scarce resource."""
    return _within(text, 1024)


def channels(text: str) -> int:
    """An argument that counts channels of audio."""
    return _within(text, 32)


def number(text: str) -> float:
    """An argument that is a finite number."""
    return _finite(text, -math.inf, "must be a number, and finite")


def strength(text: str) -> float:
    """An argument that is a strength of hotwords."""
    rule = f"must be positive, and at most {MAX_STRENGTH:g}"
    if (value := _finite(text, 0.0, rule)) > MAX_STRENGTH:
        raise argparse.ArgumentTypeError(f"{_quoted(text)}: {rule}")
    return value


def phrases(text: str) -> list[str]:
    """Words and phrases, separated by commas, or ``@FILE`` with one on each line."""
    found = _lines(text[1:]) if text.startswith("@") else text.split(",")
    found = [phrase.strip() for phrase in found if phrase.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{_quoted(text)} has no words; leave the option out")
    return found


def _lines(path: str) -> list[str]:
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise argparse.ArgumentTypeError(
                f"{path}: more than {_MAX_BYTES} bytes; give a list of the words that are misheard"
            )
        return content.decode().removeprefix("\ufeff").splitlines()
    except (OSError, ValueError, RuntimeError) as error:  # also NUL in a name, and an unknown home
        reason = "not UTF-8 text" if isinstance(error, UnicodeError) else str(error)
        reason = (error.strerror if isinstance(error, OSError) else None) or reason
        raise argparse.ArgumentTypeError(f"{path}: cannot be read ({reason})") from error


def seconds(text: str) -> float:
    """An argument that is a duration."""
    return _finite(text, 0.0, "must be positive, and finite")


def moment(text: str) -> float:
    """An argument that is a time in the audio."""
    return _finite(text, -math.ulp(0.0), "must be 0 or more, and finite")


def _within(text: str, most: int) -> int:
    if not 1 <= (value := whole(text)) <= most:
        raise argparse.ArgumentTypeError(f"{_quoted(text)}: must be 1 to {most}")
    return value


def _finite(text: str, above: float, rule: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not above < value < math.inf:
        raise argparse.ArgumentTypeError(f"{_quoted(text)}: {rule}")
    return value


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
