"""Real clips for benchmarks: evenly spread over the dev sentences of the speech corpus."""

from __future__ import annotations

from pathlib import Path

from outside import rows


def dev_clips(speech: Path, n_clips: int) -> list[Path]:
    """At most ``n_clips`` audio files of ``speech/sentences/dev.jsonl``."""
    paths = [row["path"] for row in rows(speech, "sentences/dev")]
    return paths[:: max(1, len(paths) // n_clips)][:n_clips]
