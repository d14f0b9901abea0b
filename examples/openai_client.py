"""OpenAI's client with this service: first a streamed text, then segments with times.

    pip install openai
    ark-asr serve start --model DIR
    python examples/openai_client.py audio.flac [http://127.0.0.1:8025/v1]

The key comes from ``OPENAI_API_KEY``; a service without keys accepts any key.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import openai


def main(path: str, url: str = "http://127.0.0.1:8025/v1") -> None:
    """Transcribe a file twice: as a stream, and with the times of its segments."""
    client = openai.OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    with Path(path).open("rb") as audio:
        events = client.audio.transcriptions.create(model="ark-asr", file=audio, stream=True)
        for event in events:
            if event.type == "transcript.text.delta":
                print(event.delta, end="", flush=True)
        print()
    with Path(path).open("rb") as audio:
        found = client.audio.transcriptions.create(
            model="ark-asr", file=audio, response_format="verbose_json"
        )
    for segment in found.segments or ():
        print(f"{segment.start:.2f} to {segment.end:.2f} s: {segment.text.strip()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
