"""The network in plain torch, written to be traced: :class:`AudioTower` and :class:`Decoder`.

Imports torch and ``config`` only. ``export/MODEL.md`` describes the same network in words.
"""

from .audio import AudioTower
from .decoder import Decoder

__all__ = ["AudioTower", "Decoder"]
