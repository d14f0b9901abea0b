"""``python -m ark_onnx_export``."""

import sys

from .cli import main

sys.exit(main())
