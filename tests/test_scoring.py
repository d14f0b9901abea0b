"""Error rates, their intervals and comparisons, on texts small enough to count by hand."""

# ruff: noqa: RUF001 - texts of many scripts

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from ark_asr_onnx import MissingExtraError
from ark_asr_onnx.corpus import scoring
from ark_asr_onnx.corpus.scoring import (
    Comparison,
    Difference,
    Report,
    Score,
    compare,
    report,
    score,
)

pytest.importorskip("jiwer")
pytest.importorskip("whisper_normalizer")


def counted(errors: int, words: int = 10, ref_clean: str = "a") -> Score:
    """A row of ten words of five characters, with as many characters wrong as words."""
    return Score(ref_clean, "b", errors, words, errors, 5 * words)


def counts(result: Score) -> tuple[int, int, int, int]:
    return result.wer_errors, result.ref_words, result.cer_errors, result.ref_chars


def some_scores(n_rows: int = 200, seed: int = 1, rate: float = 0.1) -> list[Score]:
    rng = np.random.default_rng(seed)
    return [counted(int(errors)) for errors in rng.binomial(10, rate, n_rows)]


@pytest.fixture
def fresh_normalizer() -> Iterator[None]:
    scoring.normalizer.cache_clear()
    yield
    scoring.normalizer.cache_clear()


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("Hello, World!", "hello word", (1, 2, 1, 10)),
        ("今天天气很好。", "今天天汽很好", (1, 6, 1, 6)),
        ("the cat sat", "the cat sat on", (1, 3, 2, 9)),
    ],
)
def test_errors_are_counted_as_upstream_counts_them(
    reference: str, hypothesis: str, expected: tuple[int, ...]
) -> None:
    assert counts(score(reference, hypothesis)) == expected


def test_numbers_in_words_and_digits_are_the_same_in_english() -> None:
    result = score("Forty-eight colours.", "48 colors")
    assert result.ref_clean == result.pred_clean == "48 colors"
    assert counts(result) == (0, 2, 0, 8)


def test_without_normalisation_every_difference_counts() -> None:
    result = score("  forty-eight\n Colours ", "48 colours", normalize=False)
    assert (result.ref_clean, result.pred_clean) == ("forty-eight Colours", "48 colours")
    assert result.wer_errors == 2


def test_other_languages_keep_their_numbers_and_accents() -> None:
    result = score("Schön, vierzig Häuser!", "schon vierzig häuser", "de")
    assert result.ref_clean == "schön vierzig häuser"
    assert counts(result) == (1, 3, 1, 18)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language", "expected"),
    [
        ("안녕 하세요.", "안녕하세오", None, (1, 5, 1, 5)),
        ("カタカナ です", "カタカナです", None, (0, 6, 0, 6)),
        ("ひらがな", "ひらかな", "ja", (1, 4, 1, 4)),
        ("我们 用 GPU。", "我们用gpu", "zh-CN", (0, 4, 0, 6)),
        ("我们用 machine learning", "我们用machine", None, (1, 5, 8, 18)),
        ("iPhone 15", "iphone 50", "zh", (1, 2, 2, 8)),
        ("これはtestです", "これはtextです", None, (1, 6, 1, 9)),
        ("ผมชอบกินข้าว", "ผมชอบกินข่าว", "th", (1, 12, 1, 12)),
        ("ຂ້ອຍກິນເຂົ້າ", "ຂ້ອຍກິນເຂົາ", None, (1, 12, 1, 12)),
        ("ខ្ញុំ", "ខ្ញុ", "khm", (1, 5, 1, 5)),
        ("မြန်မာ", "မြန်မ", None, (1, 6, 1, 6)),
        ("the word 好 means good", "the word means good", "en", (1, 5, 1, 17)),
        ("good morning", "早上好", None, (3, 2, 11, 11)),
    ],
)
def test_scripts_without_spaces_are_counted_by_characters_and_others_by_words(
    reference: str, hypothesis: str, language: str | None, expected: tuple[int, ...]
) -> None:
    assert counts(score(reference, hypothesis, language)) == expected


