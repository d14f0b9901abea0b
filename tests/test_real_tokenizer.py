"""The tokenizer of ARK-ASR-0.6B: golden ids, the prompt, the masks. Skipped without it."""

from __future__ import annotations

import shutil
from pathlib import Path

import outside
import pytest

from ark_asr_onnx import PackageError
from ark_asr_onnx.model.layouts.prompt import prompt_ids
from ark_asr_onnx.package.contract import Tokens
from ark_asr_onnx.package.text import Text
from ark_asr_onnx.package.vocabulary import decoding_tokens

QWEN2 = outside.folder(outside.TOKENIZER, "tokenizer/qwen2")
pytestmark = pytest.mark.skipif(not QWEN2.is_dir(), reason="the real tokenizer is not here")

# kumard3/scribe, BudEcosystem/WaaV and llama.cpp's models/ggml-vocab-qwen2.gguf.inp / .out
GOLDEN = {
    "Please transcribe this audio.": "5501 1356 3114 419 7699 13",
    "Hello world": "9707 1879",
    " Hello world": "21927 1879",
    " Hello World!": "21927 4337 0",
    "Hello, world!": "9707 11 1879 0",
    " this is 🦙.cpp": "419 374 11162 99 247 13 10821",
    "нещо на Български": "78762 14144 1456 13073 63471 33594 3038 133178 79012",
    "ied 4 ½ months": "1122 220 19 220 26062 3951",
    "333": "18 18 18",
    " ": "220",
    "  ": "256",
    "   ": "262",
    "\t": "197",
    "\n": "198",
    "Hello world. This is W A V. Infer a portable voice inference engine running live on the GB10 "
    "Grace BL, a C K W E L L.": "9707 1879 13 1096 374 467 362 647 13 62658 264 22819 7743 44378 "
    "4712 4303 3887 389 279 18865 16 15 31071 14850 11 264 356 730 467 468 444 444 13",
}


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.json and merges.txt"])
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Text:
    if request.param == "tokenizer.json":
        return Text(QWEN2)
    folder = tmp_path_factory.mktemp("slow")
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        shutil.copyfile(QWEN2 / name, folder / name)
    return Text(folder)


@pytest.fixture(scope="module")
def tokens(text: Text) -> Tokens:
    return decoding_tokens(text, 163958, audio=151663, eos=(151645,), stop=(151645, 151643, 151665))


@pytest.mark.parametrize("words", GOLDEN, ids=repr)
def test_golden_texts_have_their_published_ids(text: Text, words: str) -> None:
    expected = tuple(map(int, GOLDEN[words].split()))
    assert text.encode(words) == expected
    assert text.decode(expected) == words


def test_the_prompt_is_the_published_one(tokens: Tokens) -> None:
    assert prompt_ids(tokens, 2).tolist() == [
        151665, 151666, 151663, 151663, 151667, 5501, 1356, 3114, 419, 7699, 13, 151668,
    ]  # fmt: skip


@pytest.mark.parametrize(("n_audio", "length"), [(37, 47), (50, 60), (150, 160), (375, 385)])
def test_the_prompt_is_ten_ids_longer_than_the_audio(
    tokens: Tokens, n_audio: int, length: int
) -> None:
    assert len(prompt_ids(tokens, n_audio)) == length


def test_12314_ids_are_blocked_all_from_151643_but_end_of_turn(tokens: Tokens) -> None:
    blocked = {i for first, last in tokens.blocked for i in range(first, last + 1)}
    assert blocked == set(range(151643, 163958)) - {151645}
    assert len(blocked) == 12314
    assert tokens.block_from_id == 151643


def test_stop_ids_are_those_of_the_published_manifest(tokens: Tokens) -> None:
    assert tokens.stop == (151645, 151643, 151665)


def test_ids_without_a_token_are_blocked_too(text: Text) -> None:
    """The 3B model has 27 added tokens and unused rows up to 151,936."""
    found = decoding_tokens(text, 170000, audio=151663, eos=(151645,), stop=())
    blocked = {i for first, last in found.blocked for i in range(first, last + 1)}
    assert blocked >= set(range(163958, 170000))


def test_special_tokens_are_recognised_in_text(text: Text) -> None:
    assert text.encode("Yes<|im_end|>") == (9454, 151645)
    assert text.decode([9454, 151645]) == "Yes<|im_end|>"


def test_a_tokenizer_of_another_model_is_refused(text: Text) -> None:
    with pytest.raises(PackageError, match="another model"):
        decoding_tokens(text, 151936, audio=151663, eos=(151645,), stop=())
    with pytest.raises(PackageError, match="audio_token_id 7"):
        decoding_tokens(text, 163958, audio=7, eos=(151645,), stop=())
    with pytest.raises(PackageError, match="names id 999999"):
        decoding_tokens(text, 163958, audio=151663, eos=(999999,), stop=())


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt", "added_tokens.json"])
def test_a_missing_tokenizer_file_is_named(tmp_path: Path, missing: str) -> None:
    for name in {"vocab.json", "merges.txt", "added_tokens.json"} - {missing}:
        shutil.copyfile(QWEN2 / name, tmp_path / name)
    with pytest.raises(PackageError, match=missing.replace(".", r"\.")):
        Text(tmp_path)
