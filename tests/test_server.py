"""The service as its clients meet it: over sockets, with forms, streams, limits and damage."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile  # pyright: ignore[reportMissingTypeStubs]
from conftest import DEMO, Sample, near
from serving import Answer, Served, form, served
from test_webm import cluster, file, opus, simple, track_entry, write_aac

import ark_asr_onnx
from ark_asr_onnx import Transcriber
from ark_asr_onnx.audio import sources
from ark_asr_onnx.server.limits import Access, Limits
from ark_asr_onnx.server.service import ServiceSettings
from ark_asr_onnx.writers import to_srt, to_vtt

RATE = 16000
ASR, OPENAI = "/asr", "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as found:
        yield found


@pytest.fixture(scope="module")
def clip(samples: list[Sample]) -> Path:
    return samples[0].path


def wav(waveform: np.ndarray, rate: int = RATE, kind: str = "WAV") -> bytes:
    data = io.BytesIO()
    soundfile.write(data, waveform, rate, format=kind)
    return data.getvalue()


@pytest.fixture(scope="module")
def minutes(samples: list[Sample]) -> bytes:
    """Two minutes of speech, with pauses."""
    once = [np.append(sources.read(s.path), np.zeros(RATE, np.float32)) for s in samples]
    return wav(np.tile(np.concatenate(once), 5))


def limited(**limits: Any) -> ServiceSettings:
    return ServiceSettings(replace(Limits(), **limits))


def events(answer: Answer) -> list[Any]:
    found = [part[6:] for part in answer.body.decode().split("\n\n") if part.startswith("data: ")]
    assert found.pop() == "[DONE]"
    return [json.loads(event) for event in found]


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


class Held:
    """A model whose decoder waits until it may go on."""

    def __init__(self) -> None:
        self.may_step, self.is_in_step = threading.Event(), threading.Event()

    def load(self) -> Transcriber:
        transcriber = ark_asr_onnx.load(DEMO, threads=1)
        model = transcriber.model
        encode, held = model.encode, self

        def waiting(log_mel: Any) -> Any:
            held.is_in_step.set()
            assert held.may_step.wait(30)
            return encode(log_mel)

        model.encode = waiting  # pyright: ignore
        return transcriber


# 1: what the model card says --------------------------------------------------------------------


def test_upstreams_four_requests(server: Served, samples: list[Sample]) -> None:
    assert server.get("/health").body == b'{"status":"ok"}'
    mask = server.get("/token-mask").json
    assert list(mask) == ["allowed_count", "blocked_count", "eos_token_ids", "tokens"]
    assert len(mask["tokens"]) == 6
    assert mask["tokens"]["<|user|>"]["blocked"]
    assert mask["tokens"]["<|im_end|>"]["allowed"]
    found = server.post(ASR, {"file": samples[0].path, "max_new_tokens": 256}).json
    assert list(found) == ["text", "latency_s", "prompt_tokens", "sampling"]
    assert found["text"] == samples[0].text
    assert list(found["sampling"]) == [
        "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty",
    ]  # fmt: skip
    found = server.post(OPENAI, {"file": samples[0].path, "model": "ark-asr"}).json
    assert found["text"] == samples[0].text
    assert found["usage"]["total_tokens"] > found["usage"]["output_tokens"] > 0


def test_all_routes_give_the_same_text(
    server: Served, samples: list[Sample], demo: Transcriber
) -> None:
    for sample in samples[:3]:
        expected = demo.transcribe(sample.path).text
        for path in (ASR, OPENAI, "/audio/transcriptions"):
            assert server.post(path, {"file": sample.path}).json["text"] == expected
        assert server.post(ASR, {"audio_file": sample.path}).json["text"] == expected


@pytest.fixture(scope="module")
def demo() -> Iterator[Transcriber]:
    with ark_asr_onnx.load(DEMO, threads=1) as transcriber:
        yield transcriber


# 2: names of models -----------------------------------------------------------------------------


def test_any_model_name_will_do_unless_one_is_strict(server: Served, clip: Path) -> None:
    for name in (None, "whisper-1", "gpt-4o-mini-transcribe", ""):
        fields = {"file": clip} | ({} if name is None else {"model": name})
        assert server.post(OPENAI, fields).status == 200
    with served(ServiceSettings(is_strict=True, names=("ark-asr", "mine"))) as strict:
        assert strict.post(OPENAI, {"file": clip, "model": "mine"}).status == 200
        found = strict.post(OPENAI, {"file": clip, "model": "whisper-1"})
        assert (found.status, found.error["code"]) == (404, "model_not_found")


# 3, 4: kinds of audio ---------------------------------------------------------------------------


def test_content_decides_what_a_file_is(server: Served, samples: list[Sample]) -> None:
    waveform = sources.read(samples[0].path)
    head, _, *rest = opus(np.repeat(waveform, 3))
    recordings = [wav(waveform, kind=kind) for kind in ("WAV", "FLAC", "MP3", "OGG")]
    recordings.append(file(track_entry(head), cluster(simple(rest), live=True), live=True))
    for data in recordings:
        for name, media in (
            ("x", "audio/wav"),
            ("a.webm", "video/webm"),
            ("upload", "application/octet-stream"),
            ("a.wav", None),
        ):
            found = server.post(OPENAI, {"file": (name, data, media)})
            assert found.json["text"] == samples[0].text


def test_what_telephones_record(server: Served, samples: list[Sample], tmp_path: Path) -> None:
    for kind in ("ipod", "mp4", "adts"):
        write_aac(tmp_path / "voice", sources.read(samples[0].path), kind)
        found = server.post(OPENAI, {"file": ("microphone.webm", (tmp_path / "voice").read_bytes(),
                                              "audio/webm")})  # fmt: skip
        assert found.json["text"] == samples[0].text


def test_what_needs_an_extra_says_so(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ark_asr_onnx.audio.containers.has_media", lambda: False)
    found = server.post(OPENAI, {"file": b"\0\0\0\x18ftypM4A " + bytes(100)})
    assert found.status == 400
    assert "ark-asr-onnx[media]" in found.error["message"]
    assert found.error["code"] == "invalid_audio"


# 5, 6, 7: shapes --------------------------------------------------------------------------------

NUMBERS = (
    "id", "seek", "start", "end", "temperature", "avg_logprob", "compression_ratio",
    "no_speech_prob",
)  # fmt: skip


def test_verbose_json_has_every_number(server: Served, minutes: bytes) -> None:
    found = server.post(OPENAI, {"file": minutes, "response_format": "verbose_json"}).json
    assert found["task"] == "transcribe"
    assert isinstance(found["duration"], float)
    assert isinstance(found["usage"]["seconds"], int)
    assert "words" not in found
    for i, segment in enumerate(found["segments"]):
        assert segment["id"] == i
        for name in NUMBERS:
            assert isinstance(segment[name], (int, float))
        assert all(isinstance(token, int) for token in segment["tokens"])
    assert "".join(segment["text"] for segment in found["segments"]) == found["text"]


@pytest.mark.parametrize(
    ("kind", "media", "begin"),
    [
        ("text", "text/plain; charset=utf-8", ""),
        ("srt", "application/x-subrip; charset=utf-8", "1\n00:00:00,160 --> "),
        ("vtt", "text/vtt; charset=utf-8", "WEBVTT\n\n00:00.160 --> "),
        ("tsv", "text/tab-separated-values; charset=utf-8", "start\tend\ttext\n"),
        ("jsonl", "application/jsonl; charset=utf-8", '{"start": 0.16, '),
    ],
)
def test_formats(server: Served, samples: list[Sample], kind: str, media: str, begin: str) -> None:
    found = server.post(OPENAI, {"file": samples[0].path, "response_format": kind})
    assert found.headers["content-type"] == media
    text = found.body.decode()
    assert text.startswith(begin)
    assert samples[0].text in text
    assert kind != "text" or text == samples[0].text + "\n"


def test_what_is_missing_of_the_audio_is_told(samples: list[Sample]) -> None:
    data = wav(np.append(sources.read(samples[0].path), np.zeros(RATE)))[:-20_000]
    with served() as found:
        for path in (ASR, OPENAI):
            answer = found.post(path, {"file": data})
            assert answer.headers["ark-warnings"] == "cut"
            assert answer.json["text"] == samples[0].text
            assert answer.json["warnings"][0]["kind"] == "cut"
        text = found.post(OPENAI, {"file": data, "response_format": "text"})
        assert text.headers["ark-warnings"] == "cut"
        asked = {"file": data, "response_format": "verbose_json"}
        whole = found.post(OPENAI, asked).json
        (*_, done) = events(found.post(OPENAI, {**asked, "stream": "true"}))
        assert whole["warnings"] == done["warnings"]
        assert [warning["kind"] for warning in whole["warnings"]] == ["cut"]
        assert "header says" in whole["warnings"][0]["message"]
        assert b'ark_asr_audio_warnings_total{kind="cut"} 5.0' in found.get("/metrics").body
        answer = found.post(OPENAI, {**asked, "file": samples[0].path})
        assert answer.json["warnings"] == []
        assert "ark-warnings" not in answer.headers
        assert "warnings" not in found.post(OPENAI, {"file": samples[0].path}).json


def test_log_probabilities(server: Served, samples: list[Sample]) -> None:
    found = server.post(OPENAI, {"file": samples[0].path, "include[]": "logprobs"}).json
    joined = b"".join(bytes(entry["bytes"]) for entry in found["logprobs"]).decode()
    assert joined.strip() == samples[0].text
    assert all(entry["logprob"] <= 0 for entry in found["logprobs"])
    assert len(found["logprobs"]) == found["usage"]["output_tokens"]


def test_the_services_own_settings_hold_where_a_request_says_nothing(minutes: bytes) -> None:
    settings = ServiceSettings(
        options=ark_asr_onnx.Options(3, retry=False), splitting=ark_asr_onnx.Splitting(4.0)
    )
    with served(settings) as short:
        asked = {"file": minutes, "response_format": "verbose_json", "end_time": "20"}
        found = short.post(OPENAI, asked).json["segments"]
        assert max(segment["end"] - segment["start"] for segment in found) <= 4
        assert max(len(segment["tokens"]) for segment in found) == 3
        found = short.post(OPENAI, {**asked, "max_new_tokens": "5"}).json["segments"]
        assert max(len(segment["tokens"]) for segment in found) > 3


VERBOSE = {"response_format": "verbose_json"}
WORDS = {**VERBOSE, "timestamp_granularities[]": "word"}


def test_words_have_their_times(
    server: Served, samples: list[Sample], demo: Transcriber, minutes: bytes
) -> None:
    assert server.get("/ready").json["words"] is True
    for sample in samples[:2]:
        expected = demo.transcribe(sample.path, words=True)
        found = server.post(OPENAI, {**WORDS, "file": sample.path}).json
        assert [word["word"] for word in found["words"]] == sample.text.split()
        assert [list(word) for word in found["words"]] == [
            ["word", "start", "end", "probability"] for _ in found["words"]
        ]
        times = [(word["start"], word["end"]) for word in found["words"]]
        assert times == [(word.start, word.end) for word in expected.words]
        assert found["segments"][0]["start"] == times[0][0]
    whole = server.post(OPENAI, {**WORDS, "file": minutes}).json
    (*_, done) = events(server.post(OPENAI, {**WORDS, "file": minutes, "stream": "true"}))
    assert done["words"] == near(whole["words"])
    assert " ".join(word["word"] for word in done["words"]) == done["text"]
    both = [*VERBOSE.items(), ("timestamp_granularities[]", "word"),
            ("timestamp_granularities[]", "segment"), ("file", samples[0].path)]  # fmt: skip
    found = server.post(OPENAI, both).json
    assert found["words"]
    assert found["segments"]


def test_words_are_there_only_where_they_are_asked_for(server: Served, clip: Path) -> None:
    for granularity in ({}, {"timestamp_granularities[]": "segment"}):
        for stream in ("false", "true"):
            asked = {**VERBOSE, **granularity, "file": clip, "stream": stream}
            assert b'"words"' not in server.post(OPENAI, asked).body
    assert b'"words"' not in server.post(ASR, {**WORDS, "file": clip}).body
    for kind in ("json", "srt"):
        found = server.post(OPENAI, {**WORDS, "file": clip, "response_format": kind})
        assert found.status == 400
        assert found.error["param"] == "timestamp_granularities"
        assert "needs response_format=verbose_json" in found.error["message"]


def test_subtitles_have_the_size_that_is_asked_for(
    server: Served, clip: Path, demo: Transcriber
) -> None:
    transcript = demo.transcribe(clip, words=True)
    layout = ark_asr_onnx.CueLayout(max_line_width=12, max_line_count=1)
    asked = {"file": clip, "max_line_width": 12, "max_line_count": 1}
    for kind, write in (("srt", to_srt), ("vtt", to_vtt)):
        found = server.post(OPENAI, {**asked, "response_format": kind}).body.decode()
        assert found == write(transcript, layout)
        assert found.count("-->") > 1
    found = server.post(OPENAI, asked)
    assert (found.status, found.error["param"]) == (400, "max_line_width")


def test_a_model_without_times_of_words_says_so(clip: Path, tiny_package: Path) -> None:
    with served(load=lambda: ark_asr_onnx.load(tiny_package, threads=1)) as without:
        assert without.get("/ready").json["words"] is False
        for more in ({}, {"hotwords": "go"}):
            found = without.post(OPENAI, {**WORDS, **more, "file": clip})
            assert found.status == 400
            assert found.error["param"] == "timestamp_granularities"
            assert found.error["code"] == "unsupported_value"
            assert (
                "gives no times of words; ask for timestamp_granularities=segment"
                in (found.error["message"])
            )
        asked = {"file": clip, "response_format": "srt", "max_cue_seconds": "3"}
        found = without.post(OPENAI, asked)
        assert found.status == 400
        assert "gives no times of words; ask without max_line_width" in found.error["message"]
        assert without.service.n_requests == 0


def test_what_has_no_effect_is_named(server: Served, clip: Path) -> None:
    fields = {"file": clip, "language": "en-US", "prompt": "x", "response_format": "verbose_json"}
    found = server.post(OPENAI, fields)
    assert found.headers["ark-ignored"] == "prompt, language"
    assert found.json["language"] == "en"
    assert "ark-ignored" not in server.post(OPENAI, {"file": clip, "prompt": ""}).headers


def test_expected_words_are_taken(server: Served, clip: Path, samples: list[Sample]) -> None:
    """At such a strength other words than those that were said are written."""
    words = {"hotwords": "sixty, eleven", "keywords[]": "july"}
    found = server.post(OPENAI, {"file": clip, **words})
    assert found.json["text"] == samples[0].text
    assert "ark-ignored" not in found.headers
    found = server.post(OPENAI, {"file": clip, "hotword_strength": "20", **words})
    assert found.json["text"] != samples[0].text
    assert set(found.json["text"].split()) & {"sixty", "eleven", "july"}


def test_words_that_cannot_be_written_are_refused(clip: Path) -> None:
    with served(ServiceSettings(options=ark_asr_onnx.Options(hotwords=("go",)))) as found:
        for words, complaint in (
            ("<|user|>", "hotwords has '<|user|>', which this model may not write; leave it out"),
            (",".join(map(str, range(1000))), "hotwords has 1001 phrases, may have 1000; keep"),
        ):
            answer = found.post(OPENAI, {"file": clip, "hotwords": words})
            assert answer.status == 400
            assert answer.error["param"] == "hotwords"
            assert answer.error["message"].startswith(complaint)


# 9: streams -------------------------------------------------------------------------------------


def test_a_stream_gives_texts_as_they_are_heard(server: Served, minutes: bytes) -> None:
    body, kind = form({"file": minutes, "stream": "true"})
    with contextlib.closing(server.connect()) as connection:
        connection.request("POST", OPENAI, body, {"content-type": kind})
        answer = connection.getresponse()
        assert answer.getheader("content-type") == "text/event-stream; charset=utf-8"
        assert answer.getheader("cache-control") == "no-cache"
        assert answer.getheader("x-accel-buffering") == "no"
        begin = time.perf_counter()
        first = answer.readline()
        at_first = time.perf_counter() - begin
        rest = answer.read()
        at_end = time.perf_counter() - begin
    assert at_first < at_end / 2
    *deltas, done = events(Answer(200, {}, first + rest))
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert "".join(event["delta"] for event in deltas) == done["text"]
    assert done["type"] == "transcript.text.done"
    assert done["text"] == server.post(OPENAI, {"file": minutes}).json["text"]


def test_a_stream_of_silence_ends_once(server: Served) -> None:
    fields = {"file": wav(np.zeros(3 * RATE)), "stream": "1", "response_format": "verbose_json"}
    (done,) = events(server.post(OPENAI, fields))
    assert done["text"] == ""
    assert done["duration"] == 3.0


def test_a_slow_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch, clip: Path) -> None:
    monkeypatch.setattr("ark_asr_onnx.server.app._FIRST_SECONDS", 0.05)
    monkeypatch.setattr("ark_asr_onnx.server.app._HEARTBEAT_SECONDS", 0.05)
    held = Held()
    with served(load=held.load) as slow:
        threading.Timer(0.5, held.may_step.set).start()
        found = slow.post(OPENAI, {"file": clip, "stream": "true"})
    assert found.body.startswith(b": keep-alive\n\n: keep-alive\n\n")
    assert events(found)[-1]["type"] == "transcript.text.done"


def test_what_fails_before_a_stream_has_its_status(server: Served) -> None:
    found = server.post(OPENAI, {"file": b"no audio at all", "stream": "true"})
    assert (found.status, found.error["code"]) == (400, "invalid_audio")


def test_what_fails_in_a_stream_ends_it_with_an_error(clip: Path) -> None:
    def load() -> Transcriber:
        transcriber = ark_asr_onnx.load(DEMO, threads=1)

        def token_bytes(_: Any) -> bytes:
            raise RuntimeError("/secret/path")

        transcriber.text.token_bytes = token_bytes  # pyright: ignore
        return transcriber

    with served(load=load) as broken:
        asked = {"file": clip, "stream": "true", "include[]": "logprobs"}
        found = broken.post(OPENAI, asked)
        (event,) = [part for part in found.body.split(b"\n\n") if part]
        assert json.loads(event[6:])["error"]["type"] == "server_error"
        assert b"secret" not in found.body
        wait_until(lambda: broken.service.n_requests == 0)


# 10, 11, 12, 13: many at once -------------------------------------------------------------------


def test_a_short_clip_does_not_wait_for_a_long_file(
    server: Served, minutes: bytes, samples: list[Sample]
) -> None:
    long = np.tile(sources.read(minutes), 10)
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(server.post, OPENAI, {"file": wav(long)})
        wait_until(lambda: server.service.n_requests == 1)
        found = server.post(OPENAI, {"file": samples[1].path})
        assert not whole.done()
        assert found.json["text"] == samples[1].text
        assert whole.result().status == 200


def test_callers_get_their_own_texts(samples: list[Sample]) -> None:
    clips = [samples[i % len(samples)] for i in range(32)]
    most = 0
    with served(limited(max_active=32)) as busy, ThreadPoolExecutor(32) as pool:
        jobs = [pool.submit(busy.post, OPENAI, {"file": s.path}) for s in clips]
        while not all(job.done() for job in jobs):
            most = max(most, busy.service.transcriber.status.n_active)
            time.sleep(0.001)
    assert [job.result().json["text"] for job in jobs] == [s.text for s in clips]
    assert 1 <= most <= busy.service.settings.slots


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_client_that_goes_ends_its_work(minutes: bytes, clip: Path, stream: str) -> None:
    with served() as found:
        body, kind = form({"file": minutes, "stream": stream})
        connection = found.connect()
        connection.request("POST", OPENAI, body, {"content-type": kind})
        wait_until(lambda: found.service.n_requests == 1)
        wait_until(lambda: found.service.transcriber.status.n_active > 0)
        connection.close()
        if connection.sock is not None:
            connection.sock.close()
        wait_until(lambda: found.service.n_requests == 0, 2.0)
        wait_until(lambda: found.service.transcriber.status.n_active == 0, 2.0)
        assert b"ark_asr_cancelled_total 1.0" in found.get("/metrics").body
        assert found.post(OPENAI, {"file": clip}).status == 200


def test_a_client_that_goes_while_it_waits_leaves_the_house(clip: Path) -> None:
    held = Held()
    with served(limited(max_active=1), held.load) as full, ThreadPoolExecutor() as pool:
        first = pool.submit(full.post, OPENAI, {"file": clip})
        wait_until(held.is_in_step.is_set)
        body, kind = form({"file": clip})
        with contextlib.closing(full.connect()) as connection:
            connection.request("POST", OPENAI, body, {"content-type": kind})
            wait_until(lambda: full.get("/ready").json["queued"] == 1)
        wait_until(lambda: full.service.n_requests == 1, 2.0)
        held.may_step.set()
        assert first.result().status == 200


def test_a_full_house_says_when_to_come_again(clip: Path) -> None:
    held = Held()
    settings = limited(max_active=1, max_waiting=1)
    with served(settings, held.load) as full, ThreadPoolExecutor() as pool:
        first = [pool.submit(full.post, OPENAI, {"file": clip}) for _ in range(2)]
        wait_until(lambda: full.service.n_requests == 2)
        with contextlib.closing(full.connect()) as connection:  # it sends no body yet
            connection.putrequest("POST", OPENAI)
            connection.putheader("content-type", "multipart/form-data; boundary=x")
            connection.putheader("content-length", "1000")
            connection.endheaders()
            answer = connection.getresponse()
            found = Answer(answer.status, dict(answer.getheaders()), answer.read())
        assert (found.status, found.error["type"]) == (429, "rate_limit_error")
        assert found.error["code"] == "queue_full"
        assert 1 <= int(found.headers["retry-after"]) <= 60
        assert full.get("/ready").json["queued"] == 1
        held.may_step.set()
        assert [one.result().status for one in first] == [200, 200]


# 14: nothing to hear ----------------------------------------------------------------------------


def test_silence_is_an_empty_text(server: Served) -> None:
    silence = wav(np.zeros(3 * RATE))
    assert server.post(OPENAI, {"file": silence}).json["text"] == ""
    assert server.post(OPENAI, {"file": silence, "response_format": "srt"}).body == b""
    assert server.post(OPENAI, {"file": silence, "response_format": "vtt"}).body == b"WEBVTT\n\n"
    for nothing in (wav(np.zeros(0)), b"", wav(np.zeros(100))):
        found = server.post(OPENAI, {"file": nothing})
        assert (found.status, found.error["code"]) == (400, "empty_audio")
        assert found.error["param"] == "file"


# 15: lists --------------------------------------------------------------------------------------


def test_models(server: Served) -> None:
    (model,) = server.get("/v1/models").json["data"]
    assert set(model) == {"id", "object", "created", "owned_by"}
    assert server.get(f"/v1/models/{model['id']}").json == model
    assert server.get("/models").json["data"] == [model]
    assert server.get("/v1/models/gpt-4").error["code"] == "model_not_found"
    found = server.post("/v1/audio/translations", {"file": b"x"})
    assert (found.status, found.error["code"]) == (400, "unsupported_value")


# 16, 18, 19: too much ---------------------------------------------------------------------------


@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_upload_beyond_the_limit(is_chunked: bool) -> None:
    with served(limited(max_upload_bytes=100_000)) as small:
        body, kind = form({"file": bytes(100_000)})
        parts = iter([body[i : i + 9000] for i in range(0, len(body), 9000)])
        with contextlib.closing(small.connect()) as connection:
            connection.request(
                "POST", OPENAI, parts if is_chunked else body, {"content-type": kind},
                encode_chunked=is_chunked,
            )  # fmt: skip
            answer = connection.getresponse()
            found = Answer(answer.status, dict(answer.getheaders()), answer.read())
        assert (found.status, found.error["code"]) == (413, "file_too_large")
        assert found.headers["x-should-retry"] == "false"
        assert "100000" in found.error["message"]
        assert small.service.n_requests == 0


def test_hours_in_a_small_file(clip: Path) -> None:
    bomb = wav(np.zeros(400 * RATE), kind="FLAC")
    assert len(bomb) < 100_000
    with served(limited(max_audio_seconds=60)) as short:
        found = short.post(OPENAI, {"file": bomb})
        assert (found.status, found.error["code"]) == (413, "audio_too_long")
        part = {"file": bomb, "begin_time": 0, "end_time": 30}
        assert short.post(OPENAI, part).status == 200
        assert short.post(OPENAI, {"file": clip}).status == 200


def test_channels_and_rates_that_nobody_has(server: Served) -> None:
    for data in (wav(np.zeros((300, 1000)), 1_000_000), wav(np.zeros((9000, 8)), 655350, "FLAC")):
        found = server.post(OPENAI, {"file": data})
        assert found.status in (200, 400)
    claims = bytearray(wav(np.zeros(RATE)))
    claims[40:44] = (2**31).to_bytes(4, "little")
    assert server.post(OPENAI, {"file": bytes(claims)}).status == 200


@pytest.mark.parametrize(
    "name", ["../../x", "C:\\x", "x" * 10_000, "a\0b", "a.raw", "é\u202e.wav", "'; rm -rf"]
)
def test_a_name_is_no_path(
    server: Served, samples: list[Sample], name: str, tmp_path: Path
) -> None:
    data = samples[0].path.read_bytes()
    found = server.post(OPENAI, {"file": (name.replace("\0", "%00"), data, None)})
    assert found.status in (200, 400)
    assert found.status == 400 or found.json["text"] == samples[0].text
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_stops_is_ended() -> None:
    with served(limited(silent_seconds=0.3)) as hasty:
        with socket.create_connection(("127.0.0.1", hasty.port)) as client:
            client.sendall(
                b"POST /asr HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n"
                b"content-type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
            client.settimeout(10)
            assert client.recv(100).startswith(b"HTTP/1.1 408")
        wait_until(lambda: hasty.service.n_requests == 0)


def drip(port: int, head: bytes) -> bytes:
    """The answer to an upload that comes a byte at a time."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /asr HTTP/1.1\r\nhost: localhost\r\n" + head)
        client.settimeout(0.05)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            client.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                return client.recv(100)
    raise AssertionError("it goes on and on")


