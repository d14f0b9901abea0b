"""Batches for training: utterances of all shards, drawn by source, grouped by similar length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from features import Utterance, read_shard
from joint import Batch
from tokenizers import Tokenizer

_POOL = 160  # utterances that are drawn together, then sorted by length
_LONGEST = 200  # rows of 80 ms


class Supply:
    """Endless batches, which depend only on the seed."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, seed: Sequence[int], shares: dict[str, float]
    ) -> None:
        self._rng = np.random.default_rng(list(seed))
        self._kinds = {kind: _utterances(folder, kind) for kind in shares}
        self._kinds = {kind: found for kind, found in self._kinds.items() if found}
        kept = np.array([shares[kind] for kind in self._kinds])
        self._shares = kept / kept.sum()
        self._tokenizer = tokenizer
        self._ready: list[list[Utterance]] = []
        self._size = (0, 0)  # of the prepared batches

    @property
    def hours(self) -> dict[str, float]:
        """Hours of speech of each kind."""
        rows = {kind: sum(len(u.rows) for u in us) for kind, us in self._kinds.items()}
        return {kind: round(n * 0.08 / 3600, 2) for kind, n in rows.items()}

    def vocabulary(self) -> torch.Tensor:
        """The ids that occur in the texts, sorted."""
        texts = {u.text for found in self._kinds.values() for u in found}
        return torch.tensor(sorted({i for text in texts for i in self._ids(text)}))

    def next(self, n_positions: int, n_beside: int) -> Batch:
        """A batch of at most ``n_positions``: rows, tokens, and ``n_beside`` more per utterance."""
        if not self._ready or self._size != (n_positions, n_beside):
            self._size = n_positions, n_beside
            self._ready = self._pool(n_positions, n_beside)
        chosen = self._ready.pop()
        rows = [torch.from_numpy(self._masked(u.rows)) for u in chosen]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        ids = tuple(self._ids(u.text) for u in chosen)
        return Batch(padded, torch.tensor([len(r) for r in rows]), ids)

    def _pool(self, n_positions: int, n_beside: int) -> list[list[Utterance]]:
        names = list(self._kinds)
        drawn = self._rng.choice(len(names), size=_POOL, p=self._shares)
        pool = []
        for kind in drawn:
            of_kind = self._kinds[names[kind]]
            pool.append(of_kind[int(self._rng.integers(len(of_kind)))])
        pool.sort(key=lambda u: len(u.rows))
        batches: list[list[Utterance]] = [[]]
        for utterance in pool:
            cost = len(utterance.rows) + len(utterance.text) // 4 + n_beside
            if batches[-1] and (len(batches[-1]) + 1) * cost > n_positions:
                batches.append([])
            batches[-1].append(utterance)
        self._rng.shuffle(batches)
        return batches

    def _masked(self, rows: np.ndarray) -> np.ndarray:
        """A copy with a few short stretches silenced."""
        result = np.array(rows)
        for _ in range(int(self._rng.integers(0, 2 + len(rows) // 30))):
            width, start = int(self._rng.integers(1, 4)), int(self._rng.integers(len(rows)))
            result[start : start + width] = 0
        return result

    def _ids(self, text: str) -> tuple[int, ...]:
        return token_ids(self._tokenizer, text)


def token_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Ids of a transcript; with a space in front, the first word has the same ids as elsewhere."""
    return tuple(tokenizer.encode(f" {text}", add_special_tokens=False).ids)


def _utterances(folder: Path, kind: str) -> list[Utterance]:
    """Utterances of a kind that are short enough and can be aligned (fewer tokens than rows)."""
    paths = sorted(folder.glob(f"{kind}-*.jsonl"))
    found = [u for path in paths for u in read_shard(path)]
    return [u for u in found if len(u.text) / 4 < len(u.rows) <= _LONGEST]
