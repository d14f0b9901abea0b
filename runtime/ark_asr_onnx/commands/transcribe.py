"""``ark-asr transcribe`` and ``ark-asr mic``: text from files, pipes and microphones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy.typing as npt

from .. import (
    ArkError,
    AudioError,
    AudioWarning,
    CueLayout,
    EmptyAudioError,
    PackageError,
    Segment,
    Transcriber,
    Transcript,
)
from ..audio import microphone, pcm, sources
from ..audio.mel import SAMPLE_RATE
from ..package.repository import id_of
from ..writers import WRITERS, Style
from .inputs import STDIN, expanded
from .outputs import put_segment, targets, write
from .settings import (
    Settings,
    UsageError,
    arguments_of_all,
    channels,
    few,
    moment,
    positive,
    seconds,
    settings,
)
from .terminal import SIGNALS, Progress, hms, rewrite, say

_REASONS = {
    "length": "stopped after {n} tokens, the text may be cut; raise --max-new-tokens, or "
    "--no-guards where it is fast speech",
    "loop": "began to repeat itself and was cut there",
    "empty": "there is speech, but no text",
}
_LIMITS = ("max_line_width", "max_line_count", "max_cue_seconds")  # of cues


@dataclass(frozen=True, slots=True)
class Transcription:
    """The audio to transcribe, and the outputs for its text."""

    settings: Settings
    audio: tuple[str, ...]
    begin_seconds: float | None = None
    end_seconds: float | None = None
    max_seconds: float | None = None
    precision: str | None = None  # the model must have it
    format: str = "txt"
    style: Style = field(default_factory=Style)
    output_dir: Path | None = None
    is_strict: bool = False
    is_verbose: bool = False
    has_bar: bool = True
    rate: int | None = None  # Hz, of standard input without a header
    channels: int | None = None
    partial_seconds: float | None = None

    def check(self) -> None:
        """Raise :class:`UsageError` for values that do not fit together."""
        begin, end = self.begin_seconds or 0.0, self.end_seconds
        if end is not None and end <= begin:
            raise UsageError(f"--end must be after --begin: {end:g} is not after {begin:g}")
        if self.live_options and self.audio != (STDIN,):
            raise UsageError(f"{self.live_options}: for - alone, not for files")
        if self.style.inline_times and self.format not in ("vtt", "all"):
            raise UsageError(f"--inline-times: for -f vtt or all, {self.format} has no such times")
        if self.style.layout is not None and self.format not in ("srt", "vtt", "all"):
            names = ", ".join(map(_flag, _LIMITS))
            raise UsageError(f"{names}: for -f srt, vtt or all, {self.format} has no cues")
        if self.style.words and self.format == "txt":
            raise UsageError("--words: for a format that has times, such as -f jsonl")

    @property
    def live_options(self) -> str:
        """The given options that are only for standard input."""
        options = {
            "--rate": self.rate,
            "--channels": self.channels,
            "--partial": self.partial_seconds,
        }
        return ", ".join(name for name, value in options.items() if value is not None)


def transcribe_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``transcribe``."""
    add = parser.add_argument
    add("audio", nargs="+",
        help="audio files (WAV, FLAC, OGG, Opus, MP3 …), folders of them, or - for live "
        "WAV or 16-bit samples from standard input")  # fmt: skip
    add(
        "-f",
        "--format",
        choices=(*WRITERS, "all"),
        default="txt",
        help="txt: a line for each part (default); srt, vtt: subtitles; tsv: a table; json: all "
        "results; jsonl: a line of JSON for each part; all: every format, with -o",
    )
    add("-o", "--output-dir", type=Path, metavar="DIR",
        help="write DIR/NAME.FORMAT instead of standard output")  # fmt: skip
    arguments_of_all(parser)
    _words_argument(parser)
    add("--inline-times", action="store_true", help="vtt: times of words within cues")
    add("--max-line-width", type=positive, metavar="N",
        help="srt, vtt: columns of a line (42 if one of these is given); wide letters take "
        "two")  # fmt: skip
    add("--max-line-count", type=few, metavar="N", help="srt, vtt: most lines of a cue (2)")
    add("--max-cue-seconds", type=seconds, metavar="SECONDS", help="srt, vtt: longest cue (7)")
    add("--begin", type=moment, metavar="SECONDS", help="where to begin")
    add("--end", type=moment, metavar="SECONDS", help="where to end")
    add("--strict", action="store_true",
        help="exit with 3 if a part of the text, or the audio, is doubtful")  # fmt: skip
    add("--no-progress", action="store_true", help="no bar on the terminal")
    add("-v", "--verbose", action="store_true", help="time per stage of each file on stderr")
    add("--rate", type=positive, metavar="HZ", help="rate of - without a header (16000)")
    add("--channels", type=channels, metavar="N", help="channels of - without a header (1)")
    add("--partial", type=seconds, metavar="SECONDS",
        help="with -: print unfinished speech on stderr, each time after this much "
        "audio")  # fmt: skip
    parser.set_defaults(run=_transcribe)


