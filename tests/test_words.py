"""When words were said: in order, each with a time, and where they were."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ark_asr_onnx.decoding.words import Written, loudness, parts, path, timed

RATE = 16000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("   ", []),
        ("Hello,  world. It's 5 o'clock!", ["Hello,", "world.", "It's", "5", "o'clock!"]),
        ("(yes) ¿Qué? no - or", ["(yes)", "¿Qué?", "no", "- or"]),
        ("no -", ["no -"]),
        (" … ", ["…"]),
        ("今天天气很好。", ["今", "天", "天", "气", "很", "好。"]),
        ("用Python写、「好」。", ["用", "Python", "写、", "「好」。"]),
        ("コーヒーを100円", ["コ", "ー", "ヒ", "ー", "を", "100", "円"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("한국어 말", ["한국어", "말"]),
        ("naïve e\u0301te\u0301", ["naïve", "e\u0301te\u0301"]),
        ("нет, да", ["нет,", "да"]),
    ],
)
def test_words_of_a_text(text: str, expected: list[str]) -> None:
    assert [text[part.start : part.stop] for part in parts(text)] == expected


def looks(n: int, *centres: float) -> np.ndarray:
    """Attention ``[1, tokens, n]`` of tokens to places."""
    at = np.arange(n)
    rows = [np.exp(-0.5 * ((at - centre) / 1.5) ** 2) for centre in centres]
    return np.stack(rows)[None].astype(np.float32)


def bursts(seconds: float, *spans: tuple[float, float]) -> np.ndarray:
    """Noise at some times, and silence."""
    noise = np.random.default_rng(0)
    waveform = noise.normal(0, 1e-4, round(seconds * RATE)).astype(np.float32)
    for begin, end in spans:
        first, last = round(begin * RATE), round(end * RATE)
        waveform[first:last] += noise.normal(0, 0.1, last - first)
    return waveform


SPANS = ((0.5, 1.0), (1.3, 1.6), (1.6, 2.2))


def test_a_word_is_where_it_is_loud_and_the_decoder_looked() -> None:
    written = Written("one two. three", [b"one", b" two", b".", b" three"], [0.0, 0.0, -9.0, 0.0])
    attention = looks(32, 8.4, 17.1, 20.0, 22.8)
    words = timed(written, attention, bursts(2.56, *SPANS), 10.0)
    assert [word.text for word in words] == ["one", "two.", "three"]
    for word, (start, end) in zip(words, SPANS, strict=True):
        assert word.start == pytest.approx(10 + start, abs=0.1)
        assert word.end == pytest.approx(10 + end, abs=0.1)
    assert words[1].probability == 1.0  # the full stop does not count


def test_a_probability_is_the_geometric_mean_of_its_tokens() -> None:
    written = Written("nineteen", [b"nine", b"teen"], [np.log(0.9).item(), np.log(0.4).item()])
    (word,) = timed(written, looks(20, 8, 9), bursts(1.6, (0.4, 1.0)), 0.0)
    assert word.probability == pytest.approx(0.6)


def test_words_that_share_a_token_share_its_time() -> None:
    text = "今天好"
    written = Written(text, ["今天".encode(), "好".encode()], [0.0, 0.0])
    words = timed(written, looks(32, 9.5, 21), bursts(2.56, (0.5, 1.1), (1.5, 1.9)), 0.0)
    assert [word.text for word in words] == ["今", "天", "好"]
    assert words[0].end == words[1].start == pytest.approx(0.8, abs=0.1)


def test_letters_of_several_tokens_are_one_word() -> None:
    content = "天".encode()
    written = Written("天x", [content[:1], content[1:], b"x"], [0.0, -2.0, 0.0])
    words = timed(written, looks(20, 5, 6, 14), bursts(1.6, (0.3, 0.6), (1.0, 1.3)), 0.0)
    assert [word.text for word in words] == ["天", "x"]
    assert words[0].probability == pytest.approx(np.exp(-1))


def test_what_was_taken_out_of_the_text_is_no_word() -> None:
    tokens = [b"language none", b"<|text|>", b", up", b" <|m|>", b" go", b"\xe2\x80"]
    written = Written("up  go\ufffd", tokens, [0.0] * 6)
    words = timed(written, looks(32, 1, 2, 8, 3, 20, 21), bursts(2.56, (0.5, 0.8), (1.5, 1.8)), 0.0)
    assert [word.text for word in words] == ["up", "go\ufffd"]
    assert words[0].start == pytest.approx(0.5, abs=0.08)
    assert words[1].start == pytest.approx(1.5, abs=0.08)


@pytest.mark.parametrize("seed", range(40))
def test_words_are_in_order_without_overlap_whatever_was_looked_at(seed: int) -> None:
    chance = np.random.default_rng(seed)
    n = int(chance.integers(1, 60))
    text = " ".join("ab" if chance.random() < 0.8 else "天地" for _ in range(n))
    tokens = [bytes([byte]) for byte in text.encode()]
    seconds = float(chance.choice([0.02, 0.3, 3.0, 12.0]))
    waveform = chance.normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    waveform *= chance.choice([0.0, 1e-9, 1.0])
    n_audio = max(1, round(seconds * 12.5))
    attention = chance.random((3, len(tokens), n_audio), np.float32)
    attention[:, chance.random(len(tokens)) < 0.2] = 0
    words = timed(Written(text, tokens, [-1.0] * len(tokens)), attention, waveform, 5.0)
    assert "".join(word.text for word in words) == text.replace(" ", "")
    for word in words:
        assert 5.0 <= word.start <= word.end <= 5.0 + seconds + 1e-3
    if seconds > 1:
        assert all(word.start < word.end for word in words)
    for before, after in itertools.pairwise(words):
        assert before.end <= after.start


def test_loudness_is_of_the_frame_that_it_stands_for() -> None:
    found = loudness(bursts(1.0, (0.5, 0.75)), 100)
    assert found.shape == (100,)
    assert found[52:73].min() > 0.8
    assert max(found[:48].max(), found[77:].max()) < 0.3


def test_a_path_through_more_words_than_frames_gives_each_something() -> None:
    found = path(np.ones((8, 4), np.float32), np.ones(4, np.float32))
    assert found == [(i / 2, (i + 1) / 2) for i in range(8)]
