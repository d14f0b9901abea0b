"""Imports onnxruntime without its telemetry and its lines on stderr; no other module does so."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Generator
from typing import Any, cast

# Lines that onnxruntime prints during its import: about GPUs, telemetry, unknown CPUs.
_OF_ONNXRUNTIME = re.compile(
    rb"\[[VIWEF]:onnxruntime|^onnxruntime .*warning:|\[Telemetry\]|\b(Error|Warning) in cpuinfo:"
)


@contextlib.contextmanager
def _lines_of_others() -> Generator[None]:
    """Hold back what the process writes to stderr; then pass on all lines but onnxruntime's.

    Its logger can be silenced only after the import. If the import ends the process, the lines
    that explain it are lost.
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


# Before the import: onnxruntime 1.32 opens a database, looks up a host, and starts threads for it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
with _lines_of_others():
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

library = cast("Any", onnxruntime)  # ships no types
library.disable_telemetry_events()  # for a host program that imported onnxruntime before


class Session(library.InferenceSession):
    """A session that reports failures as exceptions, not on stdout, and does not retry."""

    _enable_fallback = property(lambda _: False, lambda _, __: None)


def version() -> str:
    """The version of the installed onnxruntime."""
    return str(library.__version__)


def release(version: str) -> tuple[int, ...]:
    """``1.22.0+local`` as ``(1, 22, 0)``."""
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))
