"""``ark-asr batch`` on a cluster: Ray Data writes the same rows.

    pip install 'ark-asr-onnx[ray]'
    python examples/ray_batch.py --model DIR --input in.jsonl --output DIR [--actors 2]

Every actor opens the model once. Model and audio must have the same paths on all machines: on a
shared file system, or in the machines' image. The output files, joined in the order of their names,
equal the file that ``ark-asr batch`` writes.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
from ray.data.block import BlockAccessor
from ray.data.datasource import BlockBasedFileDatasink

import ark_asr_onnx
from ark_asr_onnx import ArkError, RecordsError
from ark_asr_onnx.corpus.batch import output_row, record_clip
from ark_asr_onnx.corpus.journal import row_line
from ark_asr_onnx.corpus.records import read_records


class Transcribe:
    """Turns batches of records into lines of output; Ray makes one in each actor."""

    def __init__(self, model: str, threads: int, slots: int) -> None:
        self._transcriber = ark_asr_onnx.load(model, threads=threads)
        self._slots = slots

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        """The column ``line`` of a batch with the column ``record``."""
        # Pickled, because fields differ from record to record, and a column has one type.
        records = [pickle.loads(record) for record in batch["record"]]
        clips = [record_clip(record) for record in records]
        results = self._transcriber.transcribe_many(clips, slots=self._slots)
        rows = [output_row(*pair) for pair in zip(records, results, strict=True)]
        return {"line": [row_line(row) for row in rows]}


class JsonLines(BlockBasedFileDatasink):
    """Files that hold the column ``line`` and nothing else."""

    def write_block_to_file(self, block: BlockAccessor, file: Any) -> None:
        """Write a block; Ray opens the file."""
        for row in block.iter_rows(public_row_format=True):
            file.write(row["line"])


def main(argv: Sequence[str] | None = None) -> int:
    """Transcribe a list with the cluster of ``$RAY_ADDRESS``, else with this machine."""
    parser = argparse.ArgumentParser(description="Transcribe a JSON Lines list with Ray Data.")
    add = parser.add_argument
    add("--model", required=True, help="model folder or Hugging Face id")
    add("--input", required=True, type=Path, help="JSON Lines, see ark-asr batch")
    add("--output", required=True, help="new folder, or address such as s3://bucket/folder")
    add("--actors", type=int, default=2, help="processes that transcribe")
    add("--threads", type=int, default=1, help="threads, and CPUs, of each process")
    add("--slots", type=int, default=8, help="windows that each process decodes together")
    add("--batch-size", type=int, default=64, help="records that a process gets at a time")
    arguments = parser.parse_args(argv)
    try:
        transcribe(arguments)
    except ArkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def transcribe(arguments: argparse.Namespace) -> None:
    """Turn the records of the input into lines of the output."""
    if Path(arguments.output).is_dir() and any(Path(arguments.output).iterdir()):
        raise RecordsError(f"{arguments.output}: is not empty, give a new folder")
    records = read_records(arguments.input.resolve())
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    dataset = ray.data.from_items([{"record": pickle.dumps(record)} for record in records])
    dataset = dataset.map_batches(
        Transcribe,
        fn_constructor_kwargs={
            "model": arguments.model,
            "threads": arguments.threads,
            "slots": arguments.slots,
        },
        batch_size=arguments.batch_size,
        compute=ray.data.ActorPoolStrategy(size=arguments.actors),
        num_cpus=arguments.threads,
    )
    # Writing requests no CPU: actors may hold all of them, and writing would wait for ever.
    dataset.write_datasink(
        JsonLines(arguments.output, file_format="jsonl"), ray_remote_args={"num_cpus": 0}
    )


if __name__ == "__main__":
    sys.exit(main())
