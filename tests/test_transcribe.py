"""``load(dir).transcribe(audio)`` from end to end, on packages of random and of real weights."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Sample, unguarded

import ark_asr_onnx
from ark_asr_onnx import AudioError, ClosedError, Transcriber

RATE = 16000


@pytest.fixture(scope="module")
def demo(demo_package_of_each_layout: Path) -> Transcriber:
    return ark_asr_onnx.load(demo_package_of_each_layout)


def tone(n_samples: int) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(n_samples) / RATE)).astype(np.float32)


def test_the_demo_understands_real_voices(demo: Transcriber, samples: list[Sample]) -> None:
    assert len(samples) >= 4
    for sample in samples:
        assert demo.transcribe(sample.path).text == sample.text


def test_a_transcript_tells_how_it_came_about(demo: Transcriber, samples: list[Sample]) -> None:
    transcript = demo.transcribe(samples[0].path)
    info = soundfile.info(samples[0].path)
    assert transcript.duration == pytest.approx(info.duration)
    assert transcript.finish_reason == "stop"
    (segment,) = transcript.segments
    assert (segment.start, segment.end) == pytest.approx((0.16, 2.05), abs=0.04)  # of the speech
    assert segment.text == transcript.text
    assert segment.raw_text.endswith("<|im_end|>")
    assert transcript.token_ids[-1] in demo.manifest.tokens.eos
    assert len(transcript.logprobs) == len(transcript.token_ids)
    assert all(p <= 0 for p in transcript.logprobs)
    assert segment.mean_logprob == pytest.approx(np.mean(transcript.logprobs))
    stages = transcript.timings
    parts = sum(getattr(stages, name) for name in ("read", "split", "features", "encode"))
    parts += stages.prefill + stages.decode
    assert 0 < parts <= stages.total + 1e-6
    assert transcript.rtfx == pytest.approx(transcript.duration / stages.total)


def test_every_way_to_pass_audio_gives_the_same_tokens(
    demo: Transcriber, samples: list[Sample]
) -> None:
    path = samples[0].path
    expected = demo.transcribe(path).token_ids
    waveform, rate = soundfile.read(path, dtype="float32")
    with path.open("rb") as stream:
        sources: list[tuple[Any, int | None]] = [
            (str(path), None), (path.read_bytes(), None), (stream, None), (waveform, rate),
            ((waveform * 32768).astype(np.int16), rate), (np.stack([waveform] * 2, 1), rate),
        ]  # fmt: skip
        for source, sample_rate in sources:
            assert demo.transcribe(source, sample_rate).token_ids == expected


@pytest.mark.parametrize("rate", [22050, 44100, 48000])
def test_the_words_do_not_depend_on_the_sample_rate(
    demo: Transcriber, samples: list[Sample], rate: int
) -> None:
    import soxr  # pyright: ignore[reportMissingTypeStubs]

    waveform, _ = soundfile.read(samples[0].path, dtype="float32")
    resampled = soxr.resample(waveform, RATE, rate, quality="VHQ")
    assert demo.transcribe(resampled, rate).text == samples[0].text


def test_mp3_and_opus_keep_the_words(demo: Transcriber, samples: list[Sample]) -> None:
    waveform, rate = soundfile.read(samples[0].path, dtype="float32")
    for container, subtype in (("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS")):
        stream = io.BytesIO()
        soundfile.write(stream, waveform, rate, format=container, subtype=subtype)
        assert demo.transcribe(stream.getvalue()).text == samples[0].text


def test_silence_gives_no_words(demo: Transcriber) -> None:
    for seconds in (0.5, 2.0):
        transcript = demo.transcribe(np.zeros(int(seconds * RATE), np.float32), RATE)
        assert transcript.text == ""
        assert transcript.finish_reason == "stop"


def test_exactly_30_seconds_are_transcribed(demo: Transcriber, samples: list[Sample]) -> None:
    waveform, _ = soundfile.read(samples[0].path, dtype="float32")
    padded = np.zeros(30 * RATE, np.float32)
    padded[: len(waveform)] = waveform
    assert demo.transcribe(padded, RATE).duration == 30.0


def test_more_than_is_allowed_is_refused_not_cut(demo: Transcriber) -> None:
    with pytest.raises(AudioError, match=r"audio array: longer than the 2 s that are allowed"):
        demo.transcribe(tone(2 * RATE + 1), RATE, max_seconds=2)
    assert demo.transcribe(tone(2 * RATE), RATE, max_seconds=2).duration == 2


def test_a_part_of_a_long_file_is_transcribed(
    demo: Transcriber, samples: list[Sample], tmp_path: Path
) -> None:
    waveform, _ = soundfile.read(samples[0].path, dtype="float32")
    path = tmp_path / "long.wav"
    soundfile.write(path, np.concatenate([tone(40 * RATE), waveform]), RATE)
    transcript = demo.transcribe(path, begin_seconds=40.0)
    assert transcript.text == samples[0].text
    (alone,) = demo.transcribe(samples[0].path).segments
    (segment,) = transcript.segments
    assert (segment.start, segment.end) == pytest.approx((40 + alone.start, 40 + alone.end))


@pytest.mark.parametrize("n_samples", [0, 1, 159, 160, 161, 200])
def test_audio_shorter_than_a_window_is_an_error(demo: Transcriber, n_samples: int) -> None:
    with pytest.raises(AudioError, match=r"too short|empty"):
        demo.transcribe(tone(n_samples), RATE)


@pytest.mark.parametrize("n_samples", [201, 319, 320, 321, 1279, 1280, 1281])
def test_the_shortest_audio_gives_a_transcript(demo: Transcriber, n_samples: int) -> None:
    assert demo.transcribe(tone(n_samples), RATE).finish_reason in ("stop", "length")


def test_a_full_scale_square_wave_gives_a_transcript(demo: Transcriber) -> None:
    square = np.sign(tone(3 * RATE))
    assert demo.transcribe(square, RATE).finish_reason in ("stop", "length")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named_with_their_place(demo: Transcriber, value: float) -> None:
    waveform = tone(RATE)
    waveform[8000] = value
    with pytest.raises(AudioError, match=r"sample 8000 \(0\.500 s\) is NaN or infinite"):
        demo.transcribe(waveform, RATE)


def test_decoding_ends_at_the_token_limit(tiny_package: Path) -> None:
    transcriber = ark_asr_onnx.load(tiny_package)
    transcript = transcriber.transcribe(tone(RATE), RATE, options=unguarded(3))
    assert transcript.finish_reason == "length"
    assert len(transcript.token_ids) == 3


def test_a_longer_limit_only_adds_tokens(tiny_package: Path) -> None:
    transcriber = ark_asr_onnx.load(tiny_package)
    short, long = (
        transcriber.transcribe(tone(RATE), RATE, options=unguarded(n)).token_ids for n in (5, 60)
    )
    assert long[:5] == short


def test_decoding_ends_where_the_cache_ends(tiny_package: Path) -> None:
    transcriber = ark_asr_onnx.load(tiny_package)
    n_prompt = 1 + 12 + 16  # markers, one second of audio, instruction
    transcript = transcriber.transcribe(tone(RATE), RATE, options=unguarded(5000))
    assert transcript.finish_reason in ("length", "stop")
    most = transcriber.manifest.sizes.max_positions - n_prompt + 2
    assert len(transcript.token_ids) <= most


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_must_be_positive_and_finite(demo: Transcriber, value: float) -> None:
    with pytest.raises(ValueError, match="max_seconds"):
        demo.transcribe(tone(RATE), RATE, max_seconds=value)


def test_end_of_turn_is_no_text_however_it_is_spelled(
    demo_package: Path, samples: list[Sample], tmp_path: Path
) -> None:
    folder = tmp_path / "renamed"
    folder.mkdir()
    for path in demo_package.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.replace("<|im_end|>", "<|eot|>"), "utf-8")
    manifest = json.loads((folder / "ark_manifest.json").read_text(encoding="utf-8"))
    data = (folder / "tokenizer.json").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    manifest["files"]["tokenizer.json"] = {"bytes": len(data), "sha256": digest}
    (folder / "ark_manifest.json").write_text(json.dumps(manifest), "utf-8")
    transcript = ark_asr_onnx.load(folder).transcribe(samples[0].path)
    assert transcript.text == samples[0].text
    assert transcript.segments[0].raw_text.endswith("<|eot|>")


def test_blocked_ids_never_come_out(tiny_package: Path) -> None:
    transcriber = ark_asr_onnx.load(tiny_package)
    tokens = transcriber.manifest.tokens
    for block_from_id in (None, 200):
        options = replace(unguarded(100), block_from_id=block_from_id)
        ids = transcriber.transcribe(tone(2 * RATE), RATE, options=options).token_ids
        limit = tokens.block_from_id if block_from_id is None else block_from_id
        assert all(i < limit or i in tokens.eos for i in ids)


def test_results_do_not_depend_on_earlier_calls_or_other_threads(
    demo: Transcriber, samples: list[Sample]
) -> None:
    expected = [demo.transcribe(sample.path).token_ids for sample in samples]
    found: list[tuple[int, ...] | None] = [None] * len(samples)

    def work(i: int) -> None:
        found[i] = demo.transcribe(samples[i].path).token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(samples))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_the_number_of_threads_does_not_change_the_tokens(
    demo: Transcriber, demo_package: Path, samples: list[Sample]
) -> None:
    single = ark_asr_onnx.load(demo_package, threads=1)
    for sample in samples:
        assert single.transcribe(sample.path).token_ids == demo.transcribe(sample.path).token_ids


def test_a_transcript_is_one_line_of_json(demo: Transcriber, samples: list[Sample]) -> None:
    transcript = demo.transcribe(samples[0].path)
    line = ark_asr_onnx.transcript_to_json(transcript)
    assert "\n" not in line
    data = json.loads(line)
    assert data["text"] == samples[0].text
    assert data["segments"][0]["token_ids"] == list(transcript.token_ids)
    assert data["finish_reason"] == "stop"


def test_a_thread_count_below_one_is_refused(demo_package: Path) -> None:
    with pytest.raises(ValueError, match="threads is 0"):
        ark_asr_onnx.load(demo_package, threads=0)


def test_the_public_names_are_the_documented_ones() -> None:
    public = {name for name in vars(ark_asr_onnx) if not name.startswith("_")}
    modules = {name for name in public if type(vars(ark_asr_onnx)[name]).__name__ == "module"}
    assert public - modules - {"annotations"} == set(ark_asr_onnx.__all__) - {"__version__"}


def test_closing_ends_it_and_idle_times_do_not(
    demo_package_of_each_layout: Path, samples: list[Sample]
) -> None:
    with ark_asr_onnx.load(demo_package_of_each_layout, idle_unload_seconds=0.05) as transcriber:
        for _ in range(2):
            assert transcriber.transcribe(samples[0].path).text == samples[0].text
            for _ in range(500):
                if not transcriber._resident.is_open:
                    break
                time.sleep(0.01)
            assert not transcriber._resident.is_open
    with pytest.raises(ClosedError, match="was closed"):
        transcriber.transcribe(samples[0].path)
    with pytest.raises(ClosedError):
        _ = transcriber.model
