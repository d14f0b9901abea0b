"""Keeps what a C library prints on descriptor 2 away from a terminal.

libmpg123 tells of every damaged frame there, and nothing turns that off. Only a program that owns
its process may move the descriptor, and must have its own messages on another one: the commands do.
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
    """As long as this is entered, :func:`quiet` does what it says; else nothing."""
    _state["wanted"] += 1
    try:
        yield
    finally:
        _state["wanted"] -= 1


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """What is printed on descriptor 2 meanwhile, by any thread, goes nowhere."""
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
