"""What tests of built bundles share."""

from __future__ import annotations

import pytest

import splitload.runtime.variants


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is another processor."""
    monkeypatch.setattr(splitload.runtime.variants, "cpu_architecture", lambda: "abacus")
