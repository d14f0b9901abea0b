"""Graphs as onnxruntime has optimised and packed them for one machine, mapped instead of packed.

A package's weights lie in the order of the matrix; multiplication wants them in an order of the
CPU's. Usually every opening packs them anew, into memory of its own. A *prepared folder* keeps the
packed ones in a file: opening maps it; its pages are shared by processes and can be given back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..package.contract import external_data_file, file_sha256, manifest_to_json
from ..package.opening import ALWAYS_HASHED_BYTES, Package
from . import graph

_FORMAT = 1  # raised when what is written, or how, changes
_INDEX_FILE = "prepared.json"


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
    and is whole: sizes and times of change as written, checksums of small files; with ``verify`` of
    all. Else it is made again. Raises :class:`PackageError` when it cannot be written.
    """
    origin = _origin(package, names)
    target = directory / origin.key
    if not _is_whole(target, origin, verify=verify):
        try:
            _make(package, names, target, origin, threads, verify=verify)
        except OSError as error:
            raise PackageError(
                f"{directory}: cannot hold the prepared graphs ({error.strerror or error}); give "
                "another folder"
            ) from error
    paths = {**package.paths, **{n: target / _file(n) for n in names}}
    return replace(package, paths=paths, prepared=True)


def _origin(package: Package, names: Sequence[str]) -> _Origin:
    """This package, this library and this CPU."""
    digest = hashlib.sha256(manifest_to_json(package.manifest).encode())
    for name in names:
        for path in (package.path(name), _data(package.path(name))):
            if path.is_file() and not package.has_checksums:
                stat = path.stat()
                digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return _Origin(digest.hexdigest(), graph.version(), _cpu(), _FORMAT)


def _cpu() -> str:
    """Kind of CPU, with its features; where the system does not list those, this computer."""
    kind = f"{platform.system()} {platform.machine()}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{kind} {platform.processor()} {platform.node()}"
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return " ".join([kind, *sorted({x for x in lines if x.startswith(wanted)})])


def _is_whole(target: Path, origin: _Origin, *, verify: bool) -> bool:
    try:
        index: Any = json.loads((target / _INDEX_FILE).read_text(encoding="utf-8"))
        if index["origin"] != repr(origin):
            return False
        for name, expected in index["files"].items():
            stat = (target / name).stat()
            if [stat.st_size, stat.st_mtime_ns] != [expected["bytes"], expected["mtime_ns"]]:
                return False
            hashed = verify or stat.st_size <= ALWAYS_HASHED_BYTES
            if hashed and file_sha256(target / name) != expected["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _make(
    package: Package,
    names: Sequence[str],
    target: Path,
    origin: _Origin,
    threads: int,
    *,
    verify: bool,
) -> None:
    """Write the graphs beside the target and rename the folder: what exists is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".preparing-", dir=target.parent))
    try:
        new = staging / "new"
        new.mkdir()
        for name in names:
            graph.pack(package.path(name), new / _file(name), threads)
        files = {
            path.name: {
                "bytes": path.stat().st_size,
                "mtime_ns": path.stat().st_mtime_ns,
                "sha256": file_sha256(path),
            }
            for path in sorted(new.iterdir())
        }
        home = str(package.directory.resolve())
        index = json.dumps(
            {"origin": repr(origin), "cpu": origin.cpu, "package": home, "files": files}, indent=2
        )
        (new / _INDEX_FILE).write_text(index + "\n", encoding="utf-8")
        # Another process may make the same: whose folder it is in the end makes no difference.
        for attempt in range(3):
            if _is_whole(target, origin, verify=verify):
                break
            with contextlib.suppress(OSError):
                target.rename(staging / f"damaged{attempt}")
            with contextlib.suppress(OSError):
                new.rename(target)
        else:
            raise OSError(f"{target} does not stay as it was written")
        _remove_stale(target, home, origin.cpu)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_stale(target: Path, home: str, cpu: str) -> None:
    """Remove what was made for this CPU from an earlier state of the same package folder."""
    for index in target.parent.glob(f"*/{_INDEX_FILE}"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found: Any = json.loads(index.read_text(encoding="utf-8"))
            if index.parent != target and (found.get("package"), found.get("cpu")) == (home, cpu):
                shutil.rmtree(index.parent)


def _file(name: str) -> str:
    """A prepared graph's file name, whatever the package calls it."""
    return f"{Path(name).stem}.onnx"


def _data(path: Path) -> Path:
    return path.with_name(external_data_file(path.name))
