"""Requests as clients in the field send them, byte for byte.

Each was captured from the library that the client sends with, called as its source calls it: n8n's
OpenAI node and LibreChat (axios and form-data), Open WebUI (requests), Home Assistant's openai_stt
(httpx), wyoming-openai (openai 1.60), openai-node, the Vercel AI SDK with both kinds of model name
(undici), a page's ``fetch``, curl. Only the audio, its length and the key are put in.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Sample
from serving import Answer, Served, served

from ark_asr_onnx.server.limits import Access
from ark_asr_onnx.server.service import ServiceSettings

N8N = """\
POST /v1/audio/transcriptions HTTP/1.1
Accept: application/json, text/plain, */*
Content-Type: multipart/form-data; boundary=--------------------------bf5589df2bf1857842a1a4ec
User-Agent: axios/1.21.1
Content-Length: LENGTH
Accept-Encoding: gzip, compress, deflate, br
Authorization: Bearer KEY
Host: 127.0.0.1:8025
Connection: keep-alive

----------------------------bf5589df2bf1857842a1a4ec
Content-Disposition: form-data; name="model"

whisper-1
----------------------------bf5589df2bf1857842a1a4ec
Content-Disposition: form-data; name="language"

en
----------------------------bf5589df2bf1857842a1a4ec
Content-Disposition: form-data; name="temperature"

0.3
----------------------------bf5589df2bf1857842a1a4ec
Content-Disposition: form-data; name="file"; filename="data.ogg"
Content-Type: audio/ogg

AUDIO
----------------------------bf5589df2bf1857842a1a4ec--
"""

LIBRECHAT = """\
POST /v1/audio/transcriptions HTTP/1.1
Accept: application/json, text/plain, */*
Content-Type: multipart/form-data; boundary=--------------------------d198a3fff1f8657a14e9ba5f
Authorization: Bearer KEY
User-Agent: axios/1.21.1
Accept-Encoding: gzip, compress, deflate, br
Host: 127.0.0.1:8025
Connection: keep-alive
Transfer-Encoding: chunked

----------------------------d198a3fff1f8657a14e9ba5f
Content-Disposition: form-data; name="file"; filename="audio.webm"
Content-Type: video/webm

AUDIO
----------------------------d198a3fff1f8657a14e9ba5f
Content-Disposition: form-data; name="model"

whisper-1
----------------------------d198a3fff1f8657a14e9ba5f
Content-Disposition: form-data; name="language"

en
----------------------------d198a3fff1f8657a14e9ba5f--
"""

OPEN_WEBUI = """\
POST /v1/audio/transcriptions HTTP/1.1
Host: 127.0.0.1:8025
User-Agent: python-requests/2.34.2
Accept-Encoding: gzip, deflate
Accept: */*
Connection: keep-alive
Authorization: Bearer KEY
Content-Length: LENGTH
Content-Type: multipart/form-data; boundary=bb0274c358e2aed0b32ee1f5162c3cf9

--bb0274c358e2aed0b32ee1f5162c3cf9
Content-Disposition: form-data; name="model"

whisper-1
--bb0274c358e2aed0b32ee1f5162c3cf9
Content-Disposition: form-data; name="language"

en
--bb0274c358e2aed0b32ee1f5162c3cf9
Content-Disposition: form-data; name="file"; filename="5f0c1b7e-2d0f-4b0e-a3d5-0b1f0c7d9e55.wav"

AUDIO
--bb0274c358e2aed0b32ee1f5162c3cf9--
"""

HOME_ASSISTANT = """\
POST /v1/audio/transcriptions HTTP/1.1
Host: 127.0.0.1:8025
Accept: */*
Accept-Encoding: gzip, deflate
Connection: keep-alive
User-Agent: python-httpx/0.27.2
Authorization: Bearer KEY
Content-Length: LENGTH
Content-Type: multipart/form-data; boundary=718e782bbadc18f8810658fdd1e226cf

--718e782bbadc18f8810658fdd1e226cf
Content-Disposition: form-data; name="file"; filename="whisper_audio.wav"
Content-Type: audio/wav

AUDIO
--718e782bbadc18f8810658fdd1e226cf
Content-Disposition: form-data; name="model"

gpt-4o-mini-transcribe
--718e782bbadc18f8810658fdd1e226cf
Content-Disposition: form-data; name="language"

de
--718e782bbadc18f8810658fdd1e226cf
Content-Disposition: form-data; name="prompt"


--718e782bbadc18f8810658fdd1e226cf
Content-Disposition: form-data; name="temperature"

0
--718e782bbadc18f8810658fdd1e226cf
Content-Disposition: form-data; name="response_format"

