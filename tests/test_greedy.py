"""Which token is chosen, and when decoding ends; the model is a script of prepared logits."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Sample

import ark_asr_onnx
from ark_asr_onnx import DecodeError, Options
from ark_asr_onnx.decoding import greedy
from ark_asr_onnx.decoding.greedy import Rules, Utterance, choose, token_mask
from ark_asr_onnx.package.contract import Tokens

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

# A vocabulary of 20 ids: 0..11 are text, the rest control tokens, all blocked but eos.
N = 20
EOS, USER, END_OF_TEXT = 14, 15, 12
TOKENS = Tokens(
    prefix=(15, 16),
    audio=17,
    suffix=(18,),
    eos=(EOS,),
    stop=(EOS, USER, END_OF_TEXT),
    blocked=((12, 13), (15, 16)),
    block_from_id=17,
)
HIDDEN = 3
PROMPT = np.zeros((1, 7, HIDDEN), np.float32)


def logits(best: int, *runners_up: int) -> F32:
    """``[N]`` with its highest value at ``best``, then the runners-up in falling order."""
    values = np.linspace(-3, -2, N).astype(np.float32)
    for rank, token_id in enumerate((best, *runners_up)):
        values[token_id] = 9 - rank
    return values


class Script:
    """A decoding that answers with prepared logits and notes what it was given."""

    def __init__(self, *answers: F32) -> None:
        self._answers = list(answers)
        self._buffer = np.empty((1, N), np.float32)  # overwritten by each call, as the real one
        self.prompts: list[F32] = []
        self.steps: list[int] = []

    def _next(self) -> F32:
        self._buffer[0] = self._answers.pop(0)
        return self._buffer

    def prefill(self, slot: int, audio_embeds: F32) -> F32:
        assert slot == 0
        self.prompts.append(audio_embeds)
        return self._next()[0]

    def step(self, ids: I64) -> F32:
        assert ids.shape == (1,)
        self.steps.append(int(ids[0]))
        return self._next()

    def move(self, source: int, target: int) -> None:
        raise AssertionError(f"{source} moved to {target}, there is one slot")


def run(
    script: Script, max_new_tokens: int = 99, tokens: Tokens = TOKENS, **guards: Any
) -> Utterance:
    utterance = Utterance(Rules(tokens, token_mask(tokens, N), max_new_tokens, **guards))
    utterance.choose(script.prefill(0, PROMPT))
    while utterance.finish_reason is None:
        utterance.choose(script.step(np.array(utterance.ids[-1:]))[0])
    return utterance


# The mask ----------------------------------------------------------------------------------------


def slow_mask(tokens: Tokens, vocab_size: int, block_from_id: int | None) -> list[float]:
    """The rule in plain Python, id by id."""
    mask: list[float] = []
    for token_id in range(vocab_size):
        limit = tokens.block_from_id if block_from_id is None else block_from_id
        blocked = token_id >= limit
        for first, last in tokens.blocked:
            blocked = blocked or first <= token_id <= last
        mask.append(float("-inf") if blocked and token_id not in tokens.eos else 0.0)
    return mask


@pytest.mark.parametrize("block_from_id", [None, 0, 1, 5, EOS, EOS + 1, N - 1, N, N + 5])
@pytest.mark.parametrize(
    "tokens",
    [
        TOKENS,
        replace(TOKENS, blocked=()),
        replace(TOKENS, blocked=((0, N - 1),)),
        replace(TOKENS, blocked=((3, 3), (2, 4), (10, 40)), eos=(3, 19)),
        replace(TOKENS, eos=(0,), block_from_id=0),
    ],
    ids=["usual", "no ranges", "all", "overlapping", "from zero"],
)
def test_the_mask_is_the_rule_id_by_id(tokens: Tokens, block_from_id: int | None) -> None:
    mask = token_mask(tokens, N, block_from_id)
    assert mask.dtype == np.float32
    assert mask.tolist() == slow_mask(tokens, N, block_from_id)


def test_stop_ids_are_blocked_unless_they_are_eos() -> None:
    mask = token_mask(TOKENS, N)
    assert mask[EOS] == 0
    assert mask[[USER, END_OF_TEXT]].tolist() == [-np.inf, -np.inf]


def test_the_mask_of_the_06b_model_blocks_12314_ids() -> None:
    # sims1253/starling asserts the count and both ends.
    real = Tokens(
        (), 151663, (), (151645,), (151645,), ((151643, 151644), (151646, 163957)), 151670
    )
    blocked = np.flatnonzero(token_mask(real, 163958))
    assert len(blocked) == 12314
    assert (blocked[0], blocked[-1]) == (151643, 163957)
    assert 151645 not in blocked


def test_block_from_id_can_be_lowered_but_eos_stays() -> None:
    mask = token_mask(TOKENS, N, block_from_id=4)
    assert np.flatnonzero(mask == 0).tolist() == [0, 1, 2, 3, EOS]


def test_block_from_id_can_be_raised_but_blocked_ranges_stay() -> None:
    mask = token_mask(TOKENS, N, block_from_id=N)
    assert np.flatnonzero(mask == 0).tolist() == [*range(12), EOS, 17, 18, 19]


# The choice --------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocked_id", [12, 13, 15, 16, 17, 19])
def test_a_blocked_id_is_never_chosen_even_as_first_choice(blocked_id: int) -> None:
    chosen, _ = choose(logits(blocked_id, 7), token_mask(TOKENS, N))
    assert chosen == 7


def test_ties_go_to_the_lowest_id() -> None:
    tie = np.zeros(N, np.float32)
    tie[[5, 9, 3]] = 4
    assert choose(tie, token_mask(TOKENS, N))[0] == 3
    assert choose(np.zeros(N, np.float32), token_mask(TOKENS, N))[0] == 0
    blocked_tie = logits(12, 13)
    blocked_tie[[6, 8, 12, 13]] = 9
    assert choose(blocked_tie, token_mask(TOKENS, N))[0] == 6


@pytest.mark.parametrize("seed", range(5))
def test_the_logprob_is_that_of_a_softmax_over_the_allowed_ids(seed: int) -> None:
    values = (10 * np.random.default_rng(seed).standard_normal(N)).astype(np.float32)
    allowed = [*range(12), EOS]
    exact = values[allowed].astype(np.float64)
    expected = exact.max() - np.log(np.exp(exact).sum())
    chosen, logprob = choose(values, token_mask(TOKENS, N))
    assert chosen == allowed[int(exact.argmax())]
    assert logprob == pytest.approx(expected, rel=1e-5, abs=1e-6)  # float32 exponentials
    assert logprob <= 0


def test_the_logprob_of_a_certain_choice_is_zero() -> None:
    values = np.full(N, -1000, np.float32)
    values[4] = 1000
    assert choose(values, token_mask(TOKENS, N)) == (4, 0.0)


def test_huge_logits_do_not_overflow() -> None:
    values = np.full(N, 3e38, np.float32)
    _, logprob = choose(values, token_mask(TOKENS, N))
    assert logprob == pytest.approx(-np.log(13), rel=1e-6)


@pytest.mark.parametrize("broken_id", [4, USER])
def test_logits_that_are_no_numbers_are_an_error_and_not_a_token(broken_id: int) -> None:
    values = logits(3)
    values[broken_id] = np.nan
    with pytest.raises(DecodeError, match="nan"):
        choose(values, token_mask(TOKENS, N))


# The loop ----------------------------------------------------------------------------------------


def test_decoding_ends_with_eos_which_is_part_of_the_result() -> None:
    found = run(Script(logits(3), logits(8), logits(EOS)))
    assert found.ids == [3, 8, EOS]
    assert found.finish_reason == "stop"
    assert len(found.logprobs) == 3
    assert all(logprob < 0 for logprob in found.logprobs)


def test_each_chosen_token_is_fed_back() -> None:
    script = Script(logits(3), logits(8), logits(8), logits(EOS))
    assert run(script).ids == [3, 8, 8, EOS]
    assert script.steps == [3, 8, 8]
    assert len(script.prompts) == 1
    assert script.prompts[0] is PROMPT


def test_user_as_raw_first_choice_does_not_end_decoding() -> None:
    script = Script(logits(USER, 4), logits(USER, END_OF_TEXT, 5), logits(USER, EOS))
    assert run(script).ids == [4, 5, EOS]


def test_a_stop_id_that_is_not_blocked_ends_decoding() -> None:
    tokens = replace(TOKENS, stop=(EOS, 6))
    found = run(Script(logits(2), logits(6)), tokens=tokens)
    assert (found.ids, found.finish_reason) == ([2, 6], "stop")


def test_eos_may_come_first() -> None:
    script = Script(logits(EOS))
    assert run(script).finish_reason == "stop"
    assert script.steps == []


@pytest.mark.parametrize("max_new_tokens", [1, 2, 5])
def test_decoding_ends_after_max_new_tokens(max_new_tokens: int) -> None:
    script = Script(*[logits(3)] * max_new_tokens)
    found = run(script, max_new_tokens)
    assert (found.ids, found.finish_reason) == ([3] * max_new_tokens, "length")
    assert len(script.steps) == max_new_tokens - 1  # the last token is not fed back


@pytest.mark.parametrize("max_new_tokens", [1, 2])
def test_eos_as_the_last_token_allowed_is_a_stop(max_new_tokens: int) -> None:
    script = Script(*[logits(3)] * (max_new_tokens - 1), logits(EOS))
    assert run(script, max_new_tokens).finish_reason == "stop"


def test_equal_logits_give_equal_tokens() -> None:
    answers = [logits(3), logits(8, 2), logits(EOS)]
    assert run(Script(*answers)).ids == run(Script(*answers)).ids


# The guards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_gram", [[3], [3, 4], [3, 4, 5, 6, 7], list(range(12))])
def test_a_text_that_repeats_itself_is_cut_before_the_repetition(n_gram: list[int]) -> None:
    script = Script(*map(logits, [9, *n_gram * 30]))
    found = run(script, max_repeats=5)
    assert found.finish_reason == "loop"
    assert len(found.ids) < 1 + len(n_gram) * 20
    assert found.ids[: found.n_kept] == [9, *n_gram]


def test_what_is_repeated_as_often_as_allowed_is_kept() -> None:
    for words in ([3] * 15, [3, 4] * 7, [3, 4, 5, 6] * 5):
        found = run(Script(*map(logits, [*words, EOS])), max_repeats=5)
        assert (found.finish_reason, found.ids) == ("stop", [*words, EOS])
        again = run(Script(*map(logits, [*words, *words, EOS])), max_repeats=5)
        assert again.finish_reason == "loop"


def test_repetition_may_be_allowed() -> None:
    found = run(Script(*map(logits, [3] * 90 + [EOS])), max_repeats=None)
    assert (found.finish_reason, len(found.ids)) == ("stop", 91)


@pytest.mark.parametrize("seed", range(20))
def test_a_loop_is_found_as_a_plain_count_of_repeats_finds_it(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n_gram = generator.integers(0, 9, generator.integers(1, 8)).tolist()
    ids = generator.integers(0, 9, 10).tolist() + n_gram * int(generator.integers(1, 20))
    for end in range(1, len(ids) + 1):
        expected = 0
        for n in range(1, end):
            tail, n_same = ids[end - n : end], 1
            while ids[max(end - n * (n_same + 1), 0) : end - n * n_same] == tail:
                n_same += 1
            if not expected and n_same > 5 and n * n_same >= 16:
                # Only as many as it takes are looked at.
                expected = n * max(5, -(-16 // n) - 1)
        assert greedy.loop(ids[:end], 5) == expected


def test_more_tokens_than_speech_can_hold_are_not_given() -> None:
    options = Options(max_tokens_per_second=25)
    assert [options.max_tokens(s) for s in (0, 1, 2.5, 30)] == [10, 35, 72, 256]
    assert Options(max_tokens_per_second=None).max_tokens(0) == 256
    assert Options(max_new_tokens=5).max_tokens(30) == 5


def test_an_empty_text_can_be_forbidden_once() -> None:
    script = Script(logits(EOS, 4), logits(EOS))
    assert run(script, forbid_empty=True).ids == [4, EOS]


def test_end_of_turn_is_allowed_where_nothing_else_is() -> None:
    script = Script(logits(3, 4))
    assert run(script, tokens=replace(TOKENS, block_from_id=0), forbid_empty=True).ids == [EOS]


def test_speech_with_all_ids_blocked_is_empty_and_flagged(
    demo_package: Path, samples: list[Sample]
) -> None:
    transcriber = ark_asr_onnx.load(demo_package, threads=1)
    transcript = transcriber.transcribe(samples[0].path, options=Options(block_from_id=0))
    assert transcript.text == ""
    assert [segment.finish_reason for segment in transcript.segments] == ["empty"]
    assert transcript.flagged


# The options -------------------------------------------------------------------------------------


def test_options_default_to_256_tokens_and_the_mask_of_the_package() -> None:
    assert (Options().max_new_tokens, Options().block_from_id) == (256, None)


@pytest.mark.parametrize("max_new_tokens", [0, -1])
def test_at_least_one_token_must_be_asked_for(max_new_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"max_new_tokens is {max_new_tokens}, must be"):
        Options(max_new_tokens=max_new_tokens)


def test_block_from_id_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match="block_from_id is -1, must be"):
        Options(block_from_id=-1)
    assert Options(block_from_id=0).block_from_id == 0


@pytest.mark.parametrize("field", ["max_tokens_per_second", "max_repeats"])
def test_guards_that_would_allow_nothing_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is 0"):
        replace(Options(), **{field: 0})


def test_options_are_checked_when_replaced_and_cannot_be_changed() -> None:
    options: Any = Options()
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        replace(options, max_new_tokens=0)
    with pytest.raises(FrozenInstanceError):
        options.max_new_tokens = 1


def test_the_public_options_are_those_of_the_decoder() -> None:
    assert Options is greedy.Options