def test_an_upload_of_drops_is_ended() -> None:
    kind = b"content-type: multipart/form-data; boundary=x\r\n"
    with served(limited(silent_seconds=0.6)) as hasty:
        found = drip(hasty.port, kind + b"content-length: 1000000\r\n\r\n--x\r\n")
        assert found.startswith(b"HTTP/1.1 408")
        wait_until(lambda: hasty.service.n_requests == 0)


def test_a_refusal_does_not_wait_for_an_upload_of_drops(server: Served) -> None:
    found = drip(server.port, b"origin: null\r\ncontent-length: 1000000\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /health HTTP/1.1\r\nhost: local",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /hea",
        b"POST /asr HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\nexpect: x\r\n\r\n12",
    ],
)
def test_who_says_nothing_more_is_not_waited_for(said: bytes) -> None:
    with served(limited(silent_seconds=0.6)) as hasty:
        with socket.create_connection(("127.0.0.1", hasty.port), timeout=4) as client:
            client.sendall(said)
            with contextlib.suppress(ConnectionResetError):
                while client.recv(1000):
                    pass
        wait_until(lambda: not hasty.server.server_state.connections)


def test_a_head_that_comes_in_drops_is_not_waited_for() -> None:
    with served(limited(silent_seconds=0.6)) as hasty:
        with socket.create_connection(("127.0.0.1", hasty.port)) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nx: ")
            until = time.monotonic() + 10
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < until:
                    client.sendall(b"a")
                    time.sleep(0.05)
        assert time.monotonic() < until


