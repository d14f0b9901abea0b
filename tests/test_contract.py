"""The manifest by its exact bytes, and everything it may not be."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ark_asr_onnx import PackageError
from ark_asr_onnx.package.contract import (
    File,
    Manifest,
    Provenance,
    Sizes,
    Tokens,
    external_data_file,
    file_sha256,
    manifest_from_json,
    manifest_to_json,
    past_names,
    present_names,
)

MANIFEST = Manifest(
    schema=1,
    name="kleines Modell für Tests",
    layout="native",
    model_type="arkasr",
    precision="int8",
    embedding="fp32",
    target="any",
    min_onnxruntime="1.22.0",
    sizes=Sizes(
        n_mels=80,
        merge_factor=4,
        max_seconds=30.0,
        hidden_size=64,
        n_layers=2,
        n_kv_heads=2,
        head_dim=16,
        vocab_size=320,
        n_embeddings=309,
        n_logits=303,
        max_positions=1024,
    ),
    tokens=Tokens(
        prefix=(305, 306),
        audio=304,
        suffix=(307, 308),
        eos=(302,),
        stop=(302, 300),
        blocked=((300, 301), (303, 319)),
        block_from_id=310,
    ),
    files={"audio.onnx": File(bytes=3, sha256="ab")},
    degraded="",
    provenance=Provenance(
        exporter="ark-asr-onnx 0.1.0",
        tools={"onnx": "1.20.0"},
        source="checkpoint",
        source_sha256={"model.safetensors": "cd"},
        instruction="Please transcribe this audio.",
        recipe={"audio": "int8"},
        parity={"audio": {"max_error": 0.125, "probes": 3.0}},
    ),
)

TEXT = """\
{
  "schema": 1,
  "name": "kleines Modell für Tests",
  "layout": "native",
  "model_type": "arkasr",
  "precision": "int8",
  "embedding": "fp32",
  "target": "any",
  "min_onnxruntime": "1.22.0",
  "sizes": {
    "n_mels": 80,
    "merge_factor": 4,
    "max_seconds": 30.0,
    "hidden_size": 64,
    "n_layers": 2,
    "n_kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "n_embeddings": 309,
    "n_logits": 303,
    "max_positions": 1024
  },
  "tokens": {
    "prefix": [
      305,
      306
    ],
    "audio": 304,
    "suffix": [
      307,
      308
    ],
    "eos": [
      302
    ],
    "stop": [
      302,
      300
    ],
    "blocked": [
      [
        300,
        301
      ],
      [
        303,
        319
      ]
    ],
    "block_from_id": 310
  },
  "files": {
    "audio.onnx": {
      "bytes": 3,
      "sha256": "ab"
    }
  },
  "degraded": "",
  "provenance": {
    "exporter": "ark-asr-onnx 0.1.0",
    "tools": {
      "onnx": "1.20.0"
    },
    "source": "checkpoint",
    "source_sha256": {
      "model.safetensors": "cd"
    },
    "instruction": "Please transcribe this audio.",
    "recipe": {
      "audio": "int8"
    },
    "parity": {
      "audio": {
        "max_error": 0.125,
        "probes": 3.0
      }
    }
  }
}
"""


def keys(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all keys of nested objects."""
    if not isinstance(value, dict):
        return []
    return [p for key, item in value.items() for p in [(*path, key), *keys(item, (*path, key))]]


# Keys of the format; those below files, tools, recipe and the like are names somebody chose.
FREE = {"files", "tools", "source_sha256", "recipe", "parity"}
FORMAT_KEYS = [path for path in keys(json.loads(TEXT)) if not FREE & set(path[:-1])]
FORMAT_KEYS += [("files", "audio.onnx", "bytes"), ("files", "audio.onnx", "sha256")]


def altered(change: Callable[[dict[str, Any]], object]) -> str:
    """The manifest's text after a change to its parsed form."""
    raw = copy.deepcopy(json.loads(TEXT))
    change(raw)
    return json.dumps(raw)


