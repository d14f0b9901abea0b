"""Files of a package: graphs, table, tokenizer, manifest; a folder that appears whole or not."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ark_asr_onnx import files
from ark_asr_onnx.errors import ExportError
from ark_asr_onnx.package import contract
from ark_asr_onnx.package.contract import File, Manifest, file_sha256, manifest_to_json

from .config import require_text
from .space import require_absent

_INLINE_BYTES = 1024  # smaller weights (constants of shape logic) stay inside the graph


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A staging folder beside ``out`` that becomes it on success and is removed on failure."""
    require_absent(out)
    require_text(out)
    # The innermost first.
    new_parents = [p for p in out.absolute().parents if not os.path.lexists(p)]
    done = False
    try:
        with contextlib.ExitStack() as stack:
            try:
                staging = stack.enter_context(files.staging(out.parent))
                (staging / out.name).mkdir()  # a name that the disk takes
                (staging / out.name).rmdir()
            except OSError as error:
                raise ExportError(f"cannot write {out}: {error.strerror or error}") from error
            with _temporary_files(staging.parent):
                yield staging
            _publish(staging, out)
            done = True
    except OSError as error:
        raise ExportError(f"writing {out} failed: {error.strerror or error}") from error
    finally:
        for parent in () if done else new_parents:
            with contextlib.suppress(OSError):
                parent.rmdir()


@contextlib.contextmanager
def _temporary_files(folder: Path) -> Iterator[None]:
    """Where the system has no place for temporary files, let torch and onnxruntime use this one."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        if tempfile.tempdir == str(folder):
            tempfile.tempdir = None


def _publish(staging: Path, out: Path) -> None:
    """Rename; where something has taken the place meanwhile, keep the package beside it."""
    try:
        staging.rename(out)
    except OSError as error:
        if not os.path.lexists(out):
            raise
        kept = next(p for i in count(1) if not (p := out.with_name(f"{out.name}-{i}")).exists())
        staging.rename(kept)
        raise ExportError(
            f"{out} appeared in the meantime ({error.strerror}); the package is in {kept}"
        ) from error


def write_graph(model: ir.Model, path: Path) -> None:
    """A graph and, beside it, one file with its weights."""
    ir.save(
        model,
        path,
        external_data=contract.external_data_file(path.name),
        size_threshold_bytes=_INLINE_BYTES,
    )


def write_prefix(caches: Sequence[Tensor], directory: Path) -> None:
    """Keys and values of the prompt's prefix: float32, layer by layer, key before value."""
    with (directory / contract.PREFIX_FILE).open("wb") as stream:
        for cache in caches:
            stream.write(cache.numpy().astype("<f4").tobytes())


def write_cpu_check(directory: Path) -> None:
    """The graph by which the runtime finds out whether this CPU adds products of bytes exactly."""
    rows, depth = contract.CODES_SHAPE
    weights = numpy_helper.from_array(np.full((depth, rows), 127, np.int8), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", [contract.CODES, "weights"], [contract.SUMS])],
        "cpu_check",
        [helper.make_tensor_value_info(contract.CODES, TensorProto.UINT8, [rows, depth])],
        [helper.make_tensor_value_info(contract.SUMS, TensorProto.INT32, [rows, rows])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(directory / contract.CPU_CHECK_FILE))


def write_embedding(table: Tensor, directory: Path, dtype: str) -> None:
    """The table ``[n, hidden]`` as raw rows, and a graph: one ``Gather`` over it.

    ``dtype`` is ``fp32`` or ``fp16``; the graph gives float32 rows in both cases.
    """
    graph_file, data_file = contract.embedding_files(dtype)
    half = dtype == "fp16"
    with (directory / data_file).open("wb") as stream:
        for rows in table.split(4096):
            numbers = rows.float().numpy()
            stream.write(numbers.astype("<f2" if half else "<f4").tobytes())
    n_rows, hidden = table.shape
    weight = TensorProto(
        name="embed_tokens.weight",
        dims=[n_rows, hidden],
        data_type=TensorProto.FLOAT16 if half else TensorProto.FLOAT,
        data_location=TensorProto.EXTERNAL,
    )
    weight.external_data.add(key="location", value=data_file)
    rows_name = "rows" if half else "inputs_embeds"
    nodes = [helper.make_node("Gather", ["embed_tokens.weight", "input_ids"], [rows_name])]
    if half:
        nodes.append(helper.make_node("Cast", ["rows"], ["inputs_embeds"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "embedding",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])],
        [
            helper.make_tensor_value_info(
                "inputs_embeds", TensorProto.FLOAT, ["batch", "seq", hidden]
            )
        ],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(directory / graph_file))


def list_files(directory: Path) -> dict[str, File]:
    """Size and checksum of every file in a folder."""
    return {
        path.name: File(path.stat().st_size, file_sha256(path))
        for path in sorted(directory.iterdir())
        if path.name != contract.MANIFEST_FILE
    }


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """The manifest, written last and flushed to disk."""
    text = manifest_to_json(manifest)
    with (directory / contract.MANIFEST_FILE).open("wb") as stream:
        stream.write(text.encode(errors="backslashreplace"))  # a name may be no UTF-8
        stream.flush()
        os.fsync(stream.fileno())
