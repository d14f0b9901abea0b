"""Exporter of ARK-ASR checkpoints: safetensors in, a checked INT8 ONNX package out.

The command is ``ark-onnx-export``; from Python it is :func:`ark_onnx_export.pipeline.export`.
Importing this package alone loads neither torch nor onnx.
"""

import os

# Before any module here, or a library for it, imports onnxruntime: 1.32 calls home.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
