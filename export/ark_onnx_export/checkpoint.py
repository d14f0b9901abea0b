"""Reading a Hugging Face checkpoint: every tensor is used exactly once, or the error names it.

Knows safetensors and tensor names; executes nothing that came with the checkpoint.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import reprlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ark_asr_onnx.audio.mel import HOP_LENGTH, N_FFT, SAMPLE_RATE
from ark_asr_onnx.errors import ExportError, PackageError
from ark_asr_onnx.package.contract import Tokens
from ark_asr_onnx.package.text import Text
from ark_asr_onnx.package.vocabulary import decoding_tokens

from . import shards
from .config import (
    CONFIG_FILE,
    ENCODER_ROPE_DIM,
    ENCODER_ROPE_THETA,
    SIDE_FILES,
    ArkConfig,
    read_object,
    require_text,
    shown,
)
from .modeling import AudioTower, Decoder

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
POSITIONS = "audio_encoder.whisper.embed_positions.weight"  # not needed where RoPE replaced it
_DTYPES = ("BF16", "F16", "F32")
_MADV_PAGEOUT = 21  # of linux/mman.h; loses nothing, unlike MADV_DONTNEED
# What wrappers of torch put into the names of all that they wrap.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_COMPUTED = ("inv_freq", "position_ids")  # the last part of names of tensors that are no weights


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder whose configuration and tensor headers were read; weights are read on demand."""

    directory: Path
    config: ArkConfig
    shapes: dict[str, tuple[int, ...]]  # tensor name -> shape
    places: dict[str, tuple[Path, str]]  # tensor name -> file, and name in the file
    notes: tuple[str, ...]  # what is unusual about the folder, and was taken all the same

    def stored(self, name: str) -> Tensor:
        """One tensor in the type it is stored in, mapped from the file."""
        path, key = self.places[name]
        with _open(path) as file:
            return file.get_tensor(key)

    def tensor(self, name: str) -> Tensor:
        """One tensor as float32, in memory of its own."""
        return self.stored(name).float()

    @property
    def files(self) -> list[Path]:
        """The safetensors files, sorted by name."""
        return sorted({path for path, _ in self.places.values()})

    @property
    def side_files(self) -> list[Path]:
        """The files beside them that say what the model is."""
        paths = (self.directory / name for name in SIDE_FILES)
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
        """Hand back memory: of mapped weights, which are read again when needed, and of the heap.

        Graphs that are no longer used refer to themselves, so that only the collector frees them.
        Where the system has no such calls (only Linux has) the memory stays until it gets scarce.
        """
        gc.collect()
        _page_out(*self.tower.parameters(), *self.decoder.parameters(), self.table)
        _trim()


def _page_out(*tensors: Tensor) -> None:
    if sys.platform != "linux":
        return
    libc, page = ctypes.CDLL(None), mmap.PAGESIZE
    for tensor in tensors:
        first = tensor.data_ptr() // page * page
        last = tensor.data_ptr() + tensor.nbytes
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_PAGEOUT)


def _trim() -> None:
    """Return freed memory of the heap to the system; only glibc has the call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read ``config.json`` and all tensor headers; :class:`ExportError` says what is wrong.

    Every tensor must have exactly one place with its shape; missing, surplus and misshapen ones
    are listed. What trainers leave and does no harm is noted.
    """
    if not directory.is_dir():
        raise ExportError(f"checkpoint folder {directory} does not exist")
    require_text(directory)
    config = ArkConfig.read(directory / CONFIG_FILE)
    _check_processors(directory, config)
    paths, notes = shards.find(directory)
    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, tuple[Path, str]] = {}
    computed: list[str] = []
    for path in paths:
        with _open(path) as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
                if name.rpartition(".")[2] in _COMPUTED:
                    _check_computed(config, path, name, key, file)
                    computed.append(name)
                    continue
                if name in places:
                    twin, other = places[name]
                    raise ExportError(
                        f"{path}: tensor {shown(key)} is also in {twin.name}, as {shown(other)}"
                    )
                shapes[name], places[name] = _shape(path, key, file), (path, key)
    if wrapped := [key for name, (_, key) in places.items() if name != key]:
        notes.append(
            f"{len(wrapped)} names are those of a wrapper ({shown(wrapped[0])}); it is left out"
        )
    if computed:
        notes.append(
            f"{len(computed)} tensors are computed, not trained: {shown(computed[0])}; left out"
        )
    checkpoint = Checkpoint(directory, config, shapes, places, tuple(notes))
    _check_names(checkpoint)
    return checkpoint