def test_what_is_sent_after_a_refusal_comes_to_an_end() -> None:
    with served(limited(silent_seconds=0.6, max_upload_bytes=1000)) as hasty:
        with socket.create_connection(("127.0.0.1", hasty.port)) as client:
            head = b"POST /asr HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000000\r\n"
            client.sendall(head + b"\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 413")
            until = time.monotonic() + 10
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < until:
                    client.sendall(b"a")
                    time.sleep(0.05)
        assert time.monotonic() < until


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux ends such connections")
def test_who_takes_no_answer_is_not_waited_for() -> None:
    with served(limited(silent_seconds=1)) as hasty, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", hasty.port))
        client.sendall(2000 * b"GET /ui/page.js HTTP/1.1\r\nhost: localhost\r\n\r\n")
        state = hasty.server.server_state
        wait_until(lambda: state.tasks)
        wait_until(lambda: not state.tasks and not state.connections)


def test_too_many_connections_are_told_so() -> None:
    settings = limited(max_active=1, max_waiting=0)
    with served(settings) as full, contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", full.port)))
        wait_until(lambda: len(full.server.server_state.connections) == 100)
        found = full.get("/health")
        assert (found.status, found.error["code"]) == (503, "busy")
        assert found.headers["retry-after"] == "5"
        stack.close()
        wait_until(lambda: full.get("/health").status == 200)


