"""Decides whether rows were made by the same model, with the same options, from the same audio."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from .. import Options, Package, Splitting, Transcriber
from ..package.contract import ALIGN_FILE

Values: TypeAlias = dict[str, object]

_MODEL_FILES = (".onnx", ".data", "tokenizer.json")  # endings
_BLOCK_BYTES = 1 << 20
_N_SAMPLES = 16  # blocks that are hashed of a large file without a checksum
_SHOWN = 60  # characters of a value


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that determines the text of an audio, in values of JSON."""

    package: Values  # empty: unknown
    options: Values
    splitting: Values

    def differences(self, before: Setup) -> list[str]:
        """The differences between two setups, in words.

        A property of the model that one of them does not know counts as equal; an option that is
        missing in the older one had its default.
        """
        found: list[str] = []
        then, now = before.package, self.package
        if any(then[key] != now[key] for key in then.keys() & now.keys() - {"name"}):
            found.append(f"another model ({then.get('name')!r}, now {now.get('name')!r})")
        for then, now in (
            ({**_values(Options()), **before.options}, self.options),
            ({**_values(Splitting()), **before.splitting}, self.splitting),
        ):
            for name in sorted(then.keys() & now.keys()):
                has_effect = name != "hotword_strength" or then["hotwords"] or now["hotwords"]
                if then[name] != now[name] and has_effect:
                    values = f"{_shown(then[name])}, now {_shown(now[name])}"
                    found.append(f"another {name} ({values})")
        return found


@dataclass(frozen=True, slots=True)
class AudioState:
    """Size, mtime and checksum of an audio file."""

    n_bytes: int
    mtime_ns: int
    sha256: str


def setup(
    options: Options | None, splitting: Splitting | None, package: Package | Transcriber | None
) -> Setup:
    """The setup of rows; without ``package`` the model is unknown."""
    known = {} if package is None else fingerprint(package)
    return Setup(known, _values(options or Options()), _values(splitting or Splitting()))


def fingerprint(package: Package | Transcriber) -> Values:
    """Values that identify a model, in any folder.

    They come from the manifest, with the checksums of graphs, weights and tokenizer. A published
    folder has no checksums: there they come from sizes and contents of small files, and sizes and
    samples of large ones, which a transcriber does not know.
    """
    manifest = package.manifest
    parts = dataclasses.asdict(manifest.sizes), dataclasses.asdict(manifest.tokens)
    found: Values = {"name": manifest.name, "network": _sha256(json.dumps(parts).encode())}
    lines: list[str] = []
    if manifest.files:
        # Times of words do not change the text.
        files = manifest.files.keys() - {ALIGN_FILE}
        names = sorted(name for name in files if name.endswith(_MODEL_FILES))
        lines = [f"{name} {manifest.files[name].sha256}" for name in names]
    elif isinstance(package, Package):
        lines = [f"{name} {_sampled(path)}" for name, path in sorted(package.paths.items())]
    if lines:
        found["weights"] = _sha256("\n".join(lines).encode())
    return found


def audio_state(path: Path) -> AudioState | None:
    """The state of an audio file; None if it is no readable file."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return None
        digest = _file_sha256(path, found.st_size, found.st_mtime_ns)
        return AudioState(found.st_size, found.st_mtime_ns, digest)
    except (OSError, ValueError):
        return None


def is_changed(path: Path, before: AudioState) -> bool:
    """Whether the content of a file has changed; reads it only if size and mtime do not decide.

    A file that no longer exists counts as unchanged.
    """
    try:
        found = path.stat()
        if (found.st_size, found.st_mtime_ns) == (before.n_bytes, before.mtime_ns):
            return False
        if found.st_size != before.n_bytes:
            return True
        return _file_sha256(path, found.st_size, found.st_mtime_ns) != before.sha256
    except (OSError, ValueError):
        return False


def _values(settings: Options | Splitting) -> Values:
    """Fields as values of JSON; a function becomes its name."""
    return {
        field.name: _value(getattr(settings, field.name)) for field in dataclasses.fields(settings)
    }


def _value(value: Any) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return [_value(item) for item in cast("tuple[object, ...]", value)]
    while isinstance(value, functools.partial):
        value = value.func  # pyright: ignore[reportUnknownMemberType]
    if not hasattr(value, "__qualname__"):
        value = cast("Any", type(value))
    return f"{value.__module__}.{value.__qualname__}"


def _shown(value: object) -> str:
    """A value for a message, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@functools.lru_cache(maxsize=256)  # records of one file follow each other
def _file_sha256(path: Path, n_bytes: int, mtime_ns: int) -> str:  # noqa: ARG001 - cache keys
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sampled(path: Path) -> str:
    """SHA-256 of a file's size, and of all its content or of evenly spaced blocks."""
    n_bytes = path.stat().st_size
    digest = hashlib.sha256(str(n_bytes).encode())
    step = max(_BLOCK_BYTES, n_bytes // _N_SAMPLES)
    with path.open("rb") as stream:
        for place in range(0, n_bytes, step):
            stream.seek(place)
            digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
