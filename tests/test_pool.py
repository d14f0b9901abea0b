"""Windows to segments: in order, in any number of slots, doubtful ones again, many lines at once.

The model is a double that says what a script has for the length of the window.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from ark_asr_onnx import ArkError, DecodeError, Options, PackageError, Segment, Splitting
from ark_asr_onnx.audio.split import Window
from ark_asr_onnx.decoding import line, slots
from ark_asr_onnx.decoding.clock import Clock, timings
from ark_asr_onnx.decoding.job import feed
from ark_asr_onnx.decoding.line import CancelledError, End, Result, Task
from ark_asr_onnx.decoding.pool import Pool
from ark_asr_onnx.model.resident import Resident
from ark_asr_onnx.package.contract import Tokens

F32 = np.ndarray
RATE = 16000
N, EOS, HIDDEN = 40, 39, 4
TOKENS = Tokens((30,), 31, (32,), (EOS,), (EOS,), ((30, 38),), 38)
SIZES = SimpleNamespace(n_mels=8, merge_factor=4, n_logits=N, max_seconds=30.0)
WORDS: Any = SimpleNamespace(
    decode=lambda ids: " ".join("." if i == EOS else chr(97 + i) for i in ids)
)
HOT = 0.5  # level of a window that is all speech


class Double:
    """A decoder whose slots say what the script has for the prompt that they hold."""

    capacity = 5000
    can_align = False

    def __init__(self, scripts: dict[int, list[int]], max_slots: int = 64) -> None:
        self.scripts, self.max_slots = scripts, max_slots
        self.batches: list[int] = []  # slots of each step
        self.n_encoded: list[int] = []  # frames of each window
        self.slots: list[list[int] | None] = []
        self.may_start = threading.Event()

    def start(self, slots: int, positions: int) -> Double:
        assert 0 < positions <= self.capacity
        assert self.may_start.wait(5)
        self.slots = [None] * slots
        return self

    def encode(self, log_mel: F32) -> F32:
        n_frames = log_mel.shape[2]
        self.n_encoded.append(n_frames)
        return np.full((1, max(1, (n_frames + 1) // 2 // 4), HIDDEN), n_frames, np.float32)

    def _logits(self, slot: int) -> F32:
        script = self.slots[slot]
        assert script is not None
        values = np.zeros(N, np.float32)
        best = script.pop(0) if script else EOS
        if best < 0:
            return np.full(N, np.nan, np.float32)
        values[best], values[7] = 9, 5
        return values

    def n_prompt(self, n_frames: int) -> int:
        return 2 + max(1, (n_frames + 1) // 2 // 4)

    def prefill(self, slot: int, audio_embeds: F32) -> F32:
        self.slots[slot] = list(self.scripts[int(audio_embeds[0, 0, 0])])
        return self._logits(slot)

    def step(self, ids: np.ndarray) -> F32:
        self.batches.append(len(ids))
        return np.stack([self._logits(slot) for slot in range(len(ids))])

    def align(self, slot: int, ids: np.ndarray, n_audio: int) -> F32:
        raise AssertionError(slot, ids, n_audio)

    def move(self, source: int, target: int) -> None:
        self.slots[target], self.slots[source] = self.slots[source], None

    def rewind(self, slot: int, n: int) -> None:
        raise AssertionError(f"{n} ids of {slot} taken back, nothing is expected")


@pytest.fixture
def is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """All windows wait before the first is admitted, and are admitted before the first step."""
    monkeypatch.setattr(line, "_AHEAD", 100)
    monkeypatch.setattr(slots, "_SHARE", 0.0)


class Caller:
    """A pool, and how one caller uses it."""

    def __init__(
        self, double: Double, slots: int = 4, splitting: Splitting | None = None, **options: Any
    ) -> None:
        manifest = SimpleNamespace(tokens=TOKENS, sizes=SIZES)
        self.double, self.is_filled = double, line._AHEAD > 2
        self.pool = Pool(Resident(lambda: double), cast("Any", manifest), WORDS)
        self.options, self.slots = Options(**options), slots
        self.splitting = splitting or Splitting(vad=None)

    def run(self, items: Iterable[Task | End]) -> Iterator[Result]:
        """Results of a line of its own."""

        def all_items() -> Generator[Task | End]:
            yield from items
            self.double.may_start.set()

        if not self.is_filled:
            self.double.may_start.set()
        own = self.pool.open(self.options, self.splitting, self.slots)
        try:
            feed(own, all_items())
            while (result := own.take()) is not None:
                yield result
        finally:
            own.cancel()


engine = Caller


def window(n_frames: int, start: float = 0.0, *, speech: float | None = None) -> Task:
    waveform = np.random.default_rng(n_frames).standard_normal(n_frames * 160).astype(np.float32)
    end = start + n_frames / 100
    spans = None if speech is None else ((start, start + speech),)
    return Task(Window(waveform, start, start, end, spans), Clock())


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def texts(results: Iterable[object]) -> list[str]:
    return [result.text for result in results if isinstance(result, Segment)]


@pytest.mark.usefixtures("is_filled")
def test_results_come_in_the_order_of_the_windows() -> None:
    scripts = {100 + i: [i] * (20 - 2 * i) + [EOS] for i in range(8)}
    expected = [" ".join([chr(97 + i)] * (20 - 2 * i)) for i in range(8)]
    for n_slots in (1, 2, 3, 8, 20):
        double = Double(scripts)
        found = engine(double, n_slots, max_repeats=None).run(
            window(100 + i, float(i)) for i in range(8)
        )
        assert texts(found) == expected
        assert max(double.batches) == min(n_slots, 8)


@pytest.mark.usefixtures("is_filled")
def test_a_slot_that_ended_is_refilled_at_once() -> None:
    double = Double({100: [1] * 9, 101: [2], 102: [3], 103: [4]})
    assert len(list(engine(double, 2).run(window(n) for n in (100, 101, 102, 103)))) == 4
    assert double.batches[0] == 2
    assert sum(double.batches) == 9 + 3  # a step for each token that is fed back


@pytest.mark.usefixtures("is_filled")
def test_only_slots_in_use_are_computed() -> None:
    double = Double({100: [1] * 9, 101: [2]})
    list(engine(double, 8).run([window(100), window(101)]))
    assert double.batches == [2] + [1] * 8


def test_a_layout_with_one_slot_has_one() -> None:
    double = Double({100: [1, 2], 101: [3]}, max_slots=1)
    assert texts(engine(double, 8).run([window(100), window(101)])) == ["b c", "d"]
    assert set(double.batches) == {1}


def test_only_a_few_windows_are_read_ahead() -> None:
    asked: list[int] = []

    def items() -> Generator[Task]:
        for n in range(100, 120):
            asked.append(n)
            yield window(n)

    double = Double({n: [1, 2] for n in range(100, 120)})
    caller = engine(double, 3)
    own = caller.pool.open(caller.options, caller.splitting, 3)
    feed(own, items())
    time.sleep(0.1)
    assert len(asked) == 4  # one on its way into its slot, two that wait, one in hand
    double.may_start.set()
    own.cancel()


def test_closing_ends_the_work_and_frees_the_slots() -> None:
    double = Double({n: [1] * (n - 99) for n in range(100, 110)})
    one = engine(double, 4)
    results: Any = one.run(window(n) for n in range(100, 110))
    next(results)
    n_steps = len(double.batches)
    results.close()
    assert len(double.batches) == n_steps
    assert texts(one.run([window(101)])) == ["b b"]


def test_the_end_of_an_audio_comes_after_its_segments() -> None:
    end = End()
    double = Double({100: [1] * 9, 101: [2]})
    found = list(engine(double, 8).run([window(100), end, End(), window(101)]))
    assert found[1] is end
    assert isinstance(found[2], End)
    assert texts(found[:1]) == ["b b b b b b b b b"]


def test_what_fails_is_a_value_and_the_others_go_on() -> None:
    double = Double({100: [1, 2, -1], 101: [3, 4], 102: [-1]})
    found = list(engine(double, 8).run([window(100), window(101), window(102), window(1)]))
    assert [type(x) for x in found] == [DecodeError, Segment, DecodeError, *[type(found[3])]]
    assert isinstance(found[3], ArkError)  # too short for the model
    assert texts(found) == ["d e"]


@pytest.mark.usefixtures("is_filled")
def test_time_is_shared_by_those_who_took_it() -> None:
    tasks = [window(100), window(101)]
    list(engine(Double({100: [1] * 9, 101: [2] * 9})).run(tasks))
    a, b = (timings([task.clock]) for task in tasks)
    assert a.decode == b.decode > 0
    assert min(a.encode, a.features, a.prefill) > 0
    assert a.total == pytest.approx(a.read + a.split + a.features + a.encode + a.prefill + a.decode)


# Guards and second tries -------------------------------------------------------------------------


def test_a_window_that_ends_by_length_is_cut_in_two() -> None:
    double = Double({400: [1, 2, 3, 4, 5, 6]}, max_slots=8)
    double.scripts |= {n: [8] for n in range(100, 301)}
    found = list(engine(double, max_new_tokens=4).run([window(400, 10.0)]))
    assert texts(found) == ["i", "i"]
    first, second = cast("list[Segment]", found)
    assert first.finish_reason == second.finish_reason == "stop"
    assert (first.start, second.end) == (10.0, 14.0)
    assert first.end == second.start
    assert sum(double.n_encoded) in (799, 800)  # both halves may end within a frame


@pytest.mark.usefixtures("is_filled")
def test_halves_stand_where_their_window_stood() -> None:
    double = Double({n: [8] for n in range(100, 301)} | {400: [1] * 9, 50: [2], 60: [3]})
    tasks = [window(50), window(400), window(60)]
    assert texts(engine(double, max_new_tokens=4).run(tasks)) == ["c", "i", "i", "d"]


def test_what_ends_by_length_again_is_flagged() -> None:
    double = Double({n: [8] * 9 for n in range(100, 401)})
    found = cast("list[Segment]", list(engine(double, max_new_tokens=4).run([window(400)])))
    assert [s.finish_reason for s in found] == ["length"] * 2
    assert [s.text for s in found] == ["i i i i"] * 2


def test_short_windows_and_others_on_request_are_not_tried_again() -> None:
    double = Double({n: [8] * 9 for n in range(100, 401)})
    for n_frames, retry in ((199, True), (400, False)):
        found = list(engine(double, max_new_tokens=4, retry=retry).run([window(n_frames)]))
        assert [cast("Segment", s).finish_reason for s in found] == ["length"]


def test_a_loop_is_cut_in_two_and_then_cut_off() -> None:
    double = Double({n: [1, *[2, 3] * 40] for n in range(100, 401)})
    found = cast("list[Segment]", list(engine(double).run([window(400)])))
    assert [s.finish_reason for s in found] == ["loop"] * 2
    assert [s.text for s in found] == ["b c d"] * 2
    assert len(found[0].token_ids) > 10  # what was chosen stays visible


def test_repetition_is_let_be_on_request() -> None:
    double = Double({400: [1] * 60})
    (found,) = engine(double, max_repeats=None).run([window(400)])
    assert (cast("Segment", found).finish_reason, len(cast("Segment", found).text)) == ("stop", 119)


def test_more_tokens_a_second_than_speech_has_end_the_text() -> None:
    double = Double({100: list(range(12)) * 9})
    (found,) = engine(double, max_tokens_per_second=10).run([window(100)])
    assert (cast("Segment", found).finish_reason, len(cast("Segment", found).token_ids)) == (
        "length",
        20,
    )


def test_clear_speech_that_gives_no_text_is_asked_again_for_a_first_word() -> None:
    double = Double({200: [EOS]})
    (found,) = cast("list[Segment]", list(engine(double).run([window(200, speech=1.0)])))
    assert (found.text, found.finish_reason) == ("h", "stop")
    assert double.n_encoded == [200, 200]


def test_clear_speech_without_text_is_flagged_as_empty() -> None:
    silent = Double({200: [EOS]})
    (found,) = engine(silent, retry=False).run([window(200, speech=1.0)])
    assert cast("Segment", found).finish_reason == "empty"
    assert silent.n_encoded == [200]


def test_a_moment_of_speech_may_have_no_text() -> None:
    (found,) = engine(Double({200: [EOS]})).run([window(200, speech=0.3)])
    assert (cast("Segment", found).text, cast("Segment", found).finish_reason) == ("", "stop")


def test_where_nobody_looked_for_speech_it_is_looked_for_when_there_is_no_text() -> None:
    for level, expected in ((1.0, "h"), (0.0, "")):
        splitting = Splitting(vad=lambda level=level: lambda _: level)
        (found,) = engine(Double({200: [EOS]}), splitting=splitting).run([window(200)])
        assert cast("Segment", found).text == expected
    # Without a detector for windows, Silero is asked: noise is no speech.
    (found,) = engine(Double({200: [EOS]})).run([window(200)])
    assert cast("Segment", found).finish_reason == "stop"


@pytest.mark.usefixtures("is_filled")
def test_a_step_that_fails_is_the_error_of_those_in_it_and_the_others_go_on() -> None:
    class Failing(Double):
        def step(self, ids: np.ndarray) -> F32:
            if self.slots[0] == [7]:
                raise DecodeError("graph")
            return super().step(ids)

    double = Failing({100: [1, 7], 101: [2, 3], 102: [4, 5]})
    found = list(engine(double, 2).run([window(100), window(101), End(), window(102)]))
    assert [type(x) for x in found] == [DecodeError, DecodeError, End, Segment]
    assert texts(found) == ["e f"]


def test_audios_without_windows_do_not_keep_others_waiting() -> None:
    double = Double({100: [1, 2, 3]})
    taken: list[int] = []

    def items() -> Iterator[Task | End]:
        yield window(100)
        for n in range(100):
            taken.append(n)
            yield End()

    first = next(engine(double, 4).run(items()))
    assert texts([first]) == ["b c d"]
    assert len(taken) <= 64


# Many lines --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("is_filled")
def test_lines_take_turns() -> None:
    double = Double({n: [1, 2] for n in (*range(100, 110), 200)}, max_slots=1)
    caller = engine(double)
    first, second = (caller.pool.open(caller.options, caller.splitting, 4) for _ in range(2))
    for n in range(100, 110):
        first.put(window(n))
    second.put(window(200))
    third = caller.pool.open(caller.options, caller.splitting, 4)
    until = time.monotonic() + 5
    while not first.was_admitted and time.monotonic() < until:
        time.sleep(0.001)
    assert [caller.pool.n_before(one) for one in (second, third)] == [0, 1]
    double.may_start.set()
    assert isinstance(second.take(5), Segment)
    assert double.n_encoded.index(200) == 1
    for one in (first, second, third):
        one.cancel()


@pytest.mark.parametrize("n_lines", [1, 2])
def test_texts_go_on_between_admissions_of_others(
    n_lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "_AHEAD", 4)
    events: list[str] = []

    class Slow(Double):
        def encode(self, log_mel: F32) -> F32:
            events.append("encode")
            time.sleep(0.02)
            return super().encode(log_mel)

        def step(self, ids: np.ndarray) -> F32:
            events.append("step")
            time.sleep(0.0005)
            return super().step(ids)

    double = Slow({n: [1] * 200 + [EOS] for n in range(100, 104)})
    caller = engine(double, max_repeats=None, max_tokens_per_second=None)
    lines = [caller.pool.open(caller.options, caller.splitting, 4) for _ in range(n_lines)]
    for i, n in enumerate(range(100, 104)):
        lines[i % n_lines].put(window(n))
    for one in lines:
        one.complete()
    double.may_start.set()
    assert len(texts(one.take(20) for one in lines for _ in range(4 // n_lines))) == 4
    admissions = [i for i, event in enumerate(events) if event == "encode"]
    between = [b - a - 1 for a, b in itertools.pairwise(admissions)]
    if n_lines == 1:
        assert between == [0, 0, 0]
    else:
        assert all(1 <= n <= 20 for n in between)


def test_a_line_that_is_cancelled_leaves_its_slots_at_the_next_step() -> None:
    going_on = threading.Event()

    class Endless(Double):
        def step(self, ids: np.ndarray) -> F32:
            going_on.set()
            return super().step(ids)

    double = Endless({100: [1, 2] * 3000, 101: [3, 4, 5] * 2000})
    caller = engine(double, max_repeats=None, max_tokens_per_second=None, max_new_tokens=4000)
    first, second = (caller.pool.open(caller.options, caller.splitting, 4) for _ in range(2))
    first.put(window(100))
    second.put(window(101))
    double.may_start.set()
    assert going_on.wait(5)
    first.cancel()
    with pytest.raises(CancelledError):
        first.put(window(100))
    assert first.take(5) is None
    second.complete()
    assert isinstance(second.take(20), Segment)
    assert double.batches[-1] == 1


def test_a_caller_that_is_alone_decodes_in_its_own_thread() -> None:
    threads: set[threading.Thread] = set()

    class Watching(Double):
        def step(self, ids: np.ndarray) -> F32:
            threads.add(threading.current_thread())
            return super().step(ids)

    double = Watching({100: [1, 2], 101: [3, 4]})
    double.may_start.set()
    caller = engine(double)
    own = caller.pool.open(caller.options, caller.splitting, 4, is_own=True)
    for n_frames in (100, 101):
        own.put(window(n_frames))
    own.complete()
    found: list[Result | None] = []
    while not found or found[-1] is not None:
        caller.pool.drive_for(own)
        found.append(own.take(5))
    assert texts(found) == ["b c", "d e"]
    assert threads == {threading.current_thread()}
    assert caller.pool.is_idle


def test_a_caller_whose_windows_wait_has_the_pools_thread_decode() -> None:
    double = Double({100 + i: [i] for i in range(6)})
    double.may_start.set()
    caller = engine(double, 1)
    own = caller.pool.open(caller.options, caller.splitting, 1, is_own=True)
    for i in range(6):  # more than may wait: nobody takes any yet
        own.put(window(100 + i))
    own.complete()
    assert texts(own.take(5) for _ in range(6)) == list("abcdef")


def test_who_drives_for_itself_leaves_the_others_to_the_pools_thread() -> None:
    double = Double({100: [1], 101: [3, 4] * 8})
    caller = engine(double, max_repeats=None)
    own = caller.pool.open(caller.options, caller.splitting, 4, is_own=True)
    own.put(window(100))
    own.complete()
    driver = threading.Thread(target=caller.pool.drive_for, args=(own,))
    driver.start()  # and waits, within its turn, until the double may start
    wait_for(lambda: caller.pool._driver is driver)
    other = caller.pool.open(caller.options, caller.splitting, 4)
    other.put(window(101))
    other.complete()
    double.may_start.set()
    assert texts([own.take(5), other.take(5)]) == ["b", " ".join("de" * 8)]
    driver.join(5)
    assert not driver.is_alive()
    wait_for(lambda: caller.pool.is_idle)


@pytest.mark.parametrize("where", ["encode", "prefill", "step"])
def test_ctrl_c_in_the_caller_that_drives_loses_nothing_of_the_others(where: str) -> None:
    """What the others had in slots is decoded anew: their texts are whole."""
    calls = itertools.count()

    class Interrupted(Double):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name == where and not next(calls):
                raise KeyboardInterrupt
            return found

    double = Interrupted({100: [1, 2], 101: [3, 4]})
    double.may_start.set()
    caller = engine(double)
    own = caller.pool.open(caller.options, caller.splitting, 4, is_own=True)
    other = caller.pool.open(caller.options, caller.splitting, 4, is_own=True)
    for n_frames, one in ((100, own), (101, other)):
        one.put(window(n_frames))
        one.complete()
    with pytest.raises(KeyboardInterrupt):
        caller.pool.drive_for(own)
    own.cancel()
    assert own.take(5) is None
    caller.pool.drive_for(other)
    assert texts([other.take(5)]) == ["d e"]
    assert caller.pool.is_idle


def test_options_belong_to_the_line() -> None:
    double = Double({100: [1, 2, 3, 4, 5, 6]})
    caller = engine(double)
    double.may_start.set()
    lines = [
        caller.pool.open(Options(max_new_tokens=n, retry=False), caller.splitting, 4)
        for n in (2, 100, 4)
    ]
    for one in lines:
        one.put(window(100))
        one.complete()
    assert [texts([cast("Result", one.take(5))]) for one in lines] == [
        ["b c"], ["b c d e f g"], ["b c d e"],
    ]  # fmt: skip


def test_a_model_that_cannot_be_opened_is_everybodys_error() -> None:
    caller = engine(Double({}))

    def fail() -> Any:
        raise PackageError("gone")

    caller.pool._resident._open = fail
    with pytest.raises(PackageError, match="gone"):
        list(caller.run([window(100)]))
    with pytest.raises(PackageError, match="gone"):
        list(caller.run([window(100)]))
