"""Utterances decoded together: each step appends a token to all of them.

A slot that has ended is given to the next utterance at once; as long as there are fewer utterances
than slots, only their slots are computed.
"""

from __future__ import annotations

import numpy as np

from ..arrays import F32
from ..errors import DecodeError
from ..model.seam import Decoding
from .greedy import Utterance


class Slots:
    """The utterances in a decoding's slots, the first ``n_active`` ones."""

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._active: list[Utterance] = []

    @property
    def n_active(self) -> int:
        """Utterances that have not ended."""
        return len(self._active)

    def add(self, utterance: Utterance, audio_embeds: F32) -> None:
        """Read the prompt around ``audio_embeds [1, N, H]`` and choose the first token."""
        logits = self._decoding.prefill(self.n_active, audio_embeds)
        utterance.choose(logits)
        if utterance.finish_reason is None:
            self._active.append(utterance)

    def step(self) -> list[tuple[Utterance, DecodeError | None]]:
        """Choose the next token of each; gives those that have ended, or failed, with it."""
        ids = np.array([utterance.ids[-1] for utterance in self._active])
        logits = self._decoding.step(ids)
        ended: dict[int, DecodeError | None] = {}
        for slot, utterance in enumerate(self._active):
            try:
                utterance.choose(logits[slot])
            except DecodeError as error:  # its numbers; the others' may be good
                ended[slot] = error
            if utterance.finish_reason is not None:
                ended[slot] = None
        found = [(self._active[slot], error) for slot, error in ended.items()]
        for slot in sorted(ended, reverse=True):
            self._free(slot)
        return found

    def remove(self, utterance: Utterance) -> None:
        """Forget an utterance that has not ended."""
        self._free(self._active.index(utterance))

    def _free(self, slot: int) -> None:
        """Let the last one go on in the place of one that is gone."""
        last = self._active.pop()
        if slot < self.n_active:
            self._decoding.move(self.n_active, slot)
            self._active[slot] = last

    def clear(self) -> None:
        """Forget the utterances that have not ended."""
        self._active.clear()
