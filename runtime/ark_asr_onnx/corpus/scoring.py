"""Error rates of hypotheses against references, for words and characters.

jiwer counts the errors. The normalisation is Whisper's (``whisper-normalizer``), as on the Open ASR
leaderboard, corrected where it would lose spoken words. Both come with the extra ``eval`` and are
imported at their first use. This module transcribes and reads nothing. Rates are in per cent,
differences of rates in percentage points.

Text without spaces between words is counted by characters, the rest by words, also within one
text: six Chinese characters and an English word are seven words. Korean has spaces, but is counted
by syllables, as in open-audio-opd's evaluation. Unlike there, words in the hypothesis for an empty
reference are errors: they are added to the errors, while the length of the reference is 0.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, cast

import numpy as np

from ..arrays import I64
from ..errors import MissingExtraError
from . import english

Interval: TypeAlias = tuple[float, float]  # 2.5th and 97.5th percentile of resampled rows

N_RESAMPLES = 1_000  # of the bootstrap
N_FLIPS = 10_000  # of the permutation test
_SEED = 0
_MAX_CELLS = 1 << 22  # random numbers drawn together: 32 MB

# Characters that count as words: of scripts without spaces between words, and of Korean.
_CHARACTER = (
    "[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # ideographs
    "\u3001-\u3003\u3008-\u3011\u3014-\u301f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
    "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3105-\u312f\u31a0-\u31bf"  # Mandarin's phonetic letters
    "\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\uac00-\ud7ff"  # hangul
    "\u0e01-\u0e4e\u0e81-\u0ece\u0edc-\u0edf"  # Thai, Lao
    "\u1000-\u103f\u1050-\u108f\u109a-\u109f\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17dd]"  # Khmer
)
_UNIT = re.compile(f"{_CHARACTER}|(?:(?!{_CHARACTER})\\S)+")
_BY_CHARACTER = re.compile(_CHARACTER)
_LATIN = re.compile(
    "[A-Za-z\u00aa\u00b5\u00ba\u00c0-\u02af\u1d00-\u1dbf\u1e00-\u1eff\u2c60-\u2c7f\ua720-\ua7ff]"
)
# Characters without a sound: formats such as joiners, variants of glyphs, Arabic's lengthening.
_UNHEARD = re.compile(
    "[\u00ad\u034f\u0640\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    "\U000e0000-\U000e0fff]"
)
_NO_LANGUAGE = ("und", "mul", "mis", "zxx")  # undetermined, several, uncoded, none
_DOTTED_I = {ord("İ"): "i", ord("I"): "\u0131"}  # of Turkish and Azerbaijani


@dataclass(frozen=True, slots=True)
class Score:
    """The errors of one row."""

    ref_clean: str  # the compared texts: after normalisation
    pred_clean: str
    wer_errors: int  # substitutions, deletions and insertions of words
    ref_words: int  # words of the reference, or characters of scripts without spaces
    cer_errors: int  # the same for characters, without spaces
    ref_chars: int


@dataclass(frozen=True, slots=True)
class Report:
    """The error rates of many rows: sum of errors over sum of reference lengths."""

    n_rows: int
    n_failed: int  # rows without a transcript, scored with an empty hypothesis
    wer: float  # per cent
    wer_interval: Interval
    cer: float  # per cent
    cer_interval: Interval
    ref_words: int
    wer_errors: int
    ref_chars: int
    cer_errors: int
    rtfx: float | None  # seconds of audio per second of work; None: nothing was transcribed


@dataclass(frozen=True, slots=True)
class Difference:
    """One system's error rate minus another's, on the same rows."""

    points: float  # percentage points; negative: the first system has fewer errors
    interval: Interval
    p_value: float  # two-sided; probability of such a difference if the systems were alike


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same rows."""

    n_rows: int
    wer: Difference
    cer: Difference
    n_better: int  # rows in which the first system has fewer word errors
    n_worse: int
    n_equal: int


def score(
    reference: str, hypothesis: str, language: str | None = None, normalize: bool = True
) -> Score:
    """The errors of a hypothesis: by words, or by characters in scripts without spaces.

    ``language`` determines the normalisation: a code such as ``en``, ``zho`` or ``pt-BR``, or a
    name such as ``German``. Without it, a reference whose words are all in Latin script counts as
    English. Raises :class:`ValueError` for an unknown language, :class:`MissingExtraError` without
    the extra ``eval``.
    """
    clean = normalizer("en" if language is None and _is_latin(reference) else language, normalize)
    ref_clean, pred_clean = clean(reference), clean(hypothesis)
    ref_chars, pred_chars = ref_clean.replace(" ", ""), pred_clean.replace(" ", "")
    ref_words, pred_words = _UNIT.findall(ref_clean), _UNIT.findall(pred_clean)
    try:
        import jiwer
    except ImportError as error:
        raise _missing("jiwer") from error
    chars = jiwer.process_characters(ref_chars, pred_chars)
    words = jiwer.process_words(" ".join(ref_words), " ".join(pred_words))
    return Score(
        ref_clean,
        pred_clean,
        words.substitutions + words.deletions + words.insertions,
        len(ref_words),
        chars.substitutions + chars.deletions + chars.insertions,
        len(ref_chars),
    )


