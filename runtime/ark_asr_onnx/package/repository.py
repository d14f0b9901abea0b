"""Repositories of the Hugging Face hub: which one a text means, and their files, made local.

All goes through ``huggingface_hub``, which ``tokenizers`` brings along and which is imported only
then. What the cache holds is used without asking the network; what it lacks is downloaded, file
by file, resuming where an earlier download broke off.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import PackageError
from ..forks import NO_FORK
from .foreign import reason

# "owner/name", or "owner/name/folder" for a model inside a repository.
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w.-]+)*")

_ADVICE = "check the network and the variables HF_* and *_PROXY, or give a folder"

Get = Callable[[str], Path | None]  # a file of the repository, made local; None: it has none


class Missing(Exception):
    """A needed file is not there; its text is the name."""


@dataclass(frozen=True, slots=True)
class Id:
    """A place on the hub."""

    text: str  # as it was given
    repository: str  # "owner/name"
    inside: str  # the folder in it, "folder/" or ""


def id_of(model: str | os.PathLike[str]) -> Id | None:
    """The place on the hub that a model names; ``None``: it is a path, there or not.

    A local folder wins. Raises :class:`PackageError` for a path that cannot be looked at.
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


def need(get: Get, names: list[str]) -> None:
    """The first of some names that exists; one must."""
    if not any(get(name) for name in names):
        raise Missing(names[0])


def getter(repository: str, *, offline: bool) -> Get:
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
