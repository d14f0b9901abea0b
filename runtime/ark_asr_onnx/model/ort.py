"""onnxruntime, imported here alone: without its telemetry, and without its lines on stderr."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Generator
from typing import Any, cast

# What onnxruntime's C++ says while it is imported: of GPUs, of telemetry, of CPUs it does not know.
_OF_ONNXRUNTIME = re.compile(
    rb"\[[VIWEF]:onnxruntime|^onnxruntime .*warning:|\[Telemetry\]|\b(Error|Warning) in cpuinfo:"
)


@contextlib.contextmanager
def _lines_of_others() -> Generator[None]:
    """Hold back what the process writes to stderr; then pass on what is not of onnxruntime.

    Its logger can be told to be silent only after the import. If the import ends the process, what
    it said of that is lost.
    """
    try:
        if sys.platform != "linux":
            raise OSError
        stderr = os.dup(2)
    except OSError:  # or stderr is closed
        yield
        return
    held = os.memfd_create("stderr")
    os.dup2(held, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        lines = os.pread(held, os.fstat(held).st_size, 0).splitlines(keepends=True)
        os.close(held)
        others = b"".join(line for line in lines if not _OF_ONNXRUNTIME.search(line))
        with contextlib.suppress(OSError):
            while others:
                others = others[os.write(2, others) :]


# Before the import: onnxruntime 1.32 opens a database, looks up a host, and has threads for that.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
with _lines_of_others():
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

library = cast("Any", onnxruntime)  # ships no types
library.disable_telemetry_events()  # all that can be done where the host imported it before us


class Session(library.InferenceSession):
    """A session that tells of failures by exceptions, not on stdout, and does not try again."""

    _enable_fallback = property(lambda _: False, lambda _, __: None)


def version() -> str:
    """The installed onnxruntime's version."""
    return str(library.__version__)


def release(version: str) -> tuple[int, ...]:
    """``1.22.0+local`` as ``(1, 22, 0)``."""
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))
