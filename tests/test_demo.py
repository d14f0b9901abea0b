"""The embedded demo: its size, its card, and what it hears on speakers it never met."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest
from conftest import DEMO, ROOT, SPEECH

import ark_asr_onnx
from ark_asr_onnx.audio.sources import read


def test_the_package_is_at_most_8_mb() -> None:
    package = ark_asr_onnx.open_package(DEMO, verify=True)
    assert sum(path.stat().st_size for path in package.paths.values()) <= 8_000_000


def test_the_package_was_exported_from_the_checkpoint_beside_it() -> None:
    from ark_asr_onnx.package.contract import file_sha256

    recorded = ark_asr_onnx.open_package(DEMO).manifest.provenance.source_sha256
    assert recorded == {"model.safetensors": file_sha256(DEMO / "checkpoint" / "model.safetensors")}


def test_the_demo_has_its_own_ids_so_that_nothing_can_be_hard_wired() -> None:
    tokens = ark_asr_onnx.open_package(DEMO).manifest.tokens
    assert max(*tokens.prefix, tokens.audio, *tokens.suffix, *tokens.stop) < 1000


def test_the_licences_of_the_corpora_travel_with_the_card() -> None:
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    for words in ("AN4", "Carnegie Mellon", "Speech Commands", "CC BY 4.0", "Useful Sensors"):
        assert words in card
    assert {path.name for path in (DEMO / "licences").iterdir()} == {
        "AN4.txt", "moonshine-MIT.txt",
    }  # fmt: skip


@pytest.mark.parametrize("document", ["README.md", "README_INT8_ASR_USAGE.md", "CONTRIBUTING.md",
                                      "models/README.md", "models/demo/README.md",
                                      "runtime/PACKAGE.md", "export/MODEL.md"])  # fmt: skip
def test_links_between_the_documents_resolve(document: str) -> None:
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (path.parent / link).exists(), link
    assert not re.search(r"(SAMPLE|TEXT)\d", text)


def test_the_version_is_the_same_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{ark_asr_onnx.__version__}"' in project


@dataclass(frozen=True)
class Clip:
    text: str
    torch_ids: tuple[int, ...]
    fp32_ids: tuple[int, ...]
    fp32_text: str
    int8_text: str


@pytest.fixture(scope="module")
def dev_clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Clip]]:
    """Every dev clip through torch, the fp32 package and the shipped INT8 package."""
    pytest.importorskip("torch")
    if not SPEECH.is_dir():
        pytest.skip("the speech corpus is not here")
    from ark_onnx_export import pipeline, reference
    from ark_onnx_export.checkpoint import load_network, open_checkpoint, open_text

    folder = tmp_path_factory.mktemp("demo") / "fp32"
    pipeline.export(DEMO / "checkpoint", folder, pipeline.Settings(precision="fp32"))
    fp32, int8 = ark_asr_onnx.load(folder), ark_asr_onnx.load(DEMO)
    checkpoint = open_checkpoint(DEMO / "checkpoint")
    network = load_network(checkpoint, fp32.manifest.sizes.max_positions)
    _, tokens = open_text(checkpoint, pipeline.INSTRUCTION)
    clips: dict[str, list[Clip]] = {}
    for name in ("sentences", "digits", "words"):
        clips[name] = []
        for line in (SPEECH / name / "dev.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            waveform = read(SPEECH / name / row["audio"])
            expected = reference.transcribe(network, tokens, waveform, 256).token_ids
            a, b = (t.transcribe(waveform, 16000) for t in (fp32, int8))
            clips[name].append(Clip(row["text"], expected, a.token_ids, a.text, b.text))
    return clips


def test_the_fp32_package_gives_torchs_tokens_on_every_dev_clip(
    dev_clips: dict[str, list[Clip]],
) -> None:
    for clips in dev_clips.values():
        for clip in clips:
            assert clip.fp32_ids == clip.torch_ids


def test_int8_costs_at_most_half_a_point_of_word_error_rate(
    dev_clips: dict[str, list[Clip]],
) -> None:
    jiwer = pytest.importorskip("jiwer")
    for clips in dev_clips.values():
        texts = [clip.text for clip in clips]
        fp32 = jiwer.wer(texts, [clip.fp32_text for clip in clips])
        int8 = jiwer.wer(texts, [clip.int8_text for clip in clips])
        assert int8 <= fp32 + 0.005


def test_unseen_speakers_of_sentences_are_understood(dev_clips: dict[str, list[Clip]]) -> None:
    jiwer = pytest.importorskip("jiwer")
    clips = dev_clips["sentences"]
    assert jiwer.wer([c.text for c in clips], [c.int8_text for c in clips]) <= 0.08