def test_punctuation_counts_by_itself_where_nothing_is_normalised() -> None:
    assert counts(score("今天，GPU好。", "今天,GPU好", normalize=False)) == (3, 6, 2, 8)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "expected"),
    [
        ("hi", "मैं हिंदी बोलता हूँ", "मैं हिंदी बोलती हूँ", (1, 4)),
        ("hi", "है", "हो", (1, 1)),
        ("ta", "நான் வீட்டுக்கு போனேன்", "நான் வீட்டுக்கு போனான்", (1, 3)),
        ("bn", "আমি ভাত খাই", "আমি ভাত খাও", (1, 3)),
        ("te", "నేను వస్తాను", "నేను వస్తాడు", (1, 2)),
        ("ml", "ഞാൻ വന്നു", "ഞാൻ വന്നി", (1, 2)),
        ("si", "මම යනවා", "මම යනවි", (1, 2)),
        ("pa", "ਮੈਂ ਜਾਂਦਾ", "ਮੈਂ ਜਾਂਦੀ", (1, 2)),
        ("ar", "كَتَبَ الوَلَدُ", "كُتِبَ الوَلَدُ", (1, 2)),
        ("he", "שָׁלוֹם לָךְ", "שָׁלוֹם לְךָ", (1, 2)),
        ("dv", "މަށް ދަނީ", "މަށް ދިނީ", (1, 2)),
        ("yo", "ọ́jà ọkọ̀", "ọ́jà ọkọ́", (1, 2)),
        ("ru", "Это за́мок.", "это замо́к", (1, 2)),
    ],
)
def test_marks_say_something(
    given: bool, language: str, reference: str, hypothesis: str, expected: tuple[int, int]
) -> None:
    asked = language if given else None
    if asked or language != "yo":  # in Latin letters: English unless told otherwise
        assert counts(score(reference, hypothesis, asked))[:2] == expected
    assert counts(score(reference, reference, asked))[0] == 0


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis"),
    [
        ("fa", "می\u200cخواهم", "میخواهم"),
        ("ar", "سـلام", "سلام"),
        ("ml", "അവന്\u200d", "അവന്"),
        ("km", "ខ្ញុំ\u200bទៅ", "ខ្ញុំទៅ"),
        ("ja", "葛\U000e0100城", "葛城"),
        ("tr", "İstanbul ILIK", "istanbul ılık"),
        ("ku", "İstanbul", "istanbul"),
        ("el", "ΟΔΟΣ", "οδος"),
        ("vi", "tiếng Việt", "tiếng việt"),
        ("hi", "पानी।", "पानी"),
    ],
)
def test_what_is_only_written_differently_is_no_error(
    language: str, reference: str, hypothesis: str
) -> None:
    assert counts(score(reference, hypothesis, language))[0] == 0


@pytest.mark.parametrize(
    ("reference", "is_english"),
    [
        ("forty-eight", True),
        ("forty-eight α particles of 5 µm", True),
        ("forty-eight café naïve", True),
        ("forty-eight раз", False),
        ("forty-eight है", False),
        ("forty-eight 好", False),
    ],
)
def test_without_a_language_the_script_tells_what_is_english(
    reference: str, is_english: bool
) -> None:
    assert score(reference, "").ref_clean.startswith("48" if is_english else "forty eight")


@pytest.mark.parametrize(
    "language",
    ["en", "EN", "en-US", "en_gb", "eng", "English", "english ", "en-Latn-AU", "British English"],
)
def test_english_has_many_names(language: str) -> None:
    assert scoring.normalizer(language)("It's forty-eight!") == "it is 48"


@pytest.mark.parametrize(
    "language",
    [
        "de", "ger", "deu", "German", "Deutsch", "zh-Hant-TW", "zho", "chi", "cmn", "yue", "zh-yue",
        "jpn", "kor", "Mandarin", "Cantonese", "Chinese", "Korean", "pt-BR", "es_419", "fil", "hin",
        "Brazilian Portuguese", "Burmese", "mya", "bur", "und", "mul", "sr-Latn",
    ],
)  # fmt: skip
def test_languages_are_told_by_codes_tags_and_names(language: str) -> None:
    assert scoring.normalizer(language)("It's forty-eight!") == "it s forty eight"


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "language", ["auto", "e", "zh CN", "xx", "en--US", "Engl", "", "\ud800", "-", "a" * 9999]
)
def test_what_is_no_language_is_an_error(language: str, normalize: bool) -> None:
    with pytest.raises(ValueError, match=r"^language '.*' is unknown; give a code such as en"):
        score("a", "a", language, normalize)


