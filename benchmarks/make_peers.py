"""Random weights of the 0.6B model's shapes in the formats of other engines.

    python benchmarks/make_peers.py {genai_int8,genai_int4,llamacpp,ctranslate2,openvino} OUT
        [--tokenizer DIR]

Runs under a Python with ``benchmarks/peers.txt``; ``compare.py`` calls it once and keeps the
results. genai's builder reads a tokenizer: that of the checkpoint in DIR.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from outside import TOKENIZER_FILES
from subjects import (
    D_MODEL,
    ENCODER_HEADS,
    ENCODER_INNER,
    ENCODER_LAYERS,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    MELS,
    VOCABULARY,
)  # fmt: skip

_HEAD_DIM = HIDDEN // HEADS


def genai(out: Path, precision: str, tokenizer: Path) -> None:
    """Write the folder that ``onnxruntime_genai.models.builder`` makes from a Qwen2 checkpoint."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        tie_word_embeddings=True, max_position_embeddings=32768, rope_theta=1e6,
        bos_token_id=151643, eos_token_id=151645,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        source = Path(scratch) / "checkpoint"
        network: Any = Qwen2ForCausalLM(config)
        network.to(torch.bfloat16).save_pretrained(source)
        for file in TOKENIZER_FILES:
            if (tokenizer / file).is_file():
                shutil.copy(tokenizer / file, source)
        builder = [
            sys.executable,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            source,
            "-o",
            out,
        ]
        cache = ["-c", Path(scratch) / "cache"]
        subprocess.run([*builder, "-p", precision, "-e", "cpu", *cache], check=True)


def llamacpp(out: Path) -> None:
    """Write a GGUF file, Q8_0."""
    import gguf

    writer = gguf.GGUFWriter(str(out), "qwen2")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"<{i}>" for i in range(VOCABULARY)])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(VOCABULARY - 1)
    generator = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType.Q8_0

    def matrix(name: str, *shape: int) -> None:
        numbers = generator.standard_normal(shape, dtype=np.float32) * 0.02
        writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)

    matrix("token_embd.weight", VOCABULARY, HIDDEN)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for i in range(LAYERS):
        block = f"blk.{i}"
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}.{name}.weight", np.ones(HIDDEN, np.float32))
        for name, n_heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            matrix(f"{block}.attn_{name}.weight", n_heads * _HEAD_DIM, HIDDEN)
            writer.add_tensor(
                f"{block}.attn_{name}.bias", np.zeros(n_heads * _HEAD_DIM, np.float32)
            )
        matrix(f"{block}.attn_output.weight", HIDDEN, HEADS * _HEAD_DIM)
        matrix(f"{block}.ffn_gate.weight", INNER, HIDDEN)
        matrix(f"{block}.ffn_up.weight", INNER, HIDDEN)
        matrix(f"{block}.ffn_down.weight", HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ctranslate2(out: Path) -> None:
    """Write Whisper-large-v3's encoder with a decoder of one layer, which is never run."""
    from ctranslate2.converters.transformers import TransformersConverter, WhisperLoader
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=51866, num_mel_bins=MELS, encoder_layers=ENCODER_LAYERS,
        encoder_attention_heads=ENCODER_HEADS, decoder_layers=1,
        decoder_attention_heads=ENCODER_HEADS, d_model=D_MODEL, encoder_ffn_dim=ENCODER_INNER,
        decoder_ffn_dim=ENCODER_INNER,
    )  # fmt: skip

    class Converter(TransformersConverter):
        """Takes the weights from memory, and needs no tokenizer."""

        def _load(self) -> object:
            spec = WhisperLoader().get_model_spec(WhisperForConditionalGeneration(config))
            spec.config.suppress_ids, spec.config.suppress_ids_begin = [], []
            spec.config.alignment_heads = [[0, 0]]
            spec.register_vocabulary([str(i) for i in range(config.vocab_size)])
            return spec

    Converter("").convert(str(out), quantization="int8", force=True)


def openvino(out: Path) -> None:
    """Write encoder and adapter as graphs of each kind; static ones are calibrated on noise."""
    from openvino_encoder import Sizes, write

    sizes = Sizes(
        n_mels=MELS, d_model=D_MODEL, n_layers=ENCODER_LAYERS, n_heads=ENCODER_HEADS,
        ffn_dim=ENCODER_INNER, merge_factor=4, max_positions=1500, hidden_size=HIDDEN,
    )  # fmt: skip
    generator = np.random.default_rng(1)
    calibration = [generator.standard_normal((1, MELS, 500), np.float32) for _ in range(2)]
    write(sizes, _encoder_tensor, calibration, out)


_ENCODER_SHAPES = {
    "conv1.weight": (D_MODEL, MELS, 3),
    "conv2.weight": (D_MODEL, D_MODEL, 3),
    "fc1.weight": (ENCODER_INNER, D_MODEL),
    "fc1.bias": (ENCODER_INNER,),
    "fc2.weight": (D_MODEL, ENCODER_INNER),
    "adapting.0.weight": (2 * HIDDEN, 4 * D_MODEL),
    "adapting.0.bias": (2 * HIDDEN,),
    "adapting.2.weight": (HIDDEN, 2 * HIDDEN),
    "adapting.2.bias": (HIDDEN,),
    "proj.weight": (D_MODEL, D_MODEL),
}


def _encoder_tensor(name: str) -> Any:
    """A random tensor of the checkpoint, determined by its name."""
    shape = next((s for end, s in _ENCODER_SHAPES.items() if name.endswith(end)), (D_MODEL,))
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    numbers = np.float32(0.02) * generator.standard_normal(shape, np.float32)
    return 1 + numbers if name.endswith("layer_norm.weight") else numbers


def main() -> int:
    """Command line."""
    makers = {"llamacpp": llamacpp, "ctranslate2": ctranslate2, "openvino": openvino}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("genai_int8", "genai_int4", *makers))
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="a checkpoint's, for genai")
    options = parser.parse_args()
    if options.name in makers:
        makers[options.name](options.out)
    elif options.tokenizer is None or not options.tokenizer.is_dir():
        raise SystemExit("error: genai's builder reads a tokenizer; give a checkpoint: --tokenizer")
    else:
        genai(options.out, options.name.removeprefix("genai_"), options.tokenizer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
