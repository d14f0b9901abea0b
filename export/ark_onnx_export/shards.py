"""Which files of a checkpoint folder hold its weights."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Set
from pathlib import Path

from ark_asr_onnx.errors import ExportError

from .config import read_object

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_ONE_OF_ONE = "model-00001-of-00001.safetensors"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json")
_UNREAD = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")  # what trainers leave beside the weights


def find(directory: Path) -> tuple[list[Path], list[str]]:
    """The safetensors files that hold the weights, and notes about those beside them."""
    try:
        present = {path.name for path in directory.iterdir()}
    except OSError as error:
        raise ExportError(f"{directory}: cannot be read ({error.strerror})") from error
    names, notes = choose(directory, present, lambda: directory / INDEX)
    for name in names:
        if not (directory / name).is_file():
            raise ExportError(f"{directory / name} is missing or no file; download it again")
    return [directory / name for name in names], notes


def choose(
    folder: Path | str, present: Set[str], index: Callable[[], Path]
) -> tuple[list[str], list[str]]:
    """Which of the files of a folder hold the weights, and notes about the others.

    ``index`` gives the index as a file, if there is one. Raises :class:`ExportError`; a file that
    the index names may not be there.
    """
    if adapters := sorted(present & {*_ADAPTERS}):
        raise ExportError(
            f"{folder}/{adapters[0]}: an adapter, which is not exported; merge it into the "
            "model or move it away"
        )
    names, notes = _chosen(folder, present, index)
    if unread := sorted(name for name in present - {*names} if name.endswith(_UNREAD)):
        notes.append(f"not read: {_listed(unread)}")
    return names, notes


def _chosen(
    folder: Path | str, present: Set[str], index: Callable[[], Path]
) -> tuple[list[str], list[str]]:
    """File names, and what is unusual about them."""
    if INDEX in present:
        names = _indexed(index())
        if _SINGLE in present - {*names}:
            raise ExportError(
                f"{folder}: {_SINGLE} and {INDEX} are two sets of weights; move one away"
            )
        return names, []
    if _SINGLE in present:
        return [_SINGLE], []
    if _ONE_OF_ONE in present:
        return [_ONE_OF_ONE], [f"no {INDEX}; {_ONE_OF_ONE} is read"]
    unread = sorted(name for name in present if name.endswith(_UNREAD))
    found = f" (found: {_listed(unread)})" if unread else ""
    raise ExportError(f"{folder}: no {_SINGLE} and no {INDEX}; only safetensors are read{found}")


def _indexed(path: Path) -> list[str]:
    """The files that an index names."""
    try:
        names = sorted(set(read_object(path)["weight_map"].values()))
    except (ExportError, KeyError, AttributeError, TypeError) as error:
        raise ExportError(f"{path}: not a safetensors index ({error})") from error
    for name in names:
        if type(name) is not str:
            raise ExportError(f"{path}: not a safetensors index, it names {reprlib.repr(name)}")
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise ExportError(f"{path}: names {reprlib.repr(name)}, which is no file in its folder")
    return names


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