# 17: pages of others, keys ----------------------------------------------------------------------


def test_pages_of_other_origins(clip: Path, server: Served) -> None:
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
    ):
        found = server.post(OPENAI, {"file": clip}, **headers)
        assert (found.status, found.error["code"]) == (403, "forbidden_origin")
    assert server.post(OPENAI, {"file": clip}, origin=server.url).status == 200
    found = server.get("/health", host="evil.example")
    assert (found.status, found.error["code"]) == (403, "forbidden_host")
    access = Access(origins=("https://good.example",), hosts=frozenset({"mine"}))
    with served(ServiceSettings(access=access)) as open_to_one:
        asked = {
            "origin": "https://good.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, x-stainless-lang",
        }
        found = open_to_one.request("OPTIONS", OPENAI, None, asked)
        assert found.status == 200
        assert found.headers["access-control-allow-origin"] == "https://good.example"
        assert "x-stainless-lang" in found.headers["access-control-allow-headers"]
        found = open_to_one.request(
            "OPTIONS", OPENAI, None, asked | {"origin": "https://x.example"}
        )
        assert "access-control-allow-origin" not in found.headers
        found = open_to_one.post(OPENAI, {"file": clip}, origin="https://good.example")
        assert found.status == 200
        assert "ark-ignored" in found.headers["access-control-expose-headers"]
        assert open_to_one.get("/health", host="mine").status == 200


