"""Finds recorded speech and real tokenizers, which are not in the repository.

An option or an environment variable names the folder; without either, the folder of that name in
``shared`` beside the repository is used, if it exists. CONTRIBUTING.md describes a folder of
speech, and how to make one.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

SPEECH, TOKENIZER = "ARK_ASR_SPEECH", "ARK_ASR_TOKENIZER"  # environment variables
# Files of a checkpoint's tokenizer; a folder has some of them.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip
SPEECH_HELP = f"recorded speech (default: ${SPEECH}); CONTRIBUTING.md tells what is in it"
_BESIDE = Path(__file__).resolve().parents[2] / "shared"
_CORPORA = {
    "sentences": "AN4", "digits": "spoken digits", "words": "single words",
    "read": "read English",
}  # fmt: skip


def folder(variable: str, beside: str) -> Path:
    """The folder that the variable names, else the one beside the repository, existing or not.

    Ends the program with one line if the variable names no folder.
    """
    named = os.environ.get(variable)
    if not named:
        return _BESIDE / beside
    path = Path(named).absolute()
    if not path.is_dir():
        raise SystemExit(f"error: {variable} names {path}, which is no folder")
    return path


def speech(named: str, *manifests: str) -> Path:
    """The folder of speech, named or found; it has these manifests, such as ``read/dev``.

    Ends the program with one line if a manifest is missing.
    """
    path = Path(named).absolute() if named else folder(SPEECH, "speech")
    missing = [name for name in manifests if not (path / f"{name}.jsonl").is_file()]
    if missing:
        needed = ", ".join(f"{n}.jsonl ({_CORPORA[n.partition('/')[0]]})" for n in missing)
        where = f"{path} has no" if path.is_dir() else "no recorded speech:"
        raise SystemExit(
            f"error: {where} {needed}; give --speech DIR or set {SPEECH}, see Recorded speech in "
            "CONTRIBUTING.md"
        )
    return path


def rows(speech: Path, manifest: str) -> list[dict[str, Any]]:
    """The rows of a manifest, such as ``read/dev``; ``path`` is the path of the audio."""
    source = speech / f"{manifest}.jsonl"
    found = map(json.loads, source.read_text(encoding="utf-8").splitlines())
    return [{**row, "path": source.parent / row["audio"]} for row in found]


def add_speech(parser: argparse.ArgumentParser, *manifests: str) -> None:
    """Add the option ``--speech``, a folder that must have these manifests."""
    parser.add_argument(
        "--speech", type=lambda named: speech(named, *manifests),
        default="", metavar="DIR", help=SPEECH_HELP,
    )  # fmt: skip
