"""Damaged and hostile checkpoints: a network or an ``ExportError``, in little time and memory."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from make_checkpoint import make_checkpoint

N_RANDOM = 160  # of each run; further seeds are other runs
MAX_SECONDS, MAX_BYTES = 20.0, 500e6  # of the processor: a hang, not a slow machine
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = ("config.json", "tokenizer.json", WEIGHTS, INDEX)

# Reads folders as an export does before it computes anything, and says what came of each.
CHILD = """
import json, sys, time
from pathlib import Path
from ark_asr_onnx.errors import ExportError
from ark_onnx_export import pipeline, stages
from ark_onnx_export.checkpoint import load_network, open_checkpoint, open_text

def attempt(folder):
    checkpoint = open_checkpoint(folder)
    text, tokens = open_text(checkpoint, pipeline.INSTRUCTION)
    sizes = pipeline._sizes(checkpoint, tokens, prune=True)
    load_network(checkpoint, sizes.max_positions)

for line in sys.stdin:
    stages._forget_peak()
    before, begin = stages.peak_bytes(), time.process_time()
    try:
        attempt(Path(line.strip()))
        found = "taken"
    except ExportError as error:
        found = f"refused: {error}"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    grown = (stages.peak_bytes() or 0) - (before or 0)
    print(json.dumps([found, time.process_time() - begin, grown]), flush=True)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with everything that can be damaged. Read only."""
    folder = make_checkpoint(tmp_path_factory.mktemp("whole") / "checkpoint", seed=1)
    names = json.loads(header_of(folder))
    names.pop("__metadata__")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, WEIGHTS)}))
    return folder


@pytest.fixture(scope="module")
def victim() -> Iterator[subprocess.Popen[str]]:
    """A process that reads one checkpoint after the other."""
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        yield child
        assert child.stdin
        child.stdin.close()


def attack(victim: subprocess.Popen[str], folder: Path) -> str:
    """What comes of a folder, within the bounds."""
    assert victim.stdin and victim.stdout
    victim.stdin.write(f"{folder}\n")
    victim.stdin.flush()
    line = victim.stdout.readline()
    assert line, f"{folder}: the process died with {victim.wait()}"
    found, seconds, grown = json.loads(line)
    assert found == "taken" or found.startswith("refused: "), found
    assert "\n" not in found, found
    assert len(found) < 2000, found[:3000]
    assert seconds < MAX_SECONDS, (seconds, found)
    assert grown < MAX_BYTES, (grown, found)
    return found


def header_of(folder: Path) -> bytes:
    content = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + size]


def with_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write the weights' file again with another header, its data as they are."""
    old = header_of(folder)
    raw = json.loads(old)
    changed = change(raw)
    write_header(folder, json.dumps(raw if changed is None else changed).encode())


def write_header(folder: Path, header: bytes, size: int | None = None) -> None:
    data = (folder / WEIGHTS).read_bytes()[8 + len(header_of(folder)) :]
    said = len(header) if size is None else size
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", said) + header + data)


def test_the_checkpoint_itself_is_taken(whole: Path, victim: subprocess.Popen[str]) -> None:
    assert attack(victim, whole) == "taken"


NAME = "model.norm.weight"
BIG = 1 << 62