def test_the_pages_own_requests_through_a_proxy_that_changes_the_host(
    clip: Path, server: Served
) -> None:
    page = {"origin": "https://asr.example", "sec_fetch_site": "same-origin"}
    assert server.post(OPENAI, {"file": clip}, **page).status == 200
    for site in ("cross-site", "same-site"):
        found = server.post(OPENAI, {"file": clip}, origin=server.url, sec_fetch_site=site)
        assert found.error["code"] == "forbidden_origin"


@pytest.mark.parametrize("name", ["[", "[::1", "a[b", "localhost]"])
def test_damaged_hosts_and_origins_are_refused(server: Served, name: str) -> None:
    found = server.get("/health", host=name)
    assert (found.status, found.error["code"]) == (403, "forbidden_host")
    found = server.post(ASR, {}, origin=f"http://{name}")
    assert (found.status, found.error["code"]) == (403, "forbidden_origin")


def test_a_health_check_may_use_a_name_of_this_machine() -> None:
    access = Access(hosts=frozenset({"asr.example"}), is_loopback=False)
    with served(ServiceSettings(access=access)) as named:
        assert named.get("/ready", host="asr.example:8025").status == 200
        assert named.get("/ready", host="other.example").status == 403


def test_keys(clip: Path) -> None:
    with served(ServiceSettings(access=Access(keys=frozenset({"one", "zwei ü"})))) as closed:
        for path in ("/health", "/ready", "/", "/ui/page.js"):
            assert closed.get(path).status == 200
        for path in ("/metrics", "/token-mask", "/v1/models"):
            assert closed.get(path).status == 401
        found = closed.post(OPENAI, {"file": clip})
        assert (found.status, found.error["code"]) == (401, "invalid_api_key")
        assert found.headers["www-authenticate"] == "Bearer"
        for headers in ({"authorization": "Bearer one"}, {"x_api_key": "one"}):
            assert closed.post(OPENAI, {"file": clip}, **headers).status == 200
        for headers in ({"authorization": "Basic one"}, {"x_api_key": "On"}, {"x_api_key": ""}):
            assert closed.post(OPENAI, {"file": clip}, **headers).status == 401


