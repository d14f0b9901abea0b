"""``ark-asr transcribe`` and ``ark-asr mic``: files, pipes and microphones to text."""

from __future__ import annotations

import argparse
import glob
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from .. import ArkError, AudioError, PackageError, Segment, Transcriber, Transcript
from ..audio import microphone, pcm, sources
from ..audio.mel import SAMPLE_RATE
from ..writers import WRITERS, segment_to_json
from .terminal import (
    Progress,
    engine_arguments,
    hms,
    opened,
    options_of,
    positive,
    rewrite,
    say,
    seconds,
    splitting_of,
)

_AUDIO_ENDINGS = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf",
    ".w64", ".rf64",
)  # fmt: skip
_STDIN = "-"
_REASONS = {
    "length": "stopped after {n} tokens, the text may be cut; raise --max-new-tokens, or "
    "--no-guards where it is fast speech",
    "loop": "began to repeat itself and was cut there",
    "empty": "there is speech, but no text",
}


def transcribe_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``transcribe``."""
    add = parser.add_argument
    add("audio", nargs="+",
        help="audio files (WAV, FLAC, OGG, Opus, MP3 …), folders of them, or - for "
        "WAV or 16-bit samples from standard input, as they come")  # fmt: skip
    add(
        "-f",
        "--format",
        choices=(*WRITERS, "all"),
        default="txt",
        help="txt: a line for each part (default); srt, vtt: subtitles; tsv: a table; json: all "
        "there is; jsonl: a line of JSON for each part; all: every one, with -o",
    )
    add("-o", "--output-dir", type=Path, metavar="DIR",
        help="write DIR/NAME.FORMAT instead of standard output")  # fmt: skip
    engine_arguments(parser)
    add("--begin", type=float, metavar="SECONDS", help="start of the part")
    add("--end", type=float, metavar="SECONDS", help="end of the part")
    add("--strict", action="store_true", help="exit with 3 when a part of the text is doubtful")
    add("--no-progress", action="store_true", help="no bar on the terminal")
    add("-v", "--verbose", action="store_true", help="time per stage on stderr")
    add("--rate", type=positive, metavar="HZ", help="of - without a header (16000)")
    add("--channels", type=int, choices=range(1, 33), default=1, metavar="N",
        help="of - without a header (1)")  # fmt: skip
    add("--partial", type=seconds, metavar="SECONDS",
        help="with -: what was heard so far on stderr, each time so much has come")  # fmt: skip
    parser.set_defaults(run=transcribe, max_audio_seconds=None, precision=None)


def mic_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``mic``."""
    engine_arguments(parser)
    parser.add_argument("--device", help="number or part of the name (default: the system's)")
    parser.add_argument("--partial", type=seconds, metavar="SECONDS",
                        help="what was heard so far on stderr, each time so much has "
                        "come")  # fmt: skip
    parser.set_defaults(run=_mic)


def defaults() -> argparse.Namespace:
    """What ``transcribe`` does when nothing is said."""
    parser = argparse.ArgumentParser()
    transcribe_arguments(parser)
    return parser.parse_args([_STDIN])


def transcribe(arguments: argparse.Namespace, refuse: Callable[[str], object]) -> int:
    """Transcribe every file; one that fails is reported and does not stop the others."""
    if arguments.begin is not None and not 0 <= arguments.begin < math.inf:
        refuse("--begin must not be negative")
    if arguments.end is not None and not (arguments.begin or 0) < arguments.end < math.inf:
        refuse("--end must be after --begin, and after 0")
    if _STDIN in arguments.audio and sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - it was closed
        raise AudioError("standard input is closed, there is nothing to hear")
    if arguments.audio == [_STDIN] and pcm.can_be_read_as_it_comes(sys.stdin.buffer):  # pyright: ignore[reportArgumentType] - it is a BufferedReader
        return _from_stdin(arguments, refuse)
    paths = _expanded(arguments.audio)
    outputs = _outputs(paths, arguments, refuse)
    transcriber = opened(arguments)
    precision = transcriber.manifest.precision
    if arguments.precision not in (None, precision):
        raise PackageError(
            f"the model is {precision}, --main-model-precision asks for {arguments.precision}"
        )
    n_failed = n_flagged = 0
    for path in paths:
        try:
            transcript = _transcribed(transcriber, path, arguments, outputs.get(path), len(paths))
        except ArkError as error:
            say(f"error: {error}")
            n_failed += 1
            continue
        n_flagged += _report_flagged(path, transcript.flagged)
        if arguments.verbose:
            say(f"{path}: {_timing_line(transcript)}")
    if n_failed and len(paths) > 1:
        say(f"{n_failed} of {len(paths)} files failed")
    return 1 if n_failed else 3 if n_flagged and arguments.strict else 0


