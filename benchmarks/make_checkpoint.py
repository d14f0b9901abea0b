"""Write a random checkpoint in the exact published format: any size, no download.

    python benchmarks/make_checkpoint.py OUT [--size tiny|0.6B|3B] [--seed 0] [--shards N]
        [--dtype bf16|fp16|fp32] [--outliers STRENGTH] [--set KEY=VALUE ...] [--tokenizer NAME]

The weights are random, so the transcripts are noise; tensor names, shapes, config keys, side files
and the safetensors header are those of ARK-ASR (a 0.6B folder has a model.safetensors of exactly
2,599,020,680 bytes). Tensors are made and written one after the other. The tokenizer is made, too:
``0.6B`` and ``3B`` have as many tokens as the real one, including its added ones, ``tiny`` about
300. ``--tokenizer`` takes the tokenizer of a checkpoint instead, a folder or a Hugging Face id.

``--outliers`` plants the outliers that break INT8 in such models, each multiplied by the strength:
a few residual channels (x 50), a few norm gains (x 30), and an attention sink in the embedding of
the first prompt token (x 1000).
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Iterator
from errno import EEXIST
from pathlib import Path
from typing import Any

import torch
from make_tokenizer import full_tokenizer, small_tokenizer, take_tokenizer
from torch import Tensor

from ark_asr_onnx import PackageError, files

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}

_COMMON: dict[str, Any] = {
    "architectures": ["ArkasrForConditionalGeneration"],
    "auto_map": {
        "AutoConfig": "configuration_arkasr.ArkasrConfig",
        "AutoModelForCausalLM": "modeling_arkasr.ArkasrForConditionalGeneration",
    },
    "model_type": "arkasr",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "sliding_window": None,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
    "audio_token_id": 151663,
    "adapter_type": "mlp",
    "merge_factor": 4,
    "use_rope": True,
    "spec_aug": False,
    "max_whisper_length": 1500,
    "mlp_adapter_act": "gelu",
}
_WHISPER: dict[str, Any] = {
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "activation_function": "gelu",
}
SIZES: dict[str, dict[str, Any]] = {
    "0.6B": {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 163958,
        "whisper_config": _WHISPER,
    },
    "3B": {
        "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "intermediate_size": 11008, "vocab_size": 151936,
        "whisper_config": _WHISPER,
    },
    "tiny": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 1024,
        "whisper_config": {
            **_WHISPER, "d_model": 128, "encoder_layers": 2, "encoder_attention_heads": 2,
            "encoder_ffn_dim": 160, "num_mel_bins": 80,
        },
    },
}  # fmt: skip
_RESIDUAL_WRITERS = ("out_proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight")


def make_checkpoint(
    out: Path,
    *,
    size: str = "tiny",
    seed: int = 0,
    shards: int = 1,
    dtype: str = "bf16",
    outliers: float = 0.0,
    overrides: dict[str, Any] | None = None,
    tokenizer: str = "",
) -> Path:
    """Write the folder and return it; ``overrides`` replace keys of ``config.json``.

    Raises :class:`PackageError` if the named tokenizer cannot be fetched or fits another model.
    """
    if out.exists():
        raise FileExistsError(EEXIST, "exists", str(out))
    config = {**_COMMON, **SIZES[size], "torch_dtype": "bfloat16"}
    with files.staging(out.parent) as folder:
        if size == "tiny":
            config |= _write_small_tokenizer(folder)
        elif tokenizer:
            take_tokenizer(tokenizer, folder, config)
        else:
            full_tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"))
        config |= overrides or {}
        for key in (k for k in list(config) if k.startswith("whisper_config.")):
            value = config.pop(key)
            config["whisper_config"] = {**config["whisper_config"], key.partition(".")[2]: value}
        _write_json(folder / "config.json", config)
        _write_side_files(folder, config["whisper_config"]["num_mel_bins"])
        kind = _DTYPES[dtype]
        write_weights(folder, config, seed=seed, shards=shards, dtype=kind, outliers=outliers)
        folder.rename(out)
    return out


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the published checkpoint of this configuration."""
    whisper, hidden = config["whisper_config"], config["hidden_size"]
    width, ffn = whisper["d_model"], whisper["encoder_ffn_dim"]
    dim = hidden // config["num_attention_heads"]
    kv = config["num_key_value_heads"] * dim
    enc = "audio_encoder.whisper"
    shapes: dict[str, tuple[int, ...]] = {
        f"{enc}.conv1.weight": (width, whisper["num_mel_bins"], 3),
        f"{enc}.conv1.bias": (width,),
        f"{enc}.conv2.weight": (width, width, 3),
        f"{enc}.conv2.bias": (width,),
        f"{enc}.embed_positions.weight": (config["max_whisper_length"], width),
    }
    for n in range(whisper["encoder_layers"]):
        layer = f"{enc}.layers.{n}"
        for part in ("q", "k", "v", "out"):
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (width, width)
            if part != "k":
                shapes[f"{layer}.self_attn.{part}_proj.bias"] = (width,)
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{layer}.{norm}.weight": (width,), f"{layer}.{norm}.bias": (width,)}
        shapes |= {f"{layer}.fc1.weight": (ffn, width), f"{layer}.fc1.bias": (ffn,)}
        shapes |= {f"{layer}.fc2.weight": (width, ffn), f"{layer}.fc2.bias": (width,)}
    merged = config["merge_factor"] * width
    shapes |= {
        "audio_encoder.layer_norm.weight": (width,),
        "audio_encoder.layer_norm.bias": (width,),
        "audio_encoder.adapting.0.weight": (2 * hidden, merged),
        "audio_encoder.adapting.0.bias": (2 * hidden,),
        "audio_encoder.adapting.2.weight": (hidden, 2 * hidden),
        "audio_encoder.adapting.2.bias": (hidden,),
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}"
        for part, n_out in (("q", hidden), ("k", kv), ("v", kv)):
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (n_out, hidden)
            shapes[f"{layer}.self_attn.{part}_proj.bias"] = (n_out,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, hidden)
        for part in ("gate", "up"):
            shapes[f"{layer}.mlp.{part}_proj.weight"] = (config["intermediate_size"], hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, config["intermediate_size"])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{norm}.weight"] = (hidden,)
    return dict(sorted(shapes.items()))


