"""English prose from Debian packages for voices to read: the text, and its words.

Four sources, all free: novels by Jane Austen (``r-cran-janeaustenr``; public domain), quotations of
Webster's dictionary of 1913 (``dict-gcide``), example sentences of WordNet (``dict-wn``), and
Bierce's Devil's Dictionary (``dict-devil``; public domain). Sense and Sensibility is left out,
because a reading of it evaluates the model.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PACKAGES = ("r-cran-janeaustenr", "dict-gcide", "dict-wn", "dict-devil")
_NOVELS = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
_LEFT_OUT = b"SENSE AND SENSIBILITY"
_SHARES = {"austen": 0.5, "gcide": 0.22, "wordnet": 0.22, "devil": 0.06}
_SPOKEN = {"Mr.": "Mister", "Mrs.": "Missus", "Dr.": "Doctor", "St.": "Saint", "&": "and"}
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
_ODD = re.compile(r"[A-Z]{2}|\b[B-HJ-NP-Z]\.")  # headings, initials
_READABLE = re.compile(r"[A-Za-z' ,.;:!?-]+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A text for a voice, and its words."""

    spoken: str  # with punctuation, which guides the voice's phrasing
    words: str  # lower case, apostrophes, no punctuation


def passages(root: Path, seed: int) -> Iterator[Passage]:
    """Endless passages of 2 to 32 words; ``root`` holds the packages' files, ``/`` if installed."""
    rng = np.random.default_rng([seed, 1])
    sources = {name: read(root) for name, read in _READERS.items()}
    names, shares = list(_SHARES), list(_SHARES.values())
    places = {name: int(rng.integers(len(sources[name]))) for name in names}
    while True:
        name = names[int(rng.choice(len(names), p=shares))]
        sentences, at = sources[name], places[name]
        places[name] = (at + int(rng.integers(1, 60))) % (len(sentences) - 40)
        passage = _passage(sentences[at : at + 40], int(rng.integers(2, 33)), rng)
        if passage is not None:
            yield passage


def normalized(text: str) -> str:
    """A text in the form of the transcripts."""
    return " ".join(_WORD.findall(text.lower().replace("-", " ")))


def _passage(sentences: list[str], n_words: int, rng: np.random.Generator) -> Passage | None:
    """About ``n_words`` from the first sentences, cut at commas."""
    words = " ".join(sentences).split()
    if rng.random() < 0.5:  # not all passages begin with a sentence
        commas = [i + 1 for i, word in enumerate(words[:30]) if word[-1] in ",;:"]
        words = words[int(rng.choice(commas)) :] if commas else words
    stops = [i + 1 for i, word in enumerate(words) if word[-1] in ",;:.!?" and i < 36]
    if not stops:
        return None
    end = min(stops, key=lambda stop: abs(stop - n_words))
    end = end if rng.random() < 0.8 else n_words
    spoken = " ".join(words[:end])
    heard = normalized(spoken)
    return Passage(spoken, heard) if len(heard) > 5 else None


def _sentences(text: str) -> list[str]:
    """Sentences that are read as they are written: no digits, abbreviations or foreign letters."""
    for short, spoken in _SPOKEN.items():
        text = text.replace(short, spoken)
    text = text.replace("_", "").replace('"', "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = re.sub(r"\s*--\s*", ", ", text)
    text = re.sub(r"\s+", " ", text)
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z'])", text)
    usable = (part.strip(" ,;:-") for part in parts)
    return [p for p in usable if _READABLE.fullmatch(p) and " " in p and not _ODD.search(p)]


def _austen(root: Path) -> list[str]:
    """Sentences of the novels, from R's lazily loaded data: zlib streams of serialised lines."""
    data = (root / _NOVELS).read_bytes()
    found: list[str] = []
    for start in [m.start() for m in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", data)]:
        try:
            stream = zlib.decompressobj().decompress(data[start:])
        except zlib.error:
            continue
        lines = _r_strings(stream)
        if len(lines) > 1000 and _LEFT_OUT not in lines[:40]:
            found += _sentences(b" ".join(lines).decode("utf-8", "replace"))
    return found


def _r_strings(stream: bytes) -> list[bytes]:
    """The strings of a serialised character vector: flags, length and bytes each."""
    lines, at = [], 0
    for match in re.finditer(rb"\x00[\x04\x00][\x00\x80]\x09", stream):
        if match.start() < at:
            continue
        (length,) = struct.unpack_from(">i", stream, match.end())
        if 0 <= length < 200:
            at = match.end() + 4 + length
            lines.append(stream[match.end() + 4 : at])
    return lines


def _gcide(root: Path) -> list[str]:
    """Quotations: paragraphs with a larger indent that end with ``--Author.``."""
    text = gzip.decompress((root / "usr/share/dictd/gcide.dict.dz").read_bytes())
    paragraphs = re.split(r"\n\s*\n|\n\s*\[1913 Webster\]", text.decode("utf-8", "replace"))
    found: list[str] = []
    for paragraph in paragraphs:
        match = re.fullmatch(r"\n?( {12}.*?)\s+--[A-Z][^-]*", paragraph, re.DOTALL)
        if match and ". . ." not in match[1]:
            quote = re.sub(r"[\[{][^\]}]*[\]}]", "", match[1])
            found += _sentences(quote.strip().rstrip(".,;") + ".")
    return found


def _wordnet(root: Path) -> list[str]:
    """Example sentences, which are in quotation marks."""
    text = gzip.decompress((root / "usr/share/dictd/wn.dict.dz").read_bytes()).decode("utf-8")
    quotes = re.findall(r'; "([^"]+)"', text)
    joined = (re.sub(r"\s+", " ", quote).strip(" .,;") + "." for quote in quotes)
    return [s for quote in joined if quote.count(" ") > 2 for s in _sentences(quote)]


def _devil(root: Path) -> list[str]:
    text = gzip.decompress((root / "usr/share/dictd/devil.dict.dz").read_bytes())
    return _sentences(text.decode("utf-8", "replace"))


_READERS = {"austen": _austen, "gcide": _gcide, "wordnet": _wordnet, "devil": _devil}