def _transcribed(
    transcriber: Transcriber,
    path: str,
    arguments: argparse.Namespace,
    output: Path | None,
    n_paths: int,
) -> Transcript:
    """Transcribe a file and write its text; also as much as there is when that breaks off."""
    begin = arguments.begin or 0.0
    wanted = sys.stderr.isatty() and not arguments.no_progress
    total = _duration(path, arguments) if wanted else None
    show = Progress(total, hms, f"{path} " if n_paths > 1 else "")
    stream = transcriber.stream(
        sys.stdin.buffer if path == _STDIN else path,
        begin_seconds=arguments.begin,
        end_seconds=arguments.end,
        max_seconds=arguments.max_audio_seconds,
        options=options_of(arguments),
        splitting=splitting_of(arguments),
        slots=arguments.slots,
    )
    stopped: ArkError | KeyboardInterrupt | None = None
    try:
        for segment in stream:
            show.clear()
            if output is None:
                _print_segment(path, segment, arguments.format)
            show(segment.end - begin)
    except (ArkError, KeyboardInterrupt) as error:
        stopped = error
    show.clear()
    transcript = stream.transcript()
    try:
        if stopped is None or transcript.segments:
            _write(path, transcript, output, arguments.format)
    finally:
        if stopped is not None:
            raise stopped
    return transcript


def _from_stdin(arguments: argparse.Namespace, refuse: Callable[[str], object]) -> int:
    """Print the parts of live audio as their speech ends."""
    if arguments.output_dir is not None or arguments.format not in ("txt", "jsonl"):
        refuse("- gives its text as it comes, on standard output, with -f txt or jsonl")
    if arguments.begin is not None or arguments.end is not None:
        refuse("- has no --begin and --end: send what is to be heard")
    if arguments.rate is None and not pcm.is_wav(sys.stdin.buffer):  # pyright: ignore[reportArgumentType] - it is a BufferedReader
        say("standard input has no header: taken for 16-bit samples, 16000 a second (see --rate)")
    rate = arguments.rate or SAMPLE_RATE
    blocks, rate = pcm.parts(sys.stdin.buffer, rate, arguments.channels)  # pyright: ignore[reportArgumentType] - sys.stdin.buffer is one
    return _listen(arguments, blocks, rate, arguments.format)


def _mic(arguments: argparse.Namespace, _: object) -> int:
    """Print what is spoken, until Ctrl-C."""
    device = arguments.device
    blocks = microphone.parts(int(device) if device and device.isdecimal() else device)
    return _listen(arguments, blocks, SAMPLE_RATE, "txt", "listening; Ctrl-C ends it")


def _listen(
    arguments: argparse.Namespace,
    blocks: Iterable[npt.NDArray[Any]],
    rate: int,
    output: str,
    hint: str = "",
) -> int:
    transcriber = opened(arguments)
    if hint:
        say(hint)
    interrupted = False

    def until_interrupted() -> Iterator[npt.NDArray[Any]]:
        nonlocal interrupted
        try:
            yield from blocks
        except KeyboardInterrupt:  # the end of what there is to hear, not of hearing it
            interrupted = True

    segments = transcriber.listen(
        until_interrupted(),
        rate,
        options=options_of(arguments),
        splitting=splitting_of(arguments),
        partial_seconds=arguments.partial,
    )
    shown = sys.stderr.isatty()
    n_flagged = 0
    for segment in segments:
        if not segment.is_final:
            (rewrite if shown else say)(f"… {segment.text}")
            continue
        if shown and arguments.partial:
            rewrite("")
        _print_segment(_STDIN, segment, output)
        if segment.finish_reason != "stop":
            n_flagged += _report_flagged(_STDIN, [segment])
    if interrupted:
        raise KeyboardInterrupt
    return 3 if n_flagged and getattr(arguments, "strict", False) else 0


