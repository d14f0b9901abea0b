"""The mask at work in every kind of package: on a model whose raw first choice is ``<|user|>``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import unguarded

pytest.importorskip("torch")

from make_checkpoint import make_checkpoint
from safetensors.torch import load_file, save_file
from test_published import random_clips

import ark_asr_onnx
from ark_onnx_export import pipeline, reference
from ark_onnx_export.checkpoint import load_network, open_checkpoint, open_text

RATE = 16000
N_TOKENS = 12


def answers(checkpoint_dir: Path, clip: np.ndarray) -> tuple[reference.Reference, int, list[int]]:
    """Torch's greedy answer, its raw first choice, and ``<|user|>`` and end of turn."""
    checkpoint = open_checkpoint(checkpoint_dir)
    network = load_network(checkpoint, max_positions=1024)
    _, tokens = open_text(checkpoint, pipeline.INSTRUCTION)
    found = reference.transcribe(network, tokens, clip, N_TOKENS)
    return found, int(found.logits[0].argmax()), [tokens.prefix[0], *tokens.eos]


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return random_clips(20)[-1]


@pytest.fixture(scope="module", params=["<|user|>", "end of turn"])
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, clip: np.ndarray
) -> Path:
    """A checkpoint with a head of its own, whose rows are exchanged so that one token wins."""
    folder = tmp_path_factory.mktemp("mask") / "checkpoint"
    make_checkpoint(folder, overrides={"tie_word_embeddings": False})
    _, raw, (user, eos) = answers(folder, clip)
    wanted = user if request.param == "<|user|>" else eos
    path = folder / "model.safetensors"
    tensors = load_file(path)
    head = tensors["lm_head.weight"].clone()
    head[[raw, wanted]] = head[[wanted, raw]]
    save_file({**tensors, "lm_head.weight": head}, path, metadata={"format": "pt"})
    _, raw, _ = answers(folder, clip)
    assert raw == wanted
    return folder


def packages(checkpoint: Path, out: Path) -> dict[str, Path]:
    native = {
        f"native, prune={prune}": pipeline.export(
            checkpoint, out / f"native-{prune}", pipeline.Settings(precision="fp32", prune=prune)
        ).directory
        for prune in (True, False)
    }
    published = pipeline.export(
        checkpoint, out / "published", pipeline.Settings(precision="fp32", layout="published")
    ).directory
    int8 = pipeline.export(checkpoint, out / "int8").directory
    return {**native, "published": published, "native, INT8": int8}


def test_only_end_of_turn_escapes_the_mask_in_every_package(
    checkpoint: Path, clip: np.ndarray, tmp_path: Path
) -> None:
    expected, raw, (user, eos) = answers(checkpoint, clip)
    for kind, folder in packages(checkpoint, tmp_path).items():
        transcriber = ark_asr_onnx.load(folder)
        options = unguarded(N_TOKENS)
        found = transcriber.transcribe(clip, RATE, options=options)
        if "INT8" not in kind:
            assert found.token_ids == expected.token_ids, kind
        if raw == user:
            assert user in transcriber.manifest.tokens.stop
            assert user not in found.token_ids, kind
            assert len(found.token_ids) > 1, kind
        else:
            assert found.token_ids == (eos,), kind
            assert (found.text, found.finish_reason) == ("", "stop"), kind


def test_the_heads_of_pruned_and_unpruned_packages_differ_in_size_only(
    checkpoint: Path, tmp_path: Path
) -> None:
    sizes: dict[bool, tuple[int, int]] = {}
    for prune in (True, False):
        made = pipeline.export(
            checkpoint, tmp_path / str(prune), pipeline.Settings(precision="fp32", prune=prune)
        )
        manifest = ark_asr_onnx.load(made.directory).manifest
        sizes[prune] = (manifest.sizes.n_logits, manifest.sizes.vocab_size)
    assert sizes[True][0] < sizes[False][0] == sizes[False][1] == sizes[True][1]