def mic_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``mic``."""
    parser.add_argument("-f", "--format", choices=("txt", "jsonl"), default="txt",
                        help="txt: a line for each part (default); jsonl: a line of "
                        "JSON")  # fmt: skip
    arguments_of_all(parser, has_files=False)
    _words_argument(parser)
    parser.add_argument("--device", help="number or part of the name (default: the system's)")
    parser.add_argument("--partial", type=seconds, metavar="SECONDS",
                        help="print unfinished speech on stderr, each time after this much "
                        "audio")  # fmt: skip
    parser.set_defaults(run=_mic)


def _words_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--words", action="store_true", help="times of words, in json and jsonl")


def _transcribe(arguments: argparse.Namespace) -> int:
    style = _style(arguments)
    return transcribe(
        Transcription(
            settings(arguments, words=bool(style.words)),
            tuple(arguments.audio),
            arguments.begin,
            arguments.end,
            format=arguments.format,
            style=style,
            output_dir=arguments.output_dir,
            is_strict=arguments.strict,
            is_verbose=arguments.verbose,
            has_bar=not arguments.no_progress,
            rate=arguments.rate,
            channels=arguments.channels,
            partial_seconds=arguments.partial,
        )
    )


def _style(arguments: argparse.Namespace) -> Style:
    """The style of the output; cues and times within them need times of words, too."""
    given = {name: getattr(arguments, name) for name in _LIMITS}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        layout = CueLayout(**given) if given else None
    except ValueError as error:
        raise UsageError(f"--max-cue-seconds: {error}") from error
    needs_words = arguments.words or arguments.inline_times or layout is not None
    return Style(layout, inline_times=arguments.inline_times, words=needs_words)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def transcribe(told: Transcription) -> int:
    """Transcribe every file; one that fails is reported and does not stop the others."""
    told.check()
    pipe = _standard_input() if STDIN in told.audio else None
    if told.audio == (STDIN,) and pipe:
        if pcm.can_be_read_as_it_comes(pipe, told.rate):
            return _from_stdin(told, pipe)
        if told.live_options:
            say(f"warning: standard input is a file with a header: {told.live_options} not used")
    inputs = expanded(told.audio)
    paths = [path for path in inputs if isinstance(path, str)]
    outputs = targets(paths, told.output_dir, told.format)
    transcriber = _open(told)
    n_failed = n_doubts = 0
    for path in inputs:
        try:
            if isinstance(path, AudioError):
                raise path
            source = cast("BinaryIO", pipe) if pipe and path == STDIN else path
            label = path if len(inputs) > 1 else None
            n_found = _transcribed(transcriber, path, source, told, outputs.get(path), label)
        except ArkError as error:
            say(f"error: {error}")
            n_failed += 1
            continue
        n_doubts += n_found
    if n_failed and len(inputs) > 1:
        say(f"{n_failed} of {len(inputs)} files failed")
    return 1 if n_failed else 3 if n_doubts and told.is_strict else 0


def _standard_input() -> pcm.Pipe:
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - it was closed
        raise AudioError("standard input is closed, there is nothing to hear")
    return pcm.Pipe(sys.stdin.buffer)


def _open(told: Transcription) -> Transcriber:
    transcriber = told.settings.load()
    precision = transcriber.manifest.precision
    if told.precision not in (None, precision):
        raise PackageError(
            f"the model is {precision}, --main-model-precision asks for {told.precision}"
        )
    is_theirs = transcriber.manifest.layout == "published"
    if is_theirs and (place := id_of(told.settings.model.name)):
        say(
            f"note: {place.text} holds its makers' package; an export of the checkpoint is faster: "
            f"ark-onnx-export --ckpt {place.repository}"
        )
    return transcriber


def _transcribed(
    transcriber: Transcriber,
    path: str,
    source: str | BinaryIO,
    told: Transcription,
    output: Path | None,
    label: str | None,
) -> int:
    """Transcribe a file and write its text; if that breaks off, the finished part of it.

    Returns the number of warnings.
    """
    begin = told.begin_seconds or 0.0
    is_wanted = sys.stderr.isatty() and told.has_bar
    total = _duration(path, told) if is_wanted else None
    show = Progress(total, hms, f"{label} " if label else "")
    stream = transcriber.stream(
        source,
        begin_seconds=told.begin_seconds,
        end_seconds=told.end_seconds,
        max_seconds=told.max_seconds,
        options=told.settings.options,
        splitting=told.settings.splitting,
        slots=told.settings.slots,
    )
    stopped: BaseException | None = None
    try:
        for segment in stream:
            show.clear()
            if output is None:
                put_segment(path, segment, told.format, told.style)
            show(segment.end - begin)
    except BaseException as error:
        stopped = error
    show.clear()
    transcript = stream.transcript()
    try:
        if stopped is None or transcript.segments:
            write(path, transcript, output, told.format, told.style, is_whole=stopped is None)
    except (ArkError, OSError) as error:
        if stopped is None:
            raise
        say(f"error: {error}")
    finally:
        n_doubts = _report(path, transcript)
    if stopped is not None:
        raise stopped
    if told.is_verbose:
        say(f"{path}: {_timing_line(transcript)}")
    return n_doubts


def _from_stdin(told: Transcription, pipe: pcm.Pipe) -> int:
    """Print the parts of live audio as their speech ends."""
    if told.output_dir is not None or told.format not in ("txt", "jsonl"):
        raise UsageError("- is live: its text goes to standard output, with -f txt or jsonl")
    if told.begin_seconds is not None or told.end_seconds is not None:
        raise UsageError("--begin and --end are for files: send - only the part to transcribe")
    if told.max_seconds is not None:
        raise UsageError("--max-audio-seconds is for files: - is transcribed to its end")
    has_header = pcm.is_wav(pipe)
    if has_header and (told.rate or told.channels):
        say("warning: standard input has a header: --rate and --channels are not used")
    if told.rate is None and not has_header:
        say("standard input has no header: taken for 16-bit samples, 16000 a second (see --rate)")
    transcriber, doubts = _open(told), _Doubts(STDIN)
    parts = pcm.parts(pipe, told.rate or SAMPLE_RATE, told.channels or 1, doubts)
    blocks = sources.mono(parts, "standard input", doubts)

    def heeding() -> Iterator[npt.NDArray[Any]]:
        while True:
            with SIGNALS.heeded():  # else a signal would wait for the next block
                block = next(blocks, None)
            if block is None:
                return
            yield block

    return _listen(transcriber, told, heeding(), SAMPLE_RATE, doubts)


def _mic(arguments: argparse.Namespace) -> int:
    """Print the text of the microphone's speech, until Ctrl-C."""
    told = Transcription(
        settings(arguments, words=arguments.words),
        (STDIN,),
        format=arguments.format,
        style=Style(words=arguments.words),
        partial_seconds=arguments.partial,
    )
    told.check()
    microphone.library()  # raises before the model is opened
    transcriber, doubts = _open(told), _Doubts("the microphone")
    device = arguments.device
    number = int(device) if device and device.isdecimal() else device
    with microphone.opened(number, lambda: SIGNALS.has_come, doubts) as (blocks, rate):
        say("listening; Ctrl-C ends it")
        return _listen(transcriber, told, blocks, rate, doubts)


