"""Times of words: the heads that are found, their graph, and what a transcriber gives."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DEMO, Sample

import ark_asr_onnx
from ark_asr_onnx import Options, PackageError, Segment, open_package
from ark_asr_onnx.audio import mel, sources
from ark_asr_onnx.model.graph import Graph
from ark_asr_onnx.model.layouts import native
from ark_asr_onnx.package import contract


@pytest.fixture(scope="module")
def transcriber() -> ark_asr_onnx.Transcriber:
    return ark_asr_onnx.load(DEMO, threads=1)


def words(segments: Any) -> list[ark_asr_onnx.Word]:
    return [word for segment in segments for word in segment.words]


def test_words_have_times_and_the_text_is_the_same(
    transcriber: ark_asr_onnx.Transcriber, samples: list[Sample]
) -> None:
    for sample in samples:
        plain, timed = (transcriber.transcribe(sample.path, words=w) for w in (False, True))
        assert timed.text == plain.text == " ".join(word.text for word in words(timed.segments))
        assert timed.logprobs == plain.logprobs
        assert words(plain.segments) == []
        found = words(timed.segments)
        assert all(0 <= word.start < word.end <= timed.duration for word in found)
        assert all(a.end <= b.start for a, b in itertools.pairwise(found))
        assert all(0 < word.probability <= 1 for word in found)
        assert timed.timings.words > plain.timings.words == 0


def test_a_segment_begins_and_ends_with_its_words(
    transcriber: ark_asr_onnx.Transcriber, samples: list[Sample]
) -> None:
    waveform = np.concatenate([sources.read(sample.path) for sample in samples] * 2)
    found = transcriber.transcribe(waveform, 16000, words=True)
    assert len(found.segments) > 1
    for segment in found.segments:
        assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found.segments))


def test_words_lie_within_the_sound_that_they_were_said_in(
    transcriber: ark_asr_onnx.Transcriber, samples: list[Sample]
) -> None:
    silence = np.zeros(2 * 16000, np.float32)
    waves = [sources.read(sample.path) for sample in samples]
    joined = np.concatenate([part for wave in waves for part in (silence, wave)])
    found = transcriber.transcribe(joined, 16000, words=True, begin_seconds=1.0)
    expected = [word for sample in samples for word in sample.text.split()]
    assert [word.text for word in words(found.segments)] == expected
    left = words(found.segments)
    at = 0.0
    for wave, sample in zip(waves, samples, strict=True):
        begin, end = at + 2.0, at + 2.0 + len(wave) / 16000
        mine, left = left[: len(sample.text.split())], left[len(sample.text.split()) :]
        assert begin - 0.1 <= mine[0].start
        assert mine[-1].end <= end + 0.1
        at = end


def test_words_of_windows_together_are_those_of_each_alone(
    transcriber: ark_asr_onnx.Transcriber, samples: list[Sample]
) -> None:
    paths: list[Any] = [sample.path for sample in samples]
    together = transcriber.transcribe_many(paths, options=Options(words=True), slots=4)
    for path, found in zip(paths, together, strict=True):
        assert isinstance(found, ark_asr_onnx.Transcript)
        alone = transcriber.transcribe(path, words=True)
        assert [word.text for word in words(found.segments)] == alone.text.split()
        for a, b in zip(words(found.segments), words(alone.segments), strict=True):
            assert (a.start, a.end) == pytest.approx((b.start, b.end), abs=0.021)


def test_words_of_live_audio_have_its_times(
    transcriber: ark_asr_onnx.Transcriber, samples: list[Sample]
) -> None:
    wave = sources.read(samples[0].path)
    blocks = np.array_split(np.concatenate((np.zeros(32000, np.float32), wave)), 50)
    segments: list[Segment] = list(transcriber.listen(blocks, 16000, words=True))
    assert min(word.start for word in words(segments)) > 1.9
    assert words(segments)[-1].end <= 2 + len(wave) / 16000 + 0.1
    assert [word.text for word in words(segments)] == samples[0].text.split()


def test_silence_has_no_words(transcriber: ark_asr_onnx.Transcriber) -> None:
    found = transcriber.transcribe(np.zeros(16000, np.float32), 16000, words=True)
    assert (found.text, words(found.segments)) == ("", [])


def test_a_text_that_loops_has_the_words_that_are_kept(
    transcriber: ark_asr_onnx.Transcriber, samples: list[Sample]
) -> None:
    options = Options(max_new_tokens=2, retry=False, words=True)
    found = transcriber.transcribe(samples[0].path, options=options)
    assert found.finish_reason == "length"
    assert [word.text for word in words(found.segments)] == found.text.split()


def test_a_package_without_the_graph_says_what_to_do(tiny_package: Path) -> None:
    transcriber = ark_asr_onnx.load(tiny_package, threads=1)
    assert not transcriber.has_words
    calls = (
        lambda: transcriber.transcribe(np.zeros(16000), 16000, words=True),
        lambda: transcriber.submit(np.zeros(16000), 16000, options=Options(words=True)),
        lambda: transcriber.stream(np.zeros(16000), 16000, words=True),
        lambda: transcriber.transcribe_many([], words=True),
        lambda: transcriber.listen([], 16000, words=True),
    )
    for call in calls:
        with pytest.raises(PackageError, match=r"cannot tell when words are said .* export the mo"):
            call()


def test_a_graph_that_fails_is_an_error_of_its_window(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("boom")

    with ark_asr_onnx.load(DEMO, threads=1) as transcriber:
        monkeypatch.setattr(native.NativeDecoding, "align", fails)
        with pytest.raises(ark_asr_onnx.DecodeError, match="boom"):
            transcriber.transcribe(samples[0].path, words=True)
        assert transcriber.transcribe(samples[0].path).text == samples[0].text


def test_the_graph_is_opened_only_when_it_is_needed(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = Graph.__init__

    def watch(self: Graph, path: Path, *arguments: Any, **options: Any) -> None:
        opened.append(path.name)
        original(self, path, *arguments, **options)

    monkeypatch.setattr(Graph, "__init__", watch)
    with ark_asr_onnx.load(DEMO, threads=1) as transcriber:
        transcriber.transcribe(samples[0].path)
        assert contract.ALIGN_FILE not in opened
        for _ in range(2):
            transcriber.transcribe(samples[0].path, words=True)
    assert opened.count(contract.ALIGN_FILE) == 1


def test_a_graph_of_another_model_is_refused() -> None:
    package = open_package(DEMO)
    package.paths[contract.ALIGN_FILE] = package.path(contract.AUDIO_FILE)
    model = native.build(package, 1)
    decoding = model.start(1, 60)
    decoding.prefill(0, np.zeros((1, 10, package.manifest.sizes.hidden_size), np.float32))
    with pytest.raises(PackageError, match=r"audio\.onnx: unexpected or missing input or output"):
        decoding.align(0, np.array([3, 4]), 10)


# What the exporter finds --------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8", "columns"])
def test_the_graph_looks_where_torch_looks(
    precision: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from ark_onnx_export import align, pipeline, reference
    from ark_onnx_export.oracle import TorchEngine

    recipe: Any = {"recipe": "rows", "allow_degraded": True} if precision == "columns" else {}
    kind: Any = "fp32" if precision == "fp32" else "int8"
    out = tmp_path / "package"
    pipeline.export(tiny_checkpoint, out, pipeline.Settings(precision=kind, **recipe))
    assert (out / contract.PREFILL_FILE).is_file() == (precision == "columns")
    oracle = TorchEngine.open(tiny_checkpoint, pipeline.INSTRUCTION)
    network = oracle._network  # pyright: ignore[reportPrivateUsage]
    config = network.decoder.config
    heads = [(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    del heads[1]
    align.write(out, heads[::-1], len(oracle.tokens.prefix))

    package = open_package(out)
    package.paths[contract.ALIGN_FILE] = out / contract.ALIGN_FILE
    model = native.build(package, 1)
    noise = np.random.default_rng(0).normal(0, 0.1, 48000).astype(np.float32)
    audio_embeds = model.encode(mel.log_mel(noise, package.manifest.sizes.n_mels))
    ids = np.array([5, 9, 200, 3, 7])
    decoding = model.start(2, 120)
    decoding.prefill(0, audio_embeds)
    decoding.prefill(1, audio_embeds)
    for i in ids:
        decoding.step(np.array([9 - i, i]))
    found = decoding.align(1, ids[:4], audio_embeds.shape[1])
    expected = reference.attention(network, oracle.tokens, audio_embeds, ids[:4].tolist())
    expected = np.stack([expected[head] for head in heads]).astype(np.float32)
    assert found.shape == expected.shape
    near = 2e-3 if precision == "fp32" else 0.05
    np.testing.assert_allclose(found, expected, atol=near * float(expected.max()))
    np.testing.assert_allclose(found.sum(axis=2), 1, atol=1e-4)


def test_the_demo_has_heads_that_look_at_the_word() -> None:
    pytest.importorskip("torch")
    from ark_onnx_export import heads, pipeline
    from ark_onnx_export.engines import PackageEngine
    from ark_onnx_export.oracle import TorchEngine

    oracle = TorchEngine.open(DEMO / "checkpoint", pipeline.INSTRUCTION)
    found = heads.find(oracle, [], lambda _, items: items)
    assert found.heads
    assert {layer for layer, _ in found.heads} == {2}
    assert found.errors is not None
    assert found.errors.within_100_ms >= 0.9
    errors = heads.measured(PackageEngine(DEMO))
    assert errors is not None
    assert errors.within_100_ms >= 0.9
    assert errors.median <= 0.04


def test_a_checkpoint_that_understands_nothing_has_no_times(
    tiny_checkpoint: Path, tiny_package: Path
) -> None:
    pytest.importorskip("torch")
    from ark_onnx_export import heads, pipeline
    from ark_onnx_export.oracle import TorchEngine

    oracle = TorchEngine.open(tiny_checkpoint, pipeline.INSTRUCTION)
    found = heads.find(oracle, [], lambda _, items: items)
    assert found.heads == ()
    assert found.reason.startswith("of 27 single words the checkpoint understood 0, too few")
    assert not (tiny_package / contract.ALIGN_FILE).exists()
    assert "## Times of words\n\nNone: of 27 single words" in (
        tiny_package / "REPORT.md"
    ).read_text("utf-8")


def test_heads_that_look_anywhere_are_not_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from ark_onnx_export import heads, pipeline
    from ark_onnx_export.oracle import TorchEngine

    def anywhere(_: TorchEngine, audio_embeds: np.ndarray, ids: list[int]) -> np.ndarray:
        return np.random.default_rng(0).random((2, 2, len(ids), audio_embeds.shape[1]), np.float32)

    monkeypatch.setattr(TorchEngine, "attention", anywhere)
    oracle = TorchEngine.open(DEMO / "checkpoint", pipeline.INSTRUCTION)
    found = heads.find(oracle, [], lambda _, items: items)
    assert found.heads == ()
    assert "80% are needed" in found.reason


def test_words_of_the_user_are_taken_too() -> None:
    pytest.importorskip("torch")
    from ark_onnx_export import heads

    pools = heads.spoken_words()
    assert len(pools) == 6
    again = list(heads.spliced(pools, seed=3))
    for one, other in zip(heads.spliced(pools, seed=3), again, strict=True):
        np.testing.assert_array_equal(one.waveform, other.waveform)
        assert one.words == other.words
        assert one.words[-1].end + 0.2 == pytest.approx(len(one.waveform) / 16000, abs=1e-3)
