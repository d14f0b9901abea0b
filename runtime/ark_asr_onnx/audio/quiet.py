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

_lock = threading.Lock()
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
    with _lock, contextlib.suppress(OSError):
        _state["users"] += 1
        if _state["users"] == 1:
            _state["saved"] = os.dup(2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
    try:
        yield
    finally:
        with _lock, contextlib.suppress(OSError):
            _state["users"] = max(_state["users"] - 1, 0)  # 0 in a child that was forked here
            if not _state["users"] and _state["saved"] >= 0:
                saved, _state["saved"] = _state["saved"], -1
                os.dup2(saved, 2)
                os.close(saved)


def _restored() -> None:
    """In a forked child, undo what threads of the parent did, which are not there to end it."""
    global _lock  # noqa: PLW0603 - a thread of the parent may have held it
    _lock = threading.Lock()
    if _state["saved"] >= 0:
        with contextlib.suppress(OSError):
            os.dup2(_state["saved"], 2)
            os.close(_state["saved"])
    _state.update(users=0, saved=-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restored)
