"""Folding: the same network to the last bit, and every matrix accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ark_asr_onnx.package import contract  # noqa: E402
from ark_onnx_export import quantize, trace  # noqa: E402
from ark_onnx_export.checkpoint import (  # noqa: E402
    Checkpoint,
    Network,
    graph_weight,
    load_network,
    open_checkpoint,
)
from ark_onnx_export.parity import session  # noqa: E402
from ark_onnx_export.smoothing import (  # noqa: E402
    Fold,
    audio_sites,
    best_factor,
    decoder_sites,
    folded,
)
from ark_onnx_export.unfold import unfold_convolutions  # noqa: E402
from ark_onnx_export.write import write_graph  # noqa: E402


@pytest.fixture(scope="module")
def opened(tiny_checkpoint: Path) -> tuple[Checkpoint, Network]:
    checkpoint = open_checkpoint(tiny_checkpoint)
    return checkpoint, load_network(checkpoint, 512)


def graphs(checkpoint: Checkpoint, network: Network, fold: Fold, folder: Path) -> dict[str, Path]:
    n_logits = network.decoder.config.vocab_size

    def weights(name: str) -> Any:
        return graph_weight(checkpoint, network, name, n_logits, fold)

    hidden = network.table.shape[1]
    models = {
        contract.AUDIO_FILE: trace.trace_audio(checkpoint.config.audio, hidden, weights),
        contract.DECODER_FILE: trace.trace_decoder(network.decoder.config, 512, weights),
    }
    for name, model in models.items():
        write_graph(model, folder / name)
    return {name: folder / name for name in models}


def powers_of_two(n: int, seed: int) -> np.ndarray:
    return np.exp2(np.random.default_rng(seed).integers(-4, 5, n)).astype(np.float32)


def test_every_matrix_of_both_graphs_has_exactly_one_site(
    opened: tuple[Checkpoint, Network],
) -> None:
    checkpoint, network = opened
    models = {
        "audio": trace.trace_audio(
            checkpoint.config.audio, network.table.shape[1], checkpoint.tensor
        ),
        "decoder": trace.trace_decoder(
            network.decoder.config, 512, lambda n: graph_weight(checkpoint, network, n, 40)
        ),
    }
    for part, sites in (
        ("audio", audio_sites(checkpoint.config)),
        ("decoder", decoder_sites(checkpoint.config)),
    ):
        unfold_convolutions(models[part])
        stored = [node.inputs[1] for node in quantize.matrix_nodes(models[part])]
        assert sorted(w for site in sites for w in site.weights) == sorted(
            str(value.name) for value in stored if value is not None
        )


def test_folded_graphs_compute_the_same_bits(
    opened: tuple[Checkpoint, Network], tmp_path: Path
) -> None:
    checkpoint, network = opened
    sites = [*audio_sites(checkpoint.config), *decoder_sites(checkpoint.config)]
    widths = {}
    for site in sites:
        if site.writers:
            part = network.decoder if site.name.startswith(("model", "lm")) else network.tower
            module: Any = part.get_submodule(site.modules[0])
            widths[site.name] = module.weight.shape[1] // site.repeat
    factors = {name: powers_of_two(n, seed) for seed, (name, n) in enumerate(widths.items())}
    assert len(factors) >= 8
    folders = [tmp_path / name for name in ("plain", "folded")]
    for folder in folders:
        folder.mkdir()
    plain = graphs(checkpoint, network, lambda _, tensor: tensor, folders[0])
    smooth = graphs(checkpoint, network, folded(sites, factors, {}), folders[1])
    for name in plain:
        data = [(folder / f"{name}.data").read_bytes() for folder in folders]
        assert data[0] != data[1]
    mel = np.random.default_rng(0).standard_normal((1, checkpoint.config.audio.n_mels, 37), "f4")
    a, b = (
        session(path[contract.AUDIO_FILE]).run(None, {"log_mel": mel})[0]
        for path in (plain, smooth)
    )
    np.testing.assert_array_equal(a, b)
    config = network.decoder.config
    feeds = {
        "inputs_embeds": np.random.default_rng(1).standard_normal((1, 5, config.hidden_size), "f4"),
        "seqlens_k": np.array([4], np.int32),
        "total_sequence_length": np.array(5, np.int32),
        **{
            name: np.zeros((1, config.n_kv_heads, 0, config.head_dim), np.float32)
            for name in contract.past_names(config.n_layers)
        },
    }
    found = [session(path[contract.DECODER_FILE]).run(None, feeds) for path in (plain, smooth)]
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_factors_are_powers_of_two_and_even_out_a_loud_channel() -> None:
    largest = torch.ones(8)
    largest[3] = 300
    factor = best_factor(largest, torch.ones(4, 8), 1.0)
    assert torch.equal(factor.log2(), factor.log2().round())
    assert (largest / factor).max() < 3 * (largest / factor).min()
    # The weights alone: strength 0 makes them alike and leaves the inputs to themselves.
    weights = torch.ones(4, 8)
    weights[:, 5] = 64
    assert torch.equal(
        best_factor(torch.ones(8), weights, 0.0) * weights[0], torch.full((8,), 2.0**1)
    )


def test_repeated_channels_share_a_factor() -> None:
    largest = torch.tensor([1.0, 16.0, 1.0, 2.0])  # two channels, side by side twice
    factor = best_factor(largest, torch.ones(3, 4), 1.0, repeat=2)
    assert factor.shape == (2,)
    assert factor[1] / factor[0] == 16
