"""The torch modules against oracles: transformers where it has the layer, else slow numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from conftest import without_rope

torch = pytest.importorskip("torch")

from ark_onnx_export.checkpoint import Network, load_network, open_checkpoint  # noqa: E402
from ark_onnx_export.modeling import ops  # noqa: E402
from ark_onnx_export.reference import lengths  # noqa: E402

# Same weights on both sides, fp32; sums in another order cost a few ulps of values near 10.
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def network(tiny_checkpoint: Path) -> Network:
    return load_network(open_checkpoint(tiny_checkpoint), max_positions=1024)


def numpy_rope_interleaved(x: np.ndarray, rotary: int, theta: float) -> np.ndarray:
    """Complex multiplication of the pairs (x0,x1), (x2,x3)… of ``[S, heads, dim]``, in loops."""
    out = x.astype(np.float64).copy()
    for position in range(x.shape[0]):
        for head in range(x.shape[1]):
            for i in range(rotary // 2):
                angle = position * theta ** (-2 * i / rotary)
                pair = complex(*x[position, head, 2 * i : 2 * i + 2])
                turned = pair * complex(np.cos(angle), np.sin(angle))
                out[position, head, 2 * i : 2 * i + 2] = turned.real, turned.imag
    return out


def test_encoder_rope_turns_neighbouring_pairs_of_half_of_each_head() -> None:
    x = torch.randn(1, 37, 3 * 64)
    cos, sin = ops.rope_tables(100, 32, 10000.0)
    found = ops.rotate_interleaved(x, cos, sin, n_heads=3).numpy().reshape(37, 3, 64)
    expected = numpy_rope_interleaved(x.numpy().reshape(37, 3, 64), 32, 10000.0)
    assert np.abs(found - expected).max() <= TOLERANCE
    np.testing.assert_array_equal(found[..., 32:], x.numpy().reshape(37, 3, 64)[..., 32:])


def test_the_first_rope_factors_are_those_the_ports_report() -> None:
    cos, _ = ops.rope_tables(2, 32, 10000.0)
    factors = np.arccos(cos[1].numpy()[:4])
    np.testing.assert_allclose(factors, [1, 0.562341, 0.316228, 0.177828], atol=1e-4)


@pytest.mark.parametrize("n_frames", [1, 2, 3, 4, 5, 7, 8, 9, 11, 12])
def test_merge_keeps_whole_groups_and_fills_a_short_clip_with_zeros(
    network: Network, n_frames: int
) -> None:
    encoded = torch.randn(1, n_frames, 128)
    rows: list[np.ndarray] = []
    for group in range(max(n_frames // 4, 1)):
        row = [encoded[0, 4 * group + k].tolist() if 4 * group + k < n_frames else [0.0] * 128
               for k in range(4)]  # fmt: skip
        rows.append(np.concatenate(row))
    np.testing.assert_array_equal(
        network.tower.merge(encoded)[0].numpy(), np.stack(rows).astype(np.float32)
    )


def test_nine_encoder_frames_give_two_audio_rows(network: Network) -> None:
    assert network.tower.merge(torch.zeros(1, 9, 128)).shape == (1, 2, 512)


@pytest.mark.parametrize(("n_samples", "n_audio"), [(48000, 37), (64000, 50), (192800, 150)])
def test_audio_rows_per_clip_are_those_of_the_published_ports(
    network: Network, n_samples: int, n_audio: int
) -> None:
    log_mel = torch.zeros(1, 80, n_samples // 160)
    assert network.tower(log_mel).shape == (1, n_audio, 64)


@pytest.fixture(scope="module")
def network_without_rope(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return load_network(open_checkpoint(without_rope(tmp_path_factory.mktemp("positions"))), 1024)


@pytest.mark.parametrize("n_frames", [1, 2, 3, 57, 100])
def test_encoder_without_rope_is_transformers_whisper_encoder(
    network_without_rope: Network, n_frames: int
) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    tower, n_positions = network_without_rope.tower, (n_frames + 1) // 2
    config = transformers.WhisperConfig(
        d_model=128, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=160,
        num_mel_bins=80, max_source_positions=n_positions, activation_function="gelu",
        attn_implementation="eager",
    )  # fmt: skip
    oracle = WhisperEncoder(config).eval()
    weights = {k: v.float() for k, v in tower.audio_encoder.whisper.state_dict().items()}
    # transformers takes clips of one length only: as many positions as there are frames.
    weights["embed_positions.weight"] = weights["embed_positions.weight"][:n_positions]
    # Ark replaces Whisper's final norm by the adapter's.
    weights |= {
        f"layer_norm.{k}": v.float() for k, v in tower.audio_encoder.layer_norm.state_dict().items()
    }
    oracle.load_state_dict(weights, strict=True)
    log_mel = torch.randn(1, 80, 2 * n_positions)
    with torch.inference_mode():
        found, expected = tower.encode(log_mel), oracle(log_mel).last_hidden_state
    assert (found - expected).abs().max() <= TOLERANCE


def test_a_mask_makes_a_padded_clip_equal_the_unpadded_one() -> None:
    encoded = torch.randn(1, 20, 128)
    padded = torch.cat((encoded, torch.randn(1, 6, 128)), dim=1)
    bias = torch.zeros(1, 1, 1, 26)
    bias[..., 20:] = -torch.inf
    alone = ops.attention(encoded, encoded, encoded, 2)
    masked = ops.attention(padded, padded, padded, 2, bias)[:, :20]
    assert (alone - masked).abs().max() <= TOLERANCE


def qwen2(network: Network, *, tied: bool) -> Any:
    """transformers' Qwen2 with the decoder's weights."""
    transformers = pytest.importorskip("transformers")
    c = network.decoder.config
    config = transformers.Qwen2Config(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.ffn_dim,
        num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads, rms_norm_eps=c.rms_norm_eps, rope_theta=c.rope_theta,
        max_position_embeddings=1024, tie_word_embeddings=tied, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).eval()
    weights = {**network.decoder.state_dict(), "model.embed_tokens.weight": network.table}
    model.load_state_dict(weights, strict=True)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_decoder_is_transformers_qwen2(tiny_checkpoint: Path, tied: bool) -> None:
    network = load_network(open_checkpoint(tiny_checkpoint), max_positions=1024)
    if not tied:
        head = torch.randn_like(network.table) * 0.1
        network.decoder.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    oracle = qwen2(network, tied=tied)
    embeds = torch.randn(2, 17, 64)
    with torch.inference_mode():
        past = network.decoder.empty_past(batch=2)
        found, present = network.decoder(embeds, *lengths(17, batch=2), past)
        expected = oracle(inputs_embeds=embeds, use_cache=True)
    assert (found[:, 0] - expected.logits[:, -1]).abs().max() <= TOLERANCE
    keys = cast("Any", expected.past_key_values).layers[1].keys
    assert (present[1][0] - keys).abs().max() <= TOLERANCE


def test_decoder_with_past_is_transformers_qwen2_with_past(network: Network) -> None:
    oracle = qwen2(network, tied=True)
    embeds = torch.randn(1, 23, 64)
    found, expected = [], []
    with torch.inference_mode():
        past, cache = network.decoder.empty_past(), None
        for begin, end in ((0, 9), (9, 10), (10, 16), (16, 17), (17, 23)):
            part = embeds[:, begin:end]
            logits, past = network.decoder(part, *lengths(end), past)
            output = oracle(inputs_embeds=part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(logits[0, 0])
            expected.append(output.logits[0, -1])
    assert (torch.stack(found) - torch.stack(expected)).abs().max() <= TOLERANCE


def test_packing_the_projections_changes_nothing(tiny_checkpoint: Path) -> None:
    network = load_network(open_checkpoint(tiny_checkpoint), max_positions=1024)
    attention = network.decoder.model.layers[0].self_attn
    x = torch.randn(1, 5, 64)
    with torch.inference_mode():
        before = attention.project(x)
        attention.pack()
        assert (attention.project(x) - before).abs().max() <= 1e-6