json
--718e782bbadc18f8810658fdd1e226cf--
"""

WYOMING_OPENAI = """\
POST /v1/audio/transcriptions HTTP/1.1
Host: 127.0.0.1:8025
Accept-Encoding: gzip, deflate
Connection: keep-alive
Accept: application/json
User-Agent: OpenAI/Python 1.60.0
X-Stainless-Lang: python
X-Stainless-Package-Version: 1.60.0
X-Stainless-OS: Linux
X-Stainless-Arch: x64
X-Stainless-Runtime: CPython
X-Stainless-Runtime-Version: 3.11.7
Authorization: Bearer KEY
X-Stainless-Async: false
x-stainless-retry-count: 0
Content-Length: LENGTH
Content-Type: multipart/form-data; boundary=12a68416a6b7294fd31de5b68b9715d0

--12a68416a6b7294fd31de5b68b9715d0
Content-Disposition: form-data; name="model"

ark-asr
--12a68416a6b7294fd31de5b68b9715d0
Content-Disposition: form-data; name="response_format"

json
--12a68416a6b7294fd31de5b68b9715d0
Content-Disposition: form-data; name="stream"

true
--12a68416a6b7294fd31de5b68b9715d0
Content-Disposition: form-data; name="file"; filename="recording.wav"
Content-Type: audio/x-wav

AUDIO
--12a68416a6b7294fd31de5b68b9715d0--
"""

OPENAI_NODE = """\
POST /v1/audio/transcriptions HTTP/1.1
host: 127.0.0.1:8025
connection: keep-alive
accept: application/json
user-agent: OpenAI/JS 6.49.0
x-stainless-retry-count: 0
x-stainless-lang: js
x-stainless-package-version: 6.49.0
x-stainless-os: Linux
x-stainless-arch: x64
x-stainless-runtime: node
x-stainless-runtime-version: v20.20.2
authorization: Bearer KEY
content-type: multipart/form-data; boundary=----formdata-undici-097540083788
accept-language: *
sec-fetch-mode: cors
accept-encoding: gzip, deflate
content-length: LENGTH

------formdata-undici-097540083788
Content-Disposition: form-data; name="file"; filename="a.wav"
Content-Type: application/octet-stream

AUDIO
------formdata-undici-097540083788
Content-Disposition: form-data; name="model"

gpt-4o-transcribe
------formdata-undici-097540083788
Content-Disposition: form-data; name="response_format"

json
------formdata-undici-097540083788
Content-Disposition: form-data; name="include[]"

logprobs
------formdata-undici-097540083788
Content-Disposition: form-data; name="chunking_strategy[type]"

server_vad
------formdata-undici-097540083788
Content-Disposition: form-data; name="chunking_strategy[threshold]"

0.5
------formdata-undici-097540083788
Content-Disposition: form-data; name="timestamp_granularities[]"

segment
------formdata-undici-097540083788
Content-Disposition: form-data; name="temperature"

0
------formdata-undici-097540083788--
"""

AI_SDK = """\
POST /v1/audio/transcriptions HTTP/1.1
host: 127.0.0.1:8025
connection: keep-alive
authorization: Bearer KEY
user-agent: ai/6.0.326 ai-sdk/provider-utils/4.0.66 runtime/node.js/v20.20.2
content-type: multipart/form-data; boundary=----formdata-undici-023441676442
accept: */*
accept-language: *
sec-fetch-mode: cors
accept-encoding: gzip, deflate
content-length: LENGTH

------formdata-undici-023441676442
Content-Disposition: form-data; name="model"

whisper-1
------formdata-undici-023441676442
Content-Disposition: form-data; name="file"; filename="audio.wav"
Content-Type: audio/wav

AUDIO
------formdata-undici-023441676442
Content-Disposition: form-data; name="language"

en
------formdata-undici-023441676442
Content-Disposition: form-data; name="prompt"

p
------formdata-undici-023441676442
Content-Disposition: form-data; name="response_format"

verbose_json
------formdata-undici-023441676442
Content-Disposition: form-data; name="temperature"

0
------formdata-undici-023441676442
Content-Disposition: form-data; name="timestamp_granularities[]"

segment
------formdata-undici-023441676442--
"""
AI_SDK_GPT = AI_SDK.replace("whisper-1", "gpt-4o-transcribe").replace("verbose_json", "json")

FETCH = """\
POST /asr HTTP/1.1
host: 127.0.0.1:8025
connection: keep-alive
content-type: multipart/form-data; boundary=----formdata-undici-031498057426
authorization: Bearer KEY
accept: */*
accept-language: *
sec-fetch-mode: cors
user-agent: node
accept-encoding: gzip, deflate
content-length: LENGTH

