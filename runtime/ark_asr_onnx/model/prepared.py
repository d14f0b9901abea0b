"""Graphs that onnxruntime has optimised and packed for one machine, kept in files.

A package stores weights in the order of the matrix; multiplication needs them packed in an order
that depends on the CPU. Usually every opening packs them again, into private memory. A *prepared
folder* keeps packed weights in a file: opening maps it, processes share its pages, and the pages
can be released.
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

_FORMAT = 2  # raised when the content or the format of a prepared folder changes
_INDEX_FILE = "prepared.json"
_UNUSED_SECONDS = 30 * 86400.0  # since the folder's mtime, set when it is opened
_SAMPLES, _SAMPLE_BYTES = 16, 4096


@dataclass(frozen=True, slots=True)
class _Origin:
    """The package, onnxruntime and CPU that a prepared folder was made for; no other may use it."""

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
    """The package with its graphs ``names`` from ``directory``, where they are made if needed.

    An existing prepared folder is used only if it was made from this package, by this onnxruntime,
    for this CPU, and if its sizes and checksums are right. Large files are hashed only if their
    mtime has changed since the last check, or to ``verify``. Otherwise one process makes the folder
    again while others wait. Raises :class:`PackageError` if it cannot be written.
    """
    try:
        files.sweep(directory)  # always: a process that was killed may have left files
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
    """The files that the graphs consist of, by role."""
    found: dict[str, Path] = {}
    for name in names:
        path = package.path(name)
        found[name] = path
        for data in sorted(check_data_files(path)):
            found[f"{name}: {data}"] = path.parent / data
    return found


def _origin(package: Package, sources: dict[str, Path]) -> _Origin:
    """The origin for this package, this onnxruntime and this CPU.

    A package without checksums is identified by samples of its files, so that packages of the same
    sizes get different folders; the checksums in the index then decide whether it is the same.
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
    """Kind of CPU, with its features; if the system does not list those, the computer's name."""
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
    """A claim on a prepared folder that exists, fits and is complete; None for any other."""
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
    with contextlib.suppress(OSError):  # the folder may be read-only
        if any(index[key] != seen[key] for key in seen):
            _write(home / _INDEX_FILE, index | seen)
        os.utime(home)
    return claim


def _seen(paths: dict[str, Path], expected: Any, *, verify: bool) -> dict[str, Any]:
    """The entries of an index for files, with their present mtimes.

    Raises ``ValueError`` for files that have changed.
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
    """Size and mtime of a file; in whole seconds, as archives and images keep it."""
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
    """Write the graphs beside their place and rename the folder, so that it is always complete."""
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
    """Remove prepared folders that this package no longer needs on this CPU, unless in use.

    These were made from an earlier state of the package, or by another onnxruntime. The latter may
    belong to another environment, and are removed only after a month without use.
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
    """An index. Raises ``ValueError`` or ``OSError``."""
    return cast("dict[str, Any]", read_object(path, "remove this folder"))


def _write(path: Path, content: dict[str, Any]) -> None:
    files.write(path, f"{json.dumps(content, indent=2)}\n".encode())


def _file(name: str) -> str:
    """The file name of a prepared graph, from its name in the package."""
    return f"{Path(name).stem}.onnx"
