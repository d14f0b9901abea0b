"""Training examples: clips in memory, and strings joined or spliced from them.

This module knows waveforms and words, but not the network. One ``numpy`` generator makes all draws,
so a seed gives one stream of examples.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
import soxr
from disturb import F32, Rng, disturbed_log_mel, level_of, noise, pad, reverberate, scaled

from ark_asr_onnx.audio.mel import HOP_LENGTH, SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording and the places of its words."""

    waveform: F32
    words: tuple[str, ...]
    speaker: str
    source: str
    cuts: tuple[int, ...] = ()  # samples; word k lies between cuts[k] and cuts[k + 1]


@dataclass(frozen=True, slots=True)
class Example:
    """One training example, before and after disturbance."""

    log_mel: F32  # [n_mels, n_frames]
    words: tuple[str, ...]


def read_split(
    speech_dir: Path, folder: str, split: str, skip: frozenset[str] = frozenset()
) -> list[Clip]:
    """The clips of ``speech_dir/folder/split.jsonl`` without those of the sources in ``skip``."""
    clips = []
    manifest = speech_dir / folder / f"{split}.jsonl"
    for line in manifest.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["source"] in skip:
            continue
        waveform, rate = soundfile.read(manifest.parent / row["audio"], dtype="float32")
        if rate != SAMPLE_RATE or waveform.ndim != 1:
            raise ValueError(f"{row['audio']}: expected 16 kHz mono")
        clips.append(Clip(waveform, tuple(row["text"].split()), row["speaker"], row["source"]))
    return clips


