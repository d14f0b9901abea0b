"""Real clips for benchmarks: evenly spread over the dev sentences of the speech corpus."""

from __future__ import annotations

import json
from pathlib import Path


def dev_clips(speech: Path, n_clips: int) -> list[Path]:
    """``n_clips`` audio files, at most, of ``speech/sentences/dev.jsonl``."""
    manifest = speech / "sentences" / "dev.jsonl"
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    step = max(1, len(rows) // n_clips)
    return [manifest.parent / row["audio"] for row in rows[::step][:n_clips]]