def tensor(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: with_header(folder, lambda raw: raw[NAME].update(changes))


HEADERS: dict[str, Callable[[Path], object]] = {
    "of no bytes": lambda f: write_header(f, header_of(f), 0),
    "of more bytes than the file": lambda f: write_header(f, header_of(f), 1 << 40),
    "of all the bytes there are": lambda f: write_header(f, header_of(f), (1 << 64) - 1),
    "of one byte too many": lambda f: write_header(f, header_of(f), len(header_of(f)) + 1),
    "of one byte too few": lambda f: write_header(f, header_of(f), len(header_of(f)) - 1),
    "that is no JSON": lambda f: write_header(f, b"{" * 64),
    "that nests": lambda f: write_header(f, b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "that is a list": lambda f: write_header(f, b"[]"),
    "that is empty": lambda f: write_header(f, b"{}"),
    "with the same name twice": lambda f: write_header(
        f, header_of(f).rstrip()[:-1] + b"," + json.dumps(json.loads(header_of(f))).encode()[1:]
    ),
    "with ends before begins": tensor(data_offsets=[100, 0]),
    "with data behind the end": tensor(data_offsets=[BIG, BIG + 128]),
    "with data of others": tensor(data_offsets=[0, 128]),
    "with negative offsets": tensor(data_offsets=[-128, 0]),
    "with offsets of all bits": tensor(data_offsets=[(1 << 64) - 1, (1 << 64) - 1]),
    "with a shape too large": tensor(shape=[1 << 40]),
    "with a shape that overflows": tensor(shape=[1 << 33, 1 << 33]),
    "with a shape that overflows to the right size": tensor(shape=[64, (1 << 58) + 1]),
    "with a negative shape": tensor(shape=[-64]),
    "with an empty shape": tensor(shape=[]),
    "with a shape of text": tensor(shape=["64"]),
    "with many dimensions": tensor(shape=[1] * 100_000 + [64]),
    "with an unknown type": tensor(dtype="X9"),
    "with another type": tensor(dtype="F8_E4M3"),
    "with a type of twice the size": tensor(dtype="F32"),
    "with a million tensors": lambda f: with_header(
        f, lambda raw: {**raw, **{f"x{i}": {**raw[NAME], "shape": [0], "data_offsets": [0, 0]}
                                  for i in range(200_000)}}
    ),
    "with odd notes": lambda f: with_header(f, lambda raw: {**raw, "__metadata__": {"a": [1]}}),
    "with names of control characters": lambda f: with_header(
        f, lambda raw: {("\n\x1b[2J" + k if k == NAME else k): v for k, v in raw.items()}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies(
    case: str, whole: Path, victim: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "checkpoint"))
    HEADERS[case](folder)
    found = attack(victim, folder)
    assert found.startswith("refused: ") or case == "with odd notes"


ODD: list[Any] = [
    None, True, -1, 0, 1, 1 << 31, 10**9, 10**30, 1e308, -1e-308, float("nan"), float("inf"), "",
    "x" * 10_000, "\n", [], [1], [[[[1]]]], {}, {"a": {"b": None}}, [10**9] * 1000,
]  # fmt: skip


def test_a_configuration_of_odd_values(
    whole: Path, victim: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "checkpoint"))
    plain = json.loads((folder / "config.json").read_text())
    refused = 0
    for key in [*plain, "rope_scaling", "rope_parameters", "head_dim", "layer_types"]:
        for value in ODD:
            (folder / "config.json").write_text(json.dumps({**plain, key: value}))
            refused += attack(victim, folder).startswith("refused: ")
    for key in plain["whisper_config"]:
        for value in ODD:
            whisper = {**plain["whisper_config"], key: value}
            (folder / "config.json").write_text(json.dumps({**plain, "whisper_config": whisper}))
            refused += attack(victim, folder).startswith("refused: ")
    assert refused > 300


def test_layers_in_millions_that_the_weights_seem_to_have(
    whole: Path, victim: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "checkpoint"))
    plain = json.loads((folder / "config.json").read_text())
    for sizes in (
        {"num_hidden_layers": 1024},
        {"num_hidden_layers": 5_000_000},
        {"vocab_size": 1 << 20},
        {"vocab_size": 1 << 24},
        {"max_position_embeddings": 1 << 30},
        {"max_whisper_length": 1 << 30},
        {"hidden_size": 1 << 20, "intermediate_size": 1 << 20, "merge_factor": 1024},
        {"num_attention_heads": 1 << 20, "num_key_value_heads": 1 << 20, "head_dim": 1 << 20},
    ):
        (folder / "config.json").write_text(json.dumps({**plain, **sizes}))
        found = attack(victim, folder)
        assert found.startswith("refused: ") or "max_position_embeddings" in sizes, sizes


TOKENIZERS: list[bytes] = [
    b"", b"{", b"null", b"[]", b'"a"', b"\x00" * 1000, b"{}", b'{"a":' * 100_000, b"[" * 100_000,
    b'{"version": "1.0"}', b'{"model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}}',
    b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": [["a", "b"]]}}',
    b'{"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": [{"id": 4294967295, '
    b'"content": "<|audio|>", "special": true, "single_word": false, "lstrip": false, '
    b'"rstrip": false, "normalized": false}]}',
    b'{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}',
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(TOKENIZERS)))
def test_a_tokenizer_that_is_none(
    number: int, whole: Path, victim: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "checkpoint"))
    (folder / "tokenizer.json").write_bytes(TOKENIZERS[number])
    assert attack(victim, folder).startswith("refused: ")


