"""Numbered cases of each kind: what is damaged, how, and what is known about the right answer."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ark_asr_onnx import ArkError
from ark_asr_onnx.audio import sources

from . import mutate
from .mutate import Damage
from .seeds import DEMO, Seed, audio_seeds

KINDS = ("audio", "native", "published", "prepared", "records", "http")
WAYS = ("path", "bytes", "stream", "pipe", "stdin")
# Instead of a file's bytes: what else may lie in its place.
PLACES = ("missing", "folder", "fifo", "link /dev/zero", "link /dev/null", "link .", "link nowhere")
# What Macs write as "._NAME" beside NAME where a file system has no place for it.
_APPLE_DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(4072)
_INTEGRITY = "ark_manifest.json"


@dataclass(frozen=True)
class Case:
    """Something to try."""

    kind: str
    label: str
    files: dict[str, bytes | str]  # name: its content, or one of PLACES
    facts: dict[str, Any] = field(default_factory=dict[str, Any])  # for runner and judge, JSON


def audio_cases(seed: int, variants: int = 1) -> AudioCases:
    """Cases of audio files."""
    return AudioCases(seed, audio_seeds(seed, variants))


@dataclass(frozen=True)
class AudioCases:
    """First each seed as it is, beside what a Mac leaves on a stick; then damaged ones."""

    seed: int
    seeds: Sequence[Seed]

    @cached_property
    def _heard(self) -> dict[int, float]:
        return {}

    def heard(self, index: int) -> float:
        """Seconds of a whole seed, as the runtime reads it."""
        if index not in self._heard:
            self._heard[index] = self.seeds[index].seconds
            with contextlib.suppress(ArkError):  # it is judged as a case of its own
                blocks = sources.blocks(self.seeds[index].content, on_warning=lambda _: None)
                self._heard[index] = sum(map(len, blocks)) / 16000
        return self._heard[index]

    def __call__(self, index: int) -> Case:
        if index < len(self.seeds):
            case = self._case(self.seeds[index], "intact", None, WAYS, wanted=None)
            beside = {f"._{name}": _APPLE_DOUBLE for name in case.files}
            return replace(case, files={**case.files, **beside})
        chance = random.Random(f"audio {self.seed} {index}")
        at = chance.randrange(len(self.seeds))
        whole = self.seeds[at]
        ways = ("path", "stdin" if index % 8 == 0 else WAYS[1 + index % 3])
        if chance.random() < 0.1:
            same = [i for i, s in enumerate(self.seeds) if s.format == whole.format]
            other = chance.choice(same if chance.random() < 0.7 else range(len(self.seeds)))
            damage = mutate.join(whole.content, self.seeds[other].content)
            wanted = self.heard(at) + self.heard(other)
        else:
            damage, wanted = mutate.damaged(whole.content, chance), self.heard(at)
        return self._case(whole, damage.kind, damage, ways, wanted)

    def _case(
        self, whole: Seed, kind: str, damage: Damage | None, ways: Sequence[str],
        wanted: float | None,
    ) -> Case:  # fmt: skip
        content = whole.content if damage is None else damage.content
        facts = {
            "damage": kind,
            "ways": list(ways),
            "format": whole.format,
            "says_length": whole.says_length,
            "seconds": whole.seconds if wanted is None else wanted,
            "is_single": damage is None or ";" not in damage.what,
            "more": len(content) - len(whole.content),
        }
        label = f"{whole.name}, {kind} {damage.what if damage else ''}"
        return Case("audio", label, {f"audio{whole.ending}": content}, facts)


class PackageCases:
    """A package in which some files are not as they were."""

    def __init__(self, kind: str, seed: int, folder: Path) -> None:
        self._kind, self._seed, self._folder = kind, seed, folder
        self._names = package_files(folder)

    def __call__(self, index: int) -> Case:
        facts = {"base": str(self._folder)}
        if index == 0:
            return Case(self._kind, "intact", {}, {**facts, "damage": "intact"})
        chance = random.Random(f"{self._kind} {self._seed} {index}")
        name = self._choose(chance)
        content = (self._folder / name).read_bytes()
        if chance.random() < 0.1:
            place = chance.choice(PLACES)
            return Case(self._kind, f"{name}: {place}", {name: place}, {**facts, "damage": "place"})
        damage = _file_damaged(name, content, chance)
        files: dict[str, bytes | str] = {name: damage.content}
        label = f"{name}: {damage.kind} {damage.what}"
        if name != _INTEGRITY and (self._folder / _INTEGRITY).is_file() and chance.random() < 0.8:
            files[_INTEGRITY] = self._manifest_of(files)
            label += ", its checksum right"
        return Case(self._kind, label, files, {**facts, "damage": damage.kind})

    def _choose(self, chance: random.Random) -> str:
        """Half of the time something of JSON, which is read first and has most to say."""
        of_json = [name for name in self._names if name.endswith(".json")]
        return chance.choice(of_json if chance.random() < 0.5 else self._names)

    def _manifest_of(self, files: Mapping[str, bytes | str]) -> bytes:
        """The manifest, as if these files had always been so."""
        manifest = json.loads((self._folder / _INTEGRITY).read_bytes())
        for name, content in files.items():
            if name in manifest["files"] and isinstance(content, bytes):
                digest = hashlib.sha256(content).hexdigest()
                manifest["files"][name] = {"bytes": len(content), "sha256": digest}
        return json.dumps(manifest).encode()


def package_files(folder: Path) -> list[str]:
    """The files that belong to a package, as names from its folder."""
    manifest = folder / _INTEGRITY
    if manifest.is_file():
        return [_INTEGRITY, *json.loads(manifest.read_bytes())["files"]]
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _file_damaged(name: str, content: bytes, chance: random.Random) -> Damage:
    if not content:
        return mutate.append(content, chance)
    if name.endswith(".json") and chance.random() < 0.8:
        return mutate.json_damaged(content, chance)
    if name.endswith(".onnx") and chance.random() < 0.5 and importlib.util.find_spec("onnx"):
        return graph_damaged(content, chance)
    return mutate.damaged(content, chance)


def graph_damaged(content: bytes, chance: random.Random) -> Damage:
    """A graph that is read, but says something odd."""
    import onnx

    model = onnx.load_model_from_string(content)
    graph = model.graph
    odd = chance.choice((0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**40, 2**62))
    how = chance.choice(
        ("location", "location", "offset", "dims", "type", "attribute", "node", "in")
    )
    outside = [t for t in graph.initializer if t.external_data]
    if how in ("location", "offset") and outside:
        entry = chance.choice(chance.choice(outside).external_data)
        places = ("../x", "/etc/passwd", "/dev/zero", "", ".", "nowhere", "audio.onnx", "a\0b")
        is_place = how == "location" and entry.key == "location"
        entry.value = chance.choice(places) if is_place else str(odd)
        what = f"{entry.key} is {entry.value!r}"
    elif how == "type" and graph.initializer:
        tensor = chance.choice(graph.initializer)
        tensor.data_type = chance.randrange(24)
        what = f"{tensor.name} has type {tensor.data_type}"
    elif how == "attribute" and (with_one := [n for n in graph.node if n.attribute]):
        attribute = chance.choice(chance.choice(with_one).attribute)
        attribute.i, attribute.f = odd, float(odd)
        attribute.ints[:] = [odd for _ in attribute.ints]
        what = f"{attribute.name} is {odd}"
    elif how == "node" and graph.node:
        node = chance.choice(graph.node)
        node.op_type = chance.choice(graph.node).op_type
        what = f"{node.name} is {node.op_type}"
    elif how == "in" and graph.node:
        node = chance.choice(graph.node)
        if node.input:
            other = chance.choice(graph.node)
            node.input[chance.randrange(len(node.input))] = chance.choice(
                [*other.input, *other.output, ""]
            )
        what = f"{node.name} takes {list(node.input)}"[:100]
    elif graph.initializer:
        tensor = chance.choice(graph.initializer)
        tensor.dims[:] = [chance.choice((d, odd, d)) for d in tensor.dims]
        what = f"{tensor.name} is {list(tensor.dims)}"
    else:
        return mutate.damaged(content, chance)
    try:
        return Damage("graph", what, model.SerializeToString(), 0)
    except ValueError:
        return mutate.damaged(content, chance)


class PreparedCases:
    """An intact package with a prepared folder that is not as it was left."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._seed, self._folder = seed, folder
        self._names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())

    def __call__(self, index: int) -> Case:
        facts = {"base": str(self._folder)}
        if index == 0:
            return Case("prepared", "intact", {}, {**facts, "damage": "intact"})
        chance = random.Random(f"prepared {self._seed} {index}")
        index_files = [name for name in self._names if name.endswith(".json")]
        name = chance.choice(index_files if chance.random() < 0.5 else self._names)
        if chance.random() < 0.15:
            place = chance.choice(PLACES)
            return Case("prepared", f"{name}: {place}", {name: place}, {**facts, "damage": "place"})
        damage = _file_damaged(name, (self._folder / name).read_bytes(), chance)
        label = f"{name}: {damage.kind} {damage.what}"
        return Case("prepared", label, {name: damage.content}, {**facts, "damage": damage.kind})


