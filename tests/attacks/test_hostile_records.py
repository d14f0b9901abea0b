"""Lists of records as attacks: records come out, or one line of :class:`RecordsError`."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

N_MUTATIONS = 2000
MOST_BYTES = 500 << 20  # of memory beyond what is there at the start

LINES: list[dict[str, object]] = [
    {"audio": "a.wav", "text": "ä", "begin_time": 1, "end_time": 2.5, "task": "asr"},
    {"audio_filepath": "b.wav", "offset": 0.5, "duration": 2, "speaker": {"id": [1, None]}},
    {"file_name": "c.wav", "transcription": "one two"},
    {"audio": "file:///d%20.wav", "text": "x", "pred_text": "y"},
]
HOSTILE = [
    "[" * 200_000, '{"a":' * 100_000, "9" * 5000, "-" + "9" * 500_000, "1e99999", "NaN",
    "-Infinity", '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', "\0", "\0" * 4096, "null", "true",
    "[]", "{}", '""', '"' + "x" * 100_000 + '"', "file://[", '"file://[::1/a"', '"~root/a.wav"',
    '"//host/a"', "1e-400", '{"audio":{"audio":{}}}', "\ufeff", "\u2028", "-0.0", "1E400", "0x10",
    "'a'", "/*", ",", "}", "]",
]  # fmt: skip


def mutated(seed: int) -> bytes:
    """A list that was hurt in one to four places, always the same for a seed."""
    rng = random.Random(seed)
    content = "".join(
        json.dumps(rng.choice(LINES), ensure_ascii=False) + "\n" for _ in range(rng.randint(1, 4))
    )
    if rng.random() < 0.6:  # hostile values, where values are
        for _ in range(rng.randint(1, 3)):
            places = [i + 1 for i, c in enumerate(content) if c in ':,[{"']
            at = rng.choice(places)
            content = content[:at] + rng.choice(HOSTILE) + content[at + rng.choice((0, 0, 1, 5)) :]
    data = bytearray(content.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-32"))))
    if rng.random() < 0.2:
        data = bytearray(gzip.compress(bytes(data)))
    for _ in range(rng.randint(0, 3)):
        at, length = rng.randrange(len(data)), rng.choice((1, 1, 2, 16))
        data[at : at + length] = rng.choice(
            (rng.randbytes(length), b"", bytes(length), bytes(data[:64]), bytes(data[at:]))
        )
        data = data or bytearray(1)
    return bytes(data)


def odd(folder: Path) -> list[Path]:
    """Paths of what is no list at all, or too large a one."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to(folder / "link")
    large = {
        "100 MB without end": b" " * (100 << 20),
        "objects": b'{"audio": "a.wav", "x": [' + b"{}," * (2 << 20) + b"{}]}\n",
        "names": b"{" + b",".join(b'"%d":1' % i for i in range(600_000)) + b"}\n",
        "text": b'{"audio": "' + b"a" * (7 << 20) + b'"}\n',
        "bomb": gzip.compress(bytes(200 << 20)),
    }
    for name, content in large.items():
        (folder / name).write_bytes(content)
    (folder / "hole").touch()
    os.truncate(folder / "hole", 1 << 40)
    named = ["pipe", "folder", "link", "hole", *large, "none", "n" * 300]
    devices = ("/dev/zero", "/dev/null", "/dev/urandom")
    return [folder / name for name in named] + [Path(name) for name in devices]


def read_all() -> None:
    """Read every list; raises at the first that gives anything but records or their error."""
    import resource

    from ark_asr_onnx.corpus.evaluation import read_scorable
    from ark_asr_onnx.corpus.records import read_records
    from ark_asr_onnx.errors import RecordsError

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    def read(path: Path, what: object) -> None:
        for reads in (read_records, read_scorable):
            complaint = ""
            try:
                reads(path)
            except RecordsError as error:
                complaint = str(error)
            except BaseException as error:
                raise AssertionError(f"{what}: {error!r}") from error
            assert "\n" not in complaint, (what, complaint)
            assert len(complaint) < 1000, (what, complaint)
        assert peak() - before < MOST_BYTES, what

    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        for seed in range(N_MUTATIONS):
            path.write_bytes(mutated(seed))
            read(path, f"seed {seed}")
        for odd_one in odd(Path(folder)):
            read(odd_one, odd_one)


@pytest.mark.skipif(os.name != "posix", reason="devices and limits of POSIX")
def test_a_hostile_list_gives_records_or_one_line() -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    read_all()