def _check_processors(directory: Path, config: ArkConfig) -> None:
    """Refuse sound that is described in another way than it is computed here."""
    expected = {
        "preprocessor_config.json": {
            "feature_size": config.audio.n_mels, "n_fft": N_FFT, "hop_length": HOP_LENGTH,
            "sampling_rate": SAMPLE_RATE,
        },
        "processor_config.json": {"merge_factor": config.audio.merge_factor},
    }  # fmt: skip
    for name, values in expected.items():
        said = read_object(directory / name) if (directory / name).is_file() else {}
        for key, value in values.items():
            if said.get(key) not in (None, value):
                raise ExportError(
                    f"{directory / name}: {key} is {reprlib.repr(said[key])}, expected {value}"
                )


def _shape(path: Path, key: str, file: Any) -> tuple[int, ...]:
    """The shape of a weight of a known type."""
    part = file.get_slice(key)
    if part.get_dtype() not in _DTYPES:
        raise ExportError(
            f"{path}: tensor {shown(key)} has dtype {part.get_dtype()}, expected one of "
            + ", ".join(_DTYPES)
        )
    return tuple(part.get_shape())


def _check_computed(config: ArkConfig, path: Path, name: str, key: str, file: Any) -> None:
    """Frequencies of RoPE must be those that the configuration gives."""
    if not name.endswith("inv_freq"):
        return
    theta, width = config.decoder.rope_theta, config.decoder.head_dim
    if name.startswith("audio_encoder."):
        theta, width = ENCODER_ROPE_THETA, ENCODER_ROPE_DIM
    found = file.get_tensor(key)
    expected = theta ** -(torch.arange(0, width, 2) / width)
    if found.shape != expected.shape or not torch.allclose(found.float(), expected, rtol=0.01):
        raise ExportError(
            f"{path}: {shown(name)} has other frequencies than base {theta:g} and heads of "
            f"{width} give"
        )


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
        raise ExportError(shown(str(error), 1000)) from error
    return text, tokens


def load_network(
    checkpoint: Checkpoint,
    max_positions: int,
    progress: Callable[[list[str]], Iterable[str]] = iter,
) -> Network:
    """Fill the modules; ``max_positions`` bounds the decoder's RoPE tables.

    Raises :class:`ExportError` for weights that are no numbers.
    """
    tower, decoder = _modules(checkpoint.config, max_positions)
    table = checkpoint.stored(EMBEDDING)
    _require_finite(checkpoint, EMBEDDING, table)
    head, notes = _choose_head(checkpoint, table)
    owners = {n: m for m in (tower, decoder) for n, _ in m.named_parameters()}
    for name in progress(list(owners)):
        owner, _, leaf = name.rpartition(".")
        source = head if name == HEAD else name
        # Pages that are mapped twice would not be handed back.
        stored = table if source == EMBEDDING else checkpoint.stored(source)
        _require_finite(checkpoint, source, stored)
        weight = nn.Parameter(stored, requires_grad=False)
        setattr(owners[name].get_submodule(owner), leaf, weight)
    notes = (*checkpoint.notes, *notes)
    return Network(tower.eval(), decoder.eval(), table, head, notes)


def _modules(config: ArkConfig, max_positions: int) -> tuple[AudioTower, Decoder]:
    """Both halves without weights."""
    with torch.device("meta"):
        tower = AudioTower(config.audio, config.decoder.hidden_size)
        return tower, Decoder(config.decoder, max_positions)


def _require_finite(checkpoint: Checkpoint, name: str, stored: Tensor) -> None:
    if not all(bound.isfinite() for bound in stored.aminmax()):
        path, key = checkpoint.places[name]
        raise ExportError(
            f"{path}: {shown(key)} holds values that are no finite numbers; export an earlier "
            "checkpoint"
        )
    _page_out(stored)


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


def _check_names(checkpoint: Checkpoint) -> None:
    expected: dict[str, tuple[int, ...]] = {
        name: tuple(p.shape)
        for module in _modules(checkpoint.config, max_positions=1)
        for name, p in module.named_parameters()
    }
    expected[EMBEDDING] = expected[HEAD]
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
        f"unknown {shown(n)} {reprlib.repr(list(s))}"
        for n, s in found.items()
        if n not in {*expected, *optional}
    ]
    problems += [
        f"{name} has shape {reprlib.repr(list(found[name]))}, expected {list(shape)}"
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


def _open(path: Path) -> Any:
    """``safe_open`` with one clear error for a damaged file."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ExportError(
            f"{path}: not a whole safetensors file ({shown(str(error))}); download it again"
        ) from error