@cache
def normalizer(language: str | None, normalize: bool = True) -> Callable[[str], str]:
    """A function that normalises texts of a language; None means any but English.

    Whisper's ``EnglishTextNormalizer``, see :mod:`english`; for other languages its
    ``BasicTextNormalizer``, which keeps combining marks, such as vowels and tones. White space is
    always stripped and collapsed; without ``normalize`` nothing else is done. Raises as
    :func:`score`.
    """
    code = None if language is None else _code(language)
    if not normalize:
        return _collapsed
    try:
        clean = english.normalizer() if code == "en" else _basic(code)
    except ImportError as error:
        raise _missing("whisper-normalizer") from error
    return lambda text: _collapsed(clean(text))


def _is_latin(text: str) -> bool:
    """Whether all words are in Latin script; a single letter, as in formulas, is no word."""
    if _BY_CHARACTER.search(text):
        return False
    for word in unicodedata.normalize("NFKC", text).split():
        letters = [c for c in word if unicodedata.category(c)[0] in "LM" and not _LATIN.match(c)]
        if len(letters) > 1:
            return False
    return True


def _basic(code: str | None) -> Callable[[str], str]:
    """Whisper's normaliser for every language but English."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in english.py
        from whisper_normalizer import basic  # pyright: ignore[reportMissingTypeStubs]
    clean = cast(Callable[[str], str], basic.BasicTextNormalizer(preserve_marks=True))
    table = _DOTTED_I if code in ("tr", "az") else {ord("İ"): "i"}  # lower() gives two characters
    return lambda text: clean(_UNHEARD.sub("", text).translate(table))


def _code(language: str) -> str | None:
    """The shortest ISO 639 code for a code, BCP 47 tag or name; None for no language."""
    try:
        import langcodes
    except ImportError as error:
        raise _missing("langcodes") from error
    tag = language.strip().replace("_", "-")
    try:
        found = langcodes.Language.get(tag) if langcodes.tag_is_valid(tag) else None
        found = found or langcodes.find(language if len(language) > 2 else "")
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"language {language!r} is unknown; give a code such as en, zho or pt-BR, or a name "
            "such as German"
        ) from error
    return None if found.language in _NO_LANGUAGE else found.language


def report(
    scores: Sequence[Score], audio_seconds: float, elapsed_seconds: float, n_failed: int = 0
) -> Report:
    """Error rates over all rows, with 95 % bootstrap intervals over rows.

    Failed rows must be in ``scores``, with an empty hypothesis; ``n_failed`` is their number.
    Raises :class:`ValueError` if no reference contains a word.
    """
    counts = _counts(scores)
    wer_errors, ref_words, cer_errors, ref_chars = (int(count) for count in counts.sum(axis=0))
    wer_interval, cer_interval = _intervals(counts)
    return Report(
        n_rows=len(scores),
        n_failed=n_failed,
        wer=100 * wer_errors / ref_words,
        wer_interval=wer_interval,
        cer=100 * cer_errors / ref_chars,
        cer_interval=cer_interval,
        ref_words=ref_words,
        wer_errors=wer_errors,
        ref_chars=ref_chars,
        cer_errors=cer_errors,
        rtfx=audio_seconds / elapsed_seconds if elapsed_seconds > 0 else None,
    )


def compare(ours: Sequence[Score], others: Sequence[Score]) -> Comparison:
    """``ours`` minus ``others`` on the same rows: the difference, its 95 % interval, its p-value.

    The interval is a paired bootstrap over rows. The p-value is that of a permutation test, which
    exchanges the systems in a random half of the rows. Raises :class:`ValueError` if the rows are
    not the same, or no reference contains a word.
    """
    if len(ours) != len(others):
        raise ValueError(f"{len(ours)} rows cannot be compared with {len(others)}: not the same")
    for number, (a, b) in enumerate(zip(ours, others, strict=True), start=1):
        if (a.ref_clean, a.ref_words) != (b.ref_clean, b.ref_words):
            raise ValueError(
                f"row {number} has the reference {a.ref_clean!r} ({a.ref_words} words) in one "
                f"system and {b.ref_clean!r} ({b.ref_words}) in the other; they must be the same"
            )
    differences = _counts(ours)
    differences[:, [0, 2]] -= _counts(others)[:, [0, 2]]
    wer_errors, ref_words, cer_errors, ref_chars = (int(n) for n in differences.sum(axis=0))
    wer_interval, cer_interval = _intervals(differences)
    wer_p, cer_p = _p_values(differences[:, [0, 2]])
    n_better, n_worse = int((differences[:, 0] < 0).sum()), int((differences[:, 0] > 0).sum())
    wer = Difference(100 * wer_errors / ref_words, wer_interval, wer_p)
    cer = Difference(100 * cer_errors / ref_chars, cer_interval, cer_p)
    return Comparison(len(ours), wer, cer, n_better, n_worse, len(ours) - n_better - n_worse)


def row(record: Mapping[str, Any], score: Score) -> dict[str, Any]:
    """A row in open-audio-opd's format: the record's keys, then its texts and counts."""
    return {
        **record,
        "ref_text": record["text"],
        "ref_text_clean": score.ref_clean,
        "pred_text_clean": score.pred_clean,
        "cer_errors": score.cer_errors,
        "wer_errors": score.wer_errors,
        "ref_words": score.ref_words,
        "ref_chars": score.ref_chars,
    }


def sort_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the most character errors first, then by word errors; ties keep their order."""
    return sorted(rows, key=lambda row: (row["cer_errors"], row["wer_errors"]), reverse=True)


