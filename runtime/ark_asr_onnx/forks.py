"""Delays forks of the process during calls that a fork must not interrupt."""

from __future__ import annotations

import os
import threading


class _NoFork:
    """A context in which the process is not forked; several threads may be in it.

    In a forked child, a C++ call or an import of another thread would stay unfinished and hold its
    locks for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._n_inside = 0
        self._is_forking = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before, after_in_parent=self._after, after_in_child=self._after
            )

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_forking)
            self._n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._n_inside -= 1
            self._changed.notify_all()

    def _before(self) -> None:
        self._changed.acquire()
        self._is_forking = True
        self._changed.wait_for(lambda: not self._n_inside)

    def _after(self) -> None:
        self._is_forking = False
        self._changed.notify_all()
        self._changed.release()


NO_FORK = _NoFork()
