"""How well does the demo understand unseen speakers, and what does INT8 cost?

    python benchmarks/demo_wer.py [--speech DIR] [--model models/demo]
        [--out benchmarks/results/demo_wer.md]

Transcribes every dev clip three times: greedy torch on the checkpoint, an fp32 package that this
script exports, and the INT8 package. Reports word error rate per folder, how many clips have
identical tokens, and how far INT8 moves the log-probability of torch's tokens. Exit status 3 if
INT8 exceeds its limits.
"""

from __future__ import annotations

import ark_asr_onnx.model.ort  # noqa: F401 - first: it switches telemetry off

# isort: split
import argparse
import json
import platform
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jiwer
import onnxruntime
import torch
from outside import add_speech, rows
from tqdm import tqdm

from ark_asr_onnx.audio.sources import read
from ark_onnx_export import listen, pipeline, verify
from ark_onnx_export.engines import PackageEngine
from ark_onnx_export.oracle import TorchEngine

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo"
FOLDERS = ("sentences", "digits", "words")
ENGINES = ("fp32", "int8")
MAX_TOKENS = 256
# Limits for INT8 on each dev split: points of WER, mean |dlogp|, share of unchanged clips.
MAX_WER, MAX_DLOGP, MIN_SAME = 0.2, 0.02, 0.99


@dataclass(frozen=True)
class Clip:
    """A dev clip, its words, and the comparison of each engine with torch on it."""

    audio: str
    source: str
    text: str
    judged: dict[str, verify.Comparison]

    def heard(self, engine: str) -> str:
        """The text from torch, fp32 or int8."""
        if engine == "torch":
            return self.judged["int8"].text
        return self.judged[engine].package_text


def transcribe_folder(
    speech: Path, folder: str, oracle: TorchEngine, packages: dict[str, PackageEngine]
) -> list[Clip]:
    """All dev clips of one folder, transcribed by the three engines."""
    clips: list[Clip] = []
    for row in tqdm(rows(speech, f"{folder}/dev"), desc=folder, file=sys.stderr):
        waveform = read(row["path"])
        heard = listen.hear(oracle, row["audio"], waveform, MAX_TOKENS)
        judged = {
            e: verify.compare_clip(package, heard, MAX_TOKENS) for e, package in packages.items()
        }
        clips.append(Clip(row["audio"], row["source"], row["text"], judged))
    return clips


def figures(clips: list[Clip]) -> dict[str, float]:
    """The figures of the table."""
    texts = [clip.text for clip in clips]
    found: dict[str, float] = {"clips": len(clips), "words": sum(len(t.split()) for t in texts)}
    for engine in ("torch", *ENGINES):
        found[f"wer_{engine}"] = 100 * jiwer.wer(texts, [clip.heard(engine) for clip in clips])
    for engine in ENGINES:
        totals = verify.Totals.of([clip.judged[engine] for clip in clips])
        found[f"same_{engine}"] = totals.same_tokens
        found[f"dlogp_{engine}"] = totals.mean_dlogp
    return found


def within_bars(found: dict[str, float]) -> bool:
    """Whether INT8 is within its limits."""
    return (
        found["wer_int8"] - found["wer_fp32"] <= MAX_WER
        and found["dlogp_int8"] <= MAX_DLOGP
        and found["same_int8"] >= MIN_SAME * found["clips"]
    )


def table(groups: dict[str, dict[str, float]]) -> str:
    """A Markdown table with a row for each folder."""
    lines = [
        "| dev split | clips | words | WER torch | WER fp32 | WER INT8 "
        "| same tokens fp32 | same tokens INT8 | mean dlogp INT8 | bars |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --- |",
    ]
    for name, f in groups.items():
        rates = " | ".join(f"{f[f'wer_{engine}']:.2f} %" for engine in ("torch", *ENGINES))
        counts = " | ".join(f"{f[f'same_{engine}']}/{f['clips']}" for engine in ENGINES)
        lines.append(
            f"| {name} | {f['clips']} | {f['words']} | {rates} | {counts} "
            f"| {f['dlogp_int8']:.4f} | {'held' if within_bars(f) else 'MISSED'} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Word error rate of the demo, torch to INT8.")
    add_speech(parser, *(f"{folder}/dev" for folder in FOLDERS))
    parser.add_argument("--model", type=Path, default=DEMO, help="INT8 package of the demo")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--errors", action="store_true", help="list what INT8 got wrong")
    options = parser.parse_args()
    oracle = TorchEngine.open(DEMO / "checkpoint", pipeline.INSTRUCTION)
    int8 = PackageEngine(options.model)
    with tempfile.TemporaryDirectory() as scratch:
        fp32 = pipeline.export(
            DEMO / "checkpoint", Path(scratch) / "fp32", pipeline.Settings(precision="fp32")
        )
        packages = {"fp32": PackageEngine(fp32.directory), "int8": int8}
        clips = {f: transcribe_folder(options.speech, f, oracle, packages) for f in FOLDERS}
    groups = {folder: figures(some) for folder, some in clips.items()}
    for source in sorted({clip.source for clip in clips["digits"]}):
        part = [clip for clip in clips["digits"] if clip.source == source]
        groups[f"digits, {source} only"] = figures(part)
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, onnxruntime "
        f"{onnxruntime.__version__}, {platform.machine()}; "
        f"model.safetensors {int8.manifest.provenance.source_sha256['model.safetensors'][:16]}; "
        f"{int8.manifest.provenance.recipe['matrices']}"
    )
    bars = (
        f"Bars for INT8: WER at most {MAX_WER} points above fp32's, mean |dlogp| of torch's tokens "
        f"at most {MAX_DLOGP}, the same tokens in at least {MIN_SAME:.0%} of the clips."
    )
    report = f"{table(groups)}\n\n{bars}\n\n{versions}\n"
    print(report)
    if options.errors:
        for clip in (clip for some in clips.values() for clip in some):
            if clip.heard("int8") != clip.text:
                print(f"{clip.audio}: {clip.text!r} heard as {clip.heard('int8')!r}")
    if options.out:
        command = "python benchmarks/demo_wer.py --out " + options.out.as_posix()
        head = "# Word error rate of the demo on unseen speakers\n\n`" + command + "`\n\n"
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(head + report, encoding="utf-8")
    print(json.dumps({n: {k: round(v, 5) for k, v in f.items()} for n, f in groups.items()}))
    return 0 if all(within_bars(groups[folder]) for folder in FOLDERS) else 3


if __name__ == "__main__":
    sys.exit(main())
