"""Graphs as onnxruntime has optimised and packed them for one machine, mapped instead of packed.

A package's weights lie in the order of the matrix; multiplication wants them in an order of the
CPU's. Usually every opening packs them anew, into memory of its own. A *prepared folder* keeps the
packed ones in a file: opening maps it; its pages are shared by processes and can be given back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from .. import files
from ..errors import PackageError
from ..package.contract import file_sha256, manifest_to_json
from ..package.external import check_data_files
from ..package.foreign import read_object, reason
from ..package.opening import ALWAYS_HASHED_BYTES, Package
from . import graph, ort

_FORMAT = 2  # raised when what is written, or how, changes
_INDEX_FILE = "prepared.json"
_UNUSED_SECONDS = 30 * 86400.0  # since a folder was opened: the time of change of the folder itself
_SAMPLES, _SAMPLE_BYTES = 16, 4096


@dataclass(frozen=True, slots=True)
class _Origin:
    """What a prepared folder was made from, and for; another one must not use it."""

    package: str
    onnxruntime: str
    cpu: str
    format: int

    @property
    def key(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def prepare(
    package: Package, names: Sequence[str], directory: Path, threads: int, *, verify: bool = False
) -> Package:
    """The package with its graphs ``names`` taken from ``directory``, made there if need be.

    What is there is used only if it was made from this package, by this onnxruntime, for this CPU,
    and is whole: by its sizes and checksums. Large files are hashed where their times of change
    are not those with which they were last seen whole, or to ``verify``. Else it is made again, by
    one process, for which others wait. Raises :class:`PackageError` when it cannot be written.
    """
    try:
        files.sweep(directory)  # also where nothing is written: who was killed may have finished it
        sources = {} if package.has_checksums else _sources(package, names)
        origin = _origin(package, sources)
        home = directory / origin.key
        claim = _claim(home, names, origin, sources, verify=verify)
        if claim is None:
            with files.locked(directory, origin.key):
                claim = _claim(home, names, origin, sources, verify=verify)
                if claim is None:
                    _make(package, names, home, origin, sources, threads)
                    claim = _claim(home, names, origin, sources, verify=False)
        if claim is None:
            raise OSError(f"{home} does not stay as it was written")
    except OSError as error:
        raise PackageError(
            f"{directory}: cannot hold the prepared graphs ({reason(error)}); give another folder"
        ) from error
    paths = {**package.paths, **{n: home / _file(n) for n in names}}
    return replace(package, paths=paths, prepared=claim)


def _sources(package: Package, names: Sequence[str]) -> dict[str, Path]:
    """The files that the graphs consist of, by what they are."""
    found: dict[str, Path] = {}
    for name in names:
        path = package.path(name)
        found[name] = path
        for data in sorted(check_data_files(path)):
            found[f"{name}: {data}"] = path.parent / data
    return found


def _origin(package: Package, sources: dict[str, Path]) -> _Origin:
    """This package, this library and this CPU.

    A package without checksums is known by samples, so that others of the same sizes have folders
    of their own; whether it is the same is decided by the checksums in the index.
    """
    digest = hashlib.sha256()
    if package.has_checksums:
        digest.update(manifest_to_json(package.manifest).encode())
    for what, path in sources.items():
        size = path.stat().st_size
        digest.update(f"{what} {size}".encode())
        with path.open("rb") as stream:
            for i in range(_SAMPLES):
                stream.seek(i * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return _Origin(digest.hexdigest(), ort.version(), _cpu(), _FORMAT)


def _cpu() -> str:
    """Kind of CPU, with its features; where the system does not list those, this computer."""
    kind = f"{platform.system()} {platform.machine()}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{kind} {platform.processor()} {platform.node()}"
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return " ".join([kind, *sorted({x for x in lines if x.startswith(wanted)})])


def _claim(
    home: Path, names: Sequence[str], origin: _Origin, sources: dict[str, Path], *, verify: bool
) -> files.Claim | None:
    """A hold on a prepared folder that is there, is right and is whole; None for any other."""
    try:
        claim = files.Claim(home, _INDEX_FILE)
        index = _read(home / _INDEX_FILE)
        if index["origin"] != repr(origin):
            return None
        graphs = {name: home / name for name in {*map(_file, names), *index["files"]}}
        seen = {
            "files": _seen(graphs, index["files"], verify=verify),
            "sources": _seen(sources, index["sources"], verify=verify),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    with contextlib.suppress(OSError):  # it may be for reading alone
        if any(index[key] != seen[key] for key in seen):
            _write(home / _INDEX_FILE, index | seen)
        os.utime(home)
    return claim


def _seen(paths: dict[str, Path], expected: Any, *, verify: bool) -> dict[str, Any]:
    """What an index says of files, at the times of change that they have now.

    Raises ``ValueError`` for files that are not as they were.
    """
    found: dict[str, Any] = {}
    for what, path in paths.items():
        entry = found[what] = {**expected[what], **_stamp(path)}
        is_known = entry == expected[what] and entry["bytes"] > ALWAYS_HASHED_BYTES and not verify
        is_whole = entry["bytes"] == expected[what]["bytes"]
        if not is_whole or not (is_known or file_sha256(path) == entry["sha256"]):
            raise ValueError(f"{path} is not as it was")
    return found


def _stamp(path: Path) -> dict[str, int]:
    """Size and time of change; whole seconds are what archives and images keep of it."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # reading it might never end
        raise ValueError(f"{path} is no file")
    return {"bytes": found.st_size, "seconds": found.st_mtime_ns // 10**9}


def _make(
    package: Package,
    names: Sequence[str],
    home: Path,
    origin: _Origin,
    sources: dict[str, Path],
    threads: int,
) -> None:
    """Write the graphs beside their place and rename the folder: what exists is whole."""
    with files.staging(home.parent) as new:
        for name in names:
            graph.pack(package.path(name), new / _file(name), threads)
        index = {
            "origin": repr(origin),
            "package": str(package.directory.resolve()),
            "onnxruntime": origin.onnxruntime,
            "cpu": origin.cpu,
            "files": _described({path.name: path for path in sorted(new.iterdir())}),
            "sources": _described(sources),
        }
        _write(new / _INDEX_FILE, index)
        with contextlib.suppress(FileNotFoundError):
            home.rename(new.parent / "damaged")
        new.rename(home)
    _remove_stale(home, index)


def _described(paths: dict[str, Path]) -> dict[str, dict[str, int | str]]:
    return {what: {**_stamp(p), "sha256": file_sha256(p)} for what, p in paths.items()}


def _remove_stale(home: Path, index: dict[str, Any]) -> None:
    """Remove what the package's folder no longer needs on this CPU, unless it is in use.

    That is what was made from an earlier state of it; and what another onnxruntime made, which
    may be that of another environment, when it was not opened for a month.
    """
    for path in home.parent.glob(f"*/{_INDEX_FILE}"):
        with contextlib.suppress(OSError, ValueError):
            found = _read(path)
            if path.parent == home or any(found.get(k) != index[k] for k in ("package", "cpu")):
                continue
            is_same = found.get("onnxruntime") == index["onnxruntime"]
            if is_same or time.time() - path.parent.stat().st_mtime > _UNUSED_SECONDS:
                files.remove_unclaimed(path.parent)


def _read(path: Path) -> dict[str, Any]:
    """An index; raises ``ValueError`` or ``OSError``."""
    return cast("dict[str, Any]", read_object(path, "remove this folder"))


def _write(path: Path, content: dict[str, Any]) -> None:
    files.write(path, f"{json.dumps(content, indent=2)}\n".encode())


def _file(name: str) -> str:
    """A prepared graph's file name, whatever the package calls it."""
    return f"{Path(name).stem}.onnx"