class _Doubts:
    """Reports warnings about live audio and its text at once, and counts them."""

    def __init__(self, name: str) -> None:
        self.name, self.n = name, 0

    def __call__(self, warning: AudioWarning) -> None:
        self.n += _report_warnings(self.name, [warning])


def _listen(
    transcriber: Transcriber,
    told: Transcription,
    blocks: Iterator[npt.NDArray[Any]],
    rate: int,
    doubts: _Doubts,
) -> int:
    """Print the text of live audio; a signal or an error ends the input, not the transcription."""
    stopped: BaseException | None = None

    def until_stopped() -> Iterator[npt.NDArray[Any]]:
        nonlocal stopped
        try:
            yield from blocks
        except (ArkError, KeyboardInterrupt, OSError) as error:
            stopped = error

    segments = transcriber.listen(
        until_stopped(),
        rate,
        options=told.settings.options,
        splitting=told.settings.splitting,
        partial_seconds=told.partial_seconds,
        on_warning=doubts,
    )
    try:
        with SIGNALS.held():
            for segment in segments:
                doubts.n += _show_live(segment, told, doubts.name)
    except EmptyAudioError:
        if stopped is None and not SIGNALS.has_come:
            raise
    if stopped is not None:
        raise stopped
    SIGNALS.check()
    return 3 if doubts.n and told.is_strict else 0


