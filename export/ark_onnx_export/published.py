"""The published layout, written: the folder upstream's readers open, from the same weights.

Names, types and file formats follow upstream's package (``export/MODEL.md``): opset 17,
``runtime_manifest.json``, ``llm_kv_*.json``, dynamic INT8 with unsigned 8-bit weights per channel.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ark_asr_onnx.package import published as contract
from ark_asr_onnx.package.contract import Tokens

from .checkpoint import Checkpoint, Network
from .config import ArkConfig
from .modeling import AudioTower
from .modeling.published import PublishedDecoder

OPSET = 17
CAPACITY = 2048  # positions of the cache
_ONE_FILE_BYTES = 1_900_000_000  # a graph file with its weights inside cannot reach 2 GiB
_ENCODER_FRAMES, _DECODER_POSITIONS = 300, 8  # sizes of the examples that are traced


@dataclass(frozen=True, slots=True)
class Names:
    """File names of one precision."""

    encoder: str
    adapter: str
    decoder: str

    @classmethod
    def of(cls, precision: str) -> Names:
        """Upstream's names for ``int8`` or ``fp32``."""
        decoder = "llm_kv_cpu_fp32" + ("_int8" if precision == "int8" else "")
        return cls(
            encoder=f"audio_encoder_whisper_{precision}.onnx",
            adapter=f"audio_encoder_adapter_{precision}.onnx",
            decoder=f"{decoder}.onnx",
        )


class _Encoder(nn.Module):
    def __init__(self, tower: AudioTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, audios: Tensor) -> Tensor:
        return self.tower.encode(audios)


class _Adapter(nn.Module):
    def __init__(self, tower: AudioTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, merged_audio_features: Tensor) -> Tensor:
        return self.tower.adapt(merged_audio_features)


def trace_encoder(network: Network, path: Path) -> None:
    """``audios [1, n_mels, mel_seq]`` to ``encoded_audio_features [1, audio_seq, d_model]``."""
    config = network.tower.config
    _trace(
        _Encoder(network.tower),
        (torch.zeros(1, config.n_mels, _ENCODER_FRAMES),),
        {contract.AUDIOS: {2: "mel_seq"}},
        {contract.ENCODED: (1, "audio_seq", config.d_model)},
        path,
    )


def trace_adapter(network: Network, path: Path) -> None:
    """``merged_audio_features [1, N, 4 d_model]`` to ``audio_embeddings [1, N, hidden]``."""
    config = network.tower.config
    _trace(
        _Adapter(network.tower),
        (torch.zeros(1, 7, config.merge_factor * config.d_model),),
        {contract.MERGED: {1: "audio_seq"}},
        {contract.AUDIO_EMBEDS: (1, "audio_seq", network.table.shape[1])},
        path,
    )


def trace_decoder(network: Network, path: Path, capacity: int) -> None:
    """The decoder of :class:`PublishedDecoder`, with upstream's input and output names."""
    config = network.decoder.config
    cache = (config.n_kv_heads, config.head_dim)
    caches = contract.cache_names(config.n_layers)
    n = _DECODER_POSITIONS
    example = (
        torch.zeros(1, n, config.hidden_size),
        torch.ones(1, capacity, dtype=torch.int64),
        torch.arange(n),
        *[torch.zeros(1, capacity, *cache) for _ in caches],
    )
    inputs = {
        contract.EMBEDS: {0: "batch", 1: "seq"},
        contract.MASK: {0: "batch"},
        contract.POSITIONS: {0: "seq"},
        **{name: {0: "batch"} for name in caches},
    }
    outputs = {
        contract.LOGITS: ("batch", 1, config.vocab_size),
        **dict.fromkeys(contract.delta_names(config.n_layers), ("batch", "seq", *cache)),
    }
    _trace(PublishedDecoder(network.decoder, capacity), example, inputs, outputs, path)


