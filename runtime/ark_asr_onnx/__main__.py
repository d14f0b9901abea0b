"""``python -m ark_asr_onnx``."""

import sys

from .cli import main

sys.exit(main())
