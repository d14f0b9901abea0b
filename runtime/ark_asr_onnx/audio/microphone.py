"""A microphone as blocks of samples, through sounddevice (extra ``mic``)."""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import AudioError, MissingExtraError
from ..transcript import AudioWarning
from .account import OnWarning
from .mel import SAMPLE_RATE
from .sources import python_warning

_BLOCK_SECONDS = 0.032
_AHEAD_SECONDS = 120.0  # of audio that may wait for the model; more is dropped
_POLL_SECONDS = 0.25
_SILENT_SECONDS = 1.5  # without a block: the device is gone
_FIRST_SECONDS = 5.0  # until the first block: a wireless device starts slowly
_WARNING_SECONDS = 10.0  # between two warnings about losses


def library() -> Any:
    """The module sounddevice. Raises :class:`MissingExtraError` if it or PortAudio is missing."""
    try:
        import sounddevice  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    except (ImportError, OSError) as error:  # OSError: the PortAudio library is missing
        raise MissingExtraError(
            f"the microphone needs sounddevice and PortAudio ({error}); "
            "pip install 'ark-asr-onnx[mic]', and libportaudio2 from the system's packages"
        ) from error
    return sounddevice


@contextlib.contextmanager
def opened(
    device: int | str | None = None,
    is_over: Callable[[], bool] = lambda: False,
    on_warning: OnWarning | None = None,
) -> Generator[tuple[Iterator[npt.NDArray[Any]], int]]:
    """Record from now on: an iterator of int16 arrays ``[n, channels]``, and their rate in Hz.

    The device is closed at the end of the ``with`` block. It records 16 kHz and mono if it can,
    else with its default rate or more channels. Up to two minutes of audio wait between two reads;
    losses are reported to ``on_warning``, or to Python's ``warnings``. Once ``is_over`` is true,
    the iterator gives the audio recorded so far and ends. ``device`` is a number or a part of a
    name as ``python -m sounddevice`` lists them. Raises :class:`MissingExtraError`, and
    :class:`AudioError` if the device cannot be opened; the iterator raises it if the device stops.
    """
    sound = library()
    warn = on_warning or functools.partial(python_warning, "the microphone")
    stream, heard = _open(sound, device)
    try:
        try:
            stream.start()
        except sound.PortAudioError as error:
            raise _refused(error) from error
        yield heard.blocks(stream, is_over, warn), heard.rate
    finally:
        with contextlib.suppress(sound.PortAudioError):  # the device is gone
            stream.close()
        heard.tell(warn, after_seconds=0.0)


def _open(sound: Any, device: int | str | None) -> tuple[Any, _Heard]:
    """A stream that is not started, and its callback."""
    refused: Exception | None = None
    for rate, channels in _kinds(sound, device):
        heard = _Heard(rate, channels)
        try:
            stream = sound.RawInputStream(
                samplerate=rate, channels=channels, dtype="int16", device=device,
                callback=heard, blocksize=round(rate * _BLOCK_SECONDS),
            )  # fmt: skip
        except (sound.PortAudioError, ValueError, OverflowError) as error:
            refused = error
        else:
            return stream, heard
    raise _refused(refused) from refused


def _kinds(sound: Any, device: int | str | None) -> Iterator[tuple[int, int]]:
    """Rates and channels to try; the device is queried only if 16 kHz mono was refused."""
    yield SAMPLE_RATE, 1
    try:
        found = sound.query_devices(device, "input")
        own, most = round(found["default_samplerate"]), int(found["max_input_channels"])
    except (sound.PortAudioError, ValueError, OverflowError):
        return  # the error of opening it says more
    numbers = dict.fromkeys(n for n in (1, min(2, most), most) if n)
    for channels in numbers:
        for rate in dict.fromkeys((SAMPLE_RATE, own)):
            if (rate, channels) != (SAMPLE_RATE, 1):
                yield rate, channels


