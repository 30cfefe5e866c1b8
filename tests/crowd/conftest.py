"""A crowd of two workers on this machine, for the tests of one file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from splitload.crowd import LocalCrowd


@pytest.fixture(scope="module")
def local() -> Iterator[LocalCrowd]:
    with LocalCrowd(2) as made:
        yield made
