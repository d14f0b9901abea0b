"""One ONNX graph on the CPU. The only module that touches onnxruntime."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

# Before the import: onnxruntime 1.32 opens a database, looks up a host, and has threads for that.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

from ..arrays import Array
from ..errors import DecodeError, PackageError
from ..package.contract import REMEDY, external_data_file

Shape = tuple[int | str | None, ...]

ort = cast("Any", onnxruntime)  # ships no types

# Each failure of onnxruntime is a class of its own, derived from Exception alone.
_ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    item
    for item in cast("dict[str, object]", vars(ort.capi.onnxruntime_pybind11_state)).values()
    if isinstance(item, type) and issubclass(item, Exception)
)
# A sum and its LayerNorm as one operator take four times as long as two; a sum and its GELU, three.
_SLOWER_FUSIONS = ["SkipLayerNormFusion", "BiasGeluFusion"]
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)")
_MADV_DONTNEED = 4
_LINK_REMEDY = (
    "its weights are a symbolic link: link the whole folder instead of single files, or upgrade "
    "onnxruntime if the folder is Hugging Face's cache"
)


def version() -> str:
    """The installed onnxruntime's version."""
    return str(ort.__version__)


def require_onnxruntime(oldest: str) -> None:
    """Refuse to open graphs that need a newer onnxruntime than the installed one."""
    if _release(ort.__version__) < _release(oldest):
        raise PackageError(
            f"this package needs onnxruntime {oldest} or newer, {ort.__version__} is installed; "
            f"pip install 'onnxruntime>={oldest}'"
        )


def open_graphs(paths: Sequence[Path], threads: int, *, prepared: bool = False) -> list[Graph]:
    """Open several graphs side by side: most of the work of opening one leaves a core idle.

    Prepared ones are opened one after the other: nothing is packed, and only the last one's
    weights, which opening reads, are left in memory.
    """
    if not prepared:
        with ThreadPoolExecutor(len(paths)) as pool:
            return list(pool.map(Graph, paths, [threads] * len(paths)))
    graphs: list[Graph] = []
    for path in paths:
        if graphs:
            graphs[-1].give_back()
        graphs.append(Graph(path, threads))
    return graphs


def pack(path: Path, out: Path, threads: int) -> None:
    """Write a graph to ``out`` and its weights beside it, optimised and packed for this CPU.

    What is written is right for this CPU and this version of onnxruntime alone.
    """
    options = _options(threads)
    options.optimized_model_filepath = str(out)
    for key, value in {
        "session.optimized_model_external_initializers_file_name": external_data_file(out.name),
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.save_external_prepacked_constant_initializers": "1",
    }.items():
        options.add_session_config_entry(key, value)
    _open(path, options)


class Graph:
    """An opened graph: named arrays in, named arrays out. Safe to call from several threads."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = _open(path, _options(threads))
        self.path = path
        self.inputs = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        self.outputs = {o.name: tuple(o.shape) for o in self._session.get_outputs()}

    def expect(self, inputs: Mapping[str, Shape], outputs: Sequence[str]) -> None:
        """Refuse a graph whose interface differs; in a shape ``None`` stands for any size."""
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
        """Output arrays, in the order asked for."""
        try:
            return self._session.run(list(outputs), dict(feeds))
        except _ORT_ERRORS as error:
            raise DecodeError(f"{self.path.name}: {_first(error)}") from error

    def give_back(self) -> None:
        """Unmap the pages of weights that a file holds; they come back when they are read.

        They stay in the system's page cache while it has room. Nothing happens for weights in
        memory of the process, and outside Linux.
        """
        data = os.path.realpath(self.path.with_name(external_data_file(self.path.name)))
        for begin, length in _untouched_mappings(data):
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(begin), ctypes.c_size_t(length), _MADV_DONTNEED
            )

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Binding:
        """A reusable call that reads and writes the given arrays in place."""
        return Binding(self._session, self.path.name, inputs, outputs)


class Binding:
    """A call whose arrays are bound: the caller writes inputs and reads outputs in its own memory.

    One array may be input and output at once (the KV cache). Not for several threads.
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
                bind(key, ort.OrtValue.ortvalue_from_numpy(array))

    def set(self, name: str, array: Array) -> None:
        """Bind another input array."""
        self._io.bind_cpu_input(name, array)

    def __call__(self) -> None:
        """Run; :class:`DecodeError` when the graph refuses."""
        try:
            self._session.run_with_iobinding(self._io)
        except _ORT_ERRORS as error:
            raise DecodeError(f"{self._name}: {_first(error)}") from error


def _untouched_mappings(file: str) -> Iterator[tuple[int, int]]:
    """Address and length of what this process maps of a file and has not written to."""
    try:
        with Path("/proc/self/smaps").open(encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return
    found: tuple[int, int] | None = None
    for line in lines:
        if match := _MAPPING.match(line):
            begin, end = int(match[1], 16), int(match[2], 16)
            found = (begin, end - begin) if match[3] == file else None
        elif found and line.startswith("Anonymous:"):  # pages that were written, now our own
            if line.split()[1] == "0":
                yield found
            found = None


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # failures reach the caller as exceptions
    # Threads wait in a loop where work comes at once: within a call, and until the next token.
    # Then they sleep; older releases would go on for tens of milliseconds, or stop at once.
    if _release(ort.__version__) >= (1, 26):
        options.add_session_config_entry("session.intra_op.spin_duration_us", "2000")
    else:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _open(path: Path, options: Any) -> Any:
    try:
        return ort.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_SLOWER_FUSIONS,
        )
    except _ORT_ERRORS as error:
        # Links are followed only to the folder where the graph itself really lies, and by
        # 1.24.1 not at all.
        remedy = _LINK_REMEDY if "escapes model directory" in str(error) else REMEDY
        raise PackageError(
            f"{path}: onnxruntime {ort.__version__} cannot open this graph ({_first(error)}); "
            f"{remedy}"
        ) from error


def _release(version: str) -> tuple[int, ...]:
    """``1.22.0+local`` as ``(1, 22, 0)``."""
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))


def _first(error: Exception) -> str:
    """First line of an onnxruntime message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
