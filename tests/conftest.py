"""What all tests share: the small models in core/models.py can be imported as `models`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "core"))
# A shell that starts this in the background has SIGINT ignored, and so would every process that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
