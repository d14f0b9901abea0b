"""Greedy decoding of dev splits and their word error rates, in torch, many clips at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import jiwer
import torch
from features import Utterance
from joint import Joint
from tokenizers import Tokenizer
from torch import Tensor

_AT_ONCE = 16  # clips
_FIRST_TEXT_ID = 17  # SmolLM2's control tokens come first


@dataclass(frozen=True, slots=True)
class Errors:
    """Word errors over the words of the references."""

    errors: int
    words: int
    pairs: tuple[tuple[str, str], ...]  # reference and recognised text

    @property
    def wer(self) -> float:
        """Word error rate in percent."""
        return 100.0 * self.errors / max(1, self.words)


def count_errors(references: Sequence[str], heard: Sequence[str]) -> Errors:
    """Word errors of recognised texts."""
    found = jiwer.process_words(list(references), list(heard))
    errors = found.substitutions + found.deletions + found.insertions
    words = sum(len(text.split()) for text in references)
    return Errors(errors, words, tuple(zip(references, heard, strict=True)))


@torch.inference_mode()
def heard_by_ctc(
    model: Joint, utterances: Sequence[Utterance], ids: Tensor, tokenizer: Tokenizer
) -> list[str]:
    """The texts of CTC alone: the best id of each row, without repeats and blanks."""
    texts = []
    for utterance in utterances:
        rows = torch.from_numpy(utterance.rows.astype("float32"))
        best = model.ctc(model.adapter(rows, 0.0), ids).argmax(dim=-1).tolist()
        kept = [int(ids[b - 1]) for b, _ in groupby(best) if b]
        texts.append(" ".join(tokenizer.decode(kept).split()))
    return texts


@torch.inference_mode()
def heard(model: Joint, utterances: Sequence[Utterance], tokenizer: Tokenizer) -> list[str]:
    """Greedy transcripts; only text and the end may be chosen."""
    order = sorted(range(len(utterances)), key=lambda i: len(utterances[i].rows))
    texts = [""] * len(utterances)
    for start in range(0, len(order), _AT_ONCE):
        chosen = order[start : start + _AT_ONCE]
        rows = [torch.from_numpy(utterances[i].rows.astype("float32")) for i in chosen]
        inputs = [model.inputs(model.adapter(r, 0.0)) for r in rows]
        limit = 12 + max(len(r) for r in rows)
        for i, ids in zip(chosen, greedy(model, inputs, limit), strict=True):
            texts[i] = " ".join(tokenizer.decode(ids).split())
    return texts


def greedy(model: Joint, inputs: list[Tensor], limit: int) -> list[list[int]]:
    """Ids for each prompt; prompts are padded at the front, and the padding is masked."""
    length = max(len(x) for x in inputs)
    n_pad = torch.tensor([length - len(x) for x in inputs])
    x = torch.stack([torch.nn.functional.pad(e, (0, 0, length - len(e), 0)) for e in inputs])
    place = torch.arange(length)
    seen = place[None] >= n_pad[:, None]
    mask = (seen[:, None] & (place[None, :, None] >= place)) | torch.eye(length, dtype=torch.bool)
    past = model.language.empty_past(len(inputs))
    positions = (place[None] - n_pad[:, None]).clamp(min=0)
    found: list[list[int]] = [[] for _ in inputs]
    ended = torch.zeros(len(inputs), dtype=torch.bool)
    mask = mask[:, None]
    for step in range(limit):
        states = model.language(x, positions, mask, past)[:, -1]
        logits = model.language.logits(states)
        end_logits = logits[:, model.end].clone()
        logits[:, :_FIRST_TEXT_ID] = -torch.inf
        logits[:, model.end] = end_logits
        best = logits.argmax(dim=1)
        ended |= best == model.end
        if ended.all():
            break
        for ids, token, is_over in zip(found, best.tolist(), ended.tolist(), strict=True):
            if not is_over:
                ids.append(token)
        x = model.language.table[best].float()[:, None]
        positions = (length + step - n_pad)[:, None]
        seen = torch.cat((seen, torch.ones(len(inputs), 1, dtype=torch.bool)), dim=1)
        mask = seen[:, None, None]
    return found
