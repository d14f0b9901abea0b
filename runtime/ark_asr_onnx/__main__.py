"""``python -m ark_asr_onnx``."""

import sys

from .commands.cli import main

sys.exit(main())
