"""Words that are expected: how they are spelled, when they are preferred, and when they are not.

The model of the search is a double that says for each text what may follow; its words are tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from conftest import DEMO, SPEECH, Sample

import ark_asr_onnx
from ark_asr_onnx import Options, RecordsError, Transcriber
from ark_asr_onnx.arrays import F32
from ark_asr_onnx.commands import cli
from ark_asr_onnx.corpus.batch import run_batch
from ark_asr_onnx.decoding import greedy, second_look
from ark_asr_onnx.decoding.greedy import Rules
from ark_asr_onnx.decoding.hotwords import Found, Hotwords, checked, spellings
from ark_asr_onnx.decoding.second_look import HotwordUtterance
from ark_asr_onnx.package.contract import Tokens
from ark_asr_onnx.package.text import Text

TOKENS = [
    *(" kai", " guy", " said", " said", "ser", " müller", " miller", " hello", "山", "田", "中"),
    *(" ", " Kai", "kai", " KAI", "blocked", "\N{REPLACEMENT CHARACTER}", "<end>", "<stop>"),
]
KAI, GUY, SAID, SAID_TOO, SER, MÜLLER, MILLER, HELLO = range(8)
YAMA, TA, NAKA = range(8, 11)
UPPER_KAI, BLOCKED, HALF, EOS, STOP = 12, 15, 16, 17, 18
N = len(TOKENS)
CONTROL = Tokens((0,), 1, (2,), (EOS,), (EOS, STOP), ((BLOCKED, BLOCKED), (STOP, STOP)), N)
MASK = greedy.token_mask(CONTROL, N)
STRENGTH = 2.0


class Words:
    """A tokenizer whose tokens are words; a text that has none of them is blocked."""

    def token_bytes(self, ids: Sequence[int]) -> bytes:
        return b"\xd0" if list(ids) == [HALF] else "".join(TOKENS[i] for i in ids).encode()

    def encode(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        while text:
            longest = max((t for t in TOKENS if text.startswith(t)), key=len, default=None)
            if longest is None:
                return (BLOCKED,)
            ids.append(TOKENS.index(longest))
            text = text[len(longest) :]
        return tuple(ids)


class Letters:
    """A tokenizer whose tokens are bytes."""

    def token_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(ids)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())


CONTROL_OF_LETTERS = Tokens((256,), 257, (258,), (259,), (259, 260), ((261, 261),), 262)
MASK_OF_LETTERS = greedy.token_mask(CONTROL_OF_LETTERS, 262)


def trie(*phrases: str) -> Hotwords:
    return Hotwords(checked(phrases), cast("Text", Words()), CONTROL, MASK)


class Model:
    """A slot of a model that finds the texts in ``likely`` likely, each by its log-probability.

    What follows a text is as likely as the texts that go on with it, from the likeliest of them
    on; what follows any other is the end.
    """

    def __init__(self, likely: dict[tuple[int, ...], float]) -> None:
        self.after: dict[tuple[int, ...], dict[int, float]] = {}
        for text, value in likely.items():
            for n in range(len(text)):
                # The whole value is at the first token in which a text is alone.
                shared = any(text[: n + 1] == other[: n + 1] for other in likely if other != text)
                tokens = self.after.setdefault(text[:n], {})
                alone_before = n and not any(
                    text[:n] == other[:n] for other in likely if other != text
                )
                logit = 0.0 if shared or alone_before else value
                tokens[text[n]] = max(tokens.get(text[n], -np.inf), logit)
        self.read: list[int] = []
        self.n_steps = 0

    def logits(self) -> F32:
        values = np.full(N, -30, np.float32)
        for token, logit in self.after.get(tuple(self.read), {EOS: 0.0}).items():
            values[token] = logit
        return values

    def run(self, utterance: greedy.Utterance) -> greedy.Utterance:
        utterance.choose(self.logits())
        while utterance.finish_reason is None:
            self.n_steps += 1
            del self.read[len(self.read) - utterance.n_back :]
            self.read.append(utterance.next_id)
            utterance.choose(self.logits())
        return utterance


def hear(
    likely: dict[tuple[int, ...], float], *phrases: str, strength: float = STRENGTH, **guards: Any
) -> greedy.Utterance:
    """What is written, of the texts that are likely, where phrases are expected."""
    limit = guards.pop("max_new_tokens", 50)
    utterance = HotwordUtterance(Rules(CONTROL, MASK, limit, **guards), trie(*phrases), strength)
    return Model(likely).run(utterance)


def plain(likely: dict[tuple[int, ...], float], **guards: Any) -> greedy.Utterance:
    return Model(likely).run(greedy.Utterance(Rules(CONTROL, MASK, 50, **guards)))


# What is given -----------------------------------------------------------------------------------


def test_phrases_are_taken_once_with_one_space_between_words() -> None:
    given = ["Kai  Müller ", "Kai Mu\u0308ller", "GPU", "gpu", "\tC++\n"]
    assert checked(given) == ("Kai Müller", "GPU", "gpu", "C++")
    assert Options(hotwords=cast("Any", given)).hotwords == checked(given)
    assert Options().hotwords == ()
    assert checked({"b", "a", "c"}) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("Kai, Guy", r"^hotwords is one str, must be a list of phrases$"),
        ([b"Kai"], r"^hotwords has b'Kai', must have words and phrases$"),
        ([""], r"^hotwords has '', which has no letters; leave it out$"),
        (["Kai", "--"], r"^hotwords has '--', which has no letters; leave it out$"),
        (["a\x00b"], r"^hotwords has 'a\\x00b', which is no text; leave it out$"),
        (["\udce4"], r"^hotwords has '\\udce4', which is no text; leave it out$"),
        (["k" * 101], r"^hotwords has a phrase of 101 characters \('k{20}'…\), may have 100; give"),
        (["a" + "\u0301" * 99_999], r"^hotwords has a phrase of 100000 characters"),
        ([f"{i:0>99}" for i in range(203)], r"^hotwords has 20097 characters in all, may have 2"),
        (None, r"^hotwords is one NoneType, must be a list of phrases$"),
        (map(str, range(1001)), r"^hotwords has 1001 phrases, may have 1000; keep those that are"),
    ],
)
def test_what_are_no_phrases_is_refused(given: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Options(hotwords=given)


@pytest.mark.parametrize("strength", [0, -1, float("nan"), float("inf"), "2"])
def test_the_strength_is_a_positive_number(strength: Any) -> None:
    with pytest.raises(ValueError, match=r"hotword_strength is .*, must be a positive number"):
        Options(hotword_strength=strength)
    with pytest.raises(ValueError, match=r"^hotword_strength is 20\.5, may be at most 20; with"):
        Options(hotword_strength=20.5)


def test_spellings_have_a_space_before_them_or_none_and_the_usual_cases() -> None:
    assert spellings("Kai") == (" Kai", "Kai", " kai", "kai", " KAI", "KAI")
    assert [way for way in spellings("new york") if way[0] != " "] == [
        "new york", "New york", "New York",
    ]  # fmt: skip
    assert "Ljubljana" in spellings("LJUBLJANA")
    assert "KUBERNETES" not in spellings("kubernetes")
    assert "McDonald" in spellings("McDonald")
    assert "Jean-Luc" in spellings("jean-luc")


# The trie ----------------------------------------------------------------------------------------


def test_phrases_are_found_as_whole_words_the_longest_first() -> None:
    found = trie("Kai", "Kai Müller")
    assert found.found([HELLO, KAI, SAID]) == [Found(1, 2, 1)]
    assert found.found([KAI, MÜLLER, KAI, EOS]) == [Found(0, 2, 2), Found(2, 3, 1)]
    assert found.found([KAI, MILLER]) == [Found(0, 1, 1)]
    assert found.found([KAI, SER]) == []
    assert found.found([HELLO, 13]) == []  # hellokai
    assert found.found([13, SAID]) == [Found(0, 1, 1)]
    assert found.found([]) == []


def test_scripts_without_spaces_have_words_everywhere() -> None:
    found = trie("田中")
    assert found.found([YAMA, TA, NAKA, YAMA]) == [Found(1, 3, 1)]
    assert found.found([HALF, TA, NAKA, HALF]) == [Found(1, 3, 1)]


def test_korean_particles_may_follow_a_phrase_but_it_begins_a_word() -> None:
    korean = Hotwords(["서울"], cast("Text", Letters()), CONTROL_OF_LETTERS, MASK_OF_LETTERS)
    assert korean.found(Letters().encode("서울에서")) == [Found(0, 6, 1)]
    assert korean.found(Letters().encode("이서울")) == []


def test_characters_in_parts_are_found_between_others_in_parts() -> None:
    chinese = Hotwords(["黎曼"], cast("Text", Letters()), CONTROL_OF_LETTERS, MASK_OF_LETTERS)
    assert chinese.found(Letters().encode("是黎曼的")) == [Found(3, 9, 1)]
    russian = Hotwords(["дом"], cast("Text", Letters()), CONTROL_OF_LETTERS, MASK_OF_LETTERS)
    assert russian.found(Letters().encode("дом")) == [Found(0, 6, 1)]
    assert russian.found(Letters().encode("дома")) == []


def test_half_a_character_belongs_to_the_word_beside_it() -> None:
    assert trie("Kai").found([KAI, HALF]) == []
    assert trie("Kai").found([HALF, 13]) == []


@pytest.mark.parametrize("phrase", ["unwritten", "blocked", "kai blocked"])
def test_what_the_model_may_not_write_is_refused_by_name(phrase: str) -> None:
    with pytest.raises(ValueError, match=f"^hotwords has '{phrase}', which this model may not"):
        trie("kai", phrase)


def test_control_tokens_are_no_phrase() -> None:
    text = Text(DEMO)
    manifest = ark_asr_onnx.open_package(DEMO).manifest
    mask = greedy.token_mask(manifest.tokens, manifest.sizes.n_logits)
    for phrase in ("<|im_end|>", "<|user|>", "a <|im_end|>"):
        with pytest.raises(ValueError, match="which this model may not write"):
            Hotwords([phrase], text, manifest.tokens, mask)


# The second look ---------------------------------------------------------------------------------

GUY_SAID, KAI_SAID = (HELLO, GUY, SAID, EOS), (HELLO, KAI, SAID, EOS)


def test_without_a_phrase_nearby_the_text_is_that_of_greedy_decoding() -> None:
    likely = {GUY_SAID: 0.0, KAI_SAID: -1.0}
    found, expected = hear(likely, "müller"), plain(likely)
    assert (found.ids, found.logprobs) == (expected.ids, expected.logprobs)
    assert (found.finish_reason, found.n_kept) == ("stop", 4)


def test_a_phrase_is_preferred_within_its_strength() -> None:
    for lag in (0.5, 1.9):
        assert tuple(hear({GUY_SAID: 0.0, KAI_SAID: -lag}, "Kai").ids) == KAI_SAID
    for lag in (2.1, 2.9, 9.0):
        assert tuple(hear({GUY_SAID: 0.0, KAI_SAID: -lag}, "Kai").ids) == GUY_SAID
    assert tuple(hear({GUY_SAID: 0.0, KAI_SAID: -4.9}, "Kai", strength=5).ids) == KAI_SAID


def test_log_probabilities_are_those_of_the_model() -> None:
    found = hear({GUY_SAID: 0.0, KAI_SAID: -1.5}, "Kai")
    lag = -np.log1p(np.exp(-1.5)) - 1.5
    assert found.logprobs == pytest.approx([0, lag, 0, 0], abs=1e-6)


def test_a_phrase_that_is_not_finished_is_taken_back() -> None:
    likely = {
        GUY_SAID: 0.0,
        (HELLO, KAI, MILLER, SAID, EOS): -0.5,
    }
    found, expected = hear(likely, "Kai Müller"), plain(likely)
    assert (found.ids, found.logprobs) == (expected.ids, expected.logprobs)


def test_a_phrase_is_no_part_of_a_word() -> None:
    kaiser = (HELLO, KAI, SER, SAID, EOS)
    assert tuple(hear({GUY_SAID: 0.0, kaiser: -0.5}, "Kai").ids) == GUY_SAID
    assert tuple(hear({GUY_SAID: 0.0, kaiser: -0.5}, "Kaiser").ids) == kaiser


def test_a_phrase_at_the_begin_and_at_the_end() -> None:
    begin, end = (KAI, SAID, EOS), (HELLO, KAI, EOS)
    assert tuple(hear({(GUY, SAID, EOS): 0.0, begin: -1.0}, "Kai").ids) == begin
    assert tuple(hear({(HELLO, GUY, EOS): 0.0, end: -1.0}, "Kai").ids) == end
    assert tuple(hear({(HELLO, EOS): 0.0, end: -1.0}, "Kai").ids) == end


def test_what_follows_speaks_for_a_phrase_or_against_it() -> None:
    model = Model({GUY_SAID: 0.0, KAI_SAID: -2.5})
    model.after[(HELLO, GUY)] = {SAID: 0.0, SAID_TOO: 0.0}  # 0.7 nats less likely than it looked
    utterance = HotwordUtterance(Rules(CONTROL, MASK, 50), trie("Kai"), STRENGTH)
    assert tuple(model.run(utterance).ids) == KAI_SAID
    model = Model({GUY_SAID: 0.0, KAI_SAID: -1.5})
    model.after[(HELLO, KAI)] = {SAID: 0.0, SAID_TOO: 0.0}
    utterance = HotwordUtterance(Rules(CONTROL, MASK, 50), trie("Kai"), STRENGTH)
    assert tuple(model.run(utterance).ids) == GUY_SAID


def test_where_two_phrases_are_near_the_model_decides() -> None:
    likely = {GUY_SAID: 0.0, KAI_SAID: -0.5}
    assert tuple(hear(likely, "Kai", "guy").ids) == GUY_SAID
    three = {**likely, (HELLO, MILLER, SAID, EOS): -0.3}
    assert tuple(hear(three, "Kai", "Miller").ids) == (HELLO, MILLER, SAID, EOS)


def test_each_word_of_a_phrase_counts() -> None:
    both = (HELLO, KAI, MÜLLER, EOS)
    likely = {(HELLO, GUY, MILLER, EOS): 0.0, both: -2.9}
    assert tuple(hear(likely, "Kai").ids) == (HELLO, GUY, MILLER, EOS)
    assert tuple(hear(likely, "Kai Müller").ids) == both


def test_a_phrase_goes_on_where_the_text_left_it() -> None:
    both = (HELLO, KAI, MÜLLER, EOS)
    assert tuple(hear({(HELLO, KAI, MILLER, EOS): 0.0, both: -1.0}, "Kai Müller").ids) == both


def test_several_phrases_of_a_text_are_found() -> None:
    texts = {(a, SAID, b, EOS): 0.0 for a in (KAI, GUY) for b in (MÜLLER, MILLER)}
    model = Model(texts)
    model.after[()] = {GUY: 0.0, KAI: -1.0}
    for first in (GUY, KAI):
        model.after[(first, SAID)] = {MILLER: 0.0, MÜLLER: -1.0}
    utterance = HotwordUtterance(Rules(CONTROL, MASK, 50), trie("Kai", "Müller"), STRENGTH)
    assert model.run(utterance).ids == [KAI, SAID, MÜLLER, EOS]


def test_what_comes_behind_the_meeting_counts_too() -> None:
    """Both texts say hello twice, but only one of them goes on as likely as before."""
    text = (GUY, HELLO, HELLO, SAID, EOS)
    model = Model({text: 0.0})
    model.after[()] = {GUY: 0.0, KAI: -0.5}
    model.after |= {(KAI,): {HELLO: 0.0}, (KAI, HELLO): {HELLO: 0.0}}
    flat = dict.fromkeys((GUY, MILLER, SER, SAID, YAMA, TA, NAKA), 0.0)
    model.after[(KAI, HELLO, HELLO)] = flat
    assert np.log(len(flat)) + 0.5 < 2.5
    for strength, expected in ((1.0, text), (2.5, (KAI, HELLO, HELLO, GUY, EOS))):
        model.read = []
        utterance = HotwordUtterance(Rules(CONTROL, MASK, 50), trie("Kai"), strength)
        assert tuple(model.run(utterance).ids) == expected


def test_any_case_that_the_model_writes_will_do() -> None:
    upper = (HELLO, UPPER_KAI, SAID, EOS)
    assert tuple(hear({GUY_SAID: 0.0, upper: -1.0}, "kai").ids) == upper


def test_a_text_that_did_not_end_is_left_for_the_retry() -> None:
    model = Model({})
    model.after = {(GUY,) * n: {GUY: 0.0, KAI: -0.5} for n in range(60)}
    for max_repeats, reason in ((5, "loop"), (None, "length")):
        model.read, model.n_steps = [], 0
        utterance = HotwordUtterance(Rules(CONTROL, MASK, 40, max_repeats), trie("Kai"), STRENGTH)
        model.run(utterance)
        assert utterance.finish_reason == reason
        assert set(utterance.ids) == {GUY}
        assert model.n_steps == len(utterance.ids) - 1


def test_a_phrase_that_leads_nowhere_is_not_taken() -> None:
    for limit in (3, 4, 5):
        model = Model({(GUY, SAID, EOS): 0.0})
        model.after[()] = {GUY: 0.0, KAI: -0.5}
        model.after |= {(KAI, *(MILLER,) * n): {MILLER: 0.0} for n in range(60)}
        utterance = HotwordUtterance(Rules(CONTROL, MASK, limit), trie("Kai"), STRENGTH)
        assert model.run(utterance).ids == [GUY, SAID, EOS]


def test_an_empty_text_may_be_a_phrase_and_may_be_forbidden() -> None:
    likely = {(EOS,): 0.0, (KAI, EOS): -1.0}
    assert hear(likely, "Kai").ids == [KAI, EOS]
    assert hear(likely, "Kai", strength=0.5).ids == [EOS]
    assert hear({(EOS,): 0.0, (KAI, EOS): -9.0}, "Guy", forbid_empty=True).ids == [KAI, EOS]


def test_the_work_is_bounded() -> None:
    """Every word may be any of twenty phrases, none of which fits."""
    text = [HELLO] * 9 + [EOS]
    model = Model({tuple(text): 0.0})
    near = dict.fromkeys((KAI, GUY, MÜLLER, MILLER, UPPER_KAI, SER), -0.1)
    for n in range(10):
        model.after[tuple(text[:n])] |= near
    greedy_steps = len(text) - 1
    heads = ["kai", "guy", "müller", "miller"]
    phrases = [f"{head} {more} said" for head in heads for more in heads]
    utterance = model.run(HotwordUtterance(Rules(CONTROL, MASK, 50), trie(*phrases), STRENGTH))
    assert utterance.ids == text
    most = second_look._STEPS * len(text) + second_look._FREE_STEPS
    # The last of them may go back to the begin of the text.
    assert greedy_steps < model.n_steps <= greedy_steps + most + len(text)


# On real clips -----------------------------------------------------------------------------------

# Words that none of the demo's samples has: those that it knows, and names.
KNOWN = """
    august sixteenth seventeen seventh tenth twentieth thirteenth fifteenth second fourth january
    october november september july april zero ten eleven twelve seventy yes no erase start left
    follow forward backward visual marvin sheila tree house happy wow dog cat bird bed learn
