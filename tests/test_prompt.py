"""The prompt of the 0.6B model id by id, and the splice of the audio into it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ark_asr_onnx.model.layouts.prompt import prompt_ids, splice
from ark_asr_onnx.package.contract import Tokens

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

# <|user|><|begin_of_audio|> <|audio|>… <|end_of_audio|>Please transcribe this audio.<|assistant|>
TOKENS = Tokens(
    prefix=(151665, 151666),
    audio=151663,
    suffix=(151667, 5501, 1356, 3114, 419, 7699, 13, 151668),
    eos=(151645,),
    stop=(151645, 151643, 151665),
    blocked=((151643, 151644), (151646, 163957)),
    block_from_id=151670,
)
HIDDEN = 8


def embed(ids: I64) -> F32:
    """Rows ``[1, L, HIDDEN]`` of an endless table: a different one for each id."""
    return np.sin(ids[None, :, None] * np.linspace(0.1, 1, HIDDEN)).astype(np.float32)


@pytest.mark.parametrize("n_audio", [1, 2, 37])
def test_the_prompt_is_user_audio_instruction_assistant(n_audio: int) -> None:
    expected = [151665, 151666, *[151663] * n_audio]
    expected += [151667, 5501, 1356, 3114, 419, 7699, 13, 151668]
    found = prompt_ids(TOKENS, n_audio)
    assert found.dtype == np.int64
    assert found.tolist() == expected


# Lengths others measured: dahshury/WinSTT, sgl-project/sglang-omni, BudEcosystem/WaaV.
@pytest.mark.parametrize(("n_audio", "length"), [(37, 47), (50, 60), (150, 160), (375, 385)])
def test_the_prompt_is_ten_longer_than_its_audio(n_audio: int, length: int) -> None:
    assert prompt_ids(TOKENS, n_audio).shape == (length,)


@pytest.mark.parametrize("n_audio", [1, 2, 37, 375])
def test_splicing_equals_embedding_all_ids_and_overwriting_the_audio_rows(n_audio: int) -> None:
    audio_embeds = np.random.default_rng(0).standard_normal((1, n_audio, HIDDEN), np.float32)
    ids = prompt_ids(TOKENS, n_audio)
    expected = embed(ids)
    expected[0, ids == TOKENS.audio] = audio_embeds[0]
    found = splice(TOKENS, audio_embeds, embed)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_the_row_of_the_placeholder_is_never_read() -> None:
    seen: list[int] = []

    def watched(ids: I64) -> F32:
        seen.extend(ids.tolist())
        return embed(ids)

    splice(TOKENS, np.zeros((1, 5, HIDDEN), np.float32), watched)
    assert TOKENS.audio not in seen
    assert sorted(seen) == sorted([*TOKENS.prefix, *TOKENS.suffix])


def test_the_spliced_prompt_is_a_copy() -> None:
    audio_embeds = np.ones((1, 5, HIDDEN), np.float32)
    splice(TOKENS, audio_embeds, embed)[:] = 0
    assert (audio_embeds == 1).all()


def test_cached_positions_are_left_out() -> None:
    audio_embeds = np.ones((1, 3, HIDDEN), np.float32)
    whole = splice(TOKENS, audio_embeds, embed)
    for n_cached in range(len(TOKENS.prefix) + 1):
        found = splice(TOKENS, audio_embeds, embed, n_cached)
        np.testing.assert_array_equal(found, whole[:, n_cached:])