# Whisper's normaliser gives the same text for both, or did: the word in one of them is lost.
DIFFERENT = [
    ("it costs one dollar", "it costs one"),
    ("one percent", "one"),
    ("one per cent", "one"),
    ("one euro", "one"),
    ("one cent", "one"),
    ("one pound", "one"),
    ("point one percent", "one"),
    ("three point one", "three one"),
    ("version 1.1", "version 1 1"),
    ("minus five dollars", "five dollars"),
    ("negative two hundred and five euros", "two hundred and five euros"),
    ("plus minus three", "minus three"),
    ("minus minus three", "minus three"),
    ("at this point and after", "at this and after"),
    ("the point first of all", "the first of all"),
    ("point hundred", "hundred"),
    ("a hundred and double that", "a hundred double that"),
    ("two hundred and and five", "two hundred and five"),
    ("and a half hour later", "hour later"),
    ("five thousand million", "five thousand"),
    ("a million million", "a million"),
    ("one hundred thousand million", "one hundred thousand"),
    ("2000 million", "2000"),
    ("a thousand thousands", "thousands"),
    ("zero million", "zero"),
    ("zero zero hundred", "zero hundred"),
    ("oh five hundred hours", "five hundred hours"),
    ("point five dollars", "point five"),
    ("zero point five dollars", "five cents"),
    ("zero point zero five euros", "zero point zero five dollars"),
    ("zero seven one two dollars", "zero eight one two dollars"),
    ("one fifth", "fifteenth"),
    ("two fifth", "twenty fifth"),
    ("a ten second clip", "a hundred second clip"),
    ("one twentieth", "hundred twentieth"),
    ("0 five", "five"),
    ("5 mm", "five"),
    ("5 %", "five"),
    ("five %", "five"),
    ("$ 5", "five"),
    ("5$", "five"),
    ("€ five", "five"),
    ("room 007", "room seven"),
    ("version 2.0", "version two"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_a_word_of_a_number_is_not_lost_in_english(one: str, other: str) -> None:
    assert score(one, other, "en").wer_errors > 0
    assert score(other, one, "en").wer_errors > 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("one dollar", "$1"),
        ("one percent", "1%"),
        ("one per cent", "1 %"),
        ("three point one", "3.1"),
        ("two dollars and seven cents", "$2.07"),
        ("two dollars and one cent", "$2.01"),
        ("five cents", "$0.05"),
        ("a half", "a half"),
        ("two and a half", "2.5"),
        ("two point five million dollars", "$2.5 million"),
        ("one thousand two hundred and five", "1,205"),
        ("two hundred thousand", "200,000"),
        ("nineteen sixties", "1960s"),
        ("twenty first", "21st"),
        ("one hundred and first", "101st"),
        ("one oh one", "101"),
        ("double oh seven", "007"),
        ("agent 007 5 times", "agent double oh seven, 5 times"),
        ("three point oh five", "3.05"),
        ("two point zero million", "2.0 million"),
        ("version two point oh", "version 2.0"),
        ("$2.00", "two dollars"),
        ("$ 5 and 5$ and 5 €", "five dollars and five dollars and five euros"),
        ("five % of 1.5 %", "5% of one point five percent"),
        ("the ones", "the 1s"),
        ("minus one", "minus 1"),
        ("zero point five", "0.5"),
        ("0 point 5", "zero point five"),
        ("five mm", "five, mm"),
        ("5 mm", "five millimetres"),
    ],
)
def test_numbers_in_words_and_figures_are_the_same_in_english(one: str, other: str) -> None:
    assert score(one, other, "en").wer_errors == 0


def test_no_number_makes_the_normaliser_fail() -> None:
    words = """
        one two nineteen twenty zero oh hundred thousand millions first fifth twenties minus plus
        dollars cent percent per and double triple point half a 0 1 10 2000 1.5 $5 5% .5 000 $ % 007
    """.split()  # noqa: SIM905
    rng, clean = random.Random(0), scoring.normalizer("en")
    for _ in range(3000):
        clean(" ".join(rng.choices(words, k=rng.randint(1, 6))))


def test_nothing_heard_is_as_many_errors_as_the_reference_is_long() -> None:
    assert counts(score("the cat sat", "")) == (3, 3, 9, 9)


