"""Keeps messages that a C library prints on descriptor 2 off the terminal.

libmpg123 reports every damaged frame there, and has no option to stop that. Only a program that
owns its process may redirect the descriptor, and it must write its messages to another one, as the
commands do.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator

_LOCK = threading.Lock()
_state = {"wanted": 0, "users": 0, "saved": -1}


@contextlib.contextmanager
def allowed() -> Generator[None]:
    """Within this context :func:`quiet` discards output; otherwise it does nothing."""
    _state["wanted"] += 1
    try:
        yield
    finally:
        _state["wanted"] -= 1


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Discard everything that any thread prints on descriptor 2 within this context."""
    if not _state["wanted"]:
        yield
        return
    with _LOCK, contextlib.suppress(OSError):
        _state["users"] += 1
        if _state["users"] == 1:
            _state["saved"] = os.dup(2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
    try:
        yield
    finally:
        with _LOCK, contextlib.suppress(OSError):
            _state["users"] -= 1
            if not _state["users"] and _state["saved"] >= 0:
                os.dup2(_state["saved"], 2)
                os.close(_state["saved"])
                _state["saved"] = -1
