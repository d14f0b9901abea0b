"""Does OpenVINO's encoder compute the same as ours, and what is the error of its precisions?

    python benchmarks/openvino_fidelity.py --peers-python PYTHON [--layers 2] [--clips 14]
        [--checkpoint DIR] [--speech DIR] [--threads 2] [--keep DIR]

Prints the relative error of the audio embeddings against the fp32 tower in torch: with random
weights of the true width on noise, or with the network of ``--checkpoint`` on read speech,
calibrated on other clips. Exit status 1 if the error of fp32 exceeds 1e-4, which would mean another
network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import outside
import torch
from lab import ROOT, Subject, machine, say
from real_peers import read_clips
from subjects import AUDIO, HIDDEN
from torch import nn

from ark_asr_onnx.audio import mel, sources
from ark_onnx_export.checkpoint import load_network, open_checkpoint
from ark_onnx_export.config import AudioConfig
from ark_onnx_export.modeling import AudioTower

F32 = npt.NDArray[np.float32]
VARIANTS = {
    "openvino_fp32": "fp32",
    "openvino_bf16": "bf16",
    "openvino_weights8": "INT8 weights, activations in groups of 128",
    "openvino_weights8_bf16": "the same, rest bf16",
    "openvino_static8": "INT8 static",
    "openvino_static8_bf16": "INT8 static, rest bf16",
}
_LIMIT = 1e-4  # of fp32, for sums in another order
_N_CALIBRATION = 8  # clips


def random_tower(n_layers: int) -> AudioTower:
    """The 0.6B tower with fewer layers; norms and biases are random too, so that all are tested."""
    torch.manual_seed(0)
    tower = AudioTower(AudioConfig(**{**AUDIO, "n_layers": n_layers}), HIDDEN)
    for name, parameter in tower.named_parameters():
        nn.init.normal_(parameter, float(name.endswith("norm.weight")), 0.02)
    return tower.eval()


def noise(n_mels: int) -> Iterator[F32]:
    """Log-mels of several lengths; the last ones are shorter than a group, or no multiple of it."""
    generator = np.random.default_rng(0)
    for frames in (500, 1501, 1203, 3000, 57, 5):
        yield generator.standard_normal((1, n_mels, frames), np.float32)


def sizes(tower: AudioTower) -> dict[str, Any]:
    """The fields of ``openvino_encoder.Sizes``."""
    config = asdict(tower.config)
    for name in ("max_frames", "n_stored_positions"):
        del config[name]
    hidden_size = tower.get_parameter("audio_encoder.adapting.2.weight").shape[0]
    return {**config, "max_positions": tower.config.max_positions, "hidden_size": hidden_size}


def store(tower: AudioTower, calibration: list[F32], path: Path) -> None:
    """Write the file that ``openvino_encoder.py`` reads."""
    tensors = {n: p.detach().float().numpy() for n, p in tower.named_parameters()}
    log_mels = {f"log_mel{i}": log_mel for i, log_mel in enumerate(calibration)}
    arrays: dict[str, Any] = {**tensors, **log_mels, "sizes": json.dumps(sizes(tower))}
    np.savez(path, **arrays)


def errors(
    tower: AudioTower, log_mels: list[F32], calibration: list[F32], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Relative errors of all inputs, for every variant."""
    python = str(options.peers_python)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        store(tower, calibration, scratch / "network.npz")
        script = ROOT / "benchmarks" / "openvino_encoder.py"
        graphs = options.keep or scratch / "graphs"
        subprocess.run([python, script, scratch / "network.npz", graphs], check=True)
        with torch.inference_mode():
            exact = [tower(torch.from_numpy(log_mel)).numpy() for log_mel in log_mels]
        arguments = {"model": str(graphs), "threads": options.threads}
        for variant in VARIANTS:
            subject = Subject("openvino", {**arguments, "variant": variant}, python)
            found[variant] = []
            for log_mel, reference in zip(log_mels, exact, strict=True):
                np.save(scratch / "in.npy", log_mel)
                subject("save", log_mel=str(scratch / "in.npy"), out=str(scratch / "out.npy"))
                difference = np.linalg.norm(np.load(scratch / "out.npy") - reference)
                found[variant].append(float(difference / np.linalg.norm(reference)))
            subject.close()
            say(f"  {variant}: {np.median(found[variant]):.2e}")
    return found


def arguments() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers-python", type=Path, required=True, help="a Python with benchmarks/peers.txt")
    add("--checkpoint", type=Path, help="a network of ours")
    add("--layers", type=int, default=2, help="of the random network")
    add("--clips", type=int, default=14)
    add("--speech", default="", metavar="DIR", help=outside.SPEECH_HELP)
    add("--threads", type=int, default=2)
    add("--keep", type=Path, help="leave the graphs here, for real_peers.py")
    return parser


def main() -> int:
    """Command line."""
    options = arguments().parse_args()
    if options.checkpoint:
        speech = outside.speech(options.speech, "read/dev")
        tower = load_network(open_checkpoint(options.checkpoint), 1024).tower
        clips = read_clips(speech, options.clips + _N_CALIBRATION)
        n_mels = tower.config.n_mels
        all_mels = [mel.log_mel(sources.read(clip.path), n_mels) for clip in clips]
        calibration, log_mels = all_mels[:_N_CALIBRATION], all_mels[_N_CALIBRATION:]
    else:
        tower = random_tower(options.layers)
        log_mels = list(noise(tower.config.n_mels))
        generator = np.random.default_rng(1)
        shape = (1, tower.config.n_mels, 500)
        calibration = [generator.standard_normal(shape, np.float32) for _ in range(2)]
    found = errors(tower, log_mels, calibration, options)
    print("| OpenVINO | median error | worst |\n| --- | --: | --: |")
    for variant, values in found.items():
        print(f"| {VARIANTS[variant]} | {np.median(values):.2e} | {max(values):.2e} |")
    print(json.dumps({"machine": machine(), "sizes": sizes(tower), "errors": found}))
    return int(max(found["openvino_fp32"]) > _LIMIT)


if __name__ == "__main__":
    sys.exit(main())