# 20, 21, 22: how it is ---------------------------------------------------------------------------


def test_ready_only_when_it_can_serve(clip: Path) -> None:
    may_load, held = threading.Event(), Held()

    def load() -> Transcriber:
        assert may_load.wait(30)
        return held.load()

    settings = limited(stalled_seconds=0.3)
    with served(settings, load, wait=False) as found, ThreadPoolExecutor() as pool:
        assert found.get("/health").status == 200
        assert found.get("/ready").json["model"] == "loading"
        early = found.post(OPENAI, {"file": clip})
        assert (early.status, early.error["code"]) == (503, "loading")
        assert "retry-after" in early.headers
        assert b'ark_asr_rejected_total{reason="loading"} 1.0' in found.get("/metrics").body
        may_load.set()
        wait_until(lambda: found.get("/ready").status == 200)
        stuck = pool.submit(found.post, OPENAI, {"file": clip})
        wait_until(lambda: found.get("/ready").status == 503)
        assert found.get("/ready").json["stalled_s"] > 0.2
        held.may_step.set()
        assert stuck.result().status == 200
        wait_until(lambda: found.get("/ready").status == 200)


def test_a_model_that_cannot_be_loaded(clip: Path, tmp_path: Path) -> None:
    with served(load=lambda: ark_asr_onnx.load(tmp_path), wait=False) as broken:
        wait_until(lambda: broken.get("/ready").json["model"] == "failed")
        found = broken.post(OPENAI, {"file": clip})
        assert (found.status, found.error["code"]) == (503, "failed")
        assert str(tmp_path) not in found.error["message"]


