"""Cost matrices agree with the profile, segment by segment."""

import numpy as np
import pytest

from splitload.envs import cost_matrices
from splitload.plan.profile import Cost


def test_whole_seconds_may_be_whole_numbers(make_profile):
    costs = cost_matrices(make_profile([1, 2], [1, 1], segments={(0, 2): Cost(4, 3, 2, 1)}))
    assert costs.first_inference_s[0].tolist()[1:] == [1.5, 3.0]


def test_every_segment_costs_what_the_profile_says(make_profile):
    rng = np.random.default_rng(0)
    measured = {(0, 9): Cost(0.5, 0.4, 0.3, 0.2), (2, 4): Cost(0.011, 0.012, 0.013, 0.01)}
    profile = make_profile(rng.uniform(0, 0.1, 9).tolist(), fixed=0.02, segments=measured)
    costs = cost_matrices(profile)
    for start in range(10):
        for end in range(10):
            if start >= end:
                assert costs.load_s[start, end] == costs.first_inference_s[start, end] == np.inf
                continue
            cost = profile.cost(start, end)
            assert costs.load_s[start, end] == pytest.approx(cost.load_s, rel=1e-12)
            assert costs.first_inference_s[start, end] == pytest.approx(cost.first_inference_s, rel=1e-12)
            assert costs.read_s[start, end] == pytest.approx(cost.read_s, rel=1e-12)
    assert costs.load_s[2, 4] == 0.011
    assert costs.load_s[0, 9] == 0.5