def _show_live(segment: Segment, told: Transcription, name: str) -> int:
    """Print a segment, an unfinished one on stderr; returns 1 if it is doubtful, else 0."""
    is_terminal = sys.stderr.isatty()
    if not segment.is_final:
        (rewrite if is_terminal else say)(f"… {segment.text}")
        return 0
    if is_terminal and told.partial_seconds:
        rewrite("")
    put_segment(STDIN, segment, told.format, told.style)
    return _report_flagged(name, [segment] if segment.finish_reason != "stop" else [])


def _duration(path: str, told: Transcription) -> float | None:
    """Seconds of audio to transcribe, for the bar; None if unknown."""
    try:
        whole = sources.duration(path)
    except AudioError:
        return None  # transcribing reports the error
    end = told.end_seconds if whole is None else min(told.end_seconds or whole, whole)
    return None if end is None else max(0.0, end - (told.begin_seconds or 0.0))


def _report(path: str, transcript: Transcript) -> int:
    """Report warnings about the audio and its text; returns their number."""
    n = _report_warnings(path, transcript.warnings)
    return n + _report_flagged(path, transcript.flagged)


def _report_warnings(path: str, warnings: Sequence[AudioWarning]) -> int:
    for warning in warnings:
        say(f"warning: {path}: {warning.message}")
    return len(warnings)


def _report_flagged(path: str, segments: Iterable[Segment]) -> int:
    """Report doubtful parts; returns their number."""
    n = 0
    for segment in segments:
        n += 1
        reason = _REASONS[segment.finish_reason].format(n=len(segment.token_ids))
        say(f"warning: {path}: {segment.start:.1f} to {segment.end:.1f} s: {reason}")
    return n


def _timing_line(transcript: Transcript) -> str:
    t, n = transcript.timings, len(transcript.token_ids)
    per_token = 1000 * t.decode / max(n - len(transcript.segments), 1)
    return (
        f"{transcript.duration:.2f} s audio, {transcript.covered_seconds:.2f} of "
        f"{transcript.speech_seconds:.2f} s speech covered, in {t.total:.3f} s "
        f"(RTFx {transcript.rtfx:.1f}): read {t.read:.3f}, split {t.split:.3f}, "
        f"features {t.features:.3f}, encode {t.encode:.3f}, prefill {t.prefill:.3f}, "
        f"decode {t.decode:.3f} s ({n} tokens, {per_token:.1f} ms/token)"
        + (f", words {t.words:.3f} s" if t.words else "")
    )
