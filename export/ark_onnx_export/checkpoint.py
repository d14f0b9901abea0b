"""Reading a Hugging Face checkpoint: every tensor is used exactly once, or the error names it.

Knows safetensors and tensor names; executes nothing that came with the checkpoint.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ark_asr_onnx.errors import ExportError, PackageError
from ark_asr_onnx.package.contract import Tokens
from ark_asr_onnx.package.text import Text
from ark_asr_onnx.package.vocabulary import decoding_tokens

from .config import ArkConfig
from .modeling import AudioTower, Decoder

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
POSITIONS = "audio_encoder.whisper.embed_positions.weight"  # not needed where RoPE replaced it
_DTYPES = ("BF16", "F16", "F32")
_MADV_PAGEOUT = 21  # of linux/mman.h; loses nothing, unlike MADV_DONTNEED
_INDEX = "model.safetensors.index.json"
# What says, beside the weights, what a model is: sizes, ids, text, sound.
_SIDE_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder whose configuration and tensor headers were read; weights are read on demand."""

    directory: Path
    config: ArkConfig
    shapes: dict[str, tuple[int, ...]]  # tensor name -> shape
    shards: dict[str, Path]  # tensor name -> file

    def stored(self, name: str) -> Tensor:
        """One tensor in the type it is stored in, mapped from the file."""
        with _open(self.shards[name]) as file:
            return file.get_tensor(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor as float32, in memory of its own."""
        return self.stored(name).float()

    @property
    def files(self) -> list[Path]:
        """The safetensors files, sorted by name."""
        return sorted(set(self.shards.values()))

    @property
    def side_files(self) -> list[Path]:
        """The files beside them that say what the model is."""
        paths = (self.directory / name for name in _SIDE_FILES)
        return [path for path in paths if path.is_file()]


@dataclass(frozen=True, slots=True)
class Network:
    """A checkpoint as torch modules: weights mapped from disk as stored, arithmetic in fp32."""

    tower: AudioTower
    decoder: Decoder
    table: Tensor  # [vocab, hidden], as stored
    head: str  # the tensor that is the head: EMBEDDING when tied, else HEAD
    notes: tuple[str, ...]  # what a reader of the log should know about the weights

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Rows ``[len(ids), hidden]`` of the table, fp32."""
        return self.table[list(ids)].float()

    def prompt(self, tokens: Tokens, audio_embeds: Tensor) -> Tensor:
        """``inputs_embeds [1, L, hidden]`` with the audio rows ``[1, N, hidden]`` in place."""
        n_audio, n_before = audio_embeds.shape[1], len(tokens.prefix)
        embeds = self.embed([*tokens.prefix, *[tokens.audio] * n_audio, *tokens.suffix])
        embeds[n_before : n_before + n_audio] = audio_embeds[0]
        return embeds[None]

    def page_out(self) -> None:
        """Hand the memory of mapped weights back; they are read again when needed.

        Where the system has no such call (only Linux has) they stay until memory gets scarce.
        """
        if sys.platform != "linux":
            return
        libc, page = ctypes.CDLL(None), mmap.PAGESIZE
        for tensor in (*self.tower.parameters(), *self.decoder.parameters(), self.table):
            first = tensor.data_ptr() // page * page
            last = tensor.data_ptr() + tensor.nbytes
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_PAGEOUT)


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read ``config.json`` and all tensor headers; :class:`ExportError` says what is wrong."""
    if not directory.is_dir():
        raise ExportError(f"checkpoint folder {directory} does not exist")
    config = ArkConfig.read(directory / "config.json")
    shapes: dict[str, tuple[int, ...]] = {}
    shards: dict[str, Path] = {}
    for path in _shard_paths(directory):
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                part = file.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    raise ExportError(
                        f"{path}: tensor {name} has dtype {part.get_dtype()}, "
                        f"expected one of {', '.join(_DTYPES)}"
                    )
                if name in shards:
                    raise ExportError(f"{path}: tensor {name} is also in {shards[name].name}")
                shapes[name], shards[name] = tuple(part.get_shape()), path
    return Checkpoint(directory, config, shapes, shards)


def open_text(checkpoint: Checkpoint, instruction: str) -> tuple[Text, Tokens]:
    """The tokenizer of the checkpoint, and what it says about decoding."""
    config = checkpoint.config
    pad = () if config.pad_token_id is None else (config.pad_token_id,)
    try:
        text = Text(checkpoint.directory)
        tokens = decoding_tokens(
            text,
            config.decoder.vocab_size,
            audio=config.audio_token_id,
            eos=config.eos_token_ids,
            stop=pad,
            instruction=instruction,
        )
    except PackageError as error:
        raise ExportError(str(error)) from error
    return text, tokens


def load_network(
    checkpoint: Checkpoint,
    max_positions: int,
    progress: Callable[[list[str]], Iterable[str]] = iter,
) -> Network:
    """Fill the modules; ``max_positions`` bounds the decoder's RoPE tables.

    Every tensor must have exactly one place with its shape; missing, surplus and misshapen ones
    are listed in the :class:`ExportError`.
    """
    config = checkpoint.config
    with torch.device("meta"):
        tower = AudioTower(config.audio, config.decoder.hidden_size)
        decoder = Decoder(config.decoder, max_positions)
    expected: dict[str, tuple[int, ...]] = {
        name: tuple(p.shape) for m in (tower, decoder) for name, p in m.named_parameters()
    }
    expected[EMBEDDING] = expected[HEAD]
    _check_names(checkpoint, expected)
    table = checkpoint.stored(EMBEDDING)
    head, notes = _choose_head(checkpoint, table)
    owners = {n: m for m in (tower, decoder) for n, _ in m.named_parameters()}
    for name in progress(list(owners)):
        owner, _, leaf = name.rpartition(".")
        stored = checkpoint.stored(head if name == HEAD else name)
        weight = nn.Parameter(stored, requires_grad=False)
        setattr(owners[name].get_submodule(owner), leaf, weight)
    return Network(tower.eval(), decoder.eval(), table, head, notes)


def graph_weight(
    checkpoint: Checkpoint,
    network: Network,
    name: str,
    n_logits: int,
    fold: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
) -> Tensor:
    """The fp32 weight of a traced graph: the checkpoint's, but for the packed and the tied ones.

    Of the head only the first ``n_logits`` rows are kept. ``fold`` changes tensors by name, the
    packed ones and their parts.
    """
    if name == HEAD:
        return fold(name, checkpoint.stored(network.head)[:n_logits].float())
    parts = graph_parts(name)
    found = [fold(part, checkpoint.tensor(part)) for part in parts]
    return fold(name, torch.cat(found)) if len(parts) > 1 else found[0]


def graph_parts(name: str) -> list[str]:
    """The checkpoint's tensors of which a traced graph's weight consists, row after row."""
    packed = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    for whole, parts in packed.items():
        if f".{whole}." in name:
            return [name.replace(whole, part) for part in parts]
    return [name]


def _choose_head(checkpoint: Checkpoint, table: Tensor) -> tuple[str, tuple[str, ...]]:
    """The table is the head, unless a stored head says something else."""
    if HEAD not in checkpoint.shapes or torch.equal(checkpoint.stored(HEAD), table):
        return EMBEDDING, ()
    if checkpoint.config.decoder.tie_word_embeddings:
        note = f"{HEAD} differs from {EMBEDDING} though the config ties them; the head is used"
        return HEAD, (note,)
    return HEAD, ()


def _check_names(checkpoint: Checkpoint, expected: dict[str, tuple[int, ...]]) -> None:
    found = checkpoint.shapes
    audio = checkpoint.config.audio
    optional: dict[str, tuple[int, ...]] = {}
    if audio.use_rope:
        optional[POSITIONS] = audio.n_stored_positions, audio.d_model
    if checkpoint.config.decoder.tie_word_embeddings:
        optional[HEAD] = expected[HEAD]
    problems = [
        f"missing {n} {list(s)}" for n, s in expected.items() if n not in {*found, *optional}
    ]
    problems += [
        f"unknown {n} {list(s)}" for n, s in found.items() if n not in {*expected, *optional}
    ]
    problems += [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in {**expected, **optional}.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise ExportError(
            f"{checkpoint.directory}: the tensors do not fit config.json: "
            + "; ".join(problems[:5])
            + more
        )


def _shard_paths(directory: Path) -> Iterator[Path]:
    """The safetensors files, in the order of the index where there is one."""
    index_path = directory / _INDEX
    single = directory / "model.safetensors"
    if index_path.is_file():
        try:
            names = sorted(set(json.loads(index_path.read_text("utf-8"))["weight_map"].values()))
            paths = [directory / Path(name).name for name in names]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ExportError(f"{index_path}: not a safetensors index ({error!r})") from error
    elif single.is_file():
        paths = [single]
    else:
        raise ExportError(
            f"{directory}: no model.safetensors and no {_INDEX}; only safetensors are read"
        )
    for path in paths:
        if not path.is_file():
            raise ExportError(f"{path}: shard named by {_INDEX} is missing; download it again")
        yield path


def _open(path: Path) -> Any:
    """``safe_open`` with one clear error for a damaged file."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ExportError(
            f"{path}: not a whole safetensors file ({error}); download it again"
        ) from error
