"""Packages that somebody made to do harm: refused by one line, at once, in little memory.

The attacks run in a child process, so that one that ends the process, hangs or takes all memory is
found. ``python tests/attacks/test_manifests.py FOLDER SEED N`` runs so many more of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
CLIP = DEMO / "samples" / "an68-meht-b.flac"
MANIFESTS = (
    "ark_manifest.json", "runtime_manifest.json", "llm_kv_fp32_qwen_native.json",
    "preprocessor_config.json", "tokenizer.json", "added_tokens.json",
)  # fmt: skip
MAX_SECONDS, MAX_MEGABYTES = 5.0, 500

ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 255, 65536, 2**24, 2**31, 2**40, 10**19, -(10**18), 0.5,
    -0.0, 1e308, float("nan"), float("inf"), "", "a", "..", ".", "/", "../x", "/etc/passwd",
    "C:\\x", "a\0b", "a\nb", "\x1b[31m", "\ud800", "\udc80", "\u202e", "x" * 100_000, "9" * 5000,
    "audio.onnx", "tokenizer.json", [], {}, [[]], [{}], {"": {}}, [0] * 1000, ["a"] * 1000,
    [[0, 1]] * 1000, [[1, 0]], {"a": {"bytes": 1, "sha256": ""}}, {str(i): i for i in range(5000)},
]  # fmt: skip


def deep(n: int) -> Any:
    found: Any = []
    for _ in range(n):
        found = [found]
    return found


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values, of long lists to a few."""
    yield path
    if len(path) > 8:
        return
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i in {0, len(value) // 2, len(value) - 1} & set(range(len(value))):
            yield from places(value[i], (*path, i))


def by_value(text: str, chance: random.Random) -> str:
    """One to three values of the file become odd ones, or go, or have odd neighbours."""
    for _ in range(chance.randint(1, 3)):
        raw = json.loads(text)
        *path, last = chance.choice(list(places(raw)) or [()]) or (None,)
        inside = raw
        for key in path:
            inside = inside[key]
        kind = chance.randrange(10)
        if last is None:
            raw = chance.choice(ODD)
        elif kind == 0:
            del inside[last]
        elif kind == 1:
            inside[last] = deep(chance.choice([5, 100, 400]))
        elif kind < 5 and type(inside[last]) is int:
            inside[last] = round(inside[last] * chance.choice([0.5, 2, 100])) + chance.choice(
                [0, 1]
            )
        elif kind < 5 and isinstance(inside[last], list):
            inside[last] = inside[last] * chance.choice([2, 3, 1000])
        elif kind == 2 and isinstance(last, str):
            inside[chance.choice(["", "x", last * 2, "\n"])] = 1
        else:
            inside[last] = chance.choice(ODD)
        text = json.dumps(raw)
    return text


def by_text(text: str, chance: random.Random) -> bytes:
    """The file's bytes: flipped, cut, repeated, in another encoding, endless."""
    data = bytearray(text.encode())
    at = chance.randrange(len(data))
    number = text.find(": ", at)
    kind = chance.randrange(11)
    if kind == 0:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = data[at : at + chance.choice([1, 100, 10_000])] * chance.choice([1, 2, 50])
    elif kind == 3:
        return text.encode(chance.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-be"]))
    elif kind == 4:
        return chance.choice([b"[", b'{"a":', b"[[],"]) * chance.choice([500, 200_000, 2_000_000])
    elif kind == 5 and number > 0:
        digits = chance.choice([19, 21, 4300, 4301, 1_000_000])
        data[number + 2 : number + 3] = b"9" * digits + b","
    elif kind == 10 and number > 0:
        depth = chance.choice([900, 100_000])
        data[number + 2 : number + 2] = b"[" * depth + b"]" * depth + b","
    elif kind == 6:
        return bytes(chance.choice([0, 1, 4096, 5 << 20]))
    elif kind == 7 and number > 0:
        data[number + 2 : number + 2] = chance.choice([b"NaN,", b"-Infinity,", b"1e999,", b"-0,"])
    elif kind == 8:
        return b"{" + b",".join(b'"%d":0' % i for i in range(300_000)) + b"}"
    else:
        return b'{"a":1,' + b'"a":1,' * 300_000 + text.encode()[1:]
    return bytes(data)


def by_file(path: Path, chance: random.Random) -> None:
    """Something else in the file's place."""
    path.unlink()
    kind = chance.randrange(8)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(path.name)
    elif kind == 2:
        path.symlink_to(chance.choice(["/dev/zero", "/dev/urandom", "/dev/stdin", "/dev/tty"]))
    elif kind == 3:
        path.symlink_to(chance.choice(["/proc/self/mem", "/proc/kmsg", "/proc/self/environ"]))
    elif kind == 4:
        path.mkdir()
    elif kind == 5:
        path.touch()
        os.truncate(path, chance.choice([0, 1, 1 << 24, 1 << 33]))
    elif kind == 6:
        path.symlink_to("..")
    # else: it is missing


def by_byte(data: bytes, chance: random.Random) -> bytes:
    """A graph or weights: flipped bits, runs of bytes, cut, repeated, parts of itself elsewhere."""
    found = bytearray(data)
    for _ in range(chance.choice([1, 1, 3, 30])):
        at, n = chance.randrange(len(found)), chance.choice([1, 2, 8, 100, 1000])
        kind = chance.randrange(6)
        if kind == 0:
            found[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            found[at : at + n] = bytes([chance.choice([0, 1, 127, 128, 255])]) * n
        elif kind == 2:
            found[at : at + n] = chance.randbytes(n)
        elif kind == 3:
            other = chance.randrange(len(found))
            found[at : at + n] = found[other : other + n]
        elif kind == 4 and n < len(found) // 2:
            del found[at : at + n]
        else:
            found[at:at] = found[at : at + n]
    return bytes(found[: chance.choice([len(found)] * 5 + [chance.randrange(len(found))])])


def attack(source: Path, folder: Path, chance: random.Random) -> str:
    """A copy of a package with one file attacked; what was done."""
    shutil.copytree(source, folder, copy_function=os.link)
    name = chance.choice([name for name in MANIFESTS if (folder / name).exists()])
    path = folder / name
    if chance.randrange(3) == 0:
        path = chance.choice(sorted(p for p in folder.iterdir() if ".onnx" in p.name))
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(by_byte(content, chance))
        fit(folder, path.name)
        return f"{path.name} by_byte"
    kind = chance.choice([by_value, by_value, by_value, by_text, by_file])
    if kind is by_file:
        if chance.randrange(2):  # any file
            path = folder / chance.choice(sorted(p.name for p in source.iterdir() if p.is_file()))
        by_file(path, chance)
        return f"{path.name} {kind.__name__}"
    text = path.read_text(encoding="utf-8")
    path.unlink()
    found = by_value(text, chance) if kind is by_value else by_text(text, chance)
    path.write_bytes(found if isinstance(found, bytes) else found.encode())
    if name == "tokenizer.json":
        fit(folder, name)
    return f"{name} {kind.__name__}"


def fit(folder: Path, name: str) -> None:
    """Let the manifest know a file as it is, where it knows files."""
    path = folder / "ark_manifest.json"
    if not path.exists():
        return
    manifest, content = json.loads(path.read_bytes()), (folder / name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    path.unlink()
    path.write_text(json.dumps(manifest), encoding="utf-8")


def open_and_use(folder: Path) -> str:
    import ark_asr_onnx

    try:
        with ark_asr_onnx.load(folder, threads=1) as transcriber:
            return f"text {len(transcriber.transcribe(CLIP).text)}"
    except ark_asr_onnx.ArkError as error:
        lines = str(error).splitlines()
        return f"{type(error).__name__} {len(lines)} {len(str(error)) < 1500} {error}"


def run(source: Path, seed: int, n: int) -> None:
    """Attack after attack; a line of JSON for each."""
    import warnings

    warnings.simplefilter("ignore")
    sys.stdin.close()
    for i in range(seed, seed + n):
        with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
            done = attack(source, Path(scratch) / "p", random.Random(i))
            begin = time.process_time()
            try:
                outcome = open_and_use(Path(scratch) / "p")
            except BaseException as error:
                outcome = f"FOREIGN {type(error).__name__}: {str(error)[:300]}"
            seconds = time.process_time() - begin
        print(json.dumps([i, done, round(seconds, 2), peak_megabytes(), outcome[:400]]), flush=True)


def peak_megabytes() -> float:
    """Most memory that this process has had; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def native(folder: Path) -> Path:
    """The demo's package."""
    ignored = shutil.ignore_patterns("checkpoint", "recipe", "samples", "licences", "README.md")
    return shutil.copytree(DEMO, folder, ignore=ignored)


def published(folder: Path) -> Path:
    """A folder in upstream's layout, whose graphs are the demo's: right until they are compared."""
    folder.mkdir()
    for name in ("audio.onnx", "audio.onnx.data", "decoder.onnx", "decoder.onnx.data",
                 "embedding_fp32.data", "tokenizer.json"):  # fmt: skip
        shutil.copy(DEMO / name, folder / name)
    manifest = json.loads((DEMO / "ark_manifest.json").read_bytes())
    tokens, sizes = manifest["tokens"], manifest["sizes"]
    files = {
        "runtime_manifest.json": {
            "audio_encoder_default": "audio.onnx",
            "audio_adapter_default": "audio.onnx",
            "llm_default": "decoder.onnx",
            "embedding_default": "embedding_fp32.onnx",
            "audio_merge_factor": sizes["merge_factor"],
            "audio_token_id": tokens["audio"],
            "im_end_token_id": tokens["eos"][0],
            "stop_token_ids": tokens["stop"],
        },
        "llm_kv_fp32_qwen_native.json": {
            "hidden_size": sizes["hidden_size"],
            "num_layers": sizes["n_layers"],
            "num_attention_heads": sizes["hidden_size"] // sizes["head_dim"],
            "num_key_value_heads": sizes["n_kv_heads"],
            "max_total_len": sizes["max_positions"],
            "model_type": "arkasr",
        },
        "preprocessor_config.json": {"feature_size": sizes["n_mels"]},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.skipif(os.name != "posix", reason="pipes and links of POSIX")
@pytest.mark.parametrize("make", [native, published])
def test_a_hostile_package_is_one_line(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source = make(tmp_path / "package")
    child = subprocess.run(
        [sys.executable, __file__, str(source), "0", "150"], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    rows = [json.loads(line) for line in child.stdout.splitlines()]
    assert len(rows) == 150, (child.returncode, rows[-1:], child.stderr[-2000:])
    for row in rows:
        _, _, seconds, megabytes, outcome = row
        kind, *about = outcome.split()
        assert kind in ("text", "PackageError", "DecodeError"), row
        assert kind == "text" or about[:2] == ["1", "True"], row
        assert seconds < 4 * MAX_SECONDS, row  # a hang, not a slow machine
        assert megabytes < MAX_MEGABYTES, row


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
