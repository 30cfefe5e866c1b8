"""Scripts by which a test holds up the loading of stages, and the engines that loaders take."""

from __future__ import annotations

from typing import Any

import pytest
from runtime_models import Script


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def open_script() -> Script:
    return Script(opened=True)


@pytest.fixture(params=["library", "python"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have loaders that are not told take this engine, though the Python module is imported here."""
    monkeypatch.setattr("splitload.runtime.engine.module_is_imported", lambda: request.param == "python")
    return request.param
