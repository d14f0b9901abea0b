"""Finds the local folder of a model that is given as a folder or as a Hugging Face id."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from ..errors import PackageError
from . import published
from .contract import MANIFEST_FILE, REMEDY, manifest_from_json
from .foreign import read_text
from .published import RuntimeManifest
from .repository import Get, Missing, getter, id_of, need, need_tokenizer


def resolve(model: str | os.PathLike[str], *, local_files_only: bool = False) -> Path:
    """The local folder of a model: the given one, or the one to which an id was downloaded.

    Raises :class:`PackageError` if an id cannot be fetched. A path that is no folder is
    returned unchanged; :func:`open_package` then raises the error.
    """
    place = id_of(model)
    if place is None:
        return Path(model)
    try:
        return _collect(getter(place.repository, offline=True), place.inside)
    except Missing as missing:
        if local_files_only:
            raise PackageError(
                f"{place.text}: {missing} is not in the cache, and downloading was not allowed"
            ) from missing
    try:
        return _collect(getter(place.repository, offline=False), place.inside)
    except Missing as missing:
        raise PackageError(
            f"{place.text}: the repository has no {missing}; an ONNX package is needed, not the "
            f"safetensors checkpoint (export that with ark-onnx-export --ckpt {place.repository})"
        ) from missing


def _collect(get: Get, inside: str) -> Path:
    """Fetch the files that a package needs, and return its folder."""
    for folder in (inside,) if inside else published.REPOSITORY_FOLDERS:
        if manifest := get(folder + MANIFEST_FILE):
            for name in manifest_from_json(read_text(manifest, REMEDY), str(manifest)).files:
                need(get, [folder + name])
            return manifest.parent
        if manifest := get(folder + published.RUNTIME_MANIFEST):
            _collect_published(get, folder, published.read_manifest(manifest))
            return manifest.parent
    raise Missing(f"{MANIFEST_FILE} or {published.RUNTIME_MANIFEST}")


def _collect_published(get: Get, folder: str, manifest: RuntimeManifest) -> None:
    for names in manifest.wanted().values():
        inside = (posixpath.normpath(folder + name) for name in names)
        need(get, [name for name in inside if not name.startswith("../")])
    get(folder + published.PREPROCESSOR_FILE)
    need_tokenizer(get, folder)
