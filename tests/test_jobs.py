"""Many callers of one model: shared slots, stopping from anywhere, and a queue that can be full."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DEMO, ROOT, Sample

import ark_asr_onnx
from ark_asr_onnx import AudioError, Clip, ClosedError, Job, QueueFullError, Transcriber
from ark_asr_onnx.audio import sources
from ark_asr_onnx.decoding import job

RATE = 16000


@pytest.fixture
def demo() -> Iterator[Transcriber]:
    with ark_asr_onnx.load(DEMO, threads=1) as transcriber:
        yield transcriber


@pytest.fixture(scope="module")
def long_audio(samples: list[Sample]) -> np.ndarray:
    """Ten minutes of the sample clips with silences."""
    once = [np.append(sources.read(s.path), np.zeros(RATE, np.float32)) for s in samples]
    return np.tile(np.concatenate(once), 25)


def own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "ark-asr-reader"]


def wait_until(condition: Any, seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_finished_text_does_not_wait_for_the_next_clip(
    demo: Transcriber, samples: list[Sample]
) -> None:
    may_go_on = threading.Event()

    def clips() -> Iterator[Clip]:
        yield Clip(samples[0].path)
        assert may_go_on.wait(10)
        yield Clip(samples[1].path)

    results = demo.transcribe_many(clips())
    first: Any = next(results)
    assert first.text == demo.transcribe(samples[0].path).text
    may_go_on.set()
    second: Any = next(results)
    assert second.text == demo.transcribe(samples[1].path).text
    assert list(results) == []


def test_a_short_clip_does_not_wait_for_a_long_file(
    demo: Transcriber, samples: list[Sample], long_audio: np.ndarray
) -> None:
    long_job = demo.submit(long_audio, RATE)
    next(long_job)
    before = len(long_job.transcript().segments)
    text = demo.submit(samples[0].path).result(10).text
    after = len(long_job.transcript().segments)
    assert text == demo.transcribe(samples[0].path).text
    # Windows that were in slots end meanwhile, at most three more are admitted.
    assert after - before <= 8 + 3
    assert not long_job.done
    long_job.cancel()


def test_callers_in_many_threads_get_their_own_texts(
    demo: Transcriber, samples: list[Sample]
) -> None:
    expected = [demo.transcribe(sample.path).text for sample in samples]
    numbers = [i % len(samples) for i in range(32)]
    with ThreadPoolExecutor(32) as callers:
        found = list(callers.map(lambda i: demo.transcribe(samples[i].path).text, numbers))
    assert found == [expected[i] for i in numbers]
    wait_until(lambda: not own_threads() and demo._pool.is_idle)


def test_a_job_can_be_cancelled_at_any_time(
    demo: Transcriber, samples: list[Sample], long_audio: np.ndarray, tmp_path: Path
) -> None:
    import soundfile

    path = tmp_path / "long.wav"
    soundfile.write(path, long_audio, RATE)
    for wait in (0.0, 0.002, 0.02, 0.1, 0.3):
        job = demo.submit(path)
        time.sleep(wait)
        job.cancel()
        job.cancel()  # again does no harm
        assert job.done
        assert list(job) == []
        wait_until(lambda: not own_threads() and demo._pool.is_idle)
        opened = {str(p.readlink()) for p in Path("/proc/self/fd").iterdir() if p.is_symlink()}
        assert str(path) not in opened
    assert demo.transcribe(samples[0].path).text  # the slots are free


def test_closing_a_stream_from_another_thread_ends_it(
    demo: Transcriber, long_audio: np.ndarray
) -> None:
    stream = demo.stream(long_audio, RATE)
    found: list[object] = []
    reader = threading.Thread(target=lambda: found.extend(stream))
    reader.start()
    wait_until(lambda: found)
    stream.close()
    reader.join(5)
    assert not reader.is_alive()
    assert 0 < len(found) < 100
    assert len(stream.transcript().segments) >= len(found)


def test_closing_the_generators_ends_their_work(demo: Transcriber, long_audio: np.ndarray) -> None:
    many: Any = demo.transcribe_many(Clip(long_audio[: 30 * RATE], RATE) for _ in range(100))
    next(many)
    many.close()
    wait_until(lambda: not own_threads() and demo._pool.is_idle)
    blocks = (long_audio[i : i + 4000] for i in range(0, len(long_audio), 4000))
    listening: Any = demo.listen(blocks, RATE)
    next(listening)
    listening.close()
    wait_until(lambda: not own_threads() and demo._pool.is_idle)


def test_a_job_that_nobody_holds_ends(demo: Transcriber, long_audio: np.ndarray) -> None:
    job = demo.submit(long_audio, RATE)
    next(job)
    del job
    gc.collect()
    wait_until(lambda: not own_threads() and demo._pool.is_idle)


def test_closing_the_transcriber_ends_everything(long_audio: np.ndarray) -> None:
    demo = ark_asr_onnx.load(DEMO, threads=1)
    job = demo.submit(long_audio, RATE)
    next(job)
    demo.close()
    with pytest.raises(ClosedError, match="closed while this was in work"):
        list(job)
    assert job.done
    with pytest.raises(ClosedError, match="load the model again"):
        demo.transcribe(long_audio[: 2 * RATE], RATE)
    wait_until(lambda: not own_threads() and demo._pool.is_idle)


def test_an_error_is_that_of_its_job(
    demo: Transcriber, samples: list[Sample], tmp_path: Path
) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF no audio")
    broken, whole = demo.submit(tmp_path / "a.wav"), demo.submit(samples[0].path)
    with pytest.raises(AudioError, match=r"a\.wav"):
        broken.result(10)
    assert broken.done
    assert whole.result(10).text == demo.transcribe(samples[0].path).text


def test_what_a_stream_of_the_caller_raises_reaches_the_caller(demo: Transcriber) -> None:
    class Odd(Exception):
        pass

    def clips() -> Iterator[Clip]:
        raise Odd("mine")
        yield Clip(b"")

    with pytest.raises(Odd, match="mine"):
        list(demo.transcribe_many(clips()))


def test_a_result_can_be_waited_for(demo: Transcriber, long_audio: np.ndarray) -> None:
    job = demo.submit(long_audio, RATE)
    with pytest.raises(TimeoutError):
        job.result(0.01)
    assert not job.done
    job.cancel()


def test_timings_stand_still_when_the_work_is_done(
    demo: Transcriber, samples: list[Sample]
) -> None:
    stream = demo.stream(samples[0].path)
    time.sleep(0.2)  # before it was begun
    list(stream)
    first = stream.transcript().timings
    time.sleep(0.2)
    stream.close()
    assert stream.transcript().timings == first
    assert (
        0
        < first.total
        < 0.2
        + sum((first.read, first.split, first.features, first.encode, first.prefill, first.decode))
    )


def test_a_queue_that_is_full_says_so(samples: list[Sample], long_audio: np.ndarray) -> None:
    with ark_asr_onnx.load(DEMO, threads=1, max_waiting=2) as demo:
        jobs: list[Job] = []
        with pytest.raises(QueueFullError, match="wait already; try again in") as error:
            while True:
                jobs.append(demo.submit(long_audio[: 60 * RATE], RATE))
        assert error.value.retry_after >= 1
        assert [job.position for job in jobs[-2:]] in ([0, 1], [0, 0])
        for job in jobs:
            job.cancel()
        assert demo.transcribe(samples[0].path).text
    with (
        ark_asr_onnx.load(DEMO, threads=1, max_waiting_seconds=100) as demo,
        pytest.raises(QueueFullError),
    ):
        jobs.extend(demo.submit(long_audio, RATE) for _ in range(50))


def run(code: str, timeout: float = 60) -> str:
    """What a script prints; it must end by itself, with status 0 and nothing on stderr."""
    prelude = f"import sys; sys.path.insert(0, {str(ROOT / 'runtime')!r})\n"
    result = subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_works_and_ends(threads: int, samples: list[Sample]) -> None:
    found = run(f"""
        import os, warnings, ark_asr_onnx
        warnings.simplefilter("ignore", DeprecationWarning)
        transcriber = ark_asr_onnx.load({str(DEMO)!r}, threads={threads})
        clip = {str(samples[0].path)!r}
        print(transcriber.transcribe(clip).text, flush=True)
        for is_used in (True, False):
            if (pid := os.fork()) == 0:
                if is_used:
                    print(transcriber.transcribe(clip).text, flush=True)
                sys.exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        print(transcriber.transcribe(clip).text)
    """)
    assert len(set(found.splitlines())) == 1
    assert len(found.splitlines()) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_work_of_the_parent_is_lost_to_a_child_and_it_is_told(samples: list[Sample]) -> None:
    found = run(f"""
        import os, warnings, numpy as np, ark_asr_onnx
        warnings.simplefilter("ignore", DeprecationWarning)
        transcriber = ark_asr_onnx.load({str(DEMO)!r}, threads=1)
        waveform = np.tile(ark_asr_onnx.audio.sources.read({str(samples[0].path)!r}), 100)
        job = transcriber.submit(waveform, 16000)
        next(job)
        if (pid := os.fork()) == 0:
            try:
                list(job)
            except ark_asr_onnx.DecodeError as error:
                print(error, flush=True)
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        job.cancel()
    """)
    assert "begun before the process was forked" in found


def test_work_in_progress_does_not_keep_the_interpreter(samples: list[Sample]) -> None:
    code = f"""
        import numpy as np, time, ark_asr_onnx
        transcriber = ark_asr_onnx.load({str(DEMO)!r}, threads=2)
        waveform = np.tile(ark_asr_onnx.audio.sources.read({str(samples[0].path)!r}), 500)
        job = transcriber.submit(waveform, 16000)
        next(job)
        print("end")
    """
    assert run(code, 20) == "end\n"


def test_a_reader_whose_start_was_interrupted_is_waited_for_at_the_end(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[threading.Thread] = []  # which are known before they start
    started: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> threading.Thread:
        assert readers == [thread]
        thread.start()
        started.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "await_at_end", readers.append)
    monkeypatch.setattr(job, "started", interrupted)
    with ark_asr_onnx.load(DEMO, threads=1) as transcriber:
        with pytest.raises(KeyboardInterrupt):
            next(transcriber.stream(samples[0].path))
        started[0].join(10)
        assert not started[0].is_alive()
        assert transcriber.status.n_waiting == 0
