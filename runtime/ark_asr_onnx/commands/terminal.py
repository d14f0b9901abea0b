"""The terminal for all commands: messages on stderr, progress, signals and exit statuses."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import io
import os
import re
import shutil
import signal
import sys
import threading
import time
import unicodedata
import warnings
from collections.abc import Callable, Generator, Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from .. import ArkError, subtitles
from ..audio import quiet
from .settings import UsageError

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # controls, surrogates, line separators
# They change the direction of text.
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Parser(argparse.ArgumentParser):
    """A parser whose messages escape control characters in quoted arguments."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and a message on stderr, and exit with status 2."""
        super().error(printable(message))


class Progress:
    """A progress bar on stderr; nothing if that is no terminal or the total is unknown."""

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
        """Show that ``done`` of the total is done."""
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
        """Remove the bar, so that another line can be printed."""
        if self.is_shown:
            rewrite("")


class Stopped(KeyboardInterrupt):
    """A signal ends the command: Ctrl-C, ``kill``, or the closing of the terminal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """The first signal raises :class:`Stopped` in the main thread, a second one ends the process.

    A host program's handlers, and ignored signals, as under ``nohup``, are not changed. Explicit
    handlers are needed because the first process of a container gets no signal without one.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._is_held = False

    @contextlib.contextmanager
    def caught(self) -> Generator[None]:
        """Handle the signals within this context, then restore the handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        usual = (signal.SIG_DFL, signal.default_int_handler)
        before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) in usual}
        self._first = None
        try:
            for number in before:
                signal.signal(number, self._handle)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._first is not None:
                atexit.register(_end_at_once, list(before))

    @property
    def has_come(self) -> bool:
        """Whether a signal has come."""
        return self._first is not None

    def check(self) -> None:
        """Raise :class:`Stopped` if a signal has come."""
        if self._first is not None:
            raise Stopped(self._first)

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Hold signals back: only :meth:`check` and :meth:`heeded` raise them."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    @contextlib.contextmanager
    def heeded(self) -> Generator[None]:
        """Within :meth:`held`: raise a signal that has come before or comes now."""
        self._is_held = False
        try:
            self.check()
            yield
        finally:
            self._is_held = True

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._first is not None:
            os._exit(128 + number)
        self._first = number
        if not self._is_held:
            raise Stopped(number)


def _end_at_once(numbers: Sequence[int]) -> None:
    """Let a further signal end an interpreter that is ending but still waits for a thread."""
    for number in numbers:
        signal.signal(number, lambda number, _: os._exit(128 + number))


SIGNALS = Signals()


def guarded(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """Run a command; an expected error gives one line instead of a traceback."""
    with _standard_streams(), warnings.catch_warnings(), SIGNALS.caught():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _show_warning
        try:
            status = run(parser.parse_args(argv))
            sys.stdout.flush()
            return status
        except UsageError as error:
            parser.error(str(error))
        except ArkError as error:
            say(f"error: {error}")
            return 1
        except KeyboardInterrupt as error:
            return _say_stopped(error)
        except (MemoryError, RuntimeError, OSError) as error:
            if message := _shortage(error):
                say(f"error: {message}")
            elif isinstance(error, OSError):
                _say_failed(error)
            else:
                raise
            return 1


def _say_stopped(error: KeyboardInterrupt) -> int:
    number = error.number if isinstance(error, Stopped) else int(signal.SIGINT)
    is_ctrl_c = number == signal.SIGINT
    say("interrupted" if is_ctrl_c else f"ended by {signal.Signals(number).name}")
    return 128 + number


def _shortage(error: Exception) -> str | None:
    """The message for an error by lack of memory, files or threads; None for others."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return "not enough memory; end other programs, or try fewer --slots or a shorter --window"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply for the stack's memory ({error})"
    if number in (errno.EMFILE, errno.ENFILE):
        return "too many open files; raise their limit (ulimit -n)"
    if number == errno.EAGAIN or "can't start new thread" in str(error):
        return "no more threads can be started; raise their limit (ulimit -u), or try --threads 1"
    return None


