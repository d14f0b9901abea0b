"""Evaluations from Python: what is transcribed, what is only scored, what is said of the audio."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO, Sample

import ark_asr_onnx
from ark_asr_onnx import AudioWarning, RecordsError, Transcriber
from ark_asr_onnx.corpus.evaluation import run_evaluation

pytest.importorskip("jiwer")
pytest.importorskip("langcodes")
pytest.importorskip("whisper_normalizer")


def manifest(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "refs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def opening(says: Callable[[Any], Any]) -> Callable[[], Transcriber]:
    """Opens the demo, each transcript of which is changed before it is given."""

    def opens() -> Transcriber:
        transcriber = ark_asr_onnx.load(DEMO)
        transcribe_many = transcriber.transcribe_many
        transcriber.transcribe_many = lambda *args, **more: map(  # pyright: ignore
            says, transcribe_many(*args, **more)
        )
        return transcriber

    return opens


def test_a_row_that_failed_is_done_again_if_there_is_a_model(
    samples: list[Sample], tmp_path: Path
) -> None:
    text = samples[0].text
    path = manifest(
        tmp_path,
        {"audio": str(samples[0].path), "text": text, "pred_text": "", "error": "was not there"},
        {"audio": "b.wav", "text": text, "pred_text": text},
    )
    for opens, failures in ((None, 1), (lambda: ark_asr_onnx.load(DEMO), 0)):
        found = run_evaluation(opens, path)
        assert len(found.failures) == failures
        assert [("error" in row) for row in found.rows()] == [bool(failures), False]
        assert (found.report().wer == 0) == (failures == 0)


def test_without_a_model_every_row_must_have_a_text(tmp_path: Path) -> None:
    path = manifest(
        tmp_path, {"audio": "a.wav", "text": "a", "pred_text": "a"}, {"audio": "b.wav", "text": "b"}
    )
    with pytest.raises(RecordsError, match=r"refs\.jsonl:2: pred_text is missing"):
        run_evaluation(None, path)


def test_warnings_about_the_audio_are_counted_and_in_the_rows(
    samples: list[Sample], tmp_path: Path
) -> None:
    path = manifest(
        tmp_path,
        {"audio": str(samples[0].path), "text": samples[0].text},
        {"audio": "b.wav", "text": "b", "pred_text": "b", "warnings": ["is soft"]},
        {"audio": "c.wav", "text": "c", "pred_text": "c"},
    )
    opens = opening(lambda result: replace(result, warnings=(AudioWarning("cut", "ends early"),)))
    found = run_evaluation(opens, path)
    assert found.n_warned == 2
    assert [row.get("warnings") for row in found.rows()] == [["ends early"], ["is soft"], None]