def test_an_upload_that_outlives_the_service_is_told(clip: Path) -> None:
    body, kind = form({"file": clip})
    with served() as ending, contextlib.closing(ending.connect()) as connection:
        connection.putrequest("POST", OPENAI)
        connection.putheader("content-type", kind)
        connection.putheader("content-length", str(len(body)))
        connection.endheaders(body[:1000])
        wait_until(lambda: ending.service.n_requests == 1)
        ending.service.close()
        connection.send(body[1000:])
        answer = connection.getresponse()
        found = Answer(answer.status, dict(answer.getheaders()), answer.read())
        assert (found.status, found.error["code"]) == (503, "shutting_down")


def test_metrics_can_be_read(samples: list[Sample]) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with served() as found:
        for sample in samples[:3]:
            found.post(OPENAI, {"file": sample.path})
        found.post(ASR, {"file": b"no audio"})
        answer = found.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    assert values["ark_asr_requests_total", OPENAI, "200"] == 3
    assert values["ark_asr_requests_total", ASR, "400"] == 1
    seconds = sum(len(sources.read(s.path)) / RATE for s in samples[:3])
    assert values["ark_asr_audio_seconds_total",] == pytest.approx(seconds)
    assert values["ark_asr_model_loaded",] == 1
    assert values["ark_asr_tokens_total",] > 0
    assert values["ark_asr_queue_seconds_count",] == 3


def test_an_idle_model_is_let_go_and_comes_back(clip: Path, samples: list[Sample]) -> None:
    with served(load=lambda: ark_asr_onnx.load(DEMO, threads=1, idle_unload_seconds=0.1)) as found:
        found.post(OPENAI, {"file": clip})
        wait_until(lambda: found.get("/ready").json["model"] == "unloaded")
        assert found.get("/ready").status == 200
        assert found.post(OPENAI, {"file": clip}).json["text"] == samples[0].text


# 23: bad requests -------------------------------------------------------------------------------