def summary(report: Report) -> str:
    """A report in lines for people."""
    failed = f", {report.n_failed} of them failed" if report.n_failed else ""
    wer, cer = ("{:.1f} to {:.1f}".format(*i) for i in (report.wer_interval, report.cer_interval))
    return (
        f"{report.n_rows} rows{failed}, {report.ref_words} words, {report.ref_chars} characters\n"
        f"WER {report.wer:.2f} % (95 %: {wer})\n"
        f"CER {report.cer:.2f} % (95 %: {cer})"
    ) + ("" if report.rtfx is None else f"\nRTFx {report.rtfx:.2f}")


def comparison_summary(comparison: Comparison, names: tuple[str, str]) -> str:
    """A comparison in lines for people; ``names`` are those of the two systems."""
    ours, other = names
    equal = f"{comparison.n_equal} of {comparison.n_rows} rows equal"
    return (
        f"WER of {ours} minus {other}: {_difference(comparison.wer)}, {equal}\n"
        f"CER of {ours} minus {other}: {_difference(comparison.cer)}\n"
        f"fewer word errors: {ours} in {comparison.n_better} rows, {other} in {comparison.n_worse}"
    )


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _missing(name: str) -> MissingExtraError:
    return MissingExtraError(
        f"evaluating needs {name}, which is not installed: pip install 'ark-asr-onnx[eval]'"
    )


def _counts(scores: Sequence[Score]) -> I64:
    """``[n_rows, 4]``: word errors, words, character errors, characters."""
    rows = [(s.wer_errors, s.ref_words, s.cer_errors, s.ref_chars) for s in scores]
    counts = np.array(rows, np.int64).reshape(-1, 4)
    if not counts[:, 1].any():
        raise ValueError(f"no words in the references of {len(rows)} rows: there is no error rate")
    return counts


def _intervals(counts: I64) -> tuple[Interval, Interval]:
    """The 95 % bootstrap intervals of the word and the character error rate."""
    rng, n_rows = np.random.default_rng(_SEED), len(counts)
    sums: list[I64] = []
    for n_draws in _portions(N_RESAMPLES, n_rows):
        drawn = rng.integers(n_rows, size=(n_draws, n_rows)) + n_rows * np.arange(n_draws)[:, None]
        times = np.bincount(drawn.ravel(), minlength=n_draws * n_rows).reshape(n_draws, n_rows)
        sums.append(times @ counts)
    drawn_sums = np.concatenate(sums)
    # A draw that has only rows with empty references has no rate.
    wer_errors, ref_words, cer_errors, ref_chars = drawn_sums[drawn_sums[:, 1] > 0].T
    wer_low, wer_high = np.percentile(100 * wer_errors / ref_words, (2.5, 97.5))
    cer_low, cer_high = np.percentile(100 * cer_errors / ref_chars, (2.5, 97.5))
    return (float(wer_low), float(wer_high)), (float(cer_low), float(cer_high))


def _p_values(differences: I64) -> tuple[float, float]:
    """The p-values of both columns' sums of ``[n_rows, 2]``, by exchange of the systems."""
    differences = differences[differences.any(axis=1)]  # other rows contribute nothing
    observed, rng, n_extreme = differences.sum(axis=0), np.random.default_rng(_SEED), np.zeros(2)
    for n_draws in _portions(N_FLIPS, len(differences)):
        kept = rng.integers(2, size=(n_draws, len(differences)))
        n_extreme += (abs(2 * kept @ differences - observed) >= abs(observed)).sum(axis=0)
    wer_p, cer_p = (1 + n_extreme) / (1 + N_FLIPS)
    return float(wer_p), float(cer_p)


def _portions(n_draws: int, n_rows: int) -> Iterator[int]:
    size = max(1, _MAX_CELLS // max(1, n_rows))
    for start in range(0, n_draws, size):
        yield min(size, n_draws - start)


def _difference(difference: Difference) -> str:
    # Adding zero turns -0.0 into 0.0.
    points, low, high = (round(x, 2) + 0.0 for x in (difference.points, *difference.interval))
    p = "p < 0.001" if difference.p_value < 0.001 else f"p = {difference.p_value:.2g}"
    return f"{points:+.2f} points (95 %: {low:+.2f} to {high:+.2f}), {p}"