def test_words_against_an_empty_reference_are_errors() -> None:
    assert counts(score("(laughs)", "abc def")) == (2, 0, 6, 0)
    assert counts(score("", "")) == (0, 0, 0, 0)


def test_rates_are_sums_of_errors_over_sums_of_reference_lengths() -> None:
    scores = [counted(1, 10), counted(0, 30), counted(3, 0)]
    result = report(scores, audio_seconds=60, elapsed_seconds=4, n_failed=1)
    assert (result.wer, result.cer) == (10.0, 2.0)
    assert (result.wer_errors, result.ref_words) == (4, 40)
    assert (result.cer_errors, result.ref_chars) == (4, 200)
    assert (result.n_rows, result.n_failed, result.rtfx) == (3, 1, 15.0)


def test_without_work_there_is_no_speed() -> None:
    assert report([counted(1)], audio_seconds=60, elapsed_seconds=0).rtfx is None


@pytest.mark.parametrize("scores", [[], [score("?!", "abc")]])
def test_without_reference_words_there_is_no_rate(scores: list[Score]) -> None:
    with pytest.raises(ValueError, match=f"no words in the references of {len(scores)} rows"):
        report(scores, 1, 1)


def test_the_interval_brackets_the_rate_with_the_width_theory_gives() -> None:
    result = report(some_scores(), 1, 1)
    low, high = result.wer_interval
    assert low < result.wer < high
    # Four standard deviations of the mean of 2000 words, each wrong with probability 0.1.
    assert high - low == pytest.approx(100 * 2 * 1.96 * (0.1 * 0.9 / 2000) ** 0.5, rel=0.15)
    assert result.cer_interval == pytest.approx((low / 5, high / 5))


def test_the_interval_is_the_same_every_time() -> None:
    assert report(some_scores(), 1, 1) == report(some_scores(), 1, 1)


def test_the_interval_is_a_point_when_all_rows_are_equal() -> None:
    result = report([counted(1, 3)] * 7, 1, 1)
    assert result.wer_interval == (result.wer, result.wer)
    assert result.cer_interval == (result.cer, result.cer)


def test_rows_with_empty_references_leave_the_interval_finite() -> None:
    result = report([counted(1), counted(1, 0)], 1, 1)
    assert np.isfinite(result.wer_interval).all()


def test_drawing_in_portions_changes_neither_intervals_nor_p_values_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, others = some_scores(seed=1), some_scores(seed=2)
    whole = compare(ours, others)
    monkeypatch.setattr(scoring, "_MAX_CELLS", 999)
    parts = compare(ours, others)
    assert parts.wer.interval == pytest.approx(whole.wer.interval, abs=0.3)
    assert parts.wer.p_value == pytest.approx(whole.wer.p_value, abs=0.03)


def test_equal_systems_do_not_differ() -> None:
    result = compare(some_scores(), some_scores())
    assert result.wer == result.cer == Difference(0.0, (0.0, 0.0), 1.0)
    assert (result.n_better, result.n_worse, result.n_equal) == (0, 0, 200)


def test_a_clearly_better_system_is_found_to_be_so() -> None:
    ours, others = some_scores(rate=0.05), some_scores(rate=0.2)
    result = compare(ours, others)
    for difference in (result.wer, result.cer):
        assert difference.interval[0] < difference.points < difference.interval[1] < 0
        assert difference.p_value < 0.01
    assert result.n_better > result.n_worse
    assert result.n_better + result.n_worse + result.n_equal == result.n_rows == 200
    assert result.wer.points == pytest.approx(report(ours, 1, 1).wer - report(others, 1, 1).wer)


def test_exchanging_the_systems_turns_the_difference_round() -> None:
    ours, others = some_scores(seed=1), some_scores(seed=2)
    one, other = compare(ours, others), compare(others, ours)
    assert one.wer.points == -other.wer.points
    assert one.wer.interval == pytest.approx([-x for x in reversed(other.wer.interval)])
    assert one.wer.p_value == other.wer.p_value
    assert (one.n_better, one.n_worse) == (other.n_worse, other.n_better)


