"""Greedy transcription in plain torch: the oracle every package is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ark_asr_onnx.contract import Tokens
from ark_asr_onnx.mel import log_mel

from .checkpoint import Network

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reference:
    """What torch chose, and how clear the choices were."""

    token_ids: tuple[int, ...]  # the end-of-turn token included
    logits: F32  # [n_tokens, vocab], before masking
    inputs_embeds: F32  # [1, L, hidden], the spliced prompt

    def margin(self, step: int, rival: int) -> float:
        """By how much torch preferred its token at a step over ``rival``."""
        return float(self.logits[step, self.token_ids[step]] - self.logits[step, rival])


@torch.inference_mode()
def transcribe(network: Network, tokens: Tokens, waveform: F32, max_new_tokens: int) -> Reference:
    """Token ids for a waveform ``[n]``, 16 kHz; the same rules as the runtime, written anew."""
    config = network.tower.config
    mel = torch.from_numpy(log_mel(waveform, config.n_mels))
    audio_embeds = network.tower(mel)
    ids = [*tokens.prefix, *[tokens.audio] * audio_embeds.shape[1], *tokens.suffix]
    embeds = network.embed(ids)
    embeds[len(tokens.prefix) : len(tokens.prefix) + audio_embeds.shape[1]] = audio_embeds[0]
    blocked = _blocked(tokens, network.table.shape[0])
    past = network.decoder.empty_past()
    x, prompt = embeds[None], embeds[None].numpy().copy()
    chosen: list[int] = []
    rows: list[F32] = []
    while True:
        logits, past = network.decoder(x, *lengths(past[0][0].shape[2] + x.shape[1]), past)
        rows.append(logits[0, 0].numpy())
        chosen.append(int(logits[0, 0].masked_fill(blocked, -torch.inf).argmax()))
        if chosen[-1] in tokens.stop or len(chosen) == max_new_tokens:
            return Reference(tuple(chosen), np.stack(rows), prompt)
        x = network.embed(chosen[-1:])[None]


def lengths(total: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """``seqlens_k`` and ``total_sequence_length`` for ``total`` positions in every row."""
    return (
        torch.full((batch,), total - 1, dtype=torch.int32),
        torch.tensor(total, dtype=torch.int32),
    )


def _blocked(tokens: Tokens, vocab_size: int) -> Tensor:
    ids = torch.arange(vocab_size)
    blocked = ids >= tokens.block_from_id
    for first, last in tokens.blocked:
        blocked |= (ids >= first) & (ids <= last)
    for eos in tokens.eos:
        blocked &= ids != eos
    return blocked
