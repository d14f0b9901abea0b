"""The trained weights that join the two halves, in one small file.

``deltas.safetensors`` holds in bf16: the adapter under the checkpoint's names; ``added_rows``, the
rows of ARK's own tokens ``[6, hidden]``; and for each changed matrix of the decoder the factors
``NAME.lora_a [rank, inputs]`` and ``NAME.lora_b [outputs, rank]``, whose product ``B A`` is added.
"""

from __future__ import annotations

from pathlib import Path

import torch
from ark_folder import ADDED, TABLE
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ark_asr_onnx import files

Tensors = dict[str, Tensor]

ADDED_ROWS = "added_rows"
_A, _B = ".lora_a", ".lora_b"
_ADAPTER = "audio_encoder.adapting."


class DeltasError(ValueError):
    """The file of deltas does not fit the network."""


def apply_deltas(tensors: Tensors, deltas: Tensors) -> Tensors:
    """``tensors`` of the whole checkpoint, with the trained weights applied."""
    result = dict(tensors)
    for name, delta in deltas.items():
        if name == ADDED_ROWS:
            table = result[TABLE].clone()
            if delta.shape != (len(ADDED), table.shape[1]):
                raise DeltasError(f"{name} has shape {list(delta.shape)}")
            table[-len(ADDED) :] = delta.float()
            result[TABLE] = table
        elif name.startswith(_ADAPTER):
            _check_place(name, tuple(delta.shape), result)
            result[name] = delta.float()
        elif name.endswith(_A):
            matrix = name.removesuffix(_A)
            a, b = delta.float(), deltas[matrix + _B].float()
            _check_place(matrix, (b.shape[0], a.shape[1]), result)
            result[matrix] = result[matrix].float() + b @ a
        elif not name.endswith(_B):
            raise DeltasError(f"{name}: nothing of this name is known")
    return result


def read_deltas(path: Path) -> Tensors:
    """The tensors of the file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DeltasError(f"{path}: not a whole safetensors file ({error})") from error


def write_deltas(path: Path, deltas: Tensors) -> None:
    """Write the file in bf16, completely or not at all."""
    stored = {n: t.detach().to(torch.bfloat16).contiguous() for n, t in sorted(deltas.items())}
    files.write(path, save(stored, {"format": "pt"}))


def _check_place(name: str, shape: tuple[int, ...], tensors: Tensors) -> None:
    if name not in tensors:
        raise DeltasError(f"{name}: the network has no such tensor")
    if tuple(tensors[name].shape) != shape:
        raise DeltasError(f"{name} is {list(shape)}, the network's is {list(tensors[name].shape)}")
