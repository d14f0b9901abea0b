"""Greedy transcription in plain torch: the oracle every package is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ark_asr_onnx.arrays import F32
from ark_asr_onnx.audio.mel import log_mel
from ark_asr_onnx.package.contract import Tokens

from .checkpoint import Network
from .mask import blocked
from .modeling.ops import rotate_half


@dataclass(frozen=True, slots=True)
class Reference:
    """What torch chose, and from what."""

    token_ids: tuple[int, ...]  # the end-of-turn token included
    logits: F32  # [n_tokens, vocab], before masking


def transcribe(network: Network, tokens: Tokens, waveform: F32, max_new_tokens: int) -> Reference:
    """Token ids for a waveform ``[n]``, 16 kHz; the same rules as the runtime, written anew."""
    mel = log_mel(waveform, network.tower.config.n_mels)
    return decode(network, tokens, encode(network, mel), max_new_tokens)


@torch.inference_mode()
def encode(network: Network, mel: F32) -> F32:
    """``audio_embeds [1, N, H]`` of ``log_mel [1, n_mels, T]``."""
    return network.tower(torch.from_numpy(mel)).numpy()


@torch.inference_mode()
def decode(network: Network, tokens: Tokens, audio_embeds: F32, max_new_tokens: int) -> Reference:
    """Greedy tokens for the audio rows ``[1, N, H]``."""
    mask = torch.from_numpy(blocked(tokens, network.table.shape[0]))
    past = network.decoder.empty_past()
    x = network.prompt(tokens, torch.from_numpy(audio_embeds))
    chosen: list[int] = []
    rows: list[F32] = []
    while True:
        logits, past = network.decoder(x, *lengths(past[0][0].shape[2] + x.shape[1]), past)
        rows.append(logits[0, 0].numpy())
        chosen.append(int(logits[0, 0].masked_fill(mask, -torch.inf).argmax()))
        if chosen[-1] in tokens.stop or len(chosen) == max_new_tokens:
            return Reference(tuple(chosen), np.stack(rows))
        x = network.embed(chosen[-1:])[None]


@torch.inference_mode()
def attention(network: Network, tokens: Tokens, audio_embeds: F32, token_ids: Sequence[int]) -> F32:
    """How every head spread over the audio ``[layers, heads, T, N]`` when it chose each token.

    What it gave to other positions is left out: each row sums up to 1.
    """
    decoder, n_heads = network.decoder, network.decoder.config.n_heads
    prompt = network.prompt(tokens, torch.from_numpy(audio_embeds))
    x = torch.cat((prompt, network.embed(token_ids[:-1])[None]), dim=1)
    first, begin = prompt.shape[1] - 1, len(tokens.prefix)
    found: list[F32] = []

    def watch(projected: Tensor, key: Tensor) -> None:
        dim = key.shape[3]
        q = projected[:, first:, : n_heads * dim].unflatten(2, (n_heads, dim)).transpose(1, 2)
        q = rotate_half(q, decoder.rope_cos, decoder.rope_sin, first)
        k = key[:, :, begin : begin + audio_embeds.shape[1]]
        k = k.repeat_interleave(n_heads // key.shape[1], dim=1)
        scores = (q * dim**-0.5) @ k.transpose(2, 3)
        found.append(scores.softmax(dim=3)[0].half().numpy())

    decoder.hidden(x, *lengths(x.shape[1]), decoder.empty_past(), watch=watch)
    return np.stack(found)


@torch.inference_mode()
def prefix_caches(network: Network, tokens: Tokens) -> list[Tensor]:
    """Keys and values ``[1, n_kv_heads, P, head_dim]`` of the prompt's prefix, as past inputs."""
    embeds = network.embed(tokens.prefix)[None]
    _, past = network.decoder(embeds, *lengths(embeds.shape[1]), network.decoder.empty_past())
    return [cache for pair in past for cache in pair]


def lengths(total: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """``seqlens_k`` and ``total_sequence_length`` for ``total`` positions in every row."""
    return (
        torch.full((batch,), total - 1, dtype=torch.int32),
        torch.tensor(total, dtype=torch.int32),
    )