def _expanded(given: Sequence[str]) -> list[str]:
    """Files: folders give their audio files, patterns what they match, in order of their names."""
    found: list[str] = []
    for name in given:
        # The functions of os.path never raise; reading tells what is wrong with a path.
        if os.path.isdir(name):  # noqa: PTH112
            found += _audio_in(Path(name)) or [name]
        elif any(c in name for c in "*?[") and not os.path.lexists(name):
            matches = glob.glob(name, recursive=True)  # noqa: PTH207 - Path has none of absolute ones
            found += sorted(m for m in matches if _is_named_audio(Path(m))) or [name]
        else:
            found.append(name)
    return found


def _audio_in(folder: Path) -> list[str]:
    try:
        return [str(p) for p in sorted(folder.iterdir()) if _is_named_audio(p)]
    except OSError:
        return []


def _is_named_audio(path: Path) -> bool:
    return path.suffix.lower() in _AUDIO_ENDINGS


def _outputs(
    paths: Sequence[str], arguments: argparse.Namespace, refuse: Callable[[str], object]
) -> dict[str, Path]:
    """Where each file's text goes, without an ending; empty for standard output."""
    if arguments.output_dir is None:
        if arguments.format == "all" or (
            arguments.format in ("srt", "vtt", "tsv") and len(paths) > 1
        ):
            refuse(f"-f {arguments.format} of {len(paths)} files needs -o DIR")
        return {}
    outputs = {path: arguments.output_dir / _stem(path) for path in dict.fromkeys(paths)}
    owners: dict[Path, str] = {}
    for path, output in outputs.items():
        if owners.setdefault(output, path) != path:
            raise AudioError(
                f"{owners[output]} and {path} would both be written to {output}; "
                "transcribe them into different folders"
            )
    try:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AudioError(
            f"{arguments.output_dir}: no folder that could be written ({error.strerror})"
        ) from error
    return outputs


def _stem(path: str) -> str:
    return "stdin" if path == _STDIN else Path(path).stem


def _duration(path: str, arguments: argparse.Namespace) -> float | None:
    """Seconds that are to be transcribed, if they are known and it is worth a bar."""
    try:
        whole = sources.duration(path)
    except AudioError:
        return None  # transcribing tells
    end = arguments.end if whole is None else min(arguments.end or whole, whole)
    return None if end is None else max(0.0, end - (arguments.begin or 0.0))


def _print_segment(path: str, segment: Segment, output: str) -> None:
    """What goes to standard output as soon as it is there."""
    if output == "txt" and segment.text:
        print(segment.text, flush=True)
    elif output == "jsonl":
        print(f"{_audio_field(path)}, {segment_to_json(segment)[1:]}", flush=True)


def _write(path: str, transcript: Transcript, output: Path | None, kind: str) -> None:
    """What can be written only when the text is complete."""
    if output is not None:
        for name in WRITERS if kind == "all" else (kind,):
            _write_file(output.with_name(f"{output.name}.{name}"), WRITERS[name](transcript))
    elif kind == "txt":
        if not transcript.text:
            print(flush=True)  # a line for each file
    elif kind == "json":
        print(f"{_audio_field(path)}, {WRITERS['json'](transcript)[1:]}", flush=True)
    elif kind != "jsonl":
        print(WRITERS[kind](transcript), end="", flush=True)


def _audio_field(path: str) -> str:
    """The beginning of a JSON object that tells which file it is about."""
    # A name that is no UTF-8 has half surrogates, which only escaped can be printed.
    printable = path.isprintable()
    return json.dumps({"audio": path}, ensure_ascii=not printable)[:-1]


def _write_file(path: Path, content: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            temporary.write_bytes(content.encode())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise AudioError(f"{path}: cannot be written ({error.strerror})") from error


def _report_flagged(path: str, segments: Iterable[Segment]) -> int:
    """Say which parts are doubtful, and how many."""
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
    )