INDEXES: list[Any] = [
    None, [], {}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {}},
    {"weight_map": {"a": None}}, {"weight_map": {"a": ["b"]}}, {"weight_map": {"a": "../b"}},
    {"weight_map": {"a": "/etc/passwd"}}, {"weight_map": {"a": "config.json"}},
    {"weight_map": {"a": "."}}, {"weight_map": {"a": "x" * 300}}, {"weight_map": {"a": "\0"}},
    {"weight_map": {f"a{i}": f"b{i}" for i in range(100_000)}},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(INDEXES)))
def test_an_index_that_is_none(
    number: int, whole: Path, victim: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "checkpoint"))
    (folder / INDEX).write_text(json.dumps(INDEXES[number]))
    assert attack(victim, folder).startswith("refused: ")


def mutated(content: bytes, generator: random.Random, head: int) -> bytes:
    """Some damage, mostly within the first ``head`` bytes."""
    damaged = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 8])):
        reach = min(head if generator.random() < 0.8 else len(damaged), len(damaged))
        at, n = generator.randrange(reach), generator.choice([1, 1, 4, 64])
        kind = generator.randrange(6)
        if kind == 0:
            damaged[at : at + 1] = bytes([damaged[at] ^ 1 << generator.randrange(8)])
        elif kind == 1:
            damaged[at : at + n] = generator.randbytes(n)
        elif kind == 2:
            damaged[at : at + n] = bytes(n)
        elif kind == 3:
            del damaged[at : at + n]
        elif kind == 4:
            damaged[at:at] = damaged[at : at + 64]
        else:
            del damaged[at:]
        if not damaged:
            break
    return bytes(damaged)


@pytest.mark.parametrize("seed", [0])
def test_random_damage(
    seed: int, whole: Path, victim: subprocess.Popen[str], tmp_path: Path
) -> None:
    generator = random.Random(seed)
    folder = Path(shutil.copytree(whole, tmp_path / "checkpoint"))
    refused = 0
    for _ in range(N_RANDOM):
        name = generator.choice(FILES)
        content = (whole / name).read_bytes()
        head = 8 + len(header_of(whole)) if name == WEIGHTS else len(content)
        (folder / name).write_bytes(mutated(content, generator, head))
        refused += attack(victim, folder).startswith("refused: ")
        (folder / name).write_bytes(content)
    assert refused > N_RANDOM / 2


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to what is in a JSON value, some of each kind."""
    inside = list(node.items() if isinstance(node, dict) else enumerate(node))
    for key, value in inside if len(inside) < 30 else inside[:4]:
        yield (*at, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*at, key))


@pytest.mark.parametrize("seed", [0])
def test_odd_values_anywhere(
    seed: int, whole: Path, victim: subprocess.Popen[str], tmp_path: Path
) -> None:
    generator = random.Random(seed)
    folder = Path(shutil.copytree(whole, tmp_path / "checkpoint"))
    refused = 0
    for _ in range(N_RANDOM):
        name = generator.choice(["config.json", "tokenizer.json", "tokenizer.json", INDEX])
        raw = json.loads((whole / name).read_text())
        *way, last = generator.choice(list(places(raw)))
        node = raw
        for key in way:
            node = node[key]
        node[last] = generator.choice(ODD)
        (folder / name).write_text(json.dumps(raw))
        refused += attack(victim, folder).startswith("refused: ")
        shutil.copyfile(whole / name, folder / name)
    assert refused > N_RANDOM / 2
