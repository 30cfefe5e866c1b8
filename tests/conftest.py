"""What all tests share: the small models in core/models.py can be imported as `models`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "core"))
