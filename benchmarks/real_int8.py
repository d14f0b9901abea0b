"""What does INT8 do to a real network, and how much time does accuracy cost?

    python benchmarks/real_int8.py --checkpoint DIR [--speech DIR] [--clips 18]
        [--packages auto rows7 blocks8 published] [--rounds 9] [--work DIR]

One checkpoint with trained weights (``models/real`` makes one) is exported by several recipes. The
packages are compared with the network in torch on speech that was not used for calibration, read
sentences and AN4: relative error of the audio embeddings, median and worst clip; with the
reference's embeddings and tokens, the mean change of a token's log-probability and the share of
same first choices. Then the time of the encoder, recipes in turn, as a multiple of ``rows7``, the
simplest products: for the whole graph, and for its products alone, without attention, norms and
GELU.
"""

from __future__ import annotations

import ark_asr_onnx.model.ort  # noqa: F401 - first: it switches telemetry off

# isort: split
import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
from lab import machine, say, work_folder
from outside import add_speech, rows

from ark_asr_onnx.audio import sources
from ark_asr_onnx.package import contract
from ark_onnx_export import figures, listen, pipeline
from ark_onnx_export.engines import PackageEngine
from ark_onnx_export.mask import blocked
from ark_onnx_export.oracle import TorchEngine

PACKAGES: dict[str, dict[str, Any]] = {
    "auto": {},
    "auto, avx2": {"target": "avx2"},
    "rows8": {"recipe": "rows"},
    "rows7": {"recipe": "rows", "target": "avx2"},
    "blocks8": {"recipe": "blocks8"},
    "published": {"layout": "published"},
}
PLAIN = "rows7"  # the unit of times
SECONDS = (5, 15, 30)
_TOKENS = 60  # of each clip
# Operators that are the same in every recipe; the others belong to the products.
_COMMON = {"MultiHeadAttention", "RotaryEmbedding", "Gelu", "LayerNormalization"}


def clips(speech: Path, n: int) -> list[Path]:
    """``n`` clips, two thirds read speech, one third AN4, evenly spread over the speakers."""
    found: list[Path] = []
    for folder, share in (("read", 2), ("sentences", 1)):
        paths = [row["path"] for row in rows(speech, f"{folder}/dev")]
        chosen = np.linspace(0, len(paths) - 1, max(1, share * n // 3)).astype(int)
        found += [paths[i] for i in chosen]
    return found


def closeness(package: Path, clips: Sequence[listen.Heard]) -> dict[str, float]:
    """The errors of a package relative to the network, over the clips."""
    engine = PackageEngine(package)
    errors: list[float] = []
    changes: list[np.ndarray] = []
    same: list[np.ndarray] = []
    for clip in clips:
        embeds, ids = engine.encode(clip.log_mel), np.array(clip.decoded.token_ids)
        errors.append(float(np.linalg.norm(embeds - clip.audio_embeds)
                            / np.linalg.norm(clip.audio_embeds)))  # fmt: skip
        logits = engine.score(clip.audio_embeds, clip.decoded.token_ids)
        closed = blocked(clip.tokens, logits.shape[1])
        pair = clip.decoded.logits[:, : logits.shape[1]], logits
        expected, found = (figures.log_softmax(each, closed) for each in pair)
        steps = np.arange(len(ids))
        changes.append(np.abs(found[steps, ids] - expected[steps, ids]))
        same.append(found.argmax(axis=1) == ids)
    return {
        "median error": float(np.median(errors)),
        "worst error": max(errors),
        "mean dlogp": float(np.concatenate(changes).mean()),
        "same choices": float(np.concatenate(same).mean()),
        "tokens": sum(map(len, same)),
    }


def session(package: Path, *, profile: str = "") -> Any:
    """The audio graph as the runtime opens it, with two threads that do not spin."""
    options = cast("Any", onnxruntime.SessionOptions())
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return cast("Any", onnxruntime).InferenceSession(
        str(package / contract.AUDIO_FILE), options, providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion", "BiasGeluFusion"],
    )  # fmt: skip


def speed(packages: dict[str, Path], n_mels: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the encoder, by package and length; packages take turns."""
    sessions = {name: session(path) for name, path in packages.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in packages}
    for seconds in SECONDS:
        noise = np.random.default_rng(0).standard_normal((1, n_mels, 100 * seconds), np.float32)
        times: defaultdict[str, list[float]] = defaultdict(list)
        for turn in range(rounds + 1):
            for name, opened in sessions.items():
                begin = time.perf_counter()
                opened.run(None, {contract.LOG_MEL: noise})
                if turn:
                    times[name].append(1000 * (time.perf_counter() - begin))
        for name in packages:
            found[name][f"{seconds} s"] = statistics.median(times[name])
    return found


def products(package: Path, n_mels: int, rounds: int) -> float:
    """Milliseconds of all but :data:`_COMMON` operators, for 15 s, by onnxruntime's profile."""
    with tempfile.TemporaryDirectory() as folder:
        opened = session(package, profile=str(Path(folder) / "profile"))
        noise = np.random.default_rng(0).standard_normal((1, n_mels, 1500), np.float32)
        runs = rounds + 2
        for _ in range(runs):
            opened.run(None, {contract.LOG_MEL: noise})
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
    by_name: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        ran = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if ran and event["args"]["op_name"] not in _COMMON:
            by_name[event["name"]].append(event["dur"] / 1000)
    return sum(statistics.median(times[2:]) for times in by_name.values())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True)
    add_speech(parser, "read/dev", "sentences/dev")
    add("--clips", type=int, default=18)
    add("--packages", nargs="+", choices=list(PACKAGES), default=list(PACKAGES))
    add("--rounds", type=int, default=9)
    add("--work", type=Path, help="where packages are made and kept")
    options = parser.parse_args()
    options.work = options.work or work_folder("real-int8")
    made = {name: options.work / name.replace(", ", "-") for name in options.packages}
    for name, path in made.items():
        if not path.exists():
            say(f"exporting {name}, once: {path}")
            pipeline.export(
                options.checkpoint, path, pipeline.Settings(allow_degraded=True, **PACKAGES[name])
            )
    oracle = TorchEngine.open(options.checkpoint, pipeline.INSTRUCTION)
    heard = [listen.hear(oracle, path.name, sources.read(path, end_seconds=30), _TOKENS)
            for path in clips(options.speech, options.clips)]  # fmt: skip
    figures = {name: closeness(path, heard) for name, path in made.items()}
    n_mels = heard[0].log_mel.shape[1]
    timed = {n: p for n, p in made.items() if PACKAGES[n].get("layout") != "published"}
    times = speed(timed, n_mels, options.rounds)
    for name, path in timed.items():
        times[name]["products"] = products(path, n_mels, options.rounds)
    lengths = [f"{seconds} s" for seconds in SECONDS]
    print(f"| package | median error | worst | mean dlogp | same choices | {' | '.join(lengths)} "
          f"| products |\n| --- |{' --: |' * 8}")  # fmt: skip
    for name, found in figures.items():
        cells = [f"{100 * found['median error']:.2f} %", f"{100 * found['worst error']:.2f} %",
                 f"{found['mean dlogp']:.4f}", f"{found['same choices']:.2%}"]  # fmt: skip
        for key in (*lengths, "products"):
            own, plain = times.get(name, {}).get(key), times.get(PLAIN, {}).get(key)
            cells.append(f"{own / plain:.2f}" if own and plain else "")
        print(f"| {name} | {' | '.join(cells)} |")
    print(json.dumps({"closeness": figures, "ms": times, "clips": len(heard), **machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