def quantize(path: Path) -> None:
    """Upstream's recipe in place: ``quantize_dynamic``, unsigned 8-bit weights, per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # pyright: ignore

    scratch = _scratch(path)
    for file in filter(Path.exists, (path, _data_file(path))):
        file.rename(scratch / file.name)
    source = scratch / path.name
    n_bytes = sum(file.stat().st_size for file in scratch.iterdir()) // 4
    with _quiet():
        quantize_dynamic(
            source,
            path,
            weight_type=QuantType.QUInt8,
            per_channel=True,
            use_external_data_format=n_bytes > _ONE_FILE_BYTES,
        )
    shutil.rmtree(scratch)


def _scratch(path: Path) -> Path:
    """A folder for what a graph is made from."""
    folder = path.parent / f".{path.stem}"
    folder.mkdir()
    return folder


def _data_file(path: Path) -> Path:
    """Where the weights lie that do not fit into a graph file."""
    return path.with_name(path.name + ".data")


def write_metadata(
    directory: Path, checkpoint: Checkpoint, tokens: Tokens, names: Names, capacity: int
) -> None:
    """``runtime_manifest.json``, both ``llm_kv_*.json``, and the checkpoint's side files."""
    config = checkpoint.config
    _write_json(directory / contract.RUNTIME_MANIFEST, _runtime_manifest(config, tokens, names))
    metadata = _decoder_metadata(config, capacity)
    for name in (f"{Path(names.decoder).stem}.json", contract.DECODER_FILES[0]):
        _write_json(directory / name, metadata)
    for name in ("config.json", contract.PREPROCESSOR_FILE, "processor_config.json",
                 "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                 "vocab.json", "merges.txt", "chat_template.jinja"):  # fmt: skip
        if (checkpoint.directory / name).is_file():
            (directory / name).write_bytes(_plain((checkpoint.directory / name).read_bytes()))


def _plain(content: bytes) -> bytes:
    """UTF-8 without a byte order mark, which readers of packages refuse."""
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode(json.detect_encoding(content)).encode()
    return content


def _runtime_manifest(config: ArkConfig, tokens: Tokens, names: Names) -> dict[str, Any]:
    pad = config.pad_token_id
    read = contract.RuntimeManifest(
        audio_encoder_default=names.encoder,
        audio_adapter_default=names.adapter,
        llm_default=names.decoder,
        embedding_default=contract.EMBEDDING_GRAPH,
        audio_merge_factor=config.audio.merge_factor,
        audio_token_id=tokens.audio,
        im_end_token_id=tokens.eos[0],
        stop_token_ids=list(tokens.stop),
    )
    return {
        **asdict(read),
        "sample_rate": 16000,
        "latent_hop_length": 320,
        "user_token_id": tokens.prefix[0],
        "assistant_token_id": tokens.suffix[-1],
        "pad_token_id": tokens.eos[0] if pad is None else pad,
        "audio_encoder_hidden_size": config.audio.d_model,
    }


def _decoder_metadata(config: ArkConfig, capacity: int) -> dict[str, Any]:
    decoder = config.decoder
    read = contract.DecoderSizes(
        hidden_size=decoder.hidden_size,
        num_layers=decoder.n_layers,
        num_attention_heads=decoder.n_heads,
        num_key_value_heads=decoder.n_kv_heads,
        max_total_len=capacity,
    )
    return {
        **{key: value for key, value in asdict(read).items() if value is not None},
        "model_type": "arkasr",
        "sliding_window": None,
        "layer_types": ["full_attention"] * decoder.n_layers,
        "attn_implementation": "eager",
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _trace(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: dict[str, dict[int, str]],
    outputs: dict[str, tuple[int | str, ...]],
    path: Path,
) -> None:
    """Trace with upstream's exporter and opset, then state the shapes of the outputs."""
    axes = {name: dict(dims) for name, dims in inputs.items()}
    for name, shape in outputs.items():
        axes[name] = {i: dim for i, dim in enumerate(shape) if isinstance(dim, str)}
    scratch = _scratch(path)  # beyond 2 GB every weight becomes a file
    with _quiet(), _in_fp32(module):
        torch.onnx.export(
            module.eval(),
            example,
            str(scratch / path.name),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
        )
    model = ir.load(scratch / path.name)
    for output in model.graph.outputs:
        assert output.name is not None
        output.shape = ir.Shape(outputs[output.name])
    for node in model.graph:  # constants too have become files, and saving leaves those alone
        value = node.attributes.get("value")
        if node.op_type == "Constant" and value is not None:
            numbers = value.as_tensor().numpy().copy()
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(numbers))
    large = sum(t.nbytes for v in model.graph.initializers.values() if (t := v.const_value))
    ir.save(model, path, external_data=_data_file(path).name if large > _ONE_FILE_BYTES else None)
    shutil.rmtree(scratch)


@contextlib.contextmanager
def _in_fp32(module: nn.Module) -> Iterator[None]:
    """This tracer writes numbers down: give it fp32 weights, and take them away again.

    Buffers, the RoPE tables, are fp32 anyway.
    """
    stored = {name: p.data for name, p in module.named_parameters()}
    module.float()
    try:
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.data = stored[name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep remarks about the old tracer and about quantisation off the user's terminal."""
    import logging

    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
