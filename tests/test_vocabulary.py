"""The id sets of a model, built from its tokenizer, against a slow reading of the rule."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from ark_asr_onnx.package.text import Text
from ark_asr_onnx.package.vocabulary import INSTRUCTION, decoding_tokens


@pytest.fixture(scope="module")
def text(tiny_checkpoint: Path) -> Text:
    return Text(tiny_checkpoint)


def test_blocked_are_markers_and_rows_without_a_token_but_not_end_of_turn(text: Text) -> None:
    eos = text.id("<|im_end|>")
    tokens = decoding_tokens(text, 320, audio=text.id("<|audio|>"), eos=(eos,), stop=())
    blocked = {i for first, last in tokens.blocked for i in range(first, last + 1)}
    expected = {i for i in range(320) if not text.has(i)}
    for i, (content, special) in text.added().items():
        if special or (content.startswith("<") and content.endswith(">")):
            expected.add(i)
    assert blocked == expected - {eos}
    assert not any(special for i, (_, special) in text.added().items() if i not in expected)
    assert text.id("<tool_call>") in blocked  # a marker, though not special
    assert all(i in blocked or i == eos for i in range(tokens.block_from_id, 320))
    assert tokens.block_from_id - 1 not in blocked


def test_user_and_padding_stop_but_stay_blocked(text: Text) -> None:
    eos, pad, user = (text.id(f"<|{n}|>") for n in ("im_end", "endoftext", "user"))
    tokens = decoding_tokens(text, 320, audio=text.id("<|audio|>"), eos=(eos,), stop=(pad,))
    assert tokens.stop == (eos, pad, user)
    blocked = {i for first, last in tokens.blocked for i in range(first, last + 1)}
    assert {pad, user} <= blocked
    assert eos not in blocked


def test_the_prompt_goes_around_the_audio(text: Text) -> None:
    audio = text.id("<|audio|>")
    tokens = decoding_tokens(text, 320, audio=audio, eos=(text.id("<|im_end|>"),), stop=())
    prompt = text.decode([*tokens.prefix, tokens.audio, *tokens.suffix])
    marks = "<|user|><|begin_of_audio|><|audio|><|end_of_audio|>"
    assert prompt == f"{marks}{INSTRUCTION}<|assistant|>"


def test_another_instruction_takes_its_place(text: Text) -> None:
    eos = (text.id("<|im_end|>"),)
    tokens = decoding_tokens(
        text, 320, audio=text.id("<|audio|>"), eos=eos, stop=(), instruction="Read zero."
    )
    assert text.decode(tokens.suffix) == "<|end_of_audio|>Read zero.<|assistant|>"