def _refused(error: object) -> AudioError:
    return AudioError(
        f"the microphone cannot be opened ({error}); python -m sounddevice lists the devices"
    )


@dataclass(frozen=True, slots=True)
class _Losses:
    """Losses since the device was opened."""

    n_overflows: int = 0  # in the device: its driver was not read in time
    overflow_seconds: float = 0.0  # 0 if the device does not tell the times of its blocks
    dropped_seconds: float = 0.0  # in this module, because too much audio was waiting


class _Heard:
    """A queue of limited length from PortAudio's thread to the reader."""

    def __init__(self, rate: int, channels: int) -> None:
        self.rate, self.channels = rate, channels
        self._blocks: queue.Queue[bytes] = queue.Queue(round(_AHEAD_SECONDS / _BLOCK_SECONDS))
        self._due = 0.0  # time of the device at which the next block should begin; 0: unknown
        self._losses = self._told = _Losses()  # PortAudio's thread writes one, the reader the other
        self._told_at = -math.inf

    def __call__(self, data: Any, _: int, when: Any, status: Any) -> None:
        """Queue a block; PortAudio calls this."""
        block, losses = bytes(data), self._losses
        seconds = len(block) / (2 * self.channels * self.rate)
        began = float(getattr(when, "inputBufferAdcTime", 0.0))
        if getattr(status, "input_overflow", False):
            gap = max(0.0, began - self._due) if began and self._due else 0.0
            losses = replace(
                losses,
                n_overflows=losses.n_overflows + 1,
                overflow_seconds=losses.overflow_seconds + gap,
            )
        self._due = began + seconds if began else 0.0
        try:
            self._blocks.put_nowait(block)
        except queue.Full:
            losses = replace(losses, dropped_seconds=losses.dropped_seconds + seconds)
        self._losses = losses

    def blocks(
        self, stream: Any, is_over: Callable[[], bool], warn: OnWarning
    ) -> Iterator[npt.NDArray[Any]]:
        """Arrays ``[n, channels]`` until ``is_over``.

        Raises :class:`AudioError` if the device stops.
        """
        silent, limit = 0.0, _FIRST_SECONDS
        n_left: int | None = None
        while n_left != 0:
            if n_left is None and is_over():
                n_left = self._blocks.qsize()
                continue
            self.tell(warn, after_seconds=_WARNING_SECONDS)
            try:
                block = self._blocks.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                silent += _POLL_SECONDS  # no clock is read: this process may have been suspended
                if silent < limit and _is_active(stream):
                    continue
                raise AudioError(
                    "the microphone has stopped, perhaps it was unplugged; what was heard is kept"
                ) from None
            silent, limit = 0.0, _SILENT_SECONDS
            n_left = n_left and n_left - 1
            yield np.frombuffer(block, np.int16).reshape(-1, self.channels)

    def tell(self, warn: OnWarning, *, after_seconds: float) -> None:
        """Warn of losses since the last warning, if that is at least ``after_seconds`` ago."""
        losses, told = self._losses, self._told
        if losses == told or time.monotonic() - self._told_at < after_seconds:
            return
        self._told, self._told_at = losses, time.monotonic()
        if n_overflows := losses.n_overflows - told.n_overflows:
            seconds = losses.overflow_seconds - told.overflow_seconds
            known = f"{seconds:.2f} s" if seconds else "how many, the device does not tell"
            what = f"samples were lost before {n_overflows} of its blocks ({known})"
            warn(AudioWarning("overflow", what))
        if dropped := losses.dropped_seconds - told.dropped_seconds:
            waiting = f"more than {_AHEAD_SECONDS:.0f} s of audio wait for the model"
            what = f"{dropped:.1f} s were lost: {waiting}, which is slower than speech here"
            warn(AudioWarning("dropped", what))


def _is_active(stream: Any) -> bool:
    try:
        return bool(getattr(stream, "active", True))
    except Exception:  # from PortAudio: the device is gone
        return False
