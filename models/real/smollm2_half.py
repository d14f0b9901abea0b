"""SmolLM2 as ARK's decoder: a Llama is a Qwen2 whose biases of q, k and v are zero.

GGUF files of Llamas hold the rows of q and k in an order for which RoPE rotates neighbouring pairs;
the checkpoint needs the order for rotate-half, as in Hugging Face's models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ctranslate2_file import FileFormatError
from gguf_file import Gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

Tensors = dict[str, Tensor]

_CONTROL = 3  # a token's type in GGUF
_LAYER_TENSORS = {
    "self_attn.v_proj.weight": "attn_v",
    "self_attn.o_proj.weight": "attn_output",
    "mlp.gate_proj.weight": "ffn_gate",
    "mlp.up_proj.weight": "ffn_up",
    "mlp.down_proj.weight": "ffn_down",
    "input_layernorm.weight": "attn_norm",
    "post_attention_layernorm.weight": "ffn_norm",
}


@dataclass(frozen=True, slots=True)
class LlamaSizes:
    """The sizes of the network in the file."""

    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    rms_norm_eps: float
    rope_theta: float
    vocab_size: int

    @classmethod
    def read(cls, gguf: Gguf) -> LlamaSizes:
        """Sizes from the fields of ``gguf``."""
        if gguf.fields.get("general.architecture") != "llama":
            raise FileFormatError(
                f"{gguf.path}: architecture {gguf.fields.get('general.architecture')!r}, "
                "expected 'llama'"
            )
        return cls(
            hidden_size=gguf.field("llama.embedding_length", int),
            n_layers=gguf.field("llama.block_count", int),
            n_heads=gguf.field("llama.attention.head_count", int),
            n_kv_heads=gguf.field("llama.attention.head_count_kv", int),
            ffn_dim=gguf.field("llama.feed_forward_length", int),
            rms_norm_eps=round(gguf.field("llama.attention.layer_norm_rms_epsilon", float), 12),
            rope_theta=gguf.field("llama.rope.freq_base", float),
            vocab_size=len(gguf.field("tokenizer.ggml.tokens", list)),
        )


def decoder_tensors(gguf: Gguf) -> Tensors:
    """The tensors under ``model``, fp32; the head is the table."""
    sizes = LlamaSizes.read(gguf)
    found = {
        "model.embed_tokens.weight": _tensor(gguf, "token_embd.weight"),
        "model.norm.weight": _tensor(gguf, "output_norm.weight"),
    }
    if "output.weight" in gguf.tensors:
        raise FileFormatError(f"{gguf.path}: has a head of its own, expected a tied one")
    head_dim = sizes.hidden_size // sizes.n_heads
    for i in range(sizes.n_layers):
        layer, block = f"model.layers.{i}.", f"blk.{i}."
        for name, stored in _LAYER_TENSORS.items():
            found[layer + name] = _tensor(gguf, f"{block}{stored}.weight")
        for name, n_heads in (("q", sizes.n_heads), ("k", sizes.n_kv_heads)):
            stored = _tensor(gguf, f"{block}attn_{name}.weight")
            found[f"{layer}self_attn.{name}_proj.weight"] = rotate_half_rows(stored, n_heads)
        for name, n_heads in (("q", sizes.n_heads), *(("kv"[j], sizes.n_kv_heads) for j in (0, 1))):
            found[f"{layer}self_attn.{name}_proj.bias"] = torch.zeros(n_heads * head_dim)
    return found


def rotate_half_rows(stored: Tensor, n_heads: int) -> Tensor:
    """Rows ``[n_heads * dim, inputs]`` from neighbouring pairs to halves.

    Row ``2 i`` of a head becomes row ``i``, row ``2 i + 1`` becomes row ``dim / 2 + i``.
    """
    rows, n_inputs = stored.shape
    pairs = stored.reshape(n_heads, rows // n_heads // 2, 2, n_inputs)
    return pairs.transpose(1, 2).reshape(rows, n_inputs).contiguous()


def tokenizer_of(gguf: Gguf) -> Tokenizer:
    """SmolLM2's byte-level BPE: single digits, GPT-2's split; control tokens are special."""
    tokens = gguf.field("tokenizer.ggml.tokens", list)
    merges = [tuple(m.split(" ")) for m in gguf.field("tokenizer.ggml.merges", list)]
    kinds = gguf.field("tokenizer.ggml.token_type", list)
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in control])
    return tokenizer


def _tensor(gguf: Gguf, name: str) -> Tensor:
    return torch.from_numpy(gguf.tensor(name))
