"""Repositories of the Hugging Face hub: parses their ids, and downloads their files.

All access goes through ``huggingface_hub``, a dependency of ``tokenizers``, which is imported only
then. Files in the cache are used without a request to the network; missing ones are downloaded,
file by file, resuming where an earlier download broke off.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PackageError
from ..forks import NO_FORK
from .foreign import reason
from .text import TOKENIZER_FILES

# "owner/name", or "owner/name/folder" for a model inside a repository.
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w.-]+)*")

_ADVICE = "check the network and the variables HF_* and *_PROXY, or give a folder"

Get = Callable[[str], Path | None]  # a file's name -> its local path; None: no such file


class Missing(Exception):
    """A needed file is missing; the text of the exception is the file's name."""


@dataclass(frozen=True, slots=True)
class Id:
    """A place on the hub."""

    text: str  # as it was given
    repository: str  # "owner/name"
    inside: str  # the folder in it, "folder/" or ""


def id_of(model: str | os.PathLike[str]) -> Id | None:
    """The place on the hub that ``model`` names; None if it is a path, existing or not.

    A local folder takes precedence. Raises :class:`PackageError` for a path that cannot be read.
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
        return None
    owner, name, *folder = text.split("/")
    return Id(text, f"{owner}/{name}", "".join(f"{part}/" for part in folder))


def need(get: Get, names: list[str]) -> Path:
    """The first of some files that exists. Raises :class:`Missing` if none does."""
    for name in names:
        if path := get(name):
            return path
    raise Missing(names[0])


def need_tokenizer(get: Get, folder: str) -> None:
    """Fetch the files of a tokenizer, in either form, from a folder of a repository."""
    fast, slow = TOKENIZER_FILES
    if not all(get(folder + name) for name in fast):
        for name in slow:
            need(get, [folder + name])


def getter(repository: str, *, offline: bool, revision: str | None = None) -> Get:
    """A function that downloads a file of a repository and gives its local path.

    ``revision`` is a branch, a tag or a commit; None: the main branch. Raises
    :class:`PackageError`, and so does the function.
    """
    library = _library(repository)

    def get(name: str) -> Path | None:
        errors = library.errors
        try:
            with _told(library, repository, name, revision):
                found = library.root.hf_hub_download(
                    repository, name, revision=revision, local_files_only=offline
                )
        except errors.LocalEntryNotFoundError as error:
            if offline:
                return None
            raise _unreachable(repository, name, error) from error
        except errors.EntryNotFoundError:
            return None
        return Path(found)

    return get


@dataclass(frozen=True, slots=True)
class Remote:
    """A file on the hub."""

    bytes: int
    blob: str  # its name in the cache


def remote_files(repository: str, commit: str) -> dict[str, Remote]:
    """All files of a commit, by name. Raises :class:`PackageError`."""
    library = _library(repository)
    what = "the list of its files"
    try:
        with _told(library, repository, what, commit):
            found = library.root.HfApi().model_info(
                repository,
                revision=commit,
                files_metadata=True,
                timeout=library.constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )
            return {
                file.rfilename: Remote(
                    int(file.size or 0), str(file.lfs.sha256 if file.lfs else file.blob_id)
                )
                for file in found.siblings or ()
            }
    except library.errors.EntryNotFoundError as error:
        raise _unreachable(repository, what, error) from error


def missing_bytes(repository: str, commit: str, files: Mapping[str, Remote]) -> int:
    """Bytes of these files that are still to be downloaded; parts in the cache are subtracted."""
    library, get = _library(repository), getter(repository, offline=True, revision=commit)
    name = library.root.file_download.repo_folder_name(repo_id=repository, repo_type="model")
    blobs = Path(library.constants.HF_HUB_CACHE) / name / "blobs"

    def n_there(remote: Remote) -> int:
        paths = (blobs / f"{remote.blob}{end}" for end in ("", ".incomplete"))
        return max((path.stat().st_size for path in paths if path.is_file()), default=0)

    return sum(
        max(remote.bytes - n_there(remote), 0)
        for name, remote in files.items()
        if get(name) is None
    )


def hide_bars(repository: str) -> None:
    """Show no progress bars of downloads from now on, unless the user's variables ask for them."""
    library = _library(repository)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns if the user's variables do
        library.root.utils.disable_progress_bars()


@dataclass(frozen=True, slots=True)
class _Library:
    root: Any
    constants: Any
    errors: Any


def _library(repository: str) -> _Library:
    """``huggingface_hub``. Raises :class:`PackageError` if it cannot be used."""
    try:
        # Imported here: it takes 0.3 s, which a local folder does not need.
        with NO_FORK:
            import huggingface_hub
            from huggingface_hub import constants, errors

        library = _Library(huggingface_hub, constants, errors)
        _ = library.root.hf_hub_download  # this attribute is loaded lazily
    except Exception as error:  # one of its variables is wrong, or its installation is broken
        raise PackageError(
            f"{repository}: huggingface_hub cannot be used ({reason(error)}); {_ADVICE}"
        ) from error
    if not Path(constants.HF_HUB_CACHE).is_absolute():
        raise PackageError(
            f"{repository}: there is no home directory to keep a model in; set HF_HOME, or give a "
            "folder"
        )
    return library


@contextlib.contextmanager
def _told(library: _Library, repository: str, what: str, revision: str | None) -> Generator[None]:
    """Raise :class:`PackageError` for the library's errors, except for missing files."""
    errors = library.errors
    try:
        with _without_its_lines():
            yield
    except errors.EntryNotFoundError:
        raise
    except errors.GatedRepoError as error:
        raise PackageError(
            f"{repository}: its owner lets in who asks: accept the terms at "
            f"{library.constants.ENDPOINT}/{repository}, and log in with hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PackageError(
            f"{repository}: no such folder here and no such repository on the hub (or it is "
            "private: log in with hf auth login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise PackageError(f"{repository}: the repository has no revision {revision}") from error
    except Exception as error:  # also from the libraries that it uses
        raise PackageError(
            f"{repository}: fetching {what} failed ({reason(error)}); {_ADVICE}"
        ) from error


def _unreachable(repository: str, what: str, error: BaseException) -> PackageError:
    return PackageError(
        f"{repository}: there is no such folder here, and the hub cannot be reached to "
        f"fetch {what} ({reason(_first_cause(error))}); {_ADVICE}"
    )


def _first_cause(error: BaseException) -> BaseException:
    """The root cause of an error."""
    return error if error.__cause__ is None else _first_cause(error.__cause__)


@contextlib.contextmanager
def _without_its_lines() -> Generator[None]:
    """Keep the library from logging this thread's retries; the errors report the outcome.

    Handlers that the host program has installed are not changed.
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
