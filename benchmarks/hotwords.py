"""Do hotwords help if they were misheard, and do they appear although they were not said?

    python benchmarks/hotwords.py [--model models/demo] [--sets sentences words digits]
        [--strengths 1 2 3 4] [--share 0.1] [--unsaid 100] [--every 1] [--speech DIR]

Each set of clips is first transcribed without hotwords. The words that were misheard at least in a
``--share`` of their occurrences then become hotwords, in two ways:

**A list for all**: the words that were misheard in one half of the clips (every other one) are the
hotwords of all clips of the other half, and vice versa; the errors of both halves are added. This
is the hard way: the list consists of words that the model confuses with each other.

**A list for each clip**: those of its words that were misheard anywhere in the set, and
``--unsaid`` names that no clip contains, as in the literature on contextual biasing. Clips without
such words are not counted.

Errors on hotwords are hotwords of the reference that the text lacks (substituted or deleted);
errors elsewhere are all others, including hotwords that were not said. Texts are compared in lower
case, without punctuation. Finally all clips are transcribed with only names that no clip contains
as hotwords.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jiwer
import outside

import ark_asr_onnx
from ark_asr_onnx import Options, Transcriber

ROOT = Path(__file__).resolve().parent.parent
# Folder, split and source of each set; the demo was not trained on fsdd's speakers and bandwidth.
SETS = {
    "sentences": ("sentences", "dev", ""),
    "words": ("words", "dev", ""),
    "digits": ("digits", "dev", ""),
    "read": ("read", "dev", ""),
    "fsdd": ("digits", "train", "FSDD"),
}
HEADS = ("Adel", "Bron", "Cor", "Dun", "Ester", "Fal", "Gren", "Hal", "Ingol", "Kuber")
TAILS = ("stadt", "netes", "heim", "wick", "ovic", "mouth", "burgh", "ański", "minster", "jana")
HEAD = (
    "| strength | misheard hotwords | change | errors elsewhere | more | on clips without | steps |"
    "\n|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Clip:
    """A clip and its reference text."""

    path: str
    text: str


@dataclass
class Counts:
    """Errors with a list of hotwords."""

    said: int = 0  # hotwords in references
    words: int = 0  # words in references, hotwords included
    misheard: int = 0  # hotwords in references that the texts lack
    elsewhere: int = 0  # all other errors
    unsaid: int = 0  # hotwords in the texts of clips that have none
    steps: int = 0  # steps of the decoder

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )


class Listener:
    """A model that counts the steps of its decoder."""

    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber, self.steps = transcriber, 0
        model: Any = transcriber.model
        model.start = self._counting(model.start)

    def _counting(self, start: Callable[[int, int], Any]) -> Callable[[int, int], Any]:
        def started(slots: int, positions: int) -> Any:
            decoding = start(slots, positions)
            step = decoding.step

            def counted(ids: Any) -> Any:
                self.steps += len(ids)
                return step(ids)

            decoding.step = counted
            return decoding

        return started

    def hear(self, clips: Sequence[Clip], options: Options | None = None) -> list[str]:
        """The texts of clips, normalised for comparison."""
        self.steps = 0
        paths = [clip.path for clip in clips]
        found: list[str] = []
        for result in self._transcriber.transcribe_many(paths, options=options):
            if isinstance(result, ark_asr_onnx.ArkError):
                raise result
            found.append(plain(result.text))
        return found


def plain(text: str) -> str:
    """A text in lower case, with one space between words, and no punctuation but apostrophes."""
    kept = (c if c.isalnum() or c == "'" else " " for c in text.lower())
    return " ".join("".join(kept).split())


def clips_of(speech: Path, name: str, every: int) -> list[Clip]:
    """Every ``every``-th clip of a set."""
    folder, split, source = SETS[name]
    found = outside.rows(speech, f"{folder}/{split}")
    chosen = [row for row in found if source in ("", row["source"])][::every]
    return [Clip(str(row["path"]), plain(row["text"])) for row in chosen]


def missed(clip: Clip, heard: str) -> tuple[list[str], int]:
    """The words of a reference that a text lacks, and the number of all errors."""
    found = jiwer.process_words([clip.text], [heard])
    words = clip.text.split()
    parts = (part for part in found.alignments[0] if part.type in ("substitute", "delete"))
    lost = [word for part in parts for word in words[part.ref_start_idx : part.ref_end_idx]]
    return lost, found.substitutions + found.deletions + found.insertions


def often_misheard(clips: Sequence[Clip], heard: Sequence[str], share: float) -> list[str]:
    """Words that were misheard at least in this share of their occurrences."""
    said = Counter(word for clip in clips for word in clip.text.split())
    lost = Counter(
        w for clip, text in zip(clips, heard, strict=True) for w in missed(clip, text)[0]
    )
    return sorted(word for word, n in lost.items() if n >= share * said[word])


def count(clips: Sequence[Clip], heard: Sequence[str], hotwords: Sequence[str]) -> Counts:
    """Count errors on hotwords and elsewhere."""
    wanted, found = set(hotwords), Counts()
    for clip, text in zip(clips, heard, strict=True):
        words = clip.text.split()
        lost, n_errors = missed(clip, text)
        n_misheard = sum(word in wanted for word in lost)
        found.said += sum(word in wanted for word in words)
        found.words += len(words)
        found.misheard += n_misheard
        found.elsewhere += n_errors - n_misheard
        if not wanted & set(words):
            found.unsaid += sum(word in wanted for word in text.split())
    return found


def halves(
    listener: Listener, clips: Sequence[Clip], heard: Sequence[str], share: float,
    strengths: Sequence[float],
) -> tuple[list[int], dict[float, Counts]]:  # fmt: skip
    """The number of hotwords of each half, and the counts by strength; 0 means without hotwords."""
    totals = {strength: Counts() for strength in (0.0, *strengths)}
    sizes: list[int] = []
    for one in (0, 1):
        hotwords = often_misheard(clips[1 - one :: 2], heard[1 - one :: 2], share)
        sizes.append(len(hotwords))
        half = clips[one::2]
        for strength in totals:
            options = Options()
            if strength and hotwords:
                options = Options(hotwords=tuple(hotwords), hotword_strength=strength)
            texts = listener.hear(half, options)
            found = count(half, texts, hotwords)
            found.steps = listener.steps
            totals[strength] += found
    return sizes, totals


def by_clip(
    listener: Listener, clips: Sequence[Clip], heard: Sequence[str], share: float,
    strengths: Sequence[float], n_unsaid: int,
) -> dict[float, Counts]:  # fmt: skip
    """The counts by strength, with a list for each clip; 0 means without hotwords."""
    chosen = set(often_misheard(clips, heard, share))
    totals = {strength: Counts() for strength in (0.0, *strengths)}
    for clip in clips:
        own = sorted(chosen & set(clip.text.split()))
        if not own:
            continue
        hotwords = (*own, *names(n_unsaid))
        for strength in totals:
            options = Options(hotwords=hotwords, hotword_strength=strength) if strength else None
            texts = listener.hear([clip], options)
            found = count([clip], texts, own)
            found.steps = listener.steps
            totals[strength] += found
    return totals


def rows(totals: dict[float, Counts]) -> list[str]:
    """The rows of a table."""
    plainly = totals[0.0]
    lines: list[str] = []
    for strength, found in totals.items():
        change = 100 * (found.misheard / plainly.misheard - 1) if plainly.misheard else 0.0
        others = found.words - found.said
        more = 100 * (found.elsewhere - plainly.elsewhere) / others if others else 0.0
        lines.append(
            f"| {strength or 'none'} | {found.misheard} of {found.said} | {change:+.0f} % | "
            f"{found.elsewhere} of {others} | {more:+.2f} % | {found.unsaid} | "
            f"{found.steps / max(1, plainly.steps):.2f} |"
        )
    return lines


def names(n: int) -> list[str]:
    """``n`` names that no clip contains."""
    return [head + tail for tail in TAILS for head in HEADS][:n]


def main() -> int:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default=str(ROOT / "models" / "demo"))
    outside.add_speech(parser, "sentences/dev", "words/dev", "digits/dev")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["sentences", "words", "digits"])
    parser.add_argument("--every", type=int, default=1, help="use one clip of so many")
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.5, 1, 1.5, 2, 3, 4])
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--unsaid", type=int, default=100, help="hotwords that nobody says")
    told = parser.parse_args()
    listener = Listener(ark_asr_onnx.load(told.model))
    every: list[Clip] = []
    before: list[str] = []
    lines: dict[str, list[str]] = {}
    none = {strength: Counts() for strength in (0.0, *told.strengths)}
    sums, own_sums = none, none
    for name in told.sets:
        clips = clips_of(told.speech, name, told.every)
        heard = listener.hear(clips)
        every, before = every + clips, before + heard
        sizes, totals = halves(listener, clips, heard, told.share, told.strengths)
        own = by_clip(listener, clips, heard, told.share, told.strengths, told.unsaid)
        sums = {strength: sums[strength] + found for strength, found in totals.items()}
        own_sums = {strength: own_sums[strength] + found for strength, found in own.items()}
        lines[f"{name}, {len(clips)} clips, lists of {sizes[0]} and {sizes[1]} for all"] = rows(
            totals
        )
        lines[f"{name}, a list for each clip, with {told.unsaid} names"] = rows(own)
    lines["all sets, lists for all"] = rows(sums)
    lines["all sets, a list for each clip"] = rows(own_sums)
    for title, found in lines.items():
        print(f"{title}\n\n{HEAD}", *found, sep="\n", end="\n\n")
    unsaid = Options(hotwords=tuple(names(told.unsaid)))
    for strength in told.strengths:
        texts = listener.hear(every, replace(unsaid, hotword_strength=strength))
        n_changed = sum(a != b for a, b in zip(before, texts, strict=True))
        print(
            f"{told.unsaid} names that nobody says, strength {strength:g}: "
            f"{n_changed} of {len(every)} texts changed"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
