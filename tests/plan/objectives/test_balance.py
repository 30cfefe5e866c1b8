"""The reward of eq. 4 against values worked out by hand."""

import pytest

from splitload.plan.objectives.balance import balance_reward


@pytest.mark.parametrize(
    ("load_s", "tolerance_s", "two_sided", "one_sided"),
    [
        (0.50, 0.0, 0.0, 0.0),
        (0.53125, 0.03125, 0.0, 0.0),  # just on the edge, above; binary fractions are exact
        (0.46875, 0.03125, 0.0, 0.0),  # and below
        (0.54, 0.03125, -1.0, -1.0),
        (0.46, 0.03125, -1.0, 0.0),
        (0.46, -0.03125, -1.0, 0.0),
        (0.48, -0.03125, -1.0, -1.0),
        (9.0, float("inf"), 0.0, 0.0),
    ],
)
def test_balance_is_equation_4(load_s, tolerance_s, two_sided, one_sided):
    assert balance_reward(load_s, 0.5, tolerance_s) == two_sided
    assert balance_reward(load_s, 0.5, tolerance_s, one_sided=True) == one_sided
