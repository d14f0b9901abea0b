"""Write ``whisper.{txt,srt,vtt,tsv,json}`` with the writers of openai-whisper, version 20250625.

    python3 -m venv /tmp/whisper_venv
    /tmp/whisper_venv/bin/pip install --no-deps openai-whisper==20250625
    /tmp/whisper_venv/bin/python tests/golden/whisper_writers.py \
        /tmp/whisper_venv/lib/python3*/site-packages/whisper tests/golden/segments.json

``whisper/utils.py`` is loaded by its path: importing the package would want torch, its writers need
only the standard library. ``segments.json`` is a result dictionary of whisper's with our keys, in
the order in which they have to appear; the goldens are written beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType

FORMATS = ("txt", "srt", "vtt", "tsv", "json")


def load_utils(whisper_dir: Path) -> ModuleType:
    """``whisper.utils``, without importing ``whisper``."""
    spec = importlib.util.spec_from_file_location("whisper_utils", whisper_dir / "utils.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Write the goldens."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("whisper_dir", type=Path, help="folder of the installed package")
    parser.add_argument("segments", type=Path, help="JSON file of a result dictionary")
    arguments = parser.parse_args()
    utils = load_utils(arguments.whisper_dir)
    result = json.loads(arguments.segments.read_text(encoding="utf-8"))
    for name in FORMATS:
        write = utils.get_writer(name, str(arguments.segments.parent))
        write(result, "whisper")  # whisper takes the name from that of the audio


if __name__ == "__main__":
    main()
