"""Token ids to text, and the clean-up of raw transcripts."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ark_asr_onnx import PackageError
from ark_asr_onnx.package.text import Text, clean

END, AUDIO = "<|im_end|>", "<|audio|>"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """A byte-level tokenizer of single bytes and two added tokens: 256 is special, 257 is not."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.add_tokens([AddedToken(AUDIO)])
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    tokenizer.save(str(path))
    return Text(path.parent)


def ids(text: str) -> list[int]:
    """Ids of the UTF-8 bytes of ``text``: GPT-2's printable stand-ins, sorted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: chr(byte) for byte in printable}
    stand_ins |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    alphabet = sorted(stand_ins.values())
    return [alphabet.index(stand_ins[byte]) for byte in text.encode()]


@pytest.mark.parametrize("words", ["Hello world.", "  two  spaces\n", "今天天气很好。", "¿Qué? 🦙"])
def test_decoding_gives_the_text_back(text: Text, words: str) -> None:
    assert text.decode(ids(words)) == words


def test_special_tokens_are_decoded_as_text(text: Text) -> None:
    assert text.decode([*ids("Yes"), 256]) == "Yes<|im_end|>"
    assert text.decode([257, *ids("Yes")]) == "<|audio|>Yes"


def test_half_a_character_becomes_a_replacement_character(text: Text) -> None:
    assert text.decode(ids("a好")[:-1]) == "a\ufffd"


def test_no_ids_are_no_text(text: Text) -> None:
    assert text.decode([]) == ""


def test_a_mark_before_the_text_of_a_file_is_no_damage(text: Text, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(codecs.BOM_UTF8 + text.path.read_bytes())
    assert Text(tmp_path).decode(ids("Yes")) == "Yes"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"[1, 2]",
        b"\xff\xfe",
        b'{"version": "1.0", "model": {"type": "none"}}',
        b'{"version": "%s"}' % (b"x" * 20_000),
    ],
    ids=["empty", "half", "no model", "no object", "no text", "unknown model", "a long text"],
)
def test_a_damaged_tokenizer_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(PackageError, match=r"tokenizer\.json: not a tokenizer file") as caught:
        Text(path.parent)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"no tokenizer\.json, and no vocab\.json"):
        Text(tmp_path)


# Oracle: the functions of open-audio-opd's inference script, run on these inputs.
@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Hello world.<|im_end|>", "Hello world."),
        ("<|user|>Hello", ""),
        ("Yes<|assistant|>No<|im_end|>", "Yes"),
        ("  , . Hello  world \n again ", "Hello world again"),
        ("<|text|>abc", "abc"),
        ("a<|bicodec_semantic_12|>b<|bicodec_global_3|>", "ab"),
        ("- yes", "yes"),
        ("…hello", "…hello"),
    ],
)
def test_raw_text_is_cleaned_as_the_authors_do(raw: str, expected: str) -> None:
    assert clean(raw) == expected


@pytest.mark.parametrize("marker", ["<|user|>", "<|assistant|>", "<|im_end|>"])
def test_text_ends_at_the_first_turn_marker(marker: str) -> None:
    assert clean(f"kept{marker}lost<|im_end|><|user|><|assistant|>") == "kept"


def test_text_begins_after_the_first_text_marker() -> None:
    assert clean("lost<|text|>kept") == "kept"
    assert clean("lost<|text|>kept<|text|>too") == "kept<|text|>too"
    assert clean("lost<|im_end|><|text|>also lost") == "lost"


@pytest.mark.parametrize("edge", ["start", "end"])
@pytest.mark.parametrize("name", ["global_token", "glm_token", "semantic_token", "content"])
def test_content_markers_are_removed(edge: str, name: str) -> None:
    assert clean(f"be<|{edge}_{name}|>fore") == "before"


@pytest.mark.parametrize("unknown", ["<|start_other|>", "<|bicodec_semantic_|>", "<|audio|>"])
def test_other_markers_are_kept(unknown: str) -> None:
    assert clean(f"a {unknown} b") == f"a {unknown} b"


@pytest.mark.parametrize("character", " \t\r\n\f\v,.;:!?-")
def test_leading_punctuation_is_removed(character: str) -> None:
    assert clean(f"{character}{character} a{character}<|im_end|>").startswith("a")


def test_trailing_punctuation_is_kept() -> None:
    assert clean("Really, is it -?! ") == "Really, is it -?!"


@pytest.mark.parametrize("raw", ["", " \n ", "<|im_end|>", ". , -", "<|bicodec_global_0|>"])
def test_a_transcript_may_be_empty(raw: str) -> None:
    assert clean(raw) == ""


def test_cleaning_twice_changes_nothing() -> None:
    once = clean(" - It's  4.5, or “five”…<|im_end|>")
    assert once == "It's 4.5, or “five”…"
    assert clean(once) == once
