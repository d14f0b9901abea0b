"""How long does the encoder take, against the published package and other engines?

python benchmarks/encoder.py [--size 0.6B] [--rounds 5] [--plan FILE] [--peers-python PYTHON]

From log-mel to audio embeddings, for 30 s, 15 s and 5 s; CTranslate2 runs the same shape without
adapter. The error of OpenVINO's precisions, relative to its own fp32, is shown with the times.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from lab import Lab, Row, Subject, alternate, faster, main, say, spread
from subjects import MELS

_PEERS = {
    "ctranslate2": ("CTranslate2 INT8", ">= 1.7"),
    "torch_encoder": ("torch INT8 dynamic", ""),
    "openvino_fp32": ("OpenVINO fp32", ""),
    "openvino_bf16": ("OpenVINO bf16", ""),
    "openvino_weights8": ("OpenVINO INT8 weights, groups of 128", ""),
    "openvino_weights8_bf16": ("OpenVINO INT8 weights, groups of 128, rest bf16", ""),
    "openvino_static8": ("OpenVINO INT8 static", ""),
    "openvino_static8_bf16": ("OpenVINO INT8 static, rest bf16", ""),
}
_EXACT = "openvino_fp32"


def measure(lab: Lab) -> list[Row]:
    """Rows for 30 s, 15 s and 5 s."""
    rows: list[Row] = []
    planned = ["random"] if lab.plan else []  # beside a real plan, that of the random weights
    with lab.subjects("native", "published", *planned, *_PEERS) as subjects:
        lab.findings["openvino_errors"] = errors(subjects)
        lengths = ((30, ">= 1.9", lab.rounds), (15, "", lab.rounds), (5, ">= 2.4", 2 * lab.rounds))
        for seconds, target, rounds in lengths:
            frames = 100 * seconds
            questions = {n: partial(s, "encode", frames=frames) for n, s in subjects.items()}
            found = alternate(rounds, questions)
            lab.findings[f"encode_{seconds}s"] = found
            for name, times in found.items():
                say(f"  {name}: {seconds} s in {spread(times)} s")
            ours = found["native"]
            rows.append(faster(f"encoder, {seconds} s", ours, found["published"], target, "s"))
            if planned:
                what = f"encoder, {seconds} s, plan of random weights"
                rows.append(faster(what, found["random"], found["published"], "", "s"))
            for name, (label, limit) in _PEERS.items():
                if name in found:
                    what = f"encoder, {seconds} s, {label}"
                    rows.append(
                        faster(what, ours, found[name], limit if seconds == 30 else "", "s")
                    )
    return rows


def errors(subjects: Mapping[str, Subject]) -> dict[str, float]:
    """Relative error of OpenVINO's precisions on the random weights, on 5 s of noise."""
    if _EXACT not in subjects:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        log_mel, out = Path(folder) / "in.npy", Path(folder) / "out.npy"
        noise = np.random.default_rng(2).standard_normal((1, MELS, 500), np.float32)
        np.save(log_mel, noise)

        def embeds(name: str) -> np.ndarray:
            subjects[name]("save", log_mel=str(log_mel), out=str(out))
            return np.load(out)

        exact = embeds(_EXACT)
        names = [n for n in subjects if n.startswith("openvino") and n != _EXACT]
        found = {n: np.linalg.norm(embeds(n) - exact) / np.linalg.norm(exact) for n in names}
    for name, error in found.items():
        say(f"  {name}: error {100 * error:.2f} %")
    return {name: float(error) for name, error in found.items()}


if __name__ == "__main__":
    sys.exit(main(measure, __doc__))