def write_weights(
    out: Path,
    config: dict[str, Any],
    *,
    seed: int,
    shards: int,
    dtype: torch.dtype,
    outliers: float,
) -> None:
    """Write the safetensors files, with one tensor in memory at a time."""
    shapes = tensor_shapes(config)
    names = list(shapes)
    parts = [names[i::shards] for i in range(shards)]
    files = ["model.safetensors"]
    if shards > 1:
        files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        weight_map = {n: file for file, part in zip(files, parts, strict=True) for n in part}
        index = {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(out / "model.safetensors.index.json", index)
    for file, part in zip(files, parts, strict=True):
        with (out / file).open("wb") as stream:
            stream.write(safetensors_header({name: shapes[name] for name in part}, dtype))
            for name in part:
                tensor = random_tensor(name, shapes[name], config, seed, outliers).to(dtype)
                stream.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def safetensors_header(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> bytes:
    """Length and JSON header of a safetensors file, as the library writes it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def random_tensor(
    name: str, shape: tuple[int, ...], config: dict[str, Any], seed: int, outliers: float
) -> Tensor:
    """Seeded values: norms near one, biases small, matrices scaled by their fan-in.

    Matrices that write to the residual stream shrink with depth, as in an initialised network:
    without that a deep random network is chaotic and multiplies every rounding error. A tied
    ``lm_head.weight`` repeats the embedding, as in the published file.
    """
    if name == "lm_head.weight" and config["tie_word_embeddings"]:
        name = "model.embed_tokens.weight"
    generator = torch.Generator().manual_seed(hash_name(name) + 1_000_003 * seed)
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1 and name != "model.embed_tokens.weight":
        noise *= noise[0].numel() ** -0.5
        if name.endswith(_RESIDUAL_WRITERS):
            decoder = name.startswith("model.")
            layers = config if decoder else config["whisper_config"]
            noise *= (2 * layers["num_hidden_layers" if decoder else "encoder_layers"]) ** -0.5
    elif "norm" in name and name.endswith("weight"):
        noise = 1 + 0.1 * noise
    else:
        noise *= 0.1
    if outliers:
        plant_outliers(noise, name, config, seed, outliers)
    return noise


def plant_outliers(
    tensor: Tensor, name: str, config: dict[str, Any], seed: int, strength: float
) -> None:
    """Scale the inputs of a few residual channels, a few norm gains, and the first prompt token."""
    width = tensor.shape[0]
    channels = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    if name.endswith(_RESIDUAL_WRITERS):
        tensor[channels[:3]] *= 50 * strength
    elif "norm" in name and name.endswith("weight"):
        tensor[channels[3:6]] *= 30 * strength
    elif name == "model.embed_tokens.weight":
        first = config.get("user_token_id", 151665)  # the id of <|user|> in the real tokenizer
        hidden = torch.randperm(tensor.shape[1], generator=torch.Generator().manual_seed(seed))
        tensor[min(first, width - 1), hidden[:2]] *= 1000 * strength


def hash_name(name: str) -> int:
    """A stable number for a name, so that tensors do not depend on each other."""
    value = 0
    for byte in name.encode():
        value = (value * 257 + byte) % (1 << 61)
    return value


def _write_small_tokenizer(out: Path) -> dict[str, Any]:
    """Write the tiny tokenizer; returns the ids and the vocabulary size for the config."""
    tokenizer = small_tokenizer()
    tokenizer.save(str(out / "tokenizer.json"))
    ids = tokenizer.get_vocab()
    return {
        # Two rows without a token at the end; the 3B model has hundreds of them.
        "vocab_size": tokenizer.get_vocab_size() + 2,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "audio_token_id": ids["<|audio|>"],
    }


def _write_side_files(out: Path, n_mels: int) -> None:
    """Write both processor files; for 128 bands, byte for byte the published ones."""
    auto_map = {"AutoProcessor": "processing_arkasr.ArkasrProcessor"}
    preprocessor = {
        "auto_map": auto_map, "chunk_length": 30, "dither": 0.0,
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": n_mels,
        "hop_length": 160, "n_fft": 400, "n_samples": 480000, "nb_max_frames": 3000,
        "padding_side": "right", "padding_value": 0.0, "processor_class": "ArkasrProcessor",
        "return_attention_mask": False, "sampling_rate": 16000,
    }  # fmt: skip
    processor = {
        "audio_dtype": "bfloat16", "audio_token": "<|audio|>", "auto_map": auto_map,
        "merge_factor": 4, "processor_class": "ArkasrProcessor",
    }  # fmt: skip
    _write_json(out / "preprocessor_config.json", preprocessor)
    _write_json(out / "processor_config.json", processor)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def settings(pairs: list[str]) -> Iterator[tuple[str, Any]]:
    """``KEY=VALUE`` pairs; values are parsed as JSON if they are JSON."""
    for pair in pairs:
        key, _, text = pair.partition("=")
        try:
            yield key, json.loads(text)
        except ValueError:
            yield key, text


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a random checkpoint, published format.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="bf16")
    parser.add_argument("--outliers", type=float, default=0.0, metavar="STRENGTH")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of config.json; whisper_config.KEY for the encoder's",
    )
    parser.add_argument(
        "--tokenizer", default="", metavar="NAME",
        help="a checkpoint's, folder or Hugging Face id, in place of one that is made",
    )  # fmt: skip
    options = parser.parse_args()
    if options.out.exists():
        print(f"error: {options.out} exists", file=sys.stderr)
        return 1
    if options.size == "tiny" and options.tokenizer:
        print("error: tiny has a tokenizer of its own; leave out --tokenizer", file=sys.stderr)
        return 1
    try:
        out = make_checkpoint(
            options.out, size=options.size, seed=options.seed, shards=options.shards,
            dtype=options.dtype, outliers=options.outliers, overrides=dict(settings(options.set)),
            tokenizer=options.tokenizer,
        )  # fmt: skip
    except PackageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
