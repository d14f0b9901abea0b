"""Opens a package: finds its layout, checks that it is complete, and finds its files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import PackageError
from ..files import Claim
from . import hub, published
from .contract import MANIFEST_FILE, REMEDY, Manifest, file_sha256, manifest_from_json
from .external import check_data_files
from .foreign import read_text, reason, shortage
from .text import TOKENIZER_FILES

# Small files (graphs, tokenizer) are hashed at every opening; weights only on request, because
# reading 1.7 GB would take longer than opening a memory-mapped package.
ALWAYS_HASHED_BYTES = 8 << 20
_MAX_GRAPH_BYTES = 64 << 20  # without its weights


@dataclass(frozen=True, slots=True)
class Package:
    """A folder whose manifest was read and whose files were checked."""

    directory: Path
    manifest: Manifest
    paths: dict[str, Path]  # file name, or role in a published folder -> path
    prepared: Claim | None = None  # on the prepared folder that holds its packed graphs

    @property
    def has_checksums(self) -> bool:
        """Whether its files are listed with checksums; those of a published folder are not."""
        return bool(self.manifest.files)

    @property
    def tokenizer_dir(self) -> Path:
        """The folder of its tokenizer. Raises :class:`PackageError` if none is listed."""
        for names in TOKENIZER_FILES:
            if names[0] in self.paths:
                return self.paths[names[0]].parent
        raise PackageError(f"{self.directory}: the manifest lists no tokenizer; {REMEDY}")

    def path(self, name: str) -> Path:
        """The path of a file of the package. Raises :class:`PackageError` if it is not listed."""
        if name not in self.paths:
            raise PackageError(f"{self.directory}: the manifest lists no file {name!r}; {REMEDY}")
        return self.paths[name]


def is_package(folder: Path) -> bool:
    """Whether a folder looks like a package, native or published."""
    return (folder / MANIFEST_FILE).is_file() or published.find(folder) is not None


def open_package(
    model: str | os.PathLike[str], *, verify: bool = False, local_files_only: bool = False
) -> Package:
    """Read and check a package: a folder, or a Hugging Face id that is downloaded once.

    Sizes, and checksums of files up to 8 MiB, are always compared with the manifest; ``verify``
    also hashes larger files. Raises :class:`PackageError` with the file and the remedy.
    """
    root = hub.resolve(model, local_files_only=local_files_only)
    try:
        return _open(root, verify=verify)
    except (OSError, MemoryError) as error:
        name = getattr(error, "filename", None) or root
        raise PackageError(
            f"{name}: cannot be read ({shortage(error) or reason(error)})"
        ) from error


def _open(root: Path, *, verify: bool) -> Package:
    if not root.is_dir():
        found = "is a file, not a folder" if root.exists() else "does not exist"
        raise PackageError(
            f"model folder {root} {found}; give the folder of a package, or make one with "
            "ark-onnx-export --ckpt CHECKPOINT_DIR"
        )
    path = root / MANIFEST_FILE
    if not path.exists():
        if model_dir := published.find(root):
            manifest, paths = published.translate(root, model_dir)
            for what in published.GRAPHS:
                check_data_files(paths[what])
            return Package(root, manifest, paths)
        raise PackageError(
            f"{root}: no {MANIFEST_FILE} and no {published.RUNTIME_MANIFEST}, so this is not a "
            "package; make one with ark-onnx-export --ckpt CHECKPOINT_DIR"
        )
    manifest = manifest_from_json(read_text(path, REMEDY), str(path))
    for name, expected in manifest.files.items():
        _check_file(root, name, expected.bytes, expected.sha256, verify=verify)
        if name.endswith(".onnx"):
            if expected.bytes > _MAX_GRAPH_BYTES:
                raise PackageError(
                    f"{root / name}: {expected.bytes} bytes, too many for a graph without its "
                    f"weights; {REMEDY}"
                )
            check_data_files(root / name, manifest.files)
    return Package(root, manifest, {name: root / name for name in manifest.files})


def _check_file(root: Path, name: str, n_bytes: int, sha256: str, *, verify: bool) -> None:
    path = root / name
    if not path.is_file():
        raise PackageError(f"{path}: missing from the package; copy or export it again")
    try:
        size = path.stat().st_size
        hashed = verify or n_bytes <= ALWAYS_HASHED_BYTES
        found = file_sha256(path) if hashed and size == n_bytes else sha256
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from error
    if size != n_bytes:
        raise PackageError(
            f"{path}: {size} bytes, the manifest says {n_bytes}; incomplete, copy it again"
        )
    if found != sha256:
        raise PackageError(f"{path}: checksum differs from the manifest; copy or export it again")
