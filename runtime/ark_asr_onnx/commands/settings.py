"""What the commands are told: arguments, and the values that the library takes, typed."""

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
_PUBLISHED_VARIABLE = "ARK_ASR_MODEL_PATH"  # of the makers' own service


class UsageError(Exception):
    """The arguments make no sense together; the command ends with status 2."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model, and whether it may be downloaded."""

    model: str | Path | None = None  # None: the environment's
    local_files_only: bool = False
    threads: int | None = None

    @property
    def name(self) -> str | Path:
        """The model of the command line or of the environment."""
        model = self.model or os.environ.get(MODEL_VARIABLE) or os.environ.get(_PUBLISHED_VARIABLE)
        if not model:
            raise PackageError(
                f"no model given: pass --model DIR or set {MODEL_VARIABLE}; "
                "a clone of the project has one in models/demo"
            )
        return model


@dataclass(frozen=True, slots=True)
class Settings:
    """Which model, and how to open it, cut audio and decode."""

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
        """The model, or another one, for windows as it is told."""
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
        """Refuse a window that makes no sense, or not with this model."""
        try:
            self.splitting.longest(manifest.sizes.max_seconds)
        except ValueError as error:
            raise UsageError(f"--window: {error}") from error

    def check_hotwords(self, package: Package) -> None:
        """Refuse hotwords that a model may not write, without opening it."""
        if self.options.hotwords:
            with _about_hotwords():
                text = Text(package.tokenizer_dir)
                options = self.options
                expected(options.hotwords, options.block_from_id, text, package.manifest)


@contextlib.contextmanager
def _about_hotwords() -> Generator[None]:
    """Say which option a value is of that cannot be."""
    try:
        yield
    except ArkError:  # some are ValueErrors, too
        raise
    except ValueError as error:
        raise UsageError(f"--hotwords: {error}") from error


def model_arguments(parser: argparse.ArgumentParser, *, has_threads: bool = True) -> None:
    """``--model``, ``--local-files-only``, and ``--threads`` where something is computed."""
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
            help="threads (default: the physical cores this process may use, at most 8)",
        )


def model_settings(arguments: argparse.Namespace) -> ModelSettings:
    """What :func:`model_arguments` were given."""
    return ModelSettings(arguments.model, arguments.local_files_only, arguments.threads)


def arguments_of_all(parser: argparse.ArgumentParser, *, has_files: bool = True) -> None:
    """Everything about opening the model, cutting the audio and decoding.

    Live audio is one window after the other, and always cut: two options are for files alone.
    """
    add = parser.add_argument
    model_arguments(parser)
    add(
        "--prepared-dir",
        metavar="DIR",
        default=os.environ.get(PREPARED_VARIABLE),
        help="open the graphs packed for this CPU from here, see ark-asr prepare (default: "
        f"${PREPARED_VARIABLE})",
    )
    parser.set_defaults(slots=DEFAULT_SLOTS, split_short=False)
    if has_files:
        add(
            "--slots",
            type=few,
            default=DEFAULT_SLOTS,
            metavar="N",
            help=f"windows of files decoded together ({DEFAULT_SLOTS})",
        )
        add("--split-short", action="store_true", help="look for speech in short files too")
    add(
        "--window",
        type=seconds,
        metavar="SECONDS",
        help="longest part heard at once (default: 15, or the model's limit if that is less)",
    )
    add("--no-vad", action="store_true", help="do not look for speech; cut at quiet points")
    add("--pause", type=seconds, metavar="SECONDS",
        help="silence that ends a part (default: 0.7)")  # fmt: skip
    add("--max-new-tokens", type=positive, default=256, metavar="N", help="most of one part (256)")
    add("--no-guards", action="store_true",
        help="let the model repeat itself, and give any number of tokens a second")  # fmt: skip
    add("--no-retry", action="store_true", help="do not try doubtful parts again")
    add(
        "--hotwords",
        type=phrases,
        action="extend",
        metavar="WORDS",
        help="words and phrases that may be said and are often misheard, with commas between, or "
        "@FILE with one on each line",
    )
    add("--hotword-strength", type=strength, metavar="NATS",
        help=f"prefer hotwords that are by so much less likely, for each word "
        f"({Options().hotword_strength:g})")  # fmt: skip


def settings(arguments: argparse.Namespace, *, words: bool = False) -> Settings:
    """What :func:`arguments_of_all` were given; ``words`` asks for the times of words."""
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
    """How to cut audio: into windows of so many seconds at most, and as the arguments say."""
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
    """An argument that counts."""
    return _within(text, 1_000_000)


def few(text: str) -> int:
    """An argument that counts what a machine has few of."""
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
    """Words and phrases, with commas between, or ``@FILE`` with one a line."""
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
    except (OSError, ValueError, RuntimeError) as error:  # also a zero byte, and no such home
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