# Starlette leaves the file of a form that was cut off to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_bad_forms_are_one_clear_line(server: Served, clip: Path) -> None:
    content = clip.read_bytes()
    for fields, param in (
        ({"model": "x"}, "file"),
        ({"file": "text"}, "file"),
        ([("file", content), ("file", content)], None),
        ([(f"f{i}", "x") for i in range(1000)], None),
        ({"file": content, "prompt": "x" * 1_000_000}, None),
    ):
        found = server.post(OPENAI, fields)
        assert found.status == 400
        assert found.error["param"] == param
        assert found.error["type"] == "invalid_request_error"
    body, kind = form({"file": content})
    found = server.request("POST", OPENAI, body[: len(body) // 2], {"content-type": kind})
    assert found.status == 400
    for kind in ("application/json", "application/x-www-form-urlencoded", "audio/wav", ""):
        found = server.request("POST", OPENAI, b"file=x", {"content-type": kind})
        assert found.status == 415
    for kind in ("multipart/form-data", "multipart/form-data; boundary="):
        assert server.request("POST", OPENAI, b"x", {"content-type": kind}).status == 400


def test_upstreams_errors(server: Served, clip: Path) -> None:
    found = server.post(ASR, {"file": clip, "temperature": "3"})
    assert found.json["detail"] == "temperature must be between 0.0 and 2.0, got 3.0"
    assert server.post(ASR, {"file": clip, "top_k": "x"}).status == 422
    assert server.post(ASR, {}).status == 422
    assert server.post(ASR, {"file": b"no audio"}).status == 400


def test_paths_and_methods(server: Served) -> None:
    found = server.get("/v1/v1/audio/transcriptions")
    assert (found.status, found.error["code"]) == (404, "not_found")
    assert OPENAI in found.error["message"]
    found = server.get(OPENAI)
    assert (found.status, found.error["code"]) == (405, "method_not_allowed")
    assert found.headers["allow"] == "POST"


def test_slashes_too_many_do_no_harm(server: Served, clip: Path) -> None:
    for path in ("/asr/", "//asr", "/v1//audio/transcriptions", "/v1/audio/transcriptions/"):
        assert server.post(path, {"file": clip}).status == 200
    assert server.get("/v1/models/").json == server.get("/v1/models").json
    assert server.get("//evil.example/").status == 404
    assert b'route="/v1/audio/transcriptions",status="307"' not in server.get("/metrics").body
    with served(ServiceSettings(access=Access(keys=frozenset({"x"})))) as closed:
        for path in ("/metrics/", "//metrics", "/ui/../metrics", "/ui//../metrics"):
            assert closed.get(path).status in (401, 404)


def test_below_a_proxys_path(clip: Path) -> None:
    settings = ServiceSettings(access=Access(keys=frozenset({"x"})))
    with served(settings, root_path="/speech") as below:  # which the proxy takes away
        for path in ("/", "/ui", "/ui/page.js", "/health"):
            assert below.get(path).status == 200
        assert below.get("/metrics").status == 401
        assert below.get("/ui/", host="localhost").headers["location"].endswith("/speech/ui")
        assert below.post(OPENAI, {"file": clip}, authorization="Bearer x").status == 200
        counts = below.get("/metrics", authorization="Bearer x").body
        assert b'ark_asr_requests_total{route="/health",status="200"} 1.0' in counts
        assert b'ark_asr_requests_total{route="/v1/audio/transcriptions",status="200"}' in counts


def test_a_route_that_fails_says_so_in_our_shape(
    clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with served() as broken:
        monkeypatch.setattr(broken.service.metrics, "registry", None)
        found = broken.get("/metrics", x_request_id="mine")
        assert (found.status, found.error["type"]) == (500, "server_error")
        assert found.headers["x-request-id"] == "mine"
        assert "request mine failed" in caplog.text
        assert broken.post(OPENAI, {"file": clip}).status == 200


def test_a_fault_of_ours_tells_nothing_of_it(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    def load() -> Transcriber:
        transcriber = ark_asr_onnx.load(DEMO, threads=1)

        def encode(_: Any) -> Any:
            raise RuntimeError("/secret/path")

        transcriber.model.encode = encode  # pyright: ignore
        return transcriber

    with served(load=load) as broken:
        found = broken.post(OPENAI, {"file": clip})
        assert found.status == 500
        assert found.headers["x-should-retry"] == "false"
        assert "secret" not in found.body.decode()
        assert "/secret/path" in caplog.text
        assert broken.get("/health").status == 200


def test_every_answer_has_an_id(server: Served) -> None:
    assert server.get("/health", x_request_id="mine-1").headers["x-request-id"] == "mine-1"
    for given in ("", "two words", "x" * 65, "\xe9"):
        found = server.get("/health", x_request_id=given).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", found)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts files as Linux tells them")
def test_temporary_files_go(server: Served, minutes: bytes) -> None:
    def opened() -> list[str]:
        return [p for fd in Path("/proc/self/fd").iterdir() if (p := target(fd)).startswith("/tmp")]

    assert len(minutes) > 1 << 20  # so many that they are on disk
    before = opened()
    server.post(OPENAI, {"file": minutes, "end_time": "5"})
    server.post(OPENAI, {"file": minutes, "temperature": "9"})
    server.post(OPENAI, {"file": minutes[:-1_000_000]})
    wait_until(lambda: server.service.n_requests == 0)
    assert opened() == before


def target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
