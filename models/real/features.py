"""Training speech after the frozen encoder, stored on disk.

A shard is ``NAME.npy``, fp16 rows ``[rows, 4 * width]`` of 80 ms, normed and merged as the adapter
gets them, and ``NAME.jsonl``, a line for each clip: first row, number of rows, text, source. The
encoder runs in bf16 on batches of equal length, so clips are padded only with faint noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from corpus import Passage
from disturbance import disturbed, padded, sped
from torch import Tensor
from voices import speak
from whisper_half import HEAD_DIM

from ark_asr_onnx.audio.mel import SAMPLE_RATE, log_mel

Rng = np.random.Generator
Tensors = dict[str, Tensor]

N_MELS = 80
MERGE_FACTOR = 4
LONGEST = 16.0  # seconds; longer clips are left out
_POOL = 200  # clips that are sorted by length together
_BATCH_SECONDS = 48.0
_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip to encode."""

    waveform: np.ndarray
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Utterance:
    """An utterance for training: rows of a shard, mapped from the disk."""

    rows: np.ndarray  # fp16 [n, 4 * width]
    text: str
    source: str


def recorded(speech: Path, folder: str, split: str, without: frozenset[str]) -> Iterator[Clip]:
    """The unchanged clips of a split of recorded speech, but those of the sources ``without``."""
    manifest = speech / folder / f"{split}.jsonl"
    for line in manifest.read_text("utf-8").splitlines():
        entry = json.loads(line)
        if entry["source"] not in without:
            waveform, rate = soundfile.read(speech / folder / entry["audio"], dtype="float32")
            assert rate == SAMPLE_RATE
            yield Clip(waveform, entry["text"], entry["source"])


def varied(clips: Iterable[Clip], rng: Rng) -> Iterator[Clip]:
    """The clips at other speeds, with disturbances."""
    for clip in clips:
        waveform = disturbed(sped(clip.waveform, rng), rng)
        yield Clip(padded(waveform, rng), clip.text, clip.source)


def plain(clips: Iterable[Clip], rng: Rng) -> Iterator[Clip]:
    """The clips with faint noise around them."""
    return (Clip(padded(clip.waveform, rng), clip.text, clip.source) for clip in clips)


def read_aloud(passages: Iterable[Passage], rng: Rng, scratch: Path) -> Iterator[Clip]:
    """Passages read by random voices, disturbed; without those that an engine cannot say."""
    for passage in passages:
        speech = speak(passage.spoken, rng, scratch)
        if speech is not None:
            waveform = padded(disturbed(speech.waveform, rng), rng)
            yield Clip(waveform, passage.words, speech.voice)


def write_shard(path: Path, clips: Iterable[Clip], encoder: Encoder) -> None:
    """Encode the clips and write the shard; the ``.jsonl`` appears last, when it is complete."""
    rows: list[np.ndarray] = []
    lines: list[str] = []
    start = 0
    for batch in _batches(clips):
        for clip, merged in zip(batch, encoder.merged(batch), strict=True):
            about = {"start": start, "n": len(merged), "text": clip.text, "source": clip.source}
            lines.append(json.dumps(about))
            rows.append(merged)
            start += len(merged)
    np.save(path.with_suffix(".npy"), np.concatenate(rows))
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path.with_suffix(".jsonl"))


def read_shard(path: Path) -> list[Utterance]:
    """All utterances of a shard."""
    rows = np.load(path.with_suffix(".npy"), mmap_mode="r")
    entries = map(json.loads, path.with_suffix(".jsonl").read_text("utf-8").splitlines())
    return [
        Utterance(rows[e["start"] : e["start"] + e["n"]], e["text"], e["source"]) for e in entries
    ]


class Encoder:
    """The audio tower up to the adapter, in bf16 with torch's fused attention."""

    def __init__(self, tensors: Tensors, dtype: torch.dtype = torch.bfloat16) -> None:
        prefix = "audio_encoder."
        self._weights = {
            name.removeprefix(prefix): tensor.to(dtype)
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        self._dtype = dtype
        self._n_layers = sum(name.endswith("fc1.bias") for name in self._weights)

    def merged(self, clips: list[Clip]) -> list[np.ndarray]:
        """Rows ``[n, 4 * width]`` for each clip; all clips have the same length."""
        mels = np.concatenate([log_mel(clip.waveform, N_MELS) for clip in clips])
        encoded = self(torch.from_numpy(mels))
        n = max(1, encoded.shape[1] // MERGE_FACTOR)
        missing = max(0, MERGE_FACTOR - encoded.shape[1])
        filled = F.pad(encoded, (0, 0, 0, missing))[:, : n * MERGE_FACTOR]
        return list(filled.reshape(len(clips), n, -1).to(torch.float16).numpy())

    @torch.inference_mode()
    def __call__(self, log_mel: Tensor) -> Tensor:
        """``[B, n_mels, T]`` to ``[B, (T + 1) // 2, width]``, adapter norm included."""
        w = self._weights
        x = log_mel.to(self._dtype)
        for name, stride in (("conv1", 1), ("conv2", 2)):
            weight, bias = w[f"whisper.{name}.weight"], w[f"whisper.{name}.bias"]
            x = F.gelu(F.conv1d(x, weight, bias, stride=stride, padding=1))
        x = x.transpose(1, 2)
        x = x + w["whisper.embed_positions.weight"][: x.shape[1]]
        for i in range(self._n_layers):
            layer = f"whisper.layers.{i}."
            x = x + self._attention(self._norm(x, layer + "self_attn_layer_norm"), layer)
            hidden = F.gelu(self._linear(self._norm(x, layer + "final_layer_norm"), layer + "fc1"))
            x = x + self._linear(hidden, layer + "fc2")
        return self._norm(x, "layer_norm")

    def _attention(self, x: Tensor, layer: str) -> Tensor:
        batch, length, width = x.shape
        shape = batch, length, width // HEAD_DIM, HEAD_DIM
        q, k, v = (self._linear(x, f"{layer}self_attn.{n}_proj") for n in "qkv")
        q, k, v = (t.view(shape).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self._linear(mixed.transpose(1, 2).reshape(x.shape), f"{layer}self_attn.out_proj")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[name + ".weight"], self._weights.get(name + ".bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[name + ".weight"], self._weights[name + ".bias"]
        return F.layer_norm(x, (x.shape[2],), weight, bias, _EPS)


def _batches(clips: Iterable[Clip]) -> Iterator[list[Clip]]:
    """Clips of equal length, about :data:`_BATCH_SECONDS` together."""
    remaining = iter(clips)
    while pool := list(islice(remaining, _POOL)):
        usable = [c for c in pool if 0.1 < len(c.waveform) / SAMPLE_RATE <= LONGEST]
        usable.sort(key=lambda clip: len(clip.waveform))
        for n_samples, group in groupby(usable, key=lambda clip: len(clip.waveform)):
            equal = list(group)
            size = max(1, int(_BATCH_SECONDS * SAMPLE_RATE / n_samples))
            yield from (equal[i : i + size] for i in range(0, len(equal), size))
