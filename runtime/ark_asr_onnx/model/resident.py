"""Opens a model when it is needed, and closes it when it is not."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Generic, TypeVar

from ..errors import ClosedError

_T = TypeVar("_T")


class Resident(Generic[_T]):
    """Keeps the object from ``open_it`` while it is in use and ``idle_seconds`` afterwards.

    None: until :meth:`close`. Safe to use from several threads; the first user opens the object,
    the others wait for that.
    """

    def __init__(self, open_it: Callable[[], _T], idle_seconds: float | None = None) -> None:
        if idle_seconds is not None and idle_seconds < 0:
            raise ValueError(f"idle_unload_seconds is {idle_seconds}, must not be negative")
        self._open, self._idle_seconds = open_it, idle_seconds
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._held: _T | None = None
        self._users = 0
        self._timer: threading.Timer | None = None

    def after_fork(self) -> None:
        """In a forked child: open the object again when needed, since its threads do not run here.

        The old object is never freed, because freeing it would wait for those threads.
        """
        keep(self._held)
        self._begin()

    @property
    def is_open(self) -> bool:
        """Whether the object is in memory now."""
        return self._held is not None

    @contextmanager
    def use(self) -> Generator[_T]:
        """Keep the object open in this context. Raises :class:`ClosedError` after ``close``."""
        held = self.take()
        try:
            yield held
        finally:
            del held
            self.give_back()

    def take(self) -> _T:
        """The object, kept open until :meth:`give_back`. Raises as :meth:`use` does."""
        with self._lock:
            if self._closed:
                raise ClosedError("this transcriber was closed; load the model again")
            if self._held is None:
                self._held = self._open()
            self._stop_timer()
            self._users += 1
            return self._held

    def give_back(self) -> None:
        """End the use that began with :meth:`take`; call it once for each."""
        with self._lock:
            self._users -= 1
            if self._closed:
                self._drop()
            elif not self._users and self._idle_seconds is not None:
                self._timer = threading.Timer(self._idle_seconds, self._let_go)
                self._timer.daemon = True
                with contextlib.suppress(RuntimeError):  # no more threads: keep until next time
                    self._timer.start()

    def close(self) -> None:
        """Free the object: now, or when its last user is done. It cannot be opened again."""
        with self._lock:
            self._closed = True
            self._stop_timer()
            self._drop()

    def _let_go(self) -> None:
        """Free the object when the timer ends, unless another timer has replaced it."""
        with self._lock:
            if self._timer is threading.current_thread():
                self._timer = None
                self._drop()

    def _drop(self) -> None:
        if not self._users:
            self._held = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def keep(thing: object) -> None:
    """Never free an object, not even at the end of the interpreter."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