class RecordCases:
    """Lists of a batch, and what an earlier run left in its output."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        lines = (DEMO / "samples" / "samples.jsonl").read_bytes().splitlines()
        rows = [json.loads(line) for line in lines][:3]
        times = ({}, {"begin_time": 0.5, "end_time": 1.5}, {"begin_time": -1, "end_time": -1})
        self._rows = [
            {**row, "audio": str(DEMO / "samples" / row["audio"]), **more, "task": "asr", "id": i}
            for i, (row, more) in enumerate(zip(rows, times, strict=True))
        ]
        self._done = [
            {"audio": row["audio"], "text": row["text"], "pred_text": "a", "pred_text_raw": "a",
             "begin_time": row.get("begin_time", -1), "end_time": row.get("end_time", -1),
             "task": "asr", "id": i}
            for i, row in enumerate(self._rows[:2])
        ]  # fmt: skip

    def __call__(self, index: int) -> Case:
        if index == 0:
            return Case(
                "records", "intact", {"list.jsonl": _lines(self._rows)}, {"damage": "intact"}
            )
        chance = random.Random(f"records {self._seed} {index}")
        files: dict[str, bytes | str] = {"list.jsonl": _lines(self._rows)}
        name = "list.jsonl"
        if chance.random() < 0.4:
            files["out.jsonl"], name = (
                _lines(self._done),
                chance.choice(("list.jsonl", "out.jsonl")),
            )
        content = files[name]
        assert isinstance(content, bytes)
        if chance.random() < 0.05:
            files[name] = chance.choice([p for p in PLACES if p != "link /dev/zero"])
            label, kind = f"{name}: {files[name]}", "place"
        elif chance.random() < 0.6:
            lines = content.splitlines()
            at = chance.randrange(len(lines))
            damage = mutate.json_damaged(lines[at], chance)
            lines[at] = damage.content
            files[name] = b"\n".join(lines) + chance.choice((b"\n", b""))
            label, kind = f"{name}:{at + 1}: {damage.what}", damage.kind
        else:
            damage = mutate.damaged(content, chance)
            files[name], label, kind = damage.content, f"{name}: {damage.what}", damage.kind
        return Case("records", label, files, {"damage": kind})


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class HttpCases:
    """Requests to the service, as they go over the wire."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seeds = [s for s in audio_seeds(seed) if len(s.content) < 100_000]

    def __call__(self, index: int) -> Case:
        chance = random.Random(f"http {self._seed} {index}")
        boundary = uuid.UUID(int=chance.getrandbits(128)).hex
        path = chance.choice(("/v1/audio/transcriptions", "/audio/transcriptions", "/asr"))
        whole = chance.choice(self._seeds)
        audio, fields, kind, what = whole.content, dict(_FIELDS), "intact", whole.name
        where = "intact" if index == 0 else chance.choice(("audio", "field", "body", "all", "head"))
        if where == "audio":
            damage = mutate.damaged(audio, chance)
            audio, kind, what = damage.content, damage.kind, f"{what}, {damage.what}"
        elif where == "field":
            name = chance.choice((*fields, *_MORE_FIELDS))
            fields[name] = chance.choice(_ODD_VALUES)
            kind, what = "field", f"{name} is {fields[name]!r}"[:100]
        body = _body(boundary, fields, audio)
        if where == "body":
            damage = mutate.damaged(body, chance)
            body, kind, what = damage.content, f"body {damage.kind}", damage.what
        head = (
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            f"content-type: multipart/form-data; boundary={boundary}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode()
        if where == "head":
            damage = mutate.damaged(head, chance)
            head, kind, what = damage.content, f"head {damage.kind}", damage.what
        content = head + body
        if where == "all":
            damage = mutate.damaged(content, chance)
            content, kind, what = damage.content, f"all {damage.kind}", damage.what
        is_whole = where in ("intact", "audio", "field", "body")
        facts = {"damage": kind, "is_whole": is_whole}
        return Case("http", f"{path}, {what}", {"request": content}, facts)


_FIELDS = {"model": "ark-asr", "response_format": "verbose_json", "max_new_tokens": "8"}
_MORE_FIELDS = (
    "language", "temperature", "prompt", "timestamp_granularities[]", "include[]", "stream",
    "begin_time", "end_time", "top_k", "chunking_strategy", "file", "repetition_penalty",
)  # fmt: skip
_ODD_VALUES = (
    "", "0", "-1", "1e308", "nan", "inf", "1" * 5000, "x" * 60_000, "\0", "é", "[" * 5000,
    '["a"', "{}", "true", "null", '{"type": "server_vad", "threshold": 1e999}', "999999999999",
    '{"type": "server_vad", "silence_duration_ms": -1}', "text", "srt", "jsonl", "0.5", "\ud7ff",
)  # fmt: skip


def _body(boundary: str, fields: Mapping[str, str], audio: bytes) -> bytes:
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return b"".join((*parts, head.encode(), audio, f"\r\n--{boundary}--\r\n".encode()))