class SpeechMix:
    """An endless supply of examples from a corpus of sentences and single-word clips."""

    def __init__(self, sentences: list[Clip], words: list[Clip], rng: Rng) -> None:
        self._rng = rng
        self._sentences = sentences
        # Sentences with a rare word (most dates) are drawn up to three times as often.
        seen = Counter(word for clip in sentences for word in clip.words)
        rarest = np.array([min(seen[word] for word in clip.words) for clip in sentences])
        weight = np.clip(np.sqrt(40.0 / rarest), 1.0, 3.0)
        self._sentence_odds = weight / weight.sum()
        self._by_speaker: dict[str, list[Clip]] = defaultdict(list)
        for clip in words:
            start, stop = speech_bounds(clip.waveform)
            cut = Clip(clip.waveform, clip.words, clip.speaker, clip.source, (start, stop))
            self._by_speaker[clip.speaker].append(cut)
        self._speakers = sorted(self._by_speaker)
        counts = np.array([len(self._by_speaker[s]) for s in self._speakers], float)
        self._speaker_odds = np.sqrt(counts) / np.sqrt(counts).sum()
        self._spliced: dict[str, list[Clip]] = {}

    def use_cuts(self, clips: list[Clip]) -> None:
        """From now on, also splice new strings from these clips, whose ``cuts`` are known."""
        spliced: dict[str, list[Clip]] = defaultdict(list)
        for clip in clips:
            spliced[clip.speaker].append(clip)
        self._spliced = {s: c for s, c in sorted(spliced.items()) if len(c) > 3}

    def examples(self, count: int, max_seconds: float) -> list[Example]:
        """``count`` disturbed examples whose sources are at most about ``max_seconds`` long."""
        return [self._example(max_seconds) for _ in range(count)]

    def _example(self, max_seconds: float) -> Example:
        rng = self._rng
        for _ in range(20):
            waveform, words = self._draw(max_seconds)
            if len(waveform) <= max_seconds * SAMPLE_RATE:
                break
        speed = float(np.clip(rng.normal(1.0, 0.07), 0.86, 1.15)) if rng.random() < 0.8 else 1.0
        if speed != 1.0:
            waveform = soxr.resample(waveform, SAMPLE_RATE * speed, SAMPLE_RATE, quality="LQ")
        waveform = scaled(waveform, 10 ** rng.uniform(-2.9, -0.6))
        if rng.random() < 0.15:
            waveform = reverberate(waveform, rng)
        waveform = pad(waveform, rng, max_seconds)
        if rng.random() < 0.7:
            waveform = self._add_noise(waveform)
        return Example(disturbed_log_mel(waveform, rng), words)

    def _draw(self, max_seconds: float) -> tuple[F32, tuple[str, ...]]:
        """One undisturbed waveform and its words: sentence, splice, word string or nothing."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.02:
            return self._silence()
        if kind < 0.60:
            if self._spliced and rng.random() < 0.5:
                return self._splice(max_seconds)
            clip = self._sentences[rng.choice(len(self._sentences), p=self._sentence_odds)]
            if rng.random() < 0.1:
                return self._passage(clip, max_seconds)
            return clip.waveform, clip.words
        return self._string(max_seconds)

    def _passage(self, clip: Clip, max_seconds: float) -> tuple[F32, tuple[str, ...]]:
        """``clip`` and, if there is room, up to three more sentences of its speaker."""
        same = [c for c in self._sentences if c.speaker == clip.speaker]
        parts, words = [clip.waveform], clip.words
        for i in self._rng.integers(len(same), size=int(self._rng.integers(1, 4))):
            if sum(map(len, parts)) + len(same[i].waveform) > max_seconds * SAMPLE_RATE:
                break
            parts.append(same[i].waveform)
            words += same[i].words
        return np.concatenate(parts), words

    def _string(self, max_seconds: float) -> tuple[F32, tuple[str, ...]]:
        """One to seven single-word clips of one speaker, with or without their silence."""
        rng = self._rng
        clips = self._by_speaker[rng.choice(self._speakers, p=self._speaker_odds)]
        most = max(1, min(7, int(max_seconds)))
        count = 1 if rng.random() < 0.3 else int(rng.integers(1, most + 1))
        tight = rng.random() < 0.6
        parts, words = [], []
        for clip in (clips[i] for i in rng.integers(len(clips), size=count)):
            start, stop = clip.cuts if tight else (0, len(clip.waveform))
            margin = int(rng.integers(0, 1600)) if tight else 0
            parts.append(scaled(clip.waveform[max(0, start - margin) : stop + margin], 0.05))
            if rng.random() < 0.3:
                parts.append(np.zeros(rng.integers(0, 4000), np.float32))
            words.extend(clip.words)
        return join(parts), tuple(words)

    def _splice(self, max_seconds: float) -> tuple[F32, tuple[str, ...]]:
        """Runs of one to three words cut from the sentences of one speaker, in a new order."""
        rng = self._rng
        clip = self._sentences[rng.integers(len(self._sentences))]
        clips = self._spliced.get(clip.speaker)
        if clips is None:
            return clip.waveform, clip.words
        wanted = int(rng.integers(1, 10))
        room = int(max_seconds * SAMPLE_RATE)
        parts: list[F32] = []
        words: list[str] = []
        while len(words) < wanted and room > 0:
            source = clips[rng.integers(len(clips))]
            n = len(source.words)
            first = int(rng.integers(n))
            last = min(n, first + int(rng.integers(1, 4)))
            start, stop = source.cuts[first], source.cuts[last]
            parts.append(source.waveform[start:stop])
            words.extend(source.words[first:last])
            room -= stop - start
        return join(parts), tuple(words)

    def _silence(self) -> tuple[F32, tuple[str, ...]]:
        """No speech: digital silence, a hiss, or the repeated quiet start of a recording."""
        rng = self._rng
        length = int(rng.uniform(0.3, 4.0) * SAMPLE_RATE)
        kind = rng.random()
        if kind < 0.3:
            return np.zeros(length, np.float32), ()
        if kind < 0.65:
            return noise(length, rng), ()
        clip = self._sentences[rng.integers(len(self._sentences))].waveform
        start, _ = speech_bounds(clip)
        quiet = clip[: max(start - 800, 400)]
        quiet = np.concatenate((quiet, quiet[::-1]))
        return np.tile(quiet, length // len(quiet) + 1)[:length].copy(), ()

    def _add_noise(self, waveform: F32) -> F32:
        """``waveform`` with white to brown noise or babble, 8 to 40 dB below it."""
        rng = self._rng
        if rng.random() < 0.25:
            babble = np.zeros(len(waveform), np.float32)
            for _ in range(int(rng.integers(3, 6))):
                other = self._sentences[rng.integers(len(self._sentences))].waveform
                babble += np.resize(
                    np.roll(scaled(other, 0.05), rng.integers(len(other))), len(babble)
                )
            return waveform + scaled(babble, level_of(waveform) * 10 ** (-rng.uniform(12, 30) / 20))
        hiss = noise(len(waveform), rng)
        level = level_of(waveform) if waveform.any() else 10 ** rng.uniform(-4, -1.5)
        return waveform + scaled(hiss, level * 10 ** (-rng.uniform(8, 40) / 20))


def speech_bounds(waveform: F32) -> tuple[int, int]:
    """Begin and end of the sound that is within 30 dB of the peak and 6 dB above the quiet."""
    n_frames = max(1, len(waveform) // HOP_LENGTH)
    frames = waveform[: n_frames * HOP_LENGTH].reshape(n_frames, -1)
    level = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-10)
    level = np.convolve(level, np.ones(3) / 3, mode="same") if n_frames >= 3 else level
    loud = np.flatnonzero(level > max(level.max() - 30, np.quantile(level, 0.1) + 6))
    if loud.size == 0:
        return 0, len(waveform)
    return int(max(0, loud[0] - 3) * HOP_LENGTH), int(min(n_frames, loud[-1] + 4) * HOP_LENGTH)


def cut_between_words(clip: Clip, centres: list[float]) -> Clip | None:
    """``clip`` with cuts at the quietest point between ``centres`` (seconds); None if too close."""
    start, stop = speech_bounds(clip.waveform)
    power = np.convolve(np.square(clip.waveform), np.ones(320) / 320, mode="same")[::40]
    cuts = [max(0, start - 800)]
    for left, right in pairwise(centres):
        low, high = int(left * SAMPLE_RATE / 40), int(right * SAMPLE_RATE / 40)
        if high - low < 8:
            return None
        cuts.append(40 * (low + int(power[low:high].argmin())))
    cuts.append(min(len(clip.waveform), stop + 800))
    if min(b - a for a, b in pairwise(cuts)) < 0.1 * SAMPLE_RATE:
        return None
    return Clip(clip.waveform, clip.words, clip.speaker, clip.source, tuple(cuts))


def join(parts: list[F32], fade: int = 80) -> F32:
    """The parts in sequence, each faded in and out over ``fade`` samples to avoid clicks."""
    ramp = np.linspace(0.0, 1.0, fade, dtype=np.float32)
    faded = []
    for part in parts:
        smooth = part.copy()
        if len(part) > 2 * fade:
            smooth[:fade] *= ramp
            smooth[-fade:] *= ramp[::-1]
        faded.append(smooth)
    return np.concatenate(faded)
