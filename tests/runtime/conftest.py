"""Scripts by which a test holds up the loading of stages."""

from __future__ import annotations

import pytest
from runtime_models import Script


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def open_script() -> Script:
    return Script(opened=True)
