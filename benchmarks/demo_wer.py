"""How well does the demo understand unseen speakers, and what does INT8 cost?

    python benchmarks/demo_wer.py --speech ../shared/speech [--out benchmarks/results/demo_wer.md]

Transcribes every dev clip three times: greedy torch on the checkpoint, an fp32 package that this
script exports, and the shipped INT8 package. Reports word error rate per folder and how many clips
have identical tokens. Needs the corpus folders described in models/demo/README.md.
"""

from __future__ import annotations

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
from tqdm import tqdm

import ark_asr_onnx
from ark_asr_onnx.audio import read
from ark_asr_onnx.text import clean
from ark_onnx_export import pipeline, reference
from ark_onnx_export.checkpoint import load_network, open_checkpoint, open_text

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo"
FOLDERS = ("sentences", "digits", "words")
ENGINES = ("torch", "fp32", "int8")


@dataclass(frozen=True)
class Clip:
    """A dev clip and what the three engines heard."""

    audio: str
    source: str
    text: str
    heard: dict[str, str]
    tokens: dict[str, tuple[int, ...]]


def transcribe_folder(
    speech: Path, folder: str, fp32: ark_asr_onnx.Transcriber, int8: ark_asr_onnx.Transcriber
) -> list[Clip]:
    """All dev clips of one folder through the three engines."""
    checkpoint_dir = DEMO / "checkpoint"
    checkpoint = open_checkpoint(checkpoint_dir)
    network = load_network(checkpoint, int8.manifest.sizes.max_positions)
    text, tokens = open_text(checkpoint, pipeline.INSTRUCTION)
    clips: list[Clip] = []
    manifest = (speech / folder / "dev.jsonl").read_text(encoding="utf-8")
    for line in tqdm(manifest.splitlines(), desc=folder, file=sys.stderr):
        row = json.loads(line)
        waveform = read(speech / folder / row["audio"])
        ids = reference.transcribe(network, tokens, waveform, 256).token_ids
        heard, chosen = {"torch": clean(text.decode(ids))}, {"torch": ids}
        for engine, transcriber in (("fp32", fp32), ("int8", int8)):
            transcript = transcriber.transcribe(waveform, 16000)
            heard[engine], chosen[engine] = transcript.text, transcript.token_ids
        clips.append(Clip(row["audio"], row["source"], row["text"], heard, chosen))
    return clips


def wer(clips: list[Clip], engine: str) -> float:
    """Word error rate in per cent."""
    return 100 * jiwer.wer([c.text for c in clips], [c.heard[engine] for c in clips])


def same(clips: list[Clip], engine: str) -> int:
    """Clips whose tokens are torch's."""
    return sum(c.tokens[engine] == c.tokens["torch"] for c in clips)


def table(groups: dict[str, list[Clip]]) -> str:
    """A markdown table, one row a folder."""
    lines = [
        "| dev split | clips | words | WER torch | WER fp32 | WER INT8 "
        "| same tokens fp32 | same tokens INT8 |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name, clips in groups.items():
        words = sum(len(c.text.split()) for c in clips)
        rates = " | ".join(f"{wer(clips, engine):.2f} %" for engine in ENGINES)
        counts = " | ".join(f"{same(clips, engine)}/{len(clips)}" for engine in ("fp32", "int8"))
        lines.append(f"| {name} | {len(clips)} | {words} | {rates} | {counts} |")
    return "\n".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Word error rate of the demo, torch to INT8.")
    parser.add_argument("--speech", type=Path, default=ROOT.parent / "shared" / "speech")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--errors", action="store_true", help="list what INT8 got wrong")
    options = parser.parse_args()
    if not (options.speech / "sentences" / "dev.jsonl").is_file():
        print(f"error: {options.speech} holds no sentences/dev.jsonl", file=sys.stderr)
        return 1
    int8 = ark_asr_onnx.load(DEMO)
    with tempfile.TemporaryDirectory() as scratch:
        fp32_dir = Path(scratch) / "fp32"
        pipeline.export(DEMO / "checkpoint", fp32_dir, precision="fp32")
        fp32 = ark_asr_onnx.load(fp32_dir)
        groups = {f: transcribe_folder(options.speech, f, fp32, int8) for f in FOLDERS}
    for folder in ("digits",):
        for source in sorted({c.source for c in groups[folder]}):
            part = [c for c in groups[folder] if c.source == source]
            groups[f"{folder}, {source} only"] = part
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, onnxruntime "
        f"{onnxruntime.__version__}, {platform.machine()}; "
        f"model.safetensors {int8.manifest.provenance.source_sha256['model.safetensors'][:16]}"
    )
    report = f"{table(groups)}\n\n{versions}\n"
    print(report)
    if options.errors:
        for clip in (c for f in FOLDERS for c in groups[f] if c.heard["int8"] != c.text):
            print(f"{clip.audio}: {clip.text!r} heard as {clip.heard['int8']!r}")
    if options.out:
        command = "python benchmarks/demo_wer.py --out " + options.out.as_posix()
        head = "# Word error rate of the demo on unseen speakers\n\n`" + command + "`\n\n"
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(head + report, encoding="utf-8")
    figures = {
        name: {engine: round(wer(clips, engine), 3) for engine in ENGINES}
        | {"clips": len(clips), "same_fp32": same(clips, "fp32"), "same_int8": same(clips, "int8")}
        for name, clips in groups.items()
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