def holder(raw: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The object that holds the last key of ``path``."""
    for key in path[:-1]:
        raw = raw[key]
    return raw


def refusal(text: str) -> str:
    """The message with which a manifest is refused."""
    with pytest.raises(PackageError) as caught:
        manifest_from_json(text, "folder/ark_manifest.json")
    message = str(caught.value)
    assert message.startswith("folder/ark_manifest.json: ")
    assert len(message.splitlines()) == 1
    return message


def test_a_manifest_has_exactly_this_text() -> None:
    assert manifest_to_json(MANIFEST) == TEXT


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    assert manifest_from_json(TEXT) == MANIFEST
    other = replace(MANIFEST, name='a "quoted" \\ name\n', files={}, precision="fp32")
    assert manifest_from_json(manifest_to_json(other)) == other


def test_the_order_of_keys_does_not_matter() -> None:
    backwards = json.dumps(dict(reversed(json.loads(TEXT).items())))
    assert manifest_from_json(backwards) == MANIFEST


def test_a_whole_number_may_stand_for_a_float_but_not_the_reverse() -> None:
    whole = altered(lambda raw: raw["sizes"].update(max_seconds=30))
    assert manifest_from_json(whole).sizes.max_seconds == 30.0
    message = refusal(altered(lambda raw: raw["sizes"].update(n_mels=80.0)))
    assert "n_mels: expected int, found 80.0" in message


@pytest.mark.parametrize("path", FORMAT_KEYS, ids=".".join)
def test_a_missing_key_is_named(path: tuple[str, ...]) -> None:
    message = refusal(altered(lambda raw: holder(raw, path).pop(path[-1])))
    if path == ("schema",):
        assert "schema" in message
    else:
        assert f"missing key {path[-1]!r}" in message


@pytest.mark.parametrize("where", ["", "sizes", "tokens", "files.audio.onnx", "provenance"])
def test_an_unknown_key_is_named_and_not_ignored(where: str) -> None:
    path = tuple(where.split(".", 1)) if where else ()
    message = refusal(altered(lambda raw: holder(raw, (*path, "")).update(surprise=1)))
    assert message.startswith(": ".join(["folder/ark_manifest.json", *path, "unknown key"]))
    assert "'surprise'" in message


@pytest.mark.parametrize("path", [p for p in FORMAT_KEYS if p != ("schema",)], ids=".".join)
@pytest.mark.parametrize("wrong", [None, True, [{}]], ids=repr)
def test_a_value_of_the_wrong_type_is_named(path: tuple[str, ...], wrong: object) -> None:
    message = refusal(altered(lambda raw: holder(raw, path).update({path[-1]: wrong})))
    assert f"{path[-1]}: expected " in message
    assert "found " in message


@pytest.mark.parametrize(
    ("key", "wrong", "found"),
    [
        ("eos", 302, "302"),
        ("eos", ["302"], "'302'"),
        ("blocked", [[300]], "[300]"),
        ("blocked", [[300, 301, 302]], "[300, 301, 302]"),
        ("blocked", [300, 301], "300"),
        ("block_from_id", "310", "'310'"),
    ],
)
def test_a_wrong_id_list_is_shown(key: str, wrong: object, found: str) -> None:
    message = refusal(altered(lambda raw: raw["tokens"].update({key: wrong})))
    assert f"tokens: {key}: expected " in message
    assert f"found {found}" in message


@pytest.mark.parametrize("schema", [0, 2, 17, "1", None, True])
def test_another_schema_is_refused_with_the_remedy(schema: object) -> None:
    message = refusal(altered(lambda raw: raw.update(schema=schema)))
    assert "schema" in message
    assert repr(schema) in message
    if schema is not True:
        assert "reads 1; upgrade ark-asr-onnx or export the package again" in message


def test_a_newer_schema_is_refused_before_its_unknown_keys() -> None:
    assert "schema is 2" in refusal('{"schema": 2, "weights": "elsewhere"}')


@pytest.mark.parametrize("text", ["", "{", TEXT[:200], "ark", TEXT + "}", "\ufeff" + TEXT])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    assert "not valid JSON" in refusal(text)


@pytest.mark.parametrize("text", ["[]", "1", '"schema"', "null"])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    assert "expected" in refusal(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(number: str) -> None:
    message = refusal(TEXT.replace("30.0", number))
    assert "max_seconds: expected float" in message


def test_a_key_given_twice_is_refused() -> None:
    message = refusal(TEXT.replace('"n_mels": 80,', '"n_mels": 80, "n_mels": 128,'))
    assert "'n_mels' given twice" in message


@pytest.mark.parametrize("key", json.loads(TEXT)["sizes"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(key: str, value: int) -> None:
    message = refusal(altered(lambda raw: raw["sizes"].update({key: value})))
    assert f"{key} is {value}" in message


@pytest.mark.parametrize("key", json.loads(TEXT)["sizes"])
def test_sizes_beyond_all_models_are_refused(key: str) -> None:
    message = refusal(altered(lambda raw: raw["sizes"].update({key: (1 << 24) + 1})))
    assert f"{key} is 16777217" in message


def test_end_of_turn_must_stop_the_text() -> None:
    for stop in ([], [300]):
        message = refusal(altered(lambda raw, stop=stop: raw["tokens"].update(stop=stop)))
        assert f"eos is [302] and stop {stop}, so that decoding would not end" in message


def test_a_prompt_longer_than_the_model_holds_is_refused() -> None:
    message = refusal(altered(lambda raw: raw["tokens"].update(suffix=[307] * 1022)))
    assert "a prompt of 1024 ids, the model holds 1024" in message


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/../b", "../b", "/b", "./b", "a//b", "a/", "C:b", "C:\\b", "\\\\host\\b",
     "a\nb", "a\0b", "b" * 256],
)  # fmt: skip
def test_a_file_name_must_lead_into_the_folder_on_every_system(name: str) -> None:
    entry = {"bytes": 3, "sha256": "ab"}
    message = refusal(altered(lambda raw: raw.update(files={name: entry})))
    assert "outside the package" in message


def test_files_without_end_are_refused() -> None:
    entries = {str(i): {"bytes": 3, "sha256": "ab"} for i in range(101)}
    assert "101 files" in refusal(altered(lambda raw: raw.update(files=entries)))


@pytest.mark.parametrize("version", ["", "new", "1", "1.x", "9" * 5000, "1.2.3.4.5", " 1.2"])
def test_a_version_must_be_one(version: str) -> None:
    message = refusal(altered(lambda raw: raw.update(min_onnxruntime=version)))
    assert "min_onnxruntime is" in message


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("[" * 100_000, "too deeply nested"),
        ("[" * 400 + "]" * 400, "n_mels: expected int, found [[[[[[[...]]]]]]]"),
        ("9" * 1_000_000, "a number of 1000000 digits"),
        ("-" + "9" * 21, "a number of 22 digits"),
        ('"' + "x" * 1_000_000 + '"', "n_mels: expected int, found 'xxx"),
        ("[" + "0," * 100_000 + "0]", "n_mels: expected int, found [0, 0, 0, 0, 0, 0, ...]"),
        ('"\\ud800"', "surrogates not allowed"),
    ],
    ids=["endless", "deep", "long", "negative", "text", "list", "half a character"],
)
def test_a_value_that_is_out_of_all_bounds_is_shown_in_short(value: str, found: str) -> None:
    message = refusal(TEXT.replace('"n_mels": 80', f'"n_mels": {value}'))
    assert found in message
    assert len(message) < 400


@pytest.mark.parametrize("odd", [-1, 320])
@pytest.mark.parametrize("key", ["prefix", "audio", "suffix", "eos", "stop", "blocked"])
def test_ids_must_lie_in_the_vocabulary(key: str, odd: int) -> None:
    wrong: dict[str, object] = {"audio": odd, "blocked": [[odd, odd]]}
    value = wrong.get(key, [odd])
    message = refusal(altered(lambda raw: raw["tokens"].update({key: value})))
    assert key in message
    assert f"id {odd}" in message


def test_cache_names_go_layer_by_layer_key_before_value() -> None:
    assert past_names(2) == [
        "past_key_values.0.key",
        "past_key_values.0.value",
        "past_key_values.1.key",
        "past_key_values.1.value",
    ]
    assert present_names(2) == [
        "present.0.key",
        "present.0.value",
        "present.1.key",
        "present.1.value",
    ]


def test_weights_lie_beside_their_graph() -> None:
    assert external_data_file("audio.onnx") == "audio.onnx.data"


def test_a_checksum_is_the_sha_256_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    # FIPS 180-4's own example.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == expected
    large = bytes(range(256)) * 5000  # more than one block
    path.write_bytes(large)
    assert file_sha256(path) == hashlib.sha256(large).hexdigest()
