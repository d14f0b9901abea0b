"""Opens a package as a transcriber, and packs its graphs for this CPU."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Generator
from functools import partial
from pathlib import Path

from . import values
from .errors import ArkError, PackageError
from .model import prepared
from .model.graph import require_onnxruntime
from .model.layouts import LAYOUTS
from .model.threads import default_threads
from .package.foreign import check_memory, reason, shortage
from .package.opening import Package, open_package
from .transcriber import Transcriber

_MEMORY = 128 << 20  # bytes that opening any model needs, mostly for threads


def load(
    model: str | os.PathLike[str],
    *,
    threads: int | None = None,
    verify: bool = False,
    local_files_only: bool = False,
    prepared_dir: str | os.PathLike[str] | None = None,
    idle_unload_seconds: float | None = None,
    max_waiting: int | None = None,
    max_waiting_seconds: float | None = None,
) -> Transcriber:
    """Open a package folder, or a Hugging Face id, and return a :class:`Transcriber` for it.

    An id (``owner/name`` or ``owner/name/folder``) is downloaded once; ``local_files_only`` uses
    only the cache. A folder never causes a network call.

    ``threads`` defaults to the physical cores that this process may use, at most 8; ``verify`` also
    compares the checksums of the weights. ``prepared_dir`` is the folder of :func:`prepare` with
    graphs packed for this CPU; they are made there first if they are missing, stale or damaged.
    ``idle_unload_seconds`` frees the memory after this long without work; the next call opens the
    model again. When ``max_waiting`` jobs, or jobs with ``max_waiting_seconds`` of audio together,
    wait for the model, further ones raise :class:`QueueFullError`.
    A pickled transcriber stores these arguments, and unpickling opens the model again.
    Raises :class:`PackageError`.
    """
    n_threads = default_threads() if threads is None else values.whole("threads", threads)
    if idle_unload_seconds is not None:
        values.seconds("idle_unload_seconds", idle_unload_seconds)
    if max_waiting is not None:
        max_waiting = values.whole("max_waiting", max_waiting, 0)
    package = open_package(model, verify=verify, local_files_only=local_files_only)
    _check_usable(package)
    if prepared_dir is not None:
        try:
            with _told(package):
                package = _prepared(package, prepared_dir, n_threads, verify=verify)
        except PackageError as error:
            warnings.warn(f"{error}; opened without", stacklevel=2)
    if package.manifest.degraded:
        warnings.warn(
            f"{package.directory}: this package is outside its quality limits: "
            f"{package.manifest.degraded}",
            stacklevel=2,
        )
    with _told(package):
        transcriber = Transcriber(
            package,
            n_threads,
            idle_unload_seconds=idle_unload_seconds,
            max_waiting=max_waiting,
            max_waiting_seconds=max_waiting_seconds,
        )
    is_folder = package.directory == Path(model)  # whose absolute path works in other processes
    transcriber.reopen = partial(
        load,
        str(package.directory.absolute()) if is_folder else os.fspath(model),
        threads=threads,
        verify=verify,
        local_files_only=local_files_only,
        prepared_dir=None if prepared_dir is None else str(Path(prepared_dir).absolute()),
        idle_unload_seconds=idle_unload_seconds,
        max_waiting=max_waiting,
        max_waiting_seconds=max_waiting_seconds,
    )
    return transcriber


def prepare(
    model: str | os.PathLike[str],
    prepared_dir: str | os.PathLike[str],
    *,
    threads: int | None = None,
    verify: bool = False,
    local_files_only: bool = False,
) -> None:
    """Write a package's graphs, packed for this CPU and this onnxruntime, into ``prepared_dir``.

    :func:`load` with that folder then maps them instead of packing them again, which takes a
    fraction of the time and almost no private memory. Does nothing if they are up to date.
    ``verify`` compares every checksum of the package and the prepared graphs. Raises
    :class:`PackageError`.
    """
    package = open_package(model, verify=verify, local_files_only=local_files_only)
    threads = default_threads() if threads is None else values.whole("threads", threads)
    _check_usable(package)
    with _told(package):
        _prepared(package, prepared_dir, threads, verify=verify)


@contextlib.contextmanager
def _told(package: Package) -> Generator[None]:
    """Raise :class:`PackageError` for a lack of memory or threads, and for a missing file."""
    try:
        check_memory(_MEMORY)
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        found = shortage(error) or (reason(error) if isinstance(error, OSError) else None)
        if found is None or isinstance(error, ArkError):
            raise
        raise PackageError(f"{package.directory}: cannot open this package: {found}") from error


def _prepared(
    package: Package, directory: str | os.PathLike[str], threads: int, *, verify: bool
) -> Package:
    names = LAYOUTS[package.manifest.layout].graphs(package)
    return prepared.prepare(package, names, Path(directory), threads, verify=verify)


def _check_usable(package: Package) -> None:
    """Refuse a package that this version cannot open."""
    layout = package.manifest.layout
    if layout not in LAYOUTS:
        raise PackageError(
            f"{package.directory}: layout {layout!r} is unknown, expected one of "
            f"{', '.join(LAYOUTS)}; upgrade ark-asr-onnx"
        )
    require_onnxruntime(package.manifest.min_onnxruntime)
