"""Whether rows were made by the same model, with the same options, from the same audio."""

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
_N_SAMPLES = 16  # blocks of a file without a checksum that has more
_SHOWN = 60  # characters of a value


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that decides on the text of an audio, in values of JSON."""

    package: Values  # empty: unknown
    options: Values
    splitting: Values

    def differences(self, before: Setup) -> list[str]:
        """What is not as it was, in words.

        What one of both does not know of the model is the same; an option that there was not yet
        had its default.
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
    """What an audio file was like."""

    n_bytes: int
    mtime_ns: int
    sha256: str


def setup(
    options: Options | None, splitting: Splitting | None, package: Package | Transcriber | None
) -> Setup:
    """What rows are made with."""
    known = {} if package is None else fingerprint(package)
    return Setup(known, _values(options or Options()), _values(splitting or Splitting()))


def fingerprint(package: Package | Transcriber) -> Values:
    """What tells a model from another, wherever it lies.

    The manifest, with the checksums of graphs, weights and tokenizer. A published folder has none:
    there, sizes and contents of small files, sizes and samples of large ones; a transcriber does
    not know these.
    """
    manifest = package.manifest
    parts = dataclasses.asdict(manifest.sizes), dataclasses.asdict(manifest.tokens)
    found: Values = {"name": manifest.name, "network": _sha256(json.dumps(parts).encode())}
    lines: list[str] = []
    if manifest.files:
        # Times of words decide on no text.
        files = manifest.files.keys() - {ALIGN_FILE}
        names = sorted(name for name in files if name.endswith(_MODEL_FILES))
        lines = [f"{name} {manifest.files[name].sha256}" for name in names]
    elif isinstance(package, Package):
        lines = [f"{name} {_sampled(path)}" for name, path in sorted(package.paths.items())]
    if lines:
        found["weights"] = _sha256("\n".join(lines).encode())
    return found


def audio_state(path: Path) -> AudioState | None:
    """What an audio file is like; None for what is no file that can be read."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return None
        digest = _file_sha256(path, found.st_size, found.st_mtime_ns)
        return AudioState(found.st_size, found.st_mtime_ns, digest)
    except (OSError, ValueError):
        return None


def is_changed(path: Path, before: AudioState) -> bool:
    """Whether a file has another content; it is read only where its size does not tell.

    One that is not there any more was not changed.
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
    """Fields as JSON has them; a function is its name."""
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
    """A value in a line for people."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@functools.lru_cache(maxsize=256)  # records of one file follow each other
def _file_sha256(path: Path, n_bytes: int, mtime_ns: int) -> str:  # noqa: ARG001 - of this state
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sampled(path: Path) -> str:
    """Of a file's size, and of all of it or of blocks at even distances."""
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
