"""Transcripts as bodies, where the demo gives no example."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("starlette")

from ark_asr_onnx import Segment, Timings
from ark_asr_onnx.package.contract import Tokens
from ark_asr_onnx.server import answers
from ark_asr_onnx.server.answers import Events, Model
from ark_asr_onnx.server.fields import Request
from ark_asr_onnx.transcript import join

REQUEST = Request(256, response_format="verbose_json")


def segment(text: str, start: float) -> Segment:
    ids = tuple(range(3, 3 + len(text)))
    return Segment(
        start, start + 1, text, text, (*ids, 2), (0.0,) * (len(ids) + 1), "stop", 0.5,
        audio_tokens=10,
    )  # fmt: skip


@pytest.fixture
def model() -> Model:
    tokens = Tokens(
        prefix=(0,), audio=1, suffix=(0,), eos=(2,), stop=(2,), blocked=(), block_from_id=99
    )
    return Model(tokens, lambda ids: b"".join(b"%d" % i for i in ids))


@pytest.mark.parametrize("texts", [("", "a", "", "b"), ("a", "b"), ("", ""), ("a", "")])
def test_segments_and_deltas_join_to_the_text(texts: tuple[str, ...], model: Model) -> None:
    segments = [segment(text, i) for i, text in enumerate(texts)]
    transcript = join(segments, len(texts), Timings(0, 0, 0, 0, 0, 0, 1))
    found = answers.verbose(transcript, REQUEST)
    assert "".join(s["text"] for s in found["segments"]) == found["text"] == transcript.text
    events = Events(REQUEST, model)
    deltas = [json.loads(d[6:]) for s in segments if (d := events.delta(s))]
    assert "".join(delta["delta"] for delta in deltas) == transcript.text
    done, end, _ = events.done(transcript).split(b"\n\n")
    assert json.loads(done[6:])["text"] == transcript.text
    assert end == b"data: [DONE]"
