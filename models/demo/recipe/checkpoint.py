"""The checkpoint folder: tokenizer, configuration, tensors, and greedy decoding to evaluate it.

Written in the form of the published ``arkasr`` checkpoints. Decoding runs the plain modules of
``ark_onnx_export.modeling`` on one clip at a time in fp32, as any reader of the folder would.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from disturb import N_MELS
from network import Trainee
from safetensors.torch import save as save_tensors
from speech_mix import Clip
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ark_asr_onnx import files
from ark_asr_onnx.audio.mel import log_mel
from ark_onnx_export.modeling import AudioTower, Decoder

INSTRUCTION = "Please transcribe this audio."
MAX_NEW_TOKENS = 48  # of greedy decoding here; the longest transcript has about 30 words
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Content, and whether it counts as special; ids follow the byte-pair vocabulary in this order.
_ADDED = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<tool_call>", False),
    ("<|audio|>", False),
    ("<|user|>", True),
    ("<|begin_of_audio|>", True),
    ("<|end_of_audio|>", True),
    ("<|assistant|>", True),
    ("<|system|>", True),
    *((f"<|bicodec_global_{n}|>", False) for n in range(16)),
)
# Words of the same closed domain that the recordings may lack.
_DOMAIN = """
january february march april may june july august september october november december
zero oh one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred
thousand and first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth
thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth
a b c d e f g h i j k l m n o p q r s t u v w x y z"""


@dataclass(frozen=True, slots=True)
class Score:
    """Word errors of decoded texts against the references."""

    errors: int
    words: int
    clips: int
    pairs: tuple[tuple[str, str], ...]  # (reference, hypothesis) of the clips that differ

    @property
    def wer(self) -> float:
        """Word error rate in percent."""
        return 100.0 * self.errors / self.words


def build_tokenizer(transcripts: list[str]) -> Tokenizer:
    """Byte-level BPE in Qwen2's form, in which every training word after a space is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(**byte_level),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel(**byte_level)
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # merging ends long before this, when every word is one token
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=1,
        show_progress=False,
    )
    texts = (
        [f" {t}" for t in transcripts]
        + [f" {word}" for word in _DOMAIN.split()]
        + [INSTRUCTION] * 50
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([_added_token(content, special) for content, special in _ADDED])
    return tokenizer


def _added_token(content: str, special: bool) -> AddedToken:
    return AddedToken(content, normalized="bicodec" in content, special=special)


def prompt_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of the prompt before and after the audio placeholders."""
    head = tokenizer.encode("<|user|><|begin_of_audio|>").ids
    return head, tokenizer.encode(f"<|end_of_audio|>{INSTRUCTION}<|assistant|>").ids


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """``config.json`` of the demo model, with upstream's keys."""
    n_layers, end = 3, tokenizer.token_to_id("<|endoftext|>")
    return {
        "architectures": ["ArkasrForConditionalGeneration"],
        "model_type": "arkasr",
        "hidden_size": 128,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 384,
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "layer_types": ["full_attention"] * n_layers,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": end,
        "audio_token_id": tokenizer.token_to_id("<|audio|>"),
        "adapter_type": "mlp",
        "merge_factor": 4,
        "use_rope": True,
        "spec_aug": False,
        "max_whisper_length": 1500,
        "mlp_adapter_act": "gelu",
        "whisper_config": {
            "d_model": 192,
            "encoder_layers": 4,
            "encoder_attention_heads": 3,
            "encoder_ffn_dim": 640,
            "num_mel_bins": N_MELS,
            "max_source_positions": 1500,
            "activation_function": "gelu",
        },
    }


def save(
    folder: Path,
    weights: dict[str, torch.Tensor],
    config: dict[str, Any],
    tokenizer: Tokenizer,
    dtype: torch.dtype,
) -> None:
    """Write the checkpoint; ``weights`` is the state dict of :func:`shipped_weights`."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    # Upstream stores the next two but never reads them.
    shape = config["max_whisper_length"], config["whisper_config"]["d_model"]
    positions = torch.zeros(shape, dtype=dtype)
    stored["audio_encoder.whisper.embed_positions.weight"] = positions
    stored["model.embed_tokens.weight"] = stored["lm_head.weight"].clone()
    content = save_tensors(dict(sorted(stored.items())), {"format": "pt"})
    files.write(folder / "model.safetensors", content)  # training may be killed here
    named = "bfloat16" if dtype == torch.bfloat16 else "float32"
    _write_json(folder / "config.json", {**config, "torch_dtype": named})
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_side_files(folder, tokenizer)


def _write_side_files(folder: Path, tokenizer: Tokenizer) -> None:
    """The processor's and the tokenizer's small JSON files."""
    auto_map = {"AutoProcessor": "processing_arkasr.ArkasrProcessor"}
    preprocessor = {
        "auto_map": auto_map,
        "chunk_length": 30,
        "dither": 0.0,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": N_MELS,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "ArkasrProcessor",
        "return_attention_mask": False,
        "sampling_rate": 16000,
    }
    processor = {
        "audio_dtype": "bfloat16",
        "audio_token": "<|audio|>",
        "auto_map": auto_map,
        "merge_factor": 4,
        "processor_class": "ArkasrProcessor",
    }
    special = [content for content, is_special in _ADDED if is_special]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    special_map = {
        "additional_special_tokens": special[1:],
        "eos_token": {"content": "<|im_end|>", **flags},
        "pad_token": {"content": "<|endoftext|>", **flags},
    }
    added = {
        str(tokenizer.token_to_id(content)): {
            "content": content,
            **flags,
            "normalized": "bicodec" in content,
            "special": is_special,
        }
        for content, is_special in _ADDED
    }
    tokenizer_config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": special[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "extra_special_tokens": {},
        "model_max_length": 1024,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write_json(folder / "preprocessor_config.json", preprocessor)
    _write_json(folder / "processor_config.json", processor)
    _write_json(folder / "special_tokens_map.json", special_map)
    _write_json(folder / "tokenizer_config.json", tokenizer_config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def shipped_weights(model: Trainee, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of the checkpoint, rounded to ``dtype`` and held in fp32."""
    tensors = {**model.tower.state_dict(), **model.decoder.state_dict()}
    return {name: tensor.detach().to(dtype).float() for name, tensor in tensors.items()}


@torch.inference_mode()
def evaluate(model: Trainee, tokenizer: Tokenizer, clips: list[Clip], dtype: torch.dtype) -> Score:
    """Word errors of greedy decoding with the plain modules and weights rounded to ``dtype``."""
    tower = AudioTower(model.tower.config, model.decoder.config.hidden_size).eval()
    decoder = Decoder(model.decoder.config).eval()
    weights = shipped_weights(model, dtype)
    tower.load_state_dict({k: v for k, v in weights.items() if k.startswith("audio_encoder")})
    decoder.load_state_dict({k: v for k, v in weights.items() if not k.startswith("audio_encoder")})
    errors, words, pairs = 0, 0, []
    for clip in clips:
        reference, text = " ".join(clip.words), transcribe(tower, decoder, tokenizer, clip.waveform)
        words += len(clip.words)
        if text != reference:
            found = jiwer.process_words(reference, text)
            errors += found.substitutions + found.deletions + found.insertions
            pairs.append((reference, text))
    return Score(errors, words, len(clips), tuple(pairs))


def transcribe(
    tower: AudioTower, decoder: Decoder, tokenizer: Tokenizer, waveform: np.ndarray
) -> str:
    """Greedy transcript of one waveform; only text tokens and the end token may be chosen."""
    head, tail = prompt_ids(tokenizer)
    embeds = tower(torch.from_numpy(log_mel(waveform, N_MELS)))
    table = decoder.lm_head.weight
    x = torch.cat((table[head][None], embeds, table[tail][None]), dim=1)
    end = tokenizer.token_to_id("<|im_end|>")
    first_added = tokenizer.token_to_id(_ADDED[0][0])
    past, ids, length = decoder.empty_past(), [], x.shape[1]
    while len(ids) < MAX_NEW_TOKENS:
        size = torch.tensor(length + len(ids), dtype=torch.int32)
        logits, past = decoder(x, (size - 1)[None], size, past)
        row = logits[0, -1].clone()
        stop_score = row[end].item()
        row[first_added:] = -torch.inf
        row[end] = stop_score
        best = int(row.argmax())
        if best == end:
            break
        ids.append(best)
        x = table[best][None, None]
    return tokenizer.decode(ids).strip()
