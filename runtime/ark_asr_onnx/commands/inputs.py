"""Finds the audio files for given names, folders and patterns, and reports those left out."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import AudioError
from ..audio import containers
from .terminal import say

STDIN = "-"
_AUDIO_ENDINGS = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf",
    ".w64", ".rf64", ".webm",
)  # fmt: skip
_FOLDER = "as sub-folders"
_MEDIA_ENDINGS = (".m4a", ".mp4", ".aac", ".mov", ".mkv", ".mka")  # with the extra media


def expanded(given: Sequence[str]) -> list[str | AudioError]:
    """The files for the arguments: a folder or a pattern gives its audio files, sorted by name.

    A message for each says what was left out. An argument without any audio file gives an error.
    """
    found: list[str | AudioError] = []
    for name in given:
        # The functions of os.path never raise; reading reports the problem of a path.
        if os.path.isdir(name):  # noqa: PTH112
            found += _in_folder(name)
        elif any(c in name for c in "*?[") and not os.path.lexists(name):
            found += _matching(name)
        else:
            found.append(name)
    return found


def _in_folder(folder: str) -> list[str | AudioError]:
    try:
        paths = [str(path) for path in Path(folder).iterdir()]
    except OSError as error:
        return [AudioError(f"{folder}: cannot be read ({error.strerror})")]
    files, left = _sorted_out(paths)
    if left:
        deep = Path(glob.escape(folder), "**", "*")
        hint = f"; '{deep}' takes what is in sub-folders" if _FOLDER in left else ""
        say(f"{folder}: left out {left}{hint}")
    return [*files] or [folder]  # reading reports that it is a folder


def _matching(pattern: str) -> list[str | AudioError]:
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute one
    if "**" in pattern:  # it also matches the files in these folders
        matches = [match for match in matches if not os.path.isdir(match)]  # noqa: PTH112
    files, left = _sorted_out(matches, are_named=True)
    if left and files:
        say(f"{pattern}: left out {left}")
    if left and not files:
        return [AudioError(f"{pattern}: matches no audio files, only {left}")]
    return [*files] or [pattern]  # reading reports that there is no such file


def _sorted_out(paths: Iterable[str], *, are_named: bool = False) -> tuple[list[str], str]:
    """The audio files among paths, and a text that counts the others by reason, with a name."""
    files: list[str] = []
    others: dict[str, list[str]] = {}
    for path in sorted(paths):
        reason = _reason(path, is_named=are_named)
        (others.setdefault(reason, []) if reason else files).append(path)
    return files, ", ".join(
        f"{len(found)} ({Path(found[0]).name}{', …' if found[1:] else ''}) {reason}"
        for reason, found in others.items()
    )


def _reason(path: str, *, is_named: bool) -> str:
    """The reason to leave a path out, or ""; a named file may be hidden."""
    ending = Path(path).suffix.lower()
    if Path(path).name.startswith(".") and not is_named:
        return "as hidden"
    if os.path.isdir(path):  # noqa: PTH112
        return _FOLDER
    if not os.path.isfile(path):  # noqa: PTH113 - a pipe would block
        return "as no regular files"
    if ending in _MEDIA_ENDINGS and not containers.has_media():
        return "for want of pip install 'ark-asr-onnx[media]'"
    return "" if ending in _AUDIO_ENDINGS + _MEDIA_ENDINGS else "for the ending"
