"""One ONNX graph on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..arrays import Array
from ..errors import DecodeError, PackageError
from ..forks import NO_FORK
from ..package.contract import REMEDY, external_data_file
from ..package.foreign import reason, shortage
from . import ort

Shape = tuple[int | str | None, ...]
Range = tuple[int, int]  # of addresses, the end not included

_ONE_MAPS = threading.Lock()  # so that mappings that appear while a graph is opened belong to it

# One operator for a sum and its LayerNorm takes four times as long as two; for a sum and its GELU,
# three times.
_SLOWER_FUSIONS = ["SkipLayerNormFusion", "BiasGeluFusion"]
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)")
_MADV_DONTNEED = 4
_REMEDIES = {
    # onnxruntime follows links only into the folder where the graph really is; 1.24.1 follows none.
    "escapes model directory": "its weights are a symbolic link: link the whole folder instead of "
    "single files, or upgrade onnxruntime if the folder is Hugging Face's cache",
    "requires procfs": "mount /proc, or install an older onnxruntime",
}


def require_onnxruntime(oldest: str) -> None:
    """Refuse to open graphs that need a newer onnxruntime than the installed one."""
    if ort.release(ort.version()) < ort.release(oldest):
        raise PackageError(
            f"this package needs onnxruntime {oldest} or newer, {ort.version()} is installed; "
            f"pip install 'onnxruntime>={oldest}'"
        )


def open_graphs(paths: Sequence[Path], threads: int, *, is_prepared: bool = False) -> list[Graph]:
    """Open several graphs in parallel, since opening one graph mostly uses a single core.

    Prepared graphs are opened one after the other: they need no packing, and each one's weights,
    which opening reads, are released before the next one is opened.
    """
    if not is_prepared:
        with ThreadPoolExecutor(len(paths)) as pool:
            return list(pool.map(Graph, paths, [threads] * len(paths)))
    graphs: list[Graph] = []
    for path in paths:
        if graphs:
            graphs[-1].give_back()
        graphs.append(Graph(path, threads, is_prepared=True))
    return graphs


def pack(path: Path, out: Path, threads: int) -> None:
    """Write a graph to ``out`` and its weights beside it, optimised and packed for this CPU.

    The result is right only for this CPU and this version of onnxruntime. Raises
    :class:`PackageError` if the graph cannot be opened, ``OSError`` if it cannot be written.
    """
    options = _options(threads)
    options.optimized_model_filepath = str(out)
    for key, value in {
        "session.optimized_model_external_initializers_file_name": external_data_file(out.name),
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.save_external_prepacked_constant_initializers": "1",
    }.items():
        options.add_session_config_entry(key, value)
    with NO_FORK:
        try:
            _open(path, options)
        except PackageError as error:
            if shortage(error.__cause__ or error) is None:
                _open(path, _options(threads))  # raises the error if the graph is wrong
                raise OSError("onnxruntime could not write them; is there room?") from error
            raise


class Graph:
    """An opened graph: named arrays in, named arrays out. Safe to call from several threads.

    ``is_prepared``: its weights are mapped from the file beside it, and can be released.
    """

    def __init__(self, path: Path, threads: int, *, is_prepared: bool = False) -> None:
        self.path = path
        self._data = os.path.realpath(path.with_name(external_data_file(path.name)))
        self._mapped: list[Range] = []
        with NO_FORK, _ONE_MAPS if is_prepared else contextlib.nullcontext():
            before = _untouched_mappings(self._data) if is_prepared else []
            self._session = _open(path, _options(threads))
            if is_prepared:
                self._mapped = _without(_untouched_mappings(self._data), before)
        self.inputs = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        self.outputs = {o.name: tuple(o.shape) for o in self._session.get_outputs()}

    def expect(self, inputs: Mapping[str, Shape], outputs: Sequence[str]) -> None:
        """Raise :class:`PackageError` for another interface; None in a shape is any size."""
        for names, found in ((list(inputs), self.inputs), (outputs, self.outputs)):
            if set(names) != set(found):
                odd = sorted(set(names) ^ set(found))[0]
                raise PackageError(
                    f"{self.path}: unexpected or missing input or output {odd!r}; {REMEDY}"
                )
        for name, shape in inputs.items():
            found = self.inputs[name]
            fits = len(found) == len(shape) and all(
                want is None or have == want for have, want in zip(found, shape, strict=True)
            )
            if not fits:
                raise PackageError(
                    f"{self.path}: input {name!r} is {found}, expected {shape}; {REMEDY}"
                )

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """The arrays of ``outputs``, in that order. Raises :class:`DecodeError`."""
        try:
            return self._session.run(list(outputs), dict(feeds))
        except Exception as error:
            raise _failed(self.path.name, error) from error

    def give_back(self) -> None:
        """Release the pages of a prepared graph's weights; reading the weights maps them again.

        They stay in the system's page cache while it has room. Does nothing outside Linux.
        """
        # Only mappings of this graph: those of another may be closed, and their addresses used
        # again, before madvise is called.
        touched = _without(self._mapped, _untouched_mappings(self._data))
        for begin, end in _without(self._mapped, touched):
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED
            )

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Binding:
        """A reusable call that reads and writes the given arrays in place."""
        return Binding(self._session, self.path.name, inputs, outputs)


class Binding:
    """A call with bound arrays: the caller writes inputs and reads outputs in its own memory.

    One array may be both input and output (the KV cache). Not safe to use from several threads.
    """

    def __init__(
        self, session: Any, name: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        self._session, self._name = session, name
        self._io = session.io_binding()
        for arrays, bind in (
            (inputs, self._io.bind_ortvalue_input),
            (outputs, self._io.bind_ortvalue_output),
        ):
            for key, array in arrays.items():
                assert array.flags.c_contiguous
                bind(key, ort.library.OrtValue.ortvalue_from_numpy(array))

    def set(self, name: str, array: Array) -> None:
        """Bind another input array."""
        self._io.bind_cpu_input(name, array)

    def __call__(self) -> None:
        """Run the graph. Raises :class:`DecodeError`."""
        try:
            self._session.run_with_iobinding(self._io)
        except Exception as error:
            raise _failed(self._name, error) from error


def _untouched_mappings(file: str) -> list[Range]:
    """The mappings of a file by this process that it has not written to."""
    try:
        with Path("/proc/self/smaps").open(encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return []
    ranges: list[Range] = []
    found: Range | None = None
    for line in lines:
        if match := _MAPPING.match(line):
            found = (int(match[1], 16), int(match[2], 16)) if match[3] == file else None
        elif found and line.startswith("Anonymous:"):  # pages that were written, now private
            if line.split()[1] == "0":
                ranges.append(found)
            found = None
    return ranges


def _without(ranges: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    """The parts of ``ranges`` that are in none of ``others``."""
    left = list(ranges)
    for first, last in others:
        cut = [((begin, min(end, first)), (max(begin, last), end)) for begin, end in left]
        left = [part for parts in cut for part in parts if part[0] < part[1]]
    return left


def _options(threads: int) -> Any:
    options = ort.library.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # failures reach the caller as exceptions
    # Threads spin only while more work follows directly: within a call, and until the next token.
    # Then they sleep. Older releases would spin for tens of milliseconds, or not at all.
    if ort.release(ort.version()) >= (1, 26):
        options.add_session_config_entry("session.intra_op.spin_duration_us", "2000")
    else:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _open(path: Path, options: Any) -> Any:
    try:
        return ort.Session(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_SLOWER_FUSIONS,
            read_config_from_model=0,
        )
    except Exception as error:  # the failures have no common class
        if found := shortage(error):
            raise PackageError(f"{path}: cannot open this graph: {found}") from error
        remedy = next((told for found, told in _REMEDIES.items() if found in str(error)), REMEDY)
        raise PackageError(
            f"{path}: onnxruntime {ort.version()} cannot open this graph ({reason(error)}); "
            f"{remedy}"
        ) from error


def _failed(name: str, error: Exception) -> DecodeError:
    """The error of a run of a graph."""
    return DecodeError(f"{name}: {shortage(error) or reason(error)}")
