"""Cues from words: within every limit, readable where there is room, broken as a reader would."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ark_asr_onnx import CueLayout, Segment, Word
from ark_asr_onnx.decoding.words import parts
from ark_asr_onnx.subtitles import Cue, cues, width


def segment(text: str, words: list[Word]) -> Segment:
    start, end = (words[0].start, words[-1].end) if words else (0.0, 1.0)
    return Segment(start, end, text, text, (1,), (0.0,), "stop", 1.0, words=tuple(words))


def spoken(text: str, start: float = 0.0, seconds: float = 0.3, gap: float = 0.0) -> Segment:
    """A text whose words take so long each; a bar is a pause of a second, and none of the text."""
    plain, at, words = "", start, list[Word]()
    for phrase in text.split("|"):
        first = len(plain)
        plain += phrase
        for part in parts(phrase):
            words.append(Word(plain[first:][part.start : part.stop], at, at + seconds, 1.0))
            at = round(at + seconds + gap, 3)
        at = round(at + 1, 3)
    return segment(plain, words)


def lines(found: list[Cue]) -> list[str]:
    return [cue.text for cue in found]


def columns(text: str) -> int:
    """As terminals count what is in these tests."""
    wide = re.compile("[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uff00-\uff60]")
    return len(text.replace("\u0301", "")) + len(wide.findall(text))


# What holds for all words ------------------------------------------------------------------------

ALPHABETS = (
    [
        "a",
        "of",
        "word",
        "sentence.",
        "comma,",
        "unbelievable",
        "(yes)",
        "- or",
        "x" * 50,
        "O'Neil!",
    ],
    ["今", "天", "好。", "「吗」", "ー", "ッ", "Python", "100"],
    ["слово", "да,", "한국어", "말.", "¿Qué?", "e\u0301te\u0301", "a&b", "<i>", "-->"],
)


def random_segments(chance: random.Random) -> Iterator[Segment]:
    at = chance.choice([0.0, 3599.0])
    long = chance.choice([0.1, 0.4, 1.5])
    for _ in range(chance.randrange(6)):
        letters = chance.choice(ALPHABETS)
        spaces = ["", " ", "  "] if letters is ALPHABETS[1] else [" ", "  ", " \n", "\u3000"]
        words, text = list[Word](), chance.choice(["", " "])
        for _ in range(chance.randrange(40)):
            end = at + chance.choice([0.0, 0.01, chance.expovariate(1 / long)])
            words.append(Word(chance.choice(letters), at, end, 1.0))
            text += words[-1].text + chance.choice(spaces)
            at = end + chance.choice([0.0, 0.0, 0.0, 0.1, chance.expovariate(1), 3.0])
        yield segment(text, words)
        at += chance.choice([0.0, 0.1, 0.5, 5.0])


def random_layout(chance: random.Random) -> CueLayout:
    return CueLayout(
        chance.choice([1, 5, 16, 32, 42, 200]),
        chance.choice([1, 2, 3, 10]),
        chance.choice([0.5, 1, 2.5, 7, 60]),
    )


@pytest.mark.parametrize("seed", range(300))
def test_every_word_is_in_one_cue_and_every_cue_within_the_limits(seed: int) -> None:
    chance = random.Random(seed)
    segments, layout = list(random_segments(chance)), random_layout(chance)
    words = [word for one in segments for word in one.words]
    whole = "".join(one.text for one in segments)
    found = cues(segments, layout)
    assert "".join("".join(lines(found)).split()) == "".join(whole.split())
    given = [piece for cue in found for piece in cue.pieces]
    assert [(piece.text, piece.start, piece.end) for piece in given] == [
        (word.text, word.start, word.end) for word in words
    ]
    for cue in found:
        assert cue.pieces
        assert 0.001 - 1e-9 <= cue.end - cue.start <= layout.max_cue_seconds + 1e-6
        shown = cue.text.split("\n")
        assert len(shown) <= layout.max_line_count
        assert shown == [line.strip() for line in shown]
        assert cue.text.splitlines() == shown
        for line, n_words in zip(shown, map(len, split(cue)), strict=True):
            assert columns(line) == width(line)
            assert width(line) <= layout.max_line_width or n_words == 1
    for one, other in itertools.pairwise(found):
        assert one.end <= other.start


def split(cue: Cue) -> Iterator[list[Any]]:
    """The pieces of each line."""
    line: list[Any] = []
    for piece in cue.pieces:
        if piece.space == "\n":
            yield line
            line = []
        line.append(piece)
    yield line


@pytest.mark.parametrize("seed", range(300))
def test_a_cue_that_is_too_short_cannot_be_longer_nor_joined(seed: int) -> None:
    chance = random.Random(seed)
    layout = CueLayout(
        chance.choice([8, 14, 42]), chance.choice([1, 2]), chance.choice([0.8, 2, 7])
    )
    at, words = 0, list[Word]()
    for _ in range(60):
        text = "x" * chance.randrange(1, 10) + chance.choice(["", "", ",", "."])
        end = at + chance.randrange(50, 900)
        words.append(Word(text, at / 1000, end / 1000, 1.0))
        at = end + chance.choice([0, 0, 100, 300, 800, 2500])
    found = cues([segment(" ".join(word.text for word in words), words)], layout)
    enough = min(1.0, layout.max_cue_seconds) - 1e-9
    for i, cue in enumerate(found):
        n_columns = columns(cue.text)
        if cue.end - cue.start < min(max(1, n_columns / 21 - 1e-3), layout.max_cue_seconds) - 1e-9:
            assert cue.end == found[i + 1].start
        if cue.end - cue.start < enough:
            for one, other in itertools.pairwise(found[max(0, i - 1) : i + 2]):
                assert not can_be_one(one, other, layout)


def can_be_one(one: Cue, other: Cue, layout: CueLayout) -> bool:
    """Whether two cues are within the limits together."""
    pieces = one.pieces + other.pieces
    n_lines, at = 1, -1
    for piece in pieces:
        at += 1 + len(piece.text)
        if at > layout.max_line_width and piece is not pieces[0]:
            n_lines, at = n_lines + 1, len(piece.text)
    seconds = pieces[-1].end - pieces[0].start
    return (
        n_lines <= layout.max_line_count
        and seconds <= layout.max_cue_seconds + 1e-9
        and (other.pieces[0].start - one.pieces[-1].end < 1)
    )


# What a reader would do --------------------------------------------------------------------------


def test_cues_end_at_full_stops_and_commas() -> None:
    text = "So the first thing I want to talk about is how we got here. Ten years ago, nobody would"
    text += " have believed it. We tried and tried, until it worked for all who speak slowly."
    assert lines(cues([spoken(text)], CueLayout())) == [
        "So the first thing I want to\ntalk about is how we got here.",
        "Ten years ago,\nnobody would have believed it.",
        "We tried and tried,\nuntil it worked for all who speak slowly.",
    ]
    narrow = CueLayout(max_line_width=22, max_line_count=1)
    assert lines(cues([spoken(text, seconds=0.5)], narrow)) == [
        "So the first thing",
        "I want to talk about",
        "is how we got here.",
        "Ten years ago,",
        "nobody would",
        "have believed it.",
        "We tried and tried,",
        "until it worked for",
        "all who speak slowly.",
    ]


def test_cues_end_at_pauses() -> None:
    text = "one two three |four five six seven |eight"
    assert lines(cues([spoken(text)], CueLayout())) == [
        "one two three",
        "four five six seven",
        "eight",
    ]
    narrow = CueLayout(max_line_width=16, max_line_count=2)
    text = "red green blue black white grey |pink brown"
    assert lines(cues([spoken(text, gap=0.01)], narrow))[-1] == "pink brown"


def joined(first: Segment, second: Segment) -> Segment:
    return segment(f"{first.text} {second.text}", [*first.words, *second.words])


def test_no_cue_goes_on_through_a_long_silence() -> None:
    for start, expected in ((2.2, ["one two", "three"]), (2.3, ["one", "two", "three"])):
        both = joined(spoken("one"), spoken("two", start=start))  # which is over 0.3 s later
        assert lines(cues([both, spoken("three", start=2.9)], CueLayout())) == expected


def test_what_is_said_fast_is_shown_with_what_follows() -> None:
    alone = ["one two three four five six.", "So it was."]
    for seconds, expected in ((0.09, [" ".join(alone)]), (0.4, alone)):
        first = spoken("one two three four five six.", seconds=seconds)
        both = joined(first, spoken("So it was.", start=first.end + 0.5, seconds=0.7))
        assert lines(cues([both], CueLayout())) == expected


def test_no_cue_lasts_longer_than_it_may() -> None:
    found = cues([spoken("a b c d e f g h i j", seconds=0.5)], CueLayout(max_cue_seconds=2))
    assert [cue.end - cue.start for cue in found] == [1.5, 1.5, 2.0]
    (cue,) = cues([spoken("well", seconds=9)], CueLayout())
    assert (cue.start, cue.end) == (0, 7)


def test_lines_are_balanced_and_as_few_as_can_be() -> None:
    layout = CueLayout(max_line_width=20, max_line_count=3)
    assert lines(cues([spoken("a line of twenty ch.")], layout)) == ["a line of twenty ch."]
    assert lines(cues([spoken("this is a line of twenty one")], layout)) == [
        "this is a line\nof twenty one"
    ]
    assert lines(cues([spoken("well, this is a line of it")], layout)) == [
        "well, this is\na line of it"
    ]
    assert lines(cues([spoken("this is it, a line of it")], layout)) == [
        "this is it,\na line of it"
    ]


def test_wide_letters_take_two_columns() -> None:
    text = "今天天气很好、我们去公园散步吧。那里有很多人在跳舞、唱歌。"
    found = cues([spoken(text)], CueLayout(max_line_width=16))
    assert lines(found) == [
        "今天天气很好、我\n们去公园散步吧。",
        "那里有很多人\n在跳舞、唱歌。",
    ]
    assert lines(cues([spoken("コーヒーを買った")], CueLayout(max_line_width=8))) == [
        "コーヒー\nを買った"
    ]
    assert lines(cues([spoken("ねコーヒ")], CueLayout(max_line_width=6))) == ["ね\nコーヒ"]
    wide = "今天很好\uff01我们去\uff0c散步吧"  # an exclamation mark and a comma
    assert lines(cues([spoken(wide, seconds=0.4)], CueLayout(12, 1))) == [
        "今天很好\uff01", "我们去\uff0c", "散步吧",
    ]  # fmt: skip
    mixed = "用 Python 写 code、好。"
    assert "".join(lines(cues([spoken(mixed)], CueLayout()))) == mixed


def test_a_word_that_is_wider_than_a_line_has_one_for_itself() -> None:
    (cue,) = cues([spoken("an incomprehensible thing")], CueLayout(10, 3))
    assert cue.text == "an\nincomprehensible\nthing"


def test_a_cue_is_shown_until_it_can_be_read() -> None:
    def end(text: str, room: float, **limits: float) -> float:
        first, after = spoken(text, seconds=0.05), spoken("next", start=room)
        return cues([first, after], replace(CueLayout(), **limits))[0].end

    assert end("yes", 9.0) == 1.0
    assert end("yes", 0.7) == 0.7
    assert end("abc abc abc abc abc abc abc abc abc abc ab", 9.0) == 2.0  # 42 columns
    assert end("abc abc abc abc abc abc abc abc abc abc ab", 1.5) == 1.5
    assert end("今天天气很好、我们去公园散步吧、那里有人", 9.0) == pytest.approx(40 / 21, abs=1e-3)
    assert end("yes", 9.0, max_cue_seconds=0.8) == 0.8


def test_what_is_too_short_is_joined_with_a_neighbour() -> None:
    layout = CueLayout(max_line_width=12, max_line_count=1)
    assert lines(cues([spoken("Yes. That is so. Good.")], layout)) == ["Yes. That is", "so. Good."]
    assert lines(cues([spoken("Yes. That is so. Good.", seconds=1.0)], layout)) == [
        "Yes.", "That is so.", "Good.",
    ]  # fmt: skip


def test_a_cue_goes_on_into_the_next_segment_only_where_there_is_no_pause() -> None:
    first = spoken("one two")
    for pause, expected in ((0.0, ["one two three"]), (0.15, ["one two three"])):
        second = spoken("three", start=first.end + pause)
        assert lines(cues([first, second], CueLayout())) == expected
    second = spoken("three", start=first.end + 0.2)
    assert lines(cues([first, second], CueLayout())) == ["one two", "three"]


def test_segments_without_words_give_no_cue() -> None:
    silence = segment("", [])
    assert cues([silence], CueLayout()) == []
    assert lines(cues([silence, spoken("yes"), silence], CueLayout())) == ["yes"]
    assert cues([], CueLayout()) == []


def test_without_a_layout_there_is_a_cue_for_each_segment() -> None:
    (cue,) = cues([spoken(" two  words. ")], None)
    assert (cue.start, cue.end, cue.text) == (0.0, 0.6, "two  words.")


def test_a_text_without_its_words_is_refused() -> None:
    with pytest.raises(ValueError, match="no times of words: transcribe with words=True"):
        cues([segment("yes", [])], CueLayout())
    with pytest.raises(ValueError, match="does not have its word 'no'"):
        cues([segment("yes", [Word("no", 0, 1, 1)])], CueLayout())


@pytest.mark.parametrize(
    "given",
    [{"max_line_width": 0}, {"max_line_width": 1.5}, {"max_line_count": -1}, {"max_cue_seconds": 0},
     {"max_cue_seconds": float("nan")}, {"max_cue_seconds": 0.05}],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        CueLayout(**given)
    assert CueLayout(42.0, 2).max_line_width == 42  # pyright: ignore[reportArgumentType]
