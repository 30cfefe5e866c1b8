#!/usr/bin/env bash
# scipy's differential_evolution answers NaN where its own population holds finite values, and never replaces NaN members.
#
# Versions:  scipy 1.17.1, numpy 2.4.6, Python 3.11, Linux x86-64.
# Input:     minimise x + y on the unit square, where the objective is NaN above 0.5, as a model is that is not defined
#            there. About one member of the first population in eight has a value.
# Expected:  NaN is worse than any number, as infinity is: the result is near 0, and members without a value give way to
#            trials that have one.
# Seen:      after 50 generations `fun` is NaN and `x` a point without a value, with immediate and with deferred updates,
#            vectorized or not, whatever the seed. `population_energies` holds finite values that are not chosen; each
#            member that was NaN at first still is, as a trial is taken only if it is at most as large as what it replaces,
#            and nothing is at most NaN. With infinity in the place of NaN the result is below 0.001.
# So:        an objective has to answer infinity where it has no value.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scipy==1.17.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
from scipy.optimize import differential_evolution

BOUNDS = [(0, 1), (0, 1)]


def objective(nothing):
    """Return a sum of coordinates that has no value above 0.5: `nothing` stands there."""

    def of(points):
        total = np.sum(points, axis=0)
        return np.where(total > 0.5, nothing, total)

    return of


as_described = True
for seed in range(5):
    for settings in ({}, {"updating": "deferred"}, {"updating": "deferred", "vectorized": True}):
        said = {"maxiter": 50, "rng": seed, "polish": False, **settings}
        found = differential_evolution(objective(np.nan), BOUNDS, **said)
        other = differential_evolution(objective(np.inf), BOUNDS, **said)
        first = differential_evolution(objective(np.nan), BOUNDS, **{**said, "maxiter": 0})
        there = found.population_energies[np.isfinite(found.population_energies)]
        left, before = (int(np.isnan(each.population_energies).sum()) for each in (found, first))
        print(
            f"seed {seed} {settings}: fun = {found.fun}, the least of {there.size} finite values {there.min():.3f}, "
            f"NaN members {before} at first and {left} at last; with infinity {other.fun:.1e}"
        )
        as_described &= bool(np.isnan(found.fun)) and there.size > 0 and left == before and bool(other.fun < 1e-3)
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON
