"""A checkpoint named by a folder or by a Hugging Face id, as a local folder.

What is needed of a repository is found by its list of files, and the disks are asked whether they
hold it, before anything large is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

from ark_asr_onnx.errors import ExportError, PackageError
from ark_asr_onnx.package.repository import (
    Get,
    Id,
    Missing,
    getter,
    hide_bars,
    id_of,
    missing_bytes,
    need,
    need_tokenizer,
    remote_files,
)

from . import shards
from .config import CONFIG_FILE, SIDE_FILES, ArkConfig, shown
from .shapes import Shapes
from .space import Need, export_bytes, export_need, require_absent, require_space
from .terminal import require_extra

# What is read of a checkpoint beside its weights, and what the published layout passes on.
_BESIDE = (*SIDE_FILES, "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint's folder, and where it is from."""

    directory: Path
    origin: str  # the folder's name, or "owner/name@commit", "owner/name/folder@commit"
    shown: str  # for people: the folder, or the same


def resolve(
    ckpt: str,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    precision: str = "int8",
    out: Path | None = None,
    quiet: bool = False,
) -> Source:
    """The folder that is named, or the one that an id was downloaded to; a folder wins.

    What the cache holds of an id is used without asking the network; ``local_files_only`` uses
    nothing else. ``revision`` is a branch, a tag or a commit. ``out`` is where a package of
    ``precision`` is to be made, which must not be there, and needs space, too; ``quiet`` shows no
    bars. Raises :class:`ExportError`; whether a folder is a checkpoint, or there at all, is for
    others to see.
    """
    try:
        place = id_of(ckpt)
        if place is None:
            if revision is not None:
                raise ExportError(f"--revision is for Hugging Face ids, {ckpt} is a folder's name")
            return Source(Path(ckpt), Path(ckpt).resolve().name, str(Path(ckpt)))
        require_extra()
        if out is not None:
            require_absent(out)
        if quiet:
            hide_bars(place.repository)
        directory = _resolve(place, revision, local_files_only, _Target(precision, out))
    except PackageError as error:
        raise ExportError(shown(str(error), 1000)) from error
    origin = f"{ckpt}@{_commit(place, directory)}"
    return Source(directory, origin, origin)


@dataclass(frozen=True, slots=True)
class _Target:
    precision: str
    out: Path | None  # None: nothing is exported


def _resolve(place: Id, revision: str | None, local_files_only: bool, target: _Target) -> Path:
    where = place.text if revision is None else f"{place.text}@{revision}"
    try:
        return _cached(place, getter(place.repository, offline=True, revision=revision))
    except (Missing, ExportError) as error:
        if local_files_only:
            said = f"{error} is not in the cache" if isinstance(error, Missing) else str(error)
            raise ExportError(f"{where}: {said}, and downloading was not allowed") from error
    try:
        return _fetched(place, revision, target)
    except Missing as missing:
        raise ExportError(
            f"{where}: the repository has no {missing}; a checkpoint is needed, config.json beside "
            "tokenizer and safetensors"
        ) from missing


def _cached(place: Id, get: Get) -> Path:
    """The folder in the cache, if all of the checkpoint is there."""
    directory = need(get, [place.inside + CONFIG_FILE]).parent
    need_tokenizer(get, place.inside)
    shards.find(directory)
    return directory


def _fetched(place: Id, revision: str | None, target: _Target) -> Path:
    get = getter(place.repository, offline=False, revision=revision)
    config = need(get, [place.inside + CONFIG_FILE])
    sizes = ArkConfig.read(config)
    # From here on one commit, whatever happens to the branch meanwhile.
    commit = _commit(place, config.parent)
    get = getter(place.repository, offline=False, revision=commit)
    files = remote_files(place.repository, commit)
    names = _needed(place, files.keys(), lambda name: need(get, [name]))
    n_bytes = missing_bytes(place.repository, commit, {name: files[name] for name in names})
    needs = [Need("download", n_bytes, config.parent, "set HF_HOME to a folder on another disk")]
    if target.out is not None:
        n_export = export_bytes(Shapes.of(sizes), is_int8=target.precision == "int8")
        needs.append(export_need(n_export, target.out.absolute().parent))
    require_space(*needs)
    for name in names:
        need(get, [name])
    return config.parent


def _needed(place: Id, names: Set[str], fetch: Callable[[str], Path]) -> list[str]:
    """The files of a repository that a checkpoint consists of, the weights last."""
    listed: Get = lambda name: Path(name) if name in names else None  # noqa: E731
    need_tokenizer(listed, place.inside)
    here = {name.removeprefix(place.inside) for name in names if name.startswith(place.inside)}
    weights, _ = shards.choose(place.text, here, lambda: fetch(place.inside + shards.INDEX))
    beside = [name for name in (*_BESIDE, shards.INDEX) if name in here]
    wanted = [place.inside + name for name in (*beside, *weights)]
    for name in wanted:
        need(listed, [name])
    return wanted


def _commit(place: Id, directory: Path) -> str:
    """The commit to which a folder of the cache, ``snapshots/COMMIT/folder``, belongs."""
    return (directory / "x").parents[place.inside.count("/")].name
