"""A model named by a folder or by a Hugging Face id, as a local folder.

Ids go through ``huggingface_hub``, which ``tokenizers`` brings along and which is imported only
then. What the cache holds is used without asking the network; what it lacks is downloaded, file
by file, resuming where an earlier download broke off.
"""

from __future__ import annotations

import contextlib
import logging
import os
import posixpath
import re
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

from ..errors import PackageError
from ..forks import NO_FORK
from . import published
from .contract import MANIFEST_FILE, REMEDY, manifest_from_json
from .foreign import read_text, reason
from .published import RuntimeManifest
from .text import TOKENIZER_FILES

# "owner/name", or "owner/name/folder" for a package inside a repository.
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w.-]+)*")

_ADVICE = "check the network and the variables HF_* and *_PROXY, or give a folder"

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
        raise PackageError(f"model folder {text}: cannot be read ({reason(error)})") from error
    # "models/typo" beside an existing folder "models" is a mistyped path, not an id.
    if path.exists() or not _ID.fullmatch(text) or Path(path.parts[0]).exists():
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
            for name in manifest_from_json(read_text(manifest, REMEDY), str(manifest)).files:
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
    try:
        # Imported here: it costs 0.3 s that a local folder need not pay.
        with NO_FORK:
            import huggingface_hub
            from huggingface_hub import constants, errors

        download = cast("Any", huggingface_hub).hf_hub_download
    except Exception as error:  # a variable of its own that makes no sense, a broken installation
        raise PackageError(
            f"{repository}: huggingface_hub cannot be used ({reason(error)}); {_ADVICE}"
        ) from error
    if not Path(constants.HF_HUB_CACHE).is_absolute():
        raise PackageError(
            f"{repository}: there is no home directory to keep a model in; set HF_HOME, or give a "
            "folder"
        )

    def get(name: str) -> Path | None:
        try:
            with _without_its_lines():
                return Path(download(repository, name, local_files_only=offline))
        except errors.LocalEntryNotFoundError as error:
            if offline:
                return None
            raise PackageError(
                f"{repository}: there is no such folder here, and the hub cannot be reached to "
                f"fetch {name} ({reason(_first_cause(error))}); {_ADVICE}"
            ) from error
        except errors.EntryNotFoundError:
            return None
        except errors.RepositoryNotFoundError as error:
            raise PackageError(
                f"{repository}: no such folder here and no such repository on the hub (or it is "
                "private: log in with hf auth login)"
            ) from error
        except Exception as error:  # also what the library's own libraries raise
            raise PackageError(
                f"{repository}: fetching {name} failed ({reason(error)}); {_ADVICE}"
            ) from error

    return get


def _first_cause(error: BaseException) -> BaseException:
    """What an error was raised for."""
    return error if error.__cause__ is None else _first_cause(error.__cause__)


@contextlib.contextmanager
def _without_its_lines() -> Generator[None]:
    """Keep the library from telling of every further try of this thread: our errors tell the end.

    Handlers of the host's own are left alone.
    """
    here = threading.get_ident()

    def is_shown(record: logging.LogRecord) -> bool:
        return record.thread != here or record.levelno >= logging.ERROR

    handlers = logging.getLogger("huggingface_hub").handlers
    handlers = [handler for handler in handlers if type(handler).__name__ == "StreamHandler"]
    for handler in handlers:
        handler.addFilter(is_shown)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_shown)
