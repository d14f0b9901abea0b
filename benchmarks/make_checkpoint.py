"""Write a random checkpoint in the exact published format: any size, no download.

    python benchmarks/make_checkpoint.py OUT [--seed 0] [--single] [--dtype bf16|fp16|fp32]

The weights are random, so the transcripts are noise; the tensor names, shapes, config keys and
tokenizer layout are those of ARK-ASR (facts, sections a to d). Tests export these.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

# Ids after the BPE vocabulary; unlike the 0.6B model's, so that nothing can be hard-wired to it.
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKERS = ["<tool_call>", "<|audio|>"]  # added but not special, as in the published tokenizer
PROMPT = ["<|user|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|assistant|>", "<|system|>"]
CODES = [f"<|bicodec_global_{i}|>" for i in range(8)]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SAMPLE = "Please transcribe this audio. The quick brown fox reads zero one two three letters."
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def tiny_config(vocab_size: int, ids: dict[str, int]) -> dict[str, Any]:
    """A ``config.json`` with the published keys and a network of some 0.3 M parameters."""
    return {
        "architectures": ["ArkasrForConditionalGeneration"],
        "model_type": "arkasr",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "audio_token_id": ids["<|audio|>"],
        "adapter_type": "mlp",
        "merge_factor": 4,
        "use_rope": True,
        "spec_aug": False,
        "max_whisper_length": 1500,
        "mlp_adapter_act": "gelu",
        "torch_dtype": "bfloat16",
        "whisper_config": {
            "d_model": 128,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 160,
            "num_mel_bins": 80,
            "max_source_positions": 1500,
            "activation_function": "gelu",
        },
    }


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor the published checkpoint of this configuration stores."""
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


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Seeded values: norms near one, biases small, matrices scaled by their fan-in."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in tensor_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1 and name != "model.embed_tokens.weight":
            noise *= 1.4 / (noise[0].numel() ** 0.5)
        elif "norm" in name and name.endswith("weight"):
            noise = 1 + 0.1 * noise
        else:
            noise *= 0.1
        tensors[name] = noise
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return tensors


def small_tokenizer() -> Tokenizer:
    """A byte-level BPE of some 300 entries in Qwen2's arrangement, with ARK's added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_SAMPLE] * 2, trainer)
    for token in [*SPECIAL, *MARKERS, *PROMPT, *CODES]:
        special = token not in (*MARKERS, *CODES)
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer


def make_checkpoint(
    out: Path,
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: str = "bf16",
    overrides: dict[str, Any] | None = None,
) -> Path:
    """Write the folder and return it; ``overrides`` replace top-level keys of ``config.json``."""
    out.mkdir(parents=True)
    tokenizer = small_tokenizer()
    tokenizer.save(str(out / "tokenizer.json"))
    # Two rows without a token at the end, as the 3B model has hundreds.
    config = tiny_config(tokenizer.get_vocab_size() + 2, tokenizer.get_vocab())
    config |= overrides or {}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {k: v.to(_DTYPES[dtype]) for k, v in random_tensors(config, seed).items()}
    tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()  # stored twice, though tied
    names = list(tensors)
    if shards == 1:
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        return out
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return out


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Write a random checkpoint in the published format."
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="bf16")
    options = parser.parse_args()
    if options.out.exists():
        print(f"error: {options.out} exists", file=sys.stderr)
        return 1
    print(
        make_checkpoint(options.out, seed=options.seed, shards=options.shards, dtype=options.dtype)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
