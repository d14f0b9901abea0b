"""Writes texts to standard output, or to files that are always complete."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from .. import AudioError, Segment, Transcript, files
from ..writers import WRITERS, Style, segment_to_json
from ..writers import write as written
from .inputs import STDIN
from .settings import UsageError
from .terminal import put, say


def targets(paths: Sequence[str], folder: Path | None, kind: str) -> dict[str, Path]:
    """The output path for each audio file, without a suffix; empty for standard output.

    Raises :class:`AudioError` before any work if a file could not be written.
    """
    if folder is None:
        if kind == "all" or (kind in ("srt", "vtt", "tsv") and len(paths) > 1):
            raise UsageError(f"-f {kind} of {len(paths)} files needs -o DIR")
        return {}
    outputs = {path: folder / _stem(path) for path in dict.fromkeys(paths)}
    owners: dict[Path, str] = {}
    for path, output in outputs.items():
        for target in (output, _partial(output)):
            if owners.setdefault(target, path) != path:
                raise AudioError(
                    f"{owners[target]} and {path} would both be written to {target}; "
                    "transcribe them into different folders"
                )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AudioError(f"{folder}: no folder that could be written ({error.strerror})") from error
    found = [_file(output, name) for output in outputs.values() for name in _kinds(kind)]
    for parent in dict.fromkeys((folder, *map(_folder_of, found))):
        _check_folder(parent)
    return outputs


def _folder_of(target: Path) -> Path:
    """The folder to write a file in; links are followed."""
    try:
        is_link = stat.S_ISLNK(os.lstat(target).st_mode)
    except FileNotFoundError:
        return target.parent
    except (OSError, ValueError) as error:  # a name that is too long, or contains NUL
        raise _unwritable(target, error) from error
    if target.is_dir():
        raise AudioError(f"{target}: is a folder, where the text is to be written")
    return Path(os.path.realpath(target)).parent if is_link else target.parent


def _check_folder(folder: Path) -> None:
    try:
        with files.staging(folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: OSError | ValueError) -> AudioError:
    return AudioError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})")


def _kinds(kind: str) -> Sequence[str]:
    return list(WRITERS) if kind == "all" else [kind]


def _file(output: Path, kind: str) -> Path:
    return output.with_name(f"{output.name}.{kind}")


def _partial(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def _stem(path: str) -> str:
    return "stdin" if path == STDIN else Path(path).stem


def put_segment(path: str, segment: Segment, output: str, style: Style) -> None:
    """Print a segment as soon as it is finished, in a format that allows that."""
    if output == "txt" and segment.text:
        put(segment.text)
    elif output == "jsonl":
        put(_with_audio(path, segment_to_json(segment, words=bool(style.words))))


def write(
    path: str,
    transcript: Transcript,
    output: Path | None,
    kind: str,
    style: Style,
    *,
    is_whole: bool,
) -> None:
    """Write the outputs that need the complete text.

    An incomplete text does not replace the files of an earlier run.
    """
    if output is not None:
        _write_files(path, transcript, output, kind, style, is_whole=is_whole)
    elif kind == "txt":
        if not transcript.text:
            put("")  # each file gets a line
    elif kind != "jsonl":
        put(_content(path, transcript, kind, style), end="")


def _write_files(
    path: str, transcript: Transcript, output: Path, kind: str, style: Style, *, is_whole: bool
) -> None:
    if not is_whole:
        output = _partial(output)
    written: list[str] = []
    failed: list[AudioError] = []
    for name in _kinds(kind):
        target, content = _file(output, name), _content(path, transcript, name, style)
        try:
            files.write(target, content.encode())
            written.append(str(target))
        except OSError as error:
            put(content, end="")  # nothing is lost
            failed.append(_unwritable(target, error))
    if written and not is_whole:
        say(f"{path}: what is finished is in {', '.join(written)}")
    if failed:
        raise AudioError(f"{'; '.join(map(str, failed))}; the text is on standard output instead")


def _content(path: str, transcript: Transcript, kind: str, style: Style) -> str:
    """The content of an output file; JSON names the audio file."""
    content = written(transcript, kind, style)
    if kind not in ("json", "jsonl"):
        return content
    return "".join(f"{_with_audio(path, line)}\n" for line in content.split("\n") if line)


def _with_audio(path: str, line: str) -> str:
    """A JSON object with the audio file as its first key."""
    # A name that is no UTF-8 contains half surrogates, which can be printed only as escapes.
    audio = json.dumps({"audio": path}, ensure_ascii=not path.isprintable())
    return f"{audio[:-1]}, {line[1:]}"
