"""Error rates, their intervals and comparisons, on texts small enough to count by hand."""

from __future__ import annotations

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
        ("我们 用 GPU。", "我们用gpu", "zh-CN", (0, 6, 0, 6)),
        ("iPhone 15", "iphone 50", "zh", (2, 8, 2, 8)),
    ],
)
def test_chinese_japanese_and_korean_are_counted_by_characters(
    reference: str, hypothesis: str, language: str | None, expected: tuple[int, ...]
) -> None:
    assert counts(score(reference, hypothesis, language)) == expected
    assert counts(score(reference, hypothesis, language, normalize=False))[1] == (
        len(reference.replace(" ", ""))
    )


def test_only_the_reference_decides_on_counting_by_characters() -> None:
    assert counts(score("good morning", "早上好"))[:2] == (2, 2)


def test_a_language_given_overrules_the_script_of_the_reference() -> None:
    assert score("the word 好 means good", "the word means good", "en").ref_words == 5


@pytest.mark.parametrize("language", ["en", "EN", "en-US", "en_gb"])
def test_languages_are_told_by_their_first_part(language: str) -> None:
    assert scoring.normalizer(language)("It's forty-eight!") == "it is 48"


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("language", ["Chinese", "auto", "e", "zh CN"])
def test_a_language_that_is_no_code_is_an_error(language: str, normalize: bool) -> None:
    with pytest.raises(ValueError, match=f"language '{language}' is no code such as en"):
        score("a", "a", language, normalize)


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
@pytest.mark.parametrize("module", ["jiwer", "whisper_normalizer"])
def test_a_missing_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ark-asr-onnx\[eval\]'"):
        score("a", "a")


@pytest.mark.usefixtures("fresh_normalizer")
def test_the_normaliser_is_not_needed_when_nothing_is_normalised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "whisper_normalizer", None)
    assert counts(score("a b", "a c", normalize=False)) == (1, 2, 1, 2)


def test_the_normaliser_is_imported_without_its_warnings(tmp_path: Path) -> None:
    # Compiled anew, its invalid escape is a warning, and under -W error a SyntaxError.
    path = str(ROOT / "runtime")
    code = f"import sys; sys.path.insert(0, {path!r}); import ark_asr_onnx.corpus.scoring"
    options = ["-W", "error::SyntaxWarning", "-W", "error:invalid escape:DeprecationWarning"]
    call = "; ark_asr_onnx.corpus.scoring.normalizer('en')('a')"
    subprocess.run(
        [sys.executable, *options, "-X", f"pycache_prefix={tmp_path}", "-c", code + call],
        check=True,
    )
