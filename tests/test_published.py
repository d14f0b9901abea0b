"""Upstream's folder: opened by us, and our rendering of it read by an independent reader."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx
import onnxruntime
from conftest import export_tiny, unguarded

import ark_asr_onnx
from ark_asr_onnx import PackageError, Transcriber
from ark_asr_onnx.audio.mel import log_mel
from ark_asr_onnx.model.layouts.published import merge
from ark_onnx_export import pipeline, reference
from ark_onnx_export.checkpoint import load_network, open_checkpoint, open_text

RATE = 16000
MANIFEST_KEYS = [
    "sample_rate", "latent_hop_length", "audio_token_id", "user_token_id", "assistant_token_id",
    "im_end_token_id", "pad_token_id", "stop_token_ids", "audio_encoder_default",
    "audio_adapter_default", "audio_merge_factor", "audio_encoder_hidden_size",
    "embedding_default", "llm_default",
]  # fmt: skip


@pytest.fixture(scope="module")
def published_fp32(tiny_checkpoint: Path) -> Path:
    return export_tiny(tiny_checkpoint, "fp32", layout="published")


def random_clips(n: int) -> list[np.ndarray]:
    """Clips of awkward lengths: around a window, a hop, an encoder frame, an audio row."""
    generator = np.random.default_rng(0)
    lengths = [201, 319, 320, 321, 639, 640, 1279, 1280, 1281, 2559, 2560, 5119, 5120, 5121]
    lengths += generator.integers(3000, 60000, n - len(lengths)).tolist()
    clips: list[np.ndarray] = []
    for length in lengths:
        loudness = np.abs(np.sin(np.arange(length) / generator.integers(500, 4000)))
        noise = generator.standard_normal(length) * generator.uniform(0.02, 0.3)
        clips.append((loudness * noise).astype(np.float32))
    return clips


class PlainReader:
    """The published contract read straight from its description, for one clip at a time."""

    def __init__(self, folder: Path) -> None:
        self.manifest = json.loads((folder / "runtime_manifest.json").read_text())
        self.sizes = json.loads((folder / "llm_kv_fp32_qwen_native.json").read_text())
        self.encoder, self.adapter, self.embedding, self.llm = (
            onnxruntime.InferenceSession(str(folder / self.manifest[f"{key}_default"]))
            for key in ("audio_encoder", "audio_adapter", "embedding", "llm")
        )

    def embed(self, ids: list[int]) -> Any:
        return self.embedding.run(None, {"input_ids": np.array([ids], np.int64)})[0]

    def audio(self, mel: np.ndarray) -> Any:
        encoded: Any = self.encoder.run(None, {"audios": mel})[0]
        factor, width = self.manifest["audio_merge_factor"], encoded.shape[2]
        n_rows = max(encoded.shape[1] // factor, 1)
        rows = np.zeros((n_rows * factor, width), np.float32)
        kept = encoded[0, : n_rows * factor]
        rows[: len(kept)] = kept
        merged = rows.reshape(1, n_rows, factor * width)
        return self.adapter.run(None, {"merged_audio_features": merged})[0]

    def transcribe(
        self, mel: np.ndarray, instruction: tuple[int, ...], markers: tuple[int, int],
        blocked: np.ndarray, n_tokens: int,
    ) -> list[int]:  # fmt: skip
        m, s = self.manifest, self.sizes
        begin, end = markers
        audio = self.audio(mel)
        ids = [m["user_token_id"], begin] + [0] * audio.shape[1]
        ids += [end, *instruction, m["assistant_token_id"]]
        embeds = self.embed(ids)
        embeds[:, 2 : 2 + audio.shape[1]] = audio
        head_dim = s["hidden_size"] // s["num_attention_heads"]
        capacity, n_layers = s["max_total_len"], s["num_layers"]
        caches = {
            f"cache_{part}_{i}": np.zeros(
                (1, capacity, s["num_key_value_heads"], head_dim), np.float32
            )
            for i in range(n_layers)
            for part in ("key", "value")
        }
        outputs = [o.name for o in self.llm.get_outputs()]
        chosen: list[int] = []
        position = 0
        while True:
            n_new = embeds.shape[1]
            mask = np.zeros((1, capacity), np.int64)
            mask[:, : position + n_new] = 1
            feeds = {
                "inputs_embeds": embeds,
                "attention_mask": mask,
                "cache_position": np.arange(position, position + n_new),
                **caches,
            }
            found: dict[str, Any] = dict(zip(outputs, self.llm.run(None, feeds), strict=True))
            for i in range(n_layers):
                for part in ("key", "value"):
                    delta = found[f"{part}_delta_{i}"]
                    caches[f"cache_{part}_{i}"][:, position : position + n_new] = delta
            position += n_new
            logits = found["logits"][0, -1].copy()
            logits[blocked] = -np.inf
            chosen.append(int(logits.argmax()))
            if chosen[-1] in m["stop_token_ids"] or len(chosen) == n_tokens:
                return chosen
            embeds = self.embed([chosen[-1]])


def test_both_layouts_choose_torchs_tokens_on_clips_of_awkward_lengths(
    tiny_checkpoint: Path, tiny_fp32_package: Path, published_fp32: Path
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    network = load_network(checkpoint, max_positions=1024)
    _, tokens = open_text(checkpoint, pipeline.INSTRUCTION)
    transcribers = [ark_asr_onnx.load(folder) for folder in (tiny_fp32_package, published_fp32)]
    for clip in random_clips(30):
        expected = reference.transcribe(network, tokens, clip, 25).token_ids
        for transcriber in transcribers:
            options = unguarded(25)
            assert transcriber.transcribe(clip, RATE, options=options).token_ids == expected


def test_a_plain_reader_of_the_published_contract_gets_the_same_tokens(
    published_fp32: Path,
) -> None:
    transcriber = ark_asr_onnx.load(published_fp32)
    tokens = transcriber.manifest.tokens
    reader = PlainReader(published_fp32)
    blocked = np.concatenate([np.arange(a, b + 1) for a, b in tokens.blocked])
    for clip in random_clips(16):
        ours = transcriber.transcribe(clip, RATE, options=unguarded(12)).token_ids
        theirs = reader.transcribe(
            log_mel(clip, 80),
            tokens.suffix[1:-1],
            (tokens.prefix[1], tokens.suffix[0]),
            blocked,
            12,
        )
        assert list(ours) == theirs


def test_the_folder_has_upstreams_names_keys_and_types(tiny_published_package: Path) -> None:
    manifest = json.loads((tiny_published_package / "runtime_manifest.json").read_text())
    assert sorted(manifest) == sorted(MANIFEST_KEYS)
    assert manifest["llm_default"] == "llm_kv_cpu_fp32_int8.onnx"
    assert manifest["audio_encoder_default"] == "audio_encoder_whisper_int8.onnx"
    assert manifest["audio_adapter_default"] == "audio_encoder_adapter_int8.onnx"
    files = [
        tiny_published_package / f"llm_kv_{name}.json"
        for name in ("cpu_fp32_int8", "fp32_qwen_native")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert list(json.loads(files[0].read_text())) == [
        "hidden_size", "num_layers", "num_attention_heads", "num_key_value_heads",
        "max_total_len", "model_type", "sliding_window", "layer_types", "attn_implementation",
    ]  # fmt: skip


def interface(path: Path) -> dict[str, tuple[str, list[Any]]]:
    session = onnxruntime.InferenceSession(str(path))
    items = [*session.get_inputs(), *session.get_outputs()]
    return {item.name: (item.type, item.shape) for item in items}


def test_the_graphs_have_upstreams_inputs_and_outputs(tiny_published_package: Path) -> None:
    folder = tiny_published_package
    real, whole = "tensor(float)", "tensor(int64)"
    assert interface(folder / "audio_encoder_whisper_int8.onnx") == {
        "audios": (real, [1, 80, "mel_seq"]),
        "encoded_audio_features": (real, [1, "audio_seq", 128]),
    }
    assert interface(folder / "audio_encoder_adapter_int8.onnx") == {
        "merged_audio_features": (real, [1, "audio_seq", 512]),
        "audio_embeddings": (real, [1, "audio_seq", 64]),
    }
    assert interface(folder / "embedding_fp32.onnx") == {
        "input_ids": (whole, ["batch", "seq"]),
        "inputs_embeds": (real, ["batch", "seq", 64]),
    }
    caches = {f"cache_{part}_{i}": (real, ["batch", 1024, 2, 16])
              for i in range(2) for part in ("key", "value")}  # fmt: skip
    deltas = {f"{part}_delta_{i}": (real, ["batch", "seq", 2, 16])
              for i in range(2) for part in ("key", "value")}  # fmt: skip
    assert interface(folder / "llm_kv_cpu_fp32_int8.onnx") == {
        "inputs_embeds": (real, ["batch", "seq", 64]),
        "attention_mask": (whole, ["batch", 1024]),
        "cache_position": (whole, ["seq"]),
        **caches,
        "logits": (real, ["batch", 1, 320]),
        **deltas,
    }


def test_the_weights_are_unsigned_bytes_per_channel(tiny_published_package: Path) -> None:
    for path in tiny_published_package.glob("*_int8.onnx"):
        model = onnx.load(str(path))
        assert [(o.domain, o.version) for o in model.opset_import if not o.domain] == [("", 17)]
        weights = {t.name: t for t in model.graph.initializer if t.name.endswith("_quantized")}
        scales = {t.name: t for t in model.graph.initializer if t.name.endswith("_scale")}
        products = [n for n in model.graph.node if n.op_type in ("MatMulInteger", "ConvInteger")]
        assert products
        for node in products:
            weight = weights[node.input[1]]
            assert weight.data_type == onnx.TensorProto.UINT8
            # ConvInteger knows one scale for all channels.
            per_channel = [weight.dims[1]] if node.op_type == "MatMulInteger" else []
            scale = scales[node.input[1].replace("_quantized", "_scale")]
            assert list(scale.dims) == per_channel


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_model_and_build_folders_open_like_the_flat_one(
    tiny_published_package: Path, tmp_path: Path
) -> None:
    root = tmp_path / "ark_asr_int8_onnx"
    copy(tiny_published_package, root / "model")
    (root / "build").mkdir()
    for path in (root / "model").glob("llm_kv_*.json"):
        path.unlink()
    shutil.copyfile(
        tiny_published_package / "llm_kv_fp32_qwen_native.json",
        root / "build" / "llm_kv_fp32_qwen_native.json",
    )
    flat, nested = (ark_asr_onnx.load(folder) for folder in (tiny_published_package, root))
    inside = ark_asr_onnx.load(root / "model")
    clip, options = random_clips(15)[-1], unguarded(8)
    results = [t.transcribe(clip, RATE, options=options).token_ids for t in (flat, nested, inside)]
    assert results[0] == results[1] == results[2]


def test_a_half_precision_embedding_opens(tiny_published_package: Path, tmp_path: Path) -> None:
    folder = copy(tiny_published_package, tmp_path / "half")
    table = np.fromfile(folder / "embedding_fp32.data", "<f4")
    table.astype("<f2").tofile(folder / "embedding_fp16.data")
    (folder / "embedding_fp32.data").unlink()
    half, whole = (ark_asr_onnx.load(f) for f in (folder, tiny_published_package))
    assert half.manifest.sizes.vocab_size == whole.manifest.sizes.vocab_size
    clip, options = random_clips(15)[-1], unguarded(3)
    found, expected = (t.transcribe(clip, RATE, options=options) for t in (half, whole))
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=0.05)


def growing_decoder(folder: Path, target: Path) -> None:
    """A decoder with ``past_key_i`` in and ``present_key_i`` out, made from the static one.

    The static graph runs inside: past rows are padded to its capacity, new rows appended.
    """
    model = onnx.load(str(folder / "llm_kv_cpu_fp32.onnx"))
    graph, helper = model.graph, onnx.helper
    caches = [i for i in graph.input if i.name.startswith("cache_") and i.name != "cache_position"]
    for name in ("cache_position", "inputs_embeds"):
        assert any(i.name == name for i in graph.input)
    nodes: list[Any] = []
    shape = [d.dim_value for d in caches[0].type.tensor_type.shape.dim]
    _, capacity, n_kv, dim = shape
    mask = next(i for i in graph.input if i.name == "attention_mask")
    graph.input.remove(mask)
    ones = onnx.numpy_helper.from_array(np.ones((1, capacity), np.int64), "attention_mask")
    graph.initializer.append(ones)
    empty = np.zeros((1, capacity, n_kv, dim), np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(empty, "empty_cache"))
    for name, value in (("axis1", [1]), ("zero", [0]), ("limit", [capacity])):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))
    for cache in caches:
        name = cache.name.replace("cache_", "past_")
        part, index = cache.name.removeprefix("cache_").split("_")
        graph.input.remove(cache)
        graph.input.append(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, n_kv, "past", dim])
        )
        nodes += [
            helper.make_node("Transpose", [name], [f"{name}_rows"], perm=[0, 2, 1, 3]),
            helper.make_node("Concat", [f"{name}_rows", "empty_cache"], [f"{name}_long"], axis=1),
            helper.make_node("Slice", [f"{name}_long", "zero", "limit", "axis1"], [cache.name]),
            helper.make_node(
                "Concat", [f"{name}_rows", f"{part}_delta_{index}"], [f"{name}_all"], axis=1
            ),
            helper.make_node(
                "Transpose", [f"{name}_all"], [f"present_{part}_{index}"], perm=[0, 2, 1, 3]
            ),
        ]
        output = next(o for o in graph.output if o.name == f"{part}_delta_{index}")
        graph.output.remove(output)
        graph.output.append(
            helper.make_tensor_value_info(
                f"present_{part}_{index}", onnx.TensorProto.FLOAT, [1, n_kv, "total", dim]
            )
        )
    before = [
        n
        for n in nodes
        if "_rows" not in n.input[0] or n.op_type == "Slice" or "empty_cache" in n.input
    ]
    after = [n for n in nodes if n not in before]
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *kept, *after])
    onnx.save(model, str(target))


def test_a_growing_decoder_opens_and_chooses_the_same_tokens(
    published_fp32: Path, tmp_path: Path
) -> None:
    folder = copy(published_fp32, tmp_path / "growing")
    growing_decoder(folder, folder / "llm_kv_growing_fp32.onnx")
    manifest = json.loads((folder / "runtime_manifest.json").read_text())
    manifest["llm_default"] = "llm_kv_growing_fp32.onnx"
    (folder / "runtime_manifest.json").write_text(json.dumps(manifest))
    growing, static = (ark_asr_onnx.load(f) for f in (folder, published_fp32))
    for clip in random_clips(18)[-4:]:
        options = unguarded(20)
        found, expected = (t.transcribe(clip, RATE, options=options) for t in (growing, static))
        assert found.token_ids == expected.token_ids


@pytest.mark.parametrize("n_frames", [1, 2, 3, 4, 5, 8, 9])
def test_the_host_merge_is_that_of_the_network(n_frames: int) -> None:
    frames = np.arange(n_frames * 3, dtype=np.float32).reshape(1, n_frames, 3) + 1
    merged = merge(frames, 4)
    flat = merged.reshape(-1, 3)
    n_kept = min(n_frames, len(flat))
    np.testing.assert_array_equal(flat[:n_kept], frames[0, :n_kept])
    assert not flat[n_kept:].any()
    assert merged.shape == (1, max(n_frames // 4, 1), 12)


def damage_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        for key, new in changes.items():
            if new is None:
                del value[key]
            else:
                value[key] = new
        (folder / name).write_text(json.dumps(value))

    return damage


def remove(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-37])

    return damage


MANIFEST = "runtime_manifest.json"
METADATA = ("llm_kv_cpu_fp32_int8.json", "llm_kv_fp32_qwen_native.json")
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no encoder": (remove("audio_encoder_whisper_int8.onnx"), "whisper_int8.onnx: missing"),
    "no adapter": (remove("audio_encoder_adapter_int8.onnx"), "adapter_int8.onnx: missing"),
    "no decoder": (remove("llm_kv_cpu_fp32_int8.onnx"), "fp32_int8.onnx: missing"),
    "no embedding": (remove("embedding_fp32.data"), "embedding_fp32.data: missing"),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer.json"),
    "no metadata": (remove(*METADATA), "llm_kv_fp32_qwen_native.json"),
    "cut embedding": (truncate("embedding_fp32.data"), "no whole number of rows"),
    "cut decoder": (truncate("llm_kv_cpu_fp32_int8.onnx"), "cannot open this graph"),
    "cut encoder": (truncate("audio_encoder_whisper_int8.onnx"), "cannot open this graph"),
    "no json": (lambda f: (f / MANIFEST).write_text("{"), "cannot be read as JSON"),
    "no object": (lambda f: (f / MANIFEST).write_text("[]"), "expected a JSON object"),
    "missing key": (damage_json(MANIFEST, audio_token_id=None), "'audio_token_id' is missing"),
    "wrong type": (damage_json(MANIFEST, audio_token_id="x"), "is 'x', expected int"),
    "text as an id": (damage_json(MANIFEST, stop_token_ids=["a"]), "is ['a'], expected list"),
    "too deep": (lambda f: (f / MANIFEST).write_text("[" * 100000), "cannot be read as JSON"),
    "outside": (damage_json(MANIFEST, audio_adapter_default="../a.onnx"), "a file of this folder"),
    "no heads": (damage_json(METADATA[0], num_attention_heads=0), "must be positive"),
    "layers without end": (damage_json(METADATA[0], num_layers=30_000_000), "at most 1024"),
    "other merge": (damage_json(MANIFEST, audio_merge_factor=3), "columns, expected 3 x"),
    "no end of turn": (damage_json(MANIFEST, im_end_token_id=-1), "id -1 as end of text"),
    "names no file": (damage_json(MANIFEST, embedding_default=""), "a file of this folder"),
    "file of nothing": (lambda f: (f / MANIFEST).write_bytes(bytes(5 << 20)), "at most 4194304"),
    "vocabulary without end": (
        lambda f: os.truncate(f / "embedding_fp32.data", 64 * 4 * ((1 << 20) + 1)),
        "vocab_size is 1048577",
    ),
    "no bands": (
        lambda f: (f / "preprocessor_config.json").write_text('{"feature_size": 0}'),
        "n_mels is 0",
    ),
    "another model": (damage_json(METADATA[0], model_type="audio8"), "model_type is 'audio8'"),
    "wrong heads": (damage_json(METADATA[0], num_key_value_heads=4), "input 'cache_key_0' is"),
    "more layers": (damage_json(METADATA[0], num_layers=3), "cache_key_2"),
    "head-major": (damage_json(METADATA[0], head_dim=2, num_key_value_heads=16), "input 'cache"),
    "encoder as adapter": (
        damage_json(MANIFEST, audio_adapter_default="audio_encoder_whisper_int8.onnx"),
        "unexpected or missing input or output",
    ),
    "encoder as decoder": (
        damage_json(MANIFEST, llm_default="audio_encoder_whisper_int8.onnx"),
        "no input 'cache_key_0'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_line_that_names_the_file(
    tiny_published_package: Path, tmp_path: Path, case: str
) -> None:
    folder = copy(tiny_published_package, tmp_path / "broken")
    damage, expected = BROKEN[case]
    damage(folder)
    with pytest.raises(PackageError) as error:
        ark_asr_onnx.load(folder)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_decoding_ends_where_the_cache_ends(tiny_published_package: Path) -> None:
    transcriber: Transcriber = ark_asr_onnx.load(tiny_published_package)
    clip = random_clips(15)[-1]
    transcript = transcriber.transcribe(clip, RATE, options=unguarded(2000))
    assert len(transcript.token_ids) <= 1024
    model = transcriber.model
    with pytest.raises(ark_asr_onnx.DecodeError, match="this model holds 1024"):
        model.start(1, 1025)
    with pytest.raises(ark_asr_onnx.DecodeError, match="this layout decodes one"):
        model.start(2, 10)
