"""What all commands share on the terminal: messages on stderr, progress, and how they end."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable

from .. import ArkError
from .settings import UsageError


class Progress:
    """A bar on stderr; nothing where that is no terminal, or the end is not known."""

    def __init__(
        self,
        total: float | None,
        show: Callable[[float], str],
        label: str = "",
        *,
        is_wanted: bool = True,
    ) -> None:
        self._total, self._show, self._label = total, show, label
        self._begin = self._last = time.monotonic()
        self.is_shown = is_wanted and bool(total) and sys.stderr.isatty()

    def __call__(self, done: float) -> None:
        """So much is done."""
        now = time.monotonic()
        if not self.is_shown or not self._total or (now - self._last < 0.1 and done < self._total):
            return
        self._last = now
        share = min(done / self._total, 1.0)
        bar = "#" * round(20 * share)
        left = (now - self._begin) * (1 - share) / share if share else 0
        line = f"[{bar:20}] {self._show(done)} of {self._show(self._total)}, {hms(left)} left"
        rewrite(f"{self._label}{line}")

    def clear(self) -> None:
        """Make room for another line."""
        if self.is_shown:
            rewrite("")


def rewrite(line: str) -> None:
    """Put the end of a line, as much as fits, in the place of the last one on a terminal."""
    columns = shutil.get_terminal_size().columns
    print(f"\r\033[K{line[-(columns - 1) :]}", end="", file=sys.stderr, flush=True)


def hms(seconds: float) -> str:
    """``1:02:03``, ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def guarded(run: Callable[[], int], parser: argparse.ArgumentParser) -> int:
    """One line instead of a traceback for what can be expected to go wrong."""
    if hasattr(sys.stdout, "reconfigure"):  # not when a test or a notebook has replaced it
        sys.stdout.reconfigure(encoding="utf-8")  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - it was closed
        say("error: standard output is closed")
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning
            return run()
    except UsageError as error:
        parser.error(str(error))
    except ArkError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except OSError as error:
        if error.filename is not None:
            say(f"error: {error.filename}: {error.strerror}")
            return 1
        # Of stdout: its reader is gone, or its disk is full.
        # Python would try, and complain, again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            say(f"error: the output cannot be written ({error.strerror})")
        return 1


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    say(f"warning: {message}")


def say(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr)
