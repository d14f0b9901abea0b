"""What the command owes its surroundings: streams, signals, warnings, and one line at the end."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

from ark_asr_onnx.errors import ArkError

from .config import shown

EXTRA = (
    "torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "tqdm", "librosa", "numba", "jiwer",
)  # fmt: skip
INTERRUPTED = 130  # exit status
_OURS = r"ark_(asr_onnx|onnx_export)\b"  # modules whose warnings are for users
_PATIENCE_SECONDS = 10.0  # after a signal, so long another one does not stop the tidying up
# What libraries say when the system has no memory, or no threads, left.
_NO_MEMORY = (
    "allocate memory", "bad_alloc", "bad allocation", "not enough memory", "out of memory",
    "start new thread", "os error 12", "Resource temporarily unavailable",
    "failed to map segment",
)  # fmt: skip


class Ended(KeyboardInterrupt):
    """A signal asked the command to end, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.status = 128 + number


def guarded(run: Callable[[], tuple[int, str]]) -> int:
    """Run a command, which gives its status and what is to be printed; one line for what fails."""
    try:
        with _signals(), _our_warnings(), _libraries_on_stderr():
            status, answer = run()
        return status if _printed(answer) else 1
    except KeyboardInterrupt as stop:
        say(f"{str(stop) or 'interrupted'}; nothing was written")
        return stopped(stop)
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        say(
            f"error: {error.name} is not installed: pip install 'ark-asr-onnx[export]', "
            "or from a clone pip install '.[export]'"
        )
        return 2
    except Exception as error:
        line = _line(error)
        if line is None:
            raise
        say(f"error: {shown(line, 5000)}")
        return 1


def require_extra() -> None:
    """Raise ``ModuleNotFoundError`` before long work, not after it, where the extra is missing."""
    for name in EXTRA:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def stopped(stop: KeyboardInterrupt) -> int:
    """The exit status after Ctrl-C, or after a signal that does the same."""
    return stop.status if isinstance(stop, Ended) else INTERRUPTED


def prepare_streams() -> None:
    """Let anything be printed, in UTF-8, and open nothing in the place of closed streams.

    The next file would be opened in their place, and get what libraries write to stderr.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # not when a test or a notebook has replaced it
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def say(line: str) -> None:
    """A line on stderr, where there is one."""
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison] - it may be closed
        print(line, file=sys.stderr)


def _line(error: BaseException) -> str | None:
    """What can be expected to go wrong in one line; ``None`` for everything else."""
    for cause in reversed(_causes(error)):
        text = str(cause).strip() or type(cause).__name__
        if isinstance(cause, MemoryError) or any(words in text for words in _NO_MEMORY):
            return (
                f"not enough memory, or no more threads ({shown(text.splitlines()[0], 120)}); "
                "close other programs"
            )
    if isinstance(error, ArkError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return None


def _printed(answer: str) -> bool:
    try:
        print(answer, flush=True)
    except OSError as error:
        # Python would try, and complain, again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        say(f"error: standard output cannot be written ({error.strerror})")
        return False
    return True


def _causes(error: BaseException) -> list[BaseException]:
    """An exception and those that it came from, the first of all at the end."""
    found: list[BaseException] = []
    while error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__ or error
    return found


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let what ends a process end it as Ctrl-C does, so that staging folders go."""
    last = -_PATIENCE_SECONDS

    def end(number: int, _: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PATIENCE_SECONDS:
            last = now
            raise Ended(number)

    numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    is_main = threading.current_thread() is threading.main_thread()
    # One that is ignored (nohup), or is the business of a host, stays so.
    changed = [n for n in numbers if is_main and n and signal.getsignal(n) == signal.SIG_DFL]
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _our_warnings() -> Iterator[None]:
    """Show our own warnings in one line and no library's, unless the user asked for them."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=UserWarning, module=_OURS)
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        yield


@contextlib.contextmanager
def _libraries_on_stderr() -> Iterator[None]:
    """Let what libraries write to stdout land on stderr: stdout is the answer."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # what C has not written yet
        os.dup2(kept, 1)
        os.close(kept)
