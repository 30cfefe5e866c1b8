"""What the tests of layouts share."""

from __future__ import annotations

import pytest

from splitload.graphs import layout


@pytest.fixture
def accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rewritten graph counts as fast enough."""
    monkeypatch.setattr(layout, "is_as_fast", lambda *_: True)