"""
NAMES = [
    f"{first}{last}" for first in ("Kuber", "Ljubl", "Ingol", "Przemy", "Szcze", "Mül")
    for last in ("netes", "jana", "stadt", "śl", "cin", "ler", "gorod", "vik", "ham", "ton")
]  # fmt: skip
UNSAID = (*KNOWN.split(), *NAMES)


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    return ark_asr_onnx.load(DEMO, threads=1)


def test_a_hundred_words_that_were_not_said_do_not_appear(
    transcriber: Transcriber, samples: list[Sample]
) -> None:
    assert len(set(UNSAID)) >= 100
    assert not {word for sample in samples for word in sample.text.split()} & set(UNSAID)
    options = Options(hotwords=UNSAID)
    for sample in samples:
        expected = transcriber.transcribe(sample.path)
        found = transcriber.transcribe(sample.path, options=options)
        assert found.text == expected.text == sample.text
        assert (found.token_ids, found.logprobs) == (expected.token_ids, expected.logprobs)


def test_times_of_words_are_those_without_a_second_look(
    transcriber: Transcriber, samples: list[Sample]
) -> None:
    options = Options(hotwords=("seven", *UNSAID), hotword_strength=6)
    for sample in samples:
        expected = transcriber.transcribe(sample.path, words=True).segments
        found = transcriber.transcribe(sample.path, options=options, words=True).segments
        if found[0].token_ids == expected[0].token_ids:
            assert found[0].words == expected[0].words
        assert " ".join(word.text for word in found[0].words) == found[0].text


def test_lines_with_and_without_hotwords_share_the_slots(
    transcriber: Transcriber, samples: list[Sample]
) -> None:
    """A strength at which texts change, so that slots go back while others go on."""
    options = Options(hotwords=UNSAID, hotword_strength=12)
    paths = [sample.path for sample in samples]
    alone = [transcriber.transcribe(path, options=options).token_ids for path in paths]
    plainly = [transcriber.transcribe(path).token_ids for path in paths]
    assert alone != plainly
    jobs = [transcriber.submit(path, options=how) for path in paths for how in (options, Options())]
    found = [job.result().token_ids for job in jobs]
    assert found[::2] == alone
    assert found[1::2] == plainly


@pytest.mark.skipif(not SPEECH.is_dir(), reason="no speech beside the repository")
def test_a_word_that_was_misheard_is_heard(transcriber: Transcriber) -> None:
    clip = SPEECH / "sentences" / "dev" / "an4-ftmj" / "cen8-ftmj-b.flac"
    misheard = "june i thirty f nineteen sixty five"
    assert transcriber.transcribe(clip).text == misheard
    options = Options(hotwords=("July", "thirtieth", "Kubernetes"))
    assert (
        transcriber.transcribe(clip, options=options).text == "july thirtieth nineteen sixty five"
    )
    both = replace(options, hotwords=(*options.hotwords, *misheard.split()))
    assert transcriber.transcribe(clip, options=both).text == misheard


def test_what_may_be_written_is_told_before_any_audio(transcriber: Transcriber) -> None:
    for options in (Options(hotwords=("<|user|>",)), Options(hotwords=("go",), block_from_id=0)):
        for call in (transcriber.transcribe, transcriber.stream, transcriber.submit):
            with pytest.raises(ValueError, match="which this model may not write; leave it out"):
                call("absent.wav", options=options)
        with pytest.raises(ValueError, match="which this model may not write; leave it out"):
            transcriber.check(options)
    transcriber.check(Options(hotwords=("go",)))


# Forgetting --------------------------------------------------------------------------------------


def check_rewinding(folder: Path) -> None:
    """A slot that forgot what it read goes on as if it had never read it."""
    model = ark_asr_onnx.load(folder, threads=1).model
    n_slots = min(2, model.max_slots)
    audio = model.encode(np.zeros((1, 80, 200), np.float32))
    known, tried = [5, 6], [7, 8, 9]
    decoding = model.start(n_slots, model.n_prompt(200) + 9)
    for slot in range(n_slots):
        decoding.prefill(slot, audio)

    def step(token: int) -> F32:
        return decoding.step(np.full(n_slots, token)).copy()

    for token in known:
        step(token)
    expected = [step(token) for token in tried]
    for n_back in (3, 2):
        for slot in range(n_slots):
            decoding.rewind(slot, n_back)
        for token, logits in zip(tried[3 - n_back :], expected[3 - n_back :], strict=True):
            np.testing.assert_array_equal(step(token), logits)


def test_a_slot_forgets(demo_package_of_each_layout: Path) -> None:
    check_rewinding(demo_package_of_each_layout)


# Commands and batches ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["Kubernetes\nKai Müller\n", "\N{BYTE ORDER MARK}Kubernetes\r\n\r\nKai Müller"]
)
def test_hotwords_come_with_commas_or_from_a_file(
    content: str,
    samples: list[Sample],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content.encode())
    seen: list[Options] = []
    check = Transcriber.check

    def note(self: Transcriber, options: Options) -> None:
        seen.append(options)
        check(self, options)

    monkeypatch.setattr(Transcriber, "check", note)
    clip = str(samples[0].path)
    for given in (["Kubernetes, Kai  Müller,"], [f"@{path}"], ["Kubernetes", "Kai Müller"]):
        flags = [part for text in given for part in ("--hotwords", text)]
        flags += ["--hotword-strength", "1.5"]
        assert cli.main(["transcribe", "--model", str(DEMO), *flags, clip]) == 0
        assert capsys.readouterr().out == f"{samples[0].text}\n"
    expected = Options(hotwords=("Kubernetes", "Kai Müller"), hotword_strength=1.5)
    assert set(seen) == {expected}


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--hotwords", "@absent.txt"], "absent.txt: cannot be read (No such file or directory)"),
        (["--hotwords", "@~nobody-of-this-name/x"], "nobody-of-this-name/x: cannot be read ("),
        (["--hotwords", "@."], ".: cannot be read (Is a directory)"),
        (["--hotwords", "@latin.txt"], "latin.txt: cannot be read (not UTF-8 text)"),
        (["--hotwords", "@large.txt"], "large.txt: more than 1048576 bytes"),
        (["--hotwords", "@empty.txt"], "'@empty.txt' has no words; leave the option out"),
        (["--hotwords", " , "], "' , ' has no words; leave the option out"),
        (["--hotwords", "a,--"], "hotwords has '--', which has no letters; leave it out"),
        (["--hotwords", "go,<|user|>"], "--hotwords: hotwords has '<|user|>', which this model"),
        (["--hotwords", "go", "--hotword-strength", "0"], "'0': must be positive, and at most 20"),
        (["--hotwords", "go", "--hotword-strength", "21"], "'21': must be positive, and at most"),
        (["--hotword-strength", "2"], "--hotword-strength needs --hotwords"),
    ],
)
def test_hotwords_that_cannot_be_are_wrong_usage(
    flags: list[str],
    complaint: str,
    samples: list[Sample],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("Müller".encode("latin-1"))
    Path("large.txt").write_bytes(b"word\n" * 300_000)
    Path("empty.txt").write_bytes(b"\n\n")
    records = tmp_path / "in.jsonl"
    records.write_text(json.dumps({"audio": str(samples[0].path), "text": "x"}))
    for command in (
        ["transcribe", "--model", str(DEMO), str(samples[0].path)],
        ["batch", "--model", str(DEMO), "--input", str(records), "--output", "out.jsonl"],
    ):
        try:
            status = cli.main([*command, *flags])
        except SystemExit as end:
            status = end.code
        assert status == 2
        assert complaint in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_a_batch_goes_on_with_the_same_hotwords_only(samples: list[Sample], tmp_path: Path) -> None:
    records, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records.write_text(json.dumps({"audio": str(samples[0].path)}))

    def run(*hotwords: str, **options: Any) -> None:
        run_batch(
            lambda: ark_asr_onnx.load(DEMO, threads=1), records, output,
            options=Options(hotwords=hotwords, **options),
        )  # fmt: skip

    run("Kubernetes", "Kai Müller")
    before = output.read_bytes()
    run("Kubernetes", "Kai Müller")
    assert output.read_bytes() == before
    for others, complaint in [
        ((), r'another hotwords \(\["Kubernetes", "Kai Müller"\], now \[\]\)'),
        (("Kubernetes", "Kai Möller"), r'now \["Kubernetes", "Kai Möller"\]\)'),
        (UNSAID, r'now \["august", "sixteenth".{30,40}…\);'),
    ]:
        with pytest.raises(RecordsError, match=complaint):
            run(*others)
    with pytest.raises(RecordsError, match="another hotword_strength"):
        run("Kubernetes", "Kai Müller", hotword_strength=0.5)


def test_a_batch_from_before_there_were_hotwords_goes_on_without_them(
    samples: list[Sample], tmp_path: Path
) -> None:
    records, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    records.write_text(json.dumps({"audio": str(samples[0].path)}))

    def run(**options: Any) -> None:
        run_batch(
            lambda: ark_asr_onnx.load(DEMO, threads=1), records, output, options=Options(**options)
        )

    run()
    meta = output.with_name(f"{output.name}.meta")
    gone = r'(, )?"hotwords": \[\]|(, )?"hotword_strength": [\d.]+'
    older = re.sub(gone, "", meta.read_text("utf-8"))
    assert '"hotword' not in older
    meta.write_text(older)
    run(hotword_strength=1.0)  # which has no effect
    meta.write_text(older)
    with pytest.raises(RecordsError, match=r'another hotwords \(\[\], now \["Kai"\]\)'):
        run(hotwords=("Kai",))


def test_options_with_hotwords_are_values() -> None:
    options = Options(hotwords=("a", "b"))
    assert hash(options) == hash(replace(Options(), hotwords=["a", "b"]))
    assert options == replace(Options(), hotwords=["a", "b"])
    assert type(Options(hotword_strength=cast("Any", np.float32(1.5))).hotword_strength) is float