------formdata-undici-031498057426
Content-Disposition: form-data; name="stream"

true
------formdata-undici-031498057426
Content-Disposition: form-data; name="file"; filename="x é%22.wav"
Content-Type: application/octet-stream

AUDIO
------formdata-undici-031498057426--
"""

CURL = """\
POST /v1/audio/transcriptions HTTP/1.1
Host: 127.0.0.1:8025
User-Agent: curl/7.88.1
Accept: */*
Authorization: Bearer KEY
Content-Length: LENGTH
Content-Type: multipart/form-data; boundary=------------------------e99c1c41756ff7bf

--------------------------e99c1c41756ff7bf
Content-Disposition: form-data; name="file"; filename="5f0c.wav"
Content-Type: application/octet-stream

AUDIO
--------------------------e99c1c41756ff7bf
Content-Disposition: form-data; name="model"

ark-asr
--------------------------e99c1c41756ff7bf--
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(ServiceSettings(access=Access(keys=frozenset({"KEY"})))) as found:
        yield found


def replay(server: Served, request: str, audio: bytes) -> Answer:
    """Send a captured request, and take the whole answer."""
    head, _, body = request.replace("\n", "\r\n").encode().partition(b"\r\n\r\n")
    body = body.replace(b"AUDIO", audio)
    if b"chunked" in head:
        parts = [body[i : i + 65_536] for i in range(0, len(body), 65_536)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))
    head = head.replace(b"LENGTH", b"%d" % len(body))
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(head + b"\r\n\r\n" + body)
        with client.makefile("rb") as stream:
            status = int(stream.readline().split()[1])
            lines = iter(lambda: stream.readline().decode().strip(), "")
            headers = {name.lower(): value for name, value in (line.split(": ") for line in lines)}
            if "content-length" in headers:
                return Answer(status, headers, stream.read(int(headers["content-length"])))
            found = b""
            while size := int(stream.readline(), 16):
                found += stream.read(size)
                stream.readline()
            return Answer(status, headers, found)


@pytest.mark.parametrize(
    ("request_", "ignored"),
    [
        (N8N, "language, temperature"),
        (LIBRECHAT, "language"),
        (OPEN_WEBUI, "language"),
        (HOME_ASSISTANT, "language"),
        (OPENAI_NODE, None),
        (AI_SDK, "prompt, language"),
        (AI_SDK_GPT, "prompt, language"),
        (FETCH, None),
        (CURL, None),
    ],
    ids=["n8n", "LibreChat", "Open WebUI", "Home Assistant", "openai-node", "AI SDK",
         "AI SDK, gpt", "fetch", "curl"],
)  # fmt: skip
def test_what_clients_send_is_understood(
    server: Served, samples: list[Sample], request_: str, ignored: str | None
) -> None:
    found = replay(server, request_, samples[0].path.read_bytes())
    assert found.status == 200
    assert found.json["text"] == samples[0].text
    assert found.headers.get("ark-ignored") == ignored
    if request_ is AI_SDK:
        check_verbose(found.json)
    if request_ is OPENAI_NODE:
        assert found.json["logprobs"]


def check_verbose(found: Any) -> None:
    """What the AI SDK demands of ``verbose_json``: no number may be null or missing."""
    assert isinstance(found["language"], str)
    assert isinstance(found["duration"], (int, float))
    for segment in found["segments"]:
        assert isinstance(segment["text"], str)
        assert all(isinstance(token, int) for token in segment["tokens"])
        for name in (
            "id", "seek", "start", "end", "temperature", "avg_logprob", "compression_ratio",
            "no_speech_prob",
        ):  # fmt: skip
            assert isinstance(segment[name], (int, float))


def test_wyoming_openai_lives_on_deltas(server: Served, samples: list[Sample]) -> None:
    found = replay(server, WYOMING_OPENAI, samples[0].path.read_bytes())
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = [json.loads(e) for e in re.findall(r"^data: ({.*})$", found.body.decode(), re.M)]
    deltas = [e["delta"] for e in events if e["type"] == "transcript.text.delta"]
    assert "".join(deltas) == samples[0].text


def test_what_clients_read_of_a_refusal(server: Served, samples: list[Sample]) -> None:
    audio = samples[0].path.read_bytes()
    for request in (N8N, LIBRECHAT, OPEN_WEBUI, HOME_ASSISTANT, OPENAI_NODE, AI_SDK, FETCH):
        found = replay(server, request.replace("Bearer KEY", "Bearer other"), audio)
        assert (found.status, found.error["code"]) == (401, "invalid_api_key")
        found = replay(server, request, b"no audio")
        assert (found.status, found.error["code"]) == (400, "invalid_audio")
