"""A model named by a folder or by a Hugging Face id, as a local folder.

Ids go through ``huggingface_hub``, which ``tokenizers`` brings along and which is imported only
then. What the cache holds is used without asking the network; what it lacks is downloaded, file
by file, resuming where an earlier download broke off.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ..errors import PackageError
from . import published
from .contract import MANIFEST_FILE, manifest_from_json
from .published import RuntimeManifest
from .text import TOKENIZER_FILES

# "owner/name", or "owner/name/folder" for a package inside a repository.
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w.-]+)*")

Get = Callable[[str], Path | None]  # a file of the repository, made local; None: it has none


class _Missing(Exception):
    """A needed file is not there; its text is the name."""


def resolve(model: str | os.PathLike[str], *, local_files_only: bool = False) -> Path:
    """The local folder of a model: the one given, or the one an id was downloaded to.

    Raises :class:`PackageError` when an id cannot be fetched. A path that is no folder is
    returned as it is, for :func:`open_package` to explain.
    """
    path = Path(model)
    text = os.fspath(model)
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PackageError(f"model folder {text}: cannot be read ({reason})") from error
    # "models/typo" beside an existing folder "models" is a mistyped path, not an id.
    if path.exists() or path.parent.is_dir() != (path.parent == Path()) or not _ID.fullmatch(text):
        return path
    owner, name, *folder = text.split("/")
    repository, inside = f"{owner}/{name}", "".join(f"{part}/" for part in folder)
    try:
        return _collect(_getter(repository, offline=True), inside)
    except _Missing as missing:
        if local_files_only:
            raise PackageError(
                f"{text}: {missing} is not in the cache, and downloading was not allowed"
            ) from missing
    try:
        return _collect(_getter(repository, offline=False), inside)
    except _Missing as missing:
        raise PackageError(
            f"{text}: the repository has no {missing}; an ONNX package is needed, not the "
            "safetensors checkpoint (export that with ark-onnx-export)"
        ) from missing


def _collect(get: Get, inside: str) -> Path:
    """Fetch what a package needs, and return its folder."""
    for folder in (inside,) if inside else published.REPOSITORY_FOLDERS:
        if manifest := get(folder + MANIFEST_FILE):
            for name in manifest_from_json(manifest.read_text("utf-8"), str(manifest)).files:
                _need(get, [folder + name])
            return manifest.parent
        if manifest := get(folder + published.RUNTIME_MANIFEST):
            _collect_published(get, folder, published.read_manifest(manifest))
            return manifest.parent
    raise _Missing(f"{MANIFEST_FILE} or {published.RUNTIME_MANIFEST}")


def _collect_published(get: Get, folder: str, manifest: RuntimeManifest) -> None:
    for names in manifest.wanted().values():
        inside = (posixpath.normpath(folder + name) for name in names)
        _need(get, [name for name in inside if not name.startswith("../")])
    get(folder + published.PREPROCESSOR_FILE)
    fast, slow = TOKENIZER_FILES
    if not all(get(folder + name) for name in fast):
        for name in slow:
            _need(get, [folder + name])


def _need(get: Get, names: list[str]) -> None:
    """The first of some names that exists; one must."""
    if not any(get(name) for name in names):
        raise _Missing(names[0])


def _getter(repository: str, *, offline: bool) -> Get:
    """A function that makes a file of a repository local."""
    # Imported here: it costs 0.3 s that a local folder need not pay.
    import huggingface_hub
    from huggingface_hub import errors

    download = cast("Any", huggingface_hub).hf_hub_download
    # It tells of every further try; what comes of them is told by the errors below.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    def get(name: str) -> Path | None:
        try:
            return Path(download(repository, name, local_files_only=offline))
        except errors.LocalEntryNotFoundError as error:
            if offline:
                return None
            raise PackageError(
                f"{repository}: there is no such folder here, and the hub cannot be reached to "
                f"fetch {name}; connect, or give a folder"
            ) from error
        except errors.EntryNotFoundError:
            return None
        except errors.RepositoryNotFoundError as error:
            raise PackageError(
                f"{repository}: no such folder here and no such repository on the hub (or it is "
                "private: log in with hf auth login)"
            ) from error
        except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise PackageError(f"{repository}: fetching {name} failed ({first})") from error

    return get