def _say_failed(error: OSError) -> None:
    if error.filename is not None:
        say(f"error: {error.filename}: {error.strerror}")
        return
    # An error of stdout: its reader is gone, or its disk is full. Python would try to flush it
    # again, and complain, when it exits.
    _write_nowhere(sys.stdout)
    if not isinstance(error, BrokenPipeError):
        say(f"error: the output cannot be written ({error.strerror})")


@contextlib.contextmanager
def _standard_streams() -> Generator[None]:
    """Give the process usable streams, even if it was started without them (``2>&-``, pythonw)."""
    with contextlib.ExitStack() as restored:
        with contextlib.suppress(OSError):
            _reserve_descriptors()
        if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
            nowhere = restored.enter_context(open(os.devnull, "w"))  # noqa: PTH123
            restored.enter_context(contextlib.redirect_stderr(nowhere))
        if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
            restored.enter_context(contextlib.redirect_stdout(_Closed()))
        elif hasattr(sys.stdout, "reconfigure"):  # a test or a notebook may replace it
            # A file name that is no UTF-8 is printed as its original bytes.
            cast("Any", sys.stdout).reconfigure(encoding="utf-8", errors="surrogateescape")
        restored.enter_context(_own_stderr())
        yield


@contextlib.contextmanager
def _own_stderr() -> Generator[None]:
    """Write messages to another descriptor than 2, so that libraries' lines can be discarded."""
    try:
        descriptor = os.dup(2) if sys.stderr.fileno() == 2 else -1
    except (OSError, ValueError):  # there is none, or a test or a notebook has replaced it
        descriptor = -1
    if descriptor < 0:
        yield
        return
    with (
        open(descriptor, "w", encoding=sys.stderr.encoding, errors="backslashreplace") as own,  # noqa: PTH123
        contextlib.redirect_stderr(own),
        quiet.allowed(),
    ):
        own.reconfigure(line_buffering=True)
        yield


def _reserve_descriptors() -> None:
    """Occupy descriptors 0 to 2, so that lines of libraries cannot get into a file opened later."""
    while (found := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(found, True)
    os.close(found)


class _Closed(io.TextIOBase):
    """Replaces a standard output that is closed."""

    def write(self, _: str) -> int:
        raise ArkError("standard output is closed")


def require_output() -> None:
    """Raise :class:`ArkError` before any work if standard output is closed."""
    if isinstance(sys.stdout, _Closed):
        sys.stdout.write("")


def put(text: str, end: str = "\n") -> None:
    """Print text on standard output and flush it; as :func:`printable` on a terminal."""
    if sys.stdout.isatty():
        text = re.sub(r"[^\n\t]+", lambda found: printable(found[0]), text)
    print(text, end=end, flush=True)


def say(line: str) -> None:
    """Print a line on stderr, as :func:`printable`; ignores errors of stderr."""
    _write(f"{printable(line)}\n")


def rewrite(line: str) -> None:
    """Replace the last line on a terminal by the end of this line, as much as fits."""
    encoding = sys.stderr.encoding or "utf-8"
    shown = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    _write(f"\r\033[K{_last(shown, _columns() - 1)}")


def printable(text: str) -> str:
    r"""Text with escapes for control characters of terminals.

    >>> printable("a\x1b[2J\n")
    'a\\x1b[2J\\n'
    """
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if _is_control(c) else c for c in text)


def hms(seconds: float) -> str:
    """``1:02:03``, ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in _CONTROLS or character in _TURNS


def _last(line: str, columns: int) -> str:
    """The end of a line that fits into ``columns``."""
    at, width = len(line), 0
    while at and (width := width + subtitles.width(line[at - 1])) <= columns:
        at -= 1
    while at and at < len(line) and _is_mark(line[at]):  # it belongs to a letter that is cut off
        at += 1
    return line[at:]


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")


def _columns() -> int:
    """The width of the terminal on stderr; ``$COLUMNS`` takes precedence, as in other programs."""
    try:
        found = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        found = os.terminal_size((80, 24))
    return shutil.get_terminal_size(found).columns or 80


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:  # a full disk, a terminal that was closed
        _write_nowhere(sys.stderr)


def _write_nowhere(stream: TextIO) -> None:
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    say(f"warning: {message}")
