"""Rows of tensors, taken and given in any parts."""

from __future__ import annotations

import numpy as np
import pytest

from splitload.base.errors import StageError
from splitload.bundle.collaboration import RowTensor
from splitload.deploy.row_store import RowStore

IMAGE = RowTensor("x", "tensor(float)", (1, 4, 6, 3), 2, 4)
BLOCKED = RowTensor("b", "tensor(float)", (1, 4, 6, 3), 2, 2)  # two channels together: a row is of both
WHOLE = RowTensor("w", "tensor(float)", (2, 5), None, 1)
VALUE = np.arange(72, dtype=np.float32).reshape(1, 4, 6, 3)


def store() -> RowStore:
    return RowStore({each.name: each for each in (IMAGE, BLOCKED, WHOLE)})


def test_rows_come_in_parts_and_go_in_others() -> None:
    rows = store()
    rows.put("x", 4, 6, np.ascontiguousarray(VALUE[:, :, 4:6]))
    rows.put("x", 0, 4, np.ascontiguousarray(VALUE[:, :, 0:4]))
    for start, stop in ((0, 6), (3, 5), (0, 1), (5, 6)):
        found = rows.get("x", start, stop)
        np.testing.assert_array_equal(found, VALUE[:, :, start:stop])
        assert found.flags.c_contiguous
    np.testing.assert_array_equal(rows.get("x", 0, None), VALUE)


def test_rows_that_are_asked_for_as_they_came_are_not_copied() -> None:
    rows, part = store(), np.ascontiguousarray(VALUE[:, :, 2:5])
    rows.put("x", 2, 5, part)
    assert np.shares_memory(rows.get("x", 2, 5), part)
    assert not np.shares_memory(rows.get("x", 2, 4), part)


def test_rows_in_blocks_of_channels_are_of_all_of_a_block() -> None:
    rows = store()
    lines = np.arange(72, dtype=np.float32).reshape(2, 6, 6)
    rows.put("b", 0, None, lines)
    np.testing.assert_array_equal(rows.get("b", 1, 3).reshape(2, 2, 6), lines[:, 1:3])


def test_what_is_not_there_is_an_error_and_no_rubbish() -> None:
    rows = store()
    rows.put("x", 0, 2, np.ascontiguousarray(VALUE[:, :, 0:2]))
    rows.put("x", 3, 6, np.ascontiguousarray(VALUE[:, :, 3:6]))
    with pytest.raises(StageError, match="rows 2 to 4 of 'x' are not there"):
        rows.get("x", 1, 4)
    with pytest.raises(StageError, match="rows 0 to 1 of 'w'"):
        rows.get("w", 0, None)
    rows.put("w", 0, None, np.ones((2, 5), np.float32))
    assert rows.get("w", 0, None).shape == (2, 5)
