"""The service through OpenAI's own client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Sample
from serving import Served, served

from ark_asr_onnx.server.limits import Access, Limits
from ark_asr_onnx.server.service import ServiceSettings

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as found:
        yield found


@pytest.fixture
def client(server: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as found:
        yield found


def test_a_transcription(client: Any, samples: list[Sample]) -> None:
    with samples[0].path.open("rb") as file:
        found = client.audio.transcriptions.create(model="whisper-1", file=file)
    assert found.text == samples[0].text
    found = client.audio.transcriptions.create(
        model="x", file=samples[0].path.read_bytes(), language="en", prompt="p", temperature=0
    )
    assert found.text == samples[0].text


def test_formats(client: Any, samples: list[Sample]) -> None:
    def ask(kind: str, **more: Any) -> Any:
        with samples[0].path.open("rb") as file:
            return client.audio.transcriptions.create(
                model="x", file=file, response_format=kind, **more
            )

    assert ask("text") == f"{samples[0].text}\n"
    assert ask("srt").startswith("1\n00:00:00,160 --> ")
    assert ask("vtt").startswith("WEBVTT")
    found = ask("verbose_json", timestamp_granularities=["segment"])
    assert found.segments[0].text == samples[0].text
    assert found.segments[0].avg_logprob < 0
    assert float(found.duration) > 1
    found = ask("verbose_json", timestamp_granularities=["word"])
    assert [word.word for word in found.words] == samples[0].text.split()
    assert all(0 < word.start < word.end for word in found.words)
    with pytest.raises(openai.BadRequestError, match="response_format=verbose_json"):
        ask("json", timestamp_granularities=["word"])


def test_a_stream(client: Any, samples: list[Sample]) -> None:
    if int(openai.__version__.split(".")[1]) < 66 and openai.__version__.startswith("1."):
        pytest.skip("this client has no streams")
    with samples[0].path.open("rb") as file:
        stream = client.audio.transcriptions.create(
            model="x", file=file, stream=True, include=["logprobs"]
        )
        events = list(stream)
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[0].delta == events[1].text == samples[0].text
    assert len(events[1].logprobs) == len(events[0].logprobs) > 1


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_errors_are_its_exceptions(client: Any, server: Served) -> None:
    create = client.audio.transcriptions.create
    with pytest.raises(openai.BadRequestError, match="readable as audio") as error:
        create(model="x", file=b"no audio")
    assert error.value.code == "invalid_audio"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    assert [model.id for model in client.models.list()] == ["ark-asr"]
    with pytest.raises(openai.BadRequestError, match="translate"):
        client.audio.translations.create(model="x", file=b"x")
    wrong = openai.OpenAI(base_url=f"{server.url}/v2", api_key="any", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="no such path"):
        wrong.audio.transcriptions.create(model="x", file=b"x")


def test_keys_and_limits() -> None:
    settings = ServiceSettings(
        Limits(max_upload_bytes=20_000, max_waiting=0, max_active=1), Access(frozenset({"right"}))
    )
    with served(settings) as closed:

        def client(key: str) -> Any:
            return openai.OpenAI(base_url=f"{closed.url}/v1", api_key=key, max_retries=2)

        with pytest.raises(openai.AuthenticationError):
            client("wrong").models.list()
        right = client("right")
        assert len(list(right.models.list())) == 1
        with pytest.raises(openai.APIStatusError, match="size limit") as error:
            right.audio.transcriptions.create(model="x", file=bytes(30_000))
        assert error.value.status_code == 413
        closed.service.n_requests += 1  # somebody is in the house
        with pytest.raises(openai.RateLimitError, match="try again in"):
            right.with_options(max_retries=0).audio.transcriptions.create(model="x", file=b"x")


def test_a_client_that_is_told_to_come_again_does(samples: list[Sample]) -> None:
    with served(ServiceSettings(Limits(max_active=1, max_waiting=0))) as full:
        full.service.n_requests += 1  # somebody is in the house, and leaves

        def leave() -> None:
            full.service.n_requests -= 1

        threading.Timer(0.5, leave).start()
        client = openai.OpenAI(base_url=f"{full.url}/v1", api_key="any", max_retries=3)
        with samples[0].path.open("rb") as file:
            found = client.audio.transcriptions.create(model="x", file=file)
        assert found.text == samples[0].text
        assert b'ark_asr_rejected_total{reason="queue_full"} 1.0' in full.get("/metrics").body