def test_the_p_value_of_five_rows_is_near_the_exact_one() -> None:
    # All five rows better: 2 of the 32 ways to exchange the systems are as extreme.
    result = compare([counted(0)] * 5, [counted(1)] * 5)
    assert result.wer.p_value == pytest.approx(2 / 32, abs=0.01)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([counted(1)] * 2, "1 rows cannot be compared with 2"),
        ([counted(1, ref_clean="c")], "row 1 has the reference 'a'"),
        ([counted(1, words=9)], r"'a' \(9\)"),
    ],
)
def test_only_the_same_rows_are_compared(others: list[Score], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare([counted(1)], others)


def test_a_row_keeps_its_record_and_gains_its_counts() -> None:
    record = {"audio": "a.wav", "text": "The cat.", "pred_text": "the hat", "speaker": "x"}
    assert scoring.row(record, score("The cat.", "the hat")) == {
        **record,
        "ref_text": "The cat.",
        "ref_text_clean": "the cat",
        "pred_text_clean": "the hat",
        "cer_errors": 1,
        "wer_errors": 1,
        "ref_words": 2,
        "ref_chars": 6,
    }


def test_the_worst_rows_come_first_and_ties_stay_in_order() -> None:
    pairs = [(0, 0), (2, 1), (2, 2), (0, 0), (5, 0), (2, 1)]
    rows = [{"id": i, "cer_errors": c, "wer_errors": w} for i, (c, w) in enumerate(pairs)]
    assert [row["id"] for row in scoring.sort_rows(rows)] == [4, 2, 1, 5, 0, 3]


def test_a_report_reads_as_lines() -> None:
    result = Report(77, 0, 7.865, (5.44, 10.56), 3.2, (2.0, 4.46), 445, 35, 2000, 64, 12.345)
    assert scoring.summary(result).splitlines() == [
        "77 rows, 445 words, 2000 characters",
        "WER 7.87 % (95 %: 5.4 to 10.6)",
        "CER 3.20 % (95 %: 2.0 to 4.5)",
        "RTFx 12.35",
    ]


def test_a_report_tells_of_failed_rows_and_leaves_out_a_speed_it_has_not() -> None:
    lines = scoring.summary(report([counted(10)] * 2, 0, 0, n_failed=1)).splitlines()
    assert lines[0] == "2 rows, 1 of them failed, 20 words, 100 characters"
    assert lines[-1] == "CER 20.00 % (95 %: 20.0 to 20.0)"


def test_a_comparison_reads_as_lines() -> None:
    wer, cer = Difference(0.2247, (-0.1, 0.61), 0.3123), Difference(-0.001, (-0.5, 0), 0.0001)
    result = Comparison(77, wer, cer, n_better=0, n_worse=1, n_equal=76)
    assert scoring.comparison_summary(result, ("A", "B")).splitlines() == [
        "WER of A minus B: +0.22 points (95 %: -0.10 to +0.61), p = 0.31, 76 of 77 rows equal",
        "CER of A minus B: +0.00 points (95 %: -0.50 to +0.00), p < 0.001",
        "fewer word errors: A in 0 rows, B in 1",
    ]


@pytest.mark.usefixtures("fresh_normalizer")
@pytest.mark.parametrize("module", ["jiwer", "langcodes", "whisper_normalizer"])
def test_a_missing_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ark-asr-onnx\[eval\]'"):
        score("a", "a", "de")


@pytest.mark.usefixtures("fresh_normalizer")
def test_the_normaliser_is_not_needed_when_nothing_is_normalised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "whisper_normalizer", None)
    assert counts(score("a b", "a c", normalize=False)) == (1, 2, 1, 2)


@pytest.mark.parametrize("language", ["en", "de"])
def test_the_normaliser_is_imported_without_its_warnings(language: str, tmp_path: Path) -> None:
    # Compiled anew, its invalid escape is a warning, and under -W error a SyntaxError.
    path = str(ROOT / "runtime")
    code = f"import sys; sys.path.insert(0, {path!r}); import ark_asr_onnx.corpus.scoring"
    options = ["-W", "error::SyntaxWarning", "-W", "error:invalid escape:DeprecationWarning"]
    call = f"; ark_asr_onnx.corpus.scoring.normalizer({language!r})('a')"
    subprocess.run(
        [sys.executable, *options, "-X", f"pycache_prefix={tmp_path}", "-c", code + call],
        check=True,
    )
