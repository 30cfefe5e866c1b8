"""What plans can be searched for: each file here is an objective, and is found by being here.

A new objective is one new file, whose name is the objective's: a subclass of `splitload.plan.objective.Objective`, and
`OBJECTIVE`, the one instance of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType

from splitload.base.errors import unknown_name
from splitload.plan.objective import Objective

OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {each.name: import_module(f"{__name__}.{each.name}").OBJECTIVE for each in iter_modules(__path__)}
)
"""Every objective by its name, in order of the names."""

OF_LOADING = ("balance", "ttfo")
"""Names of the objectives that are of the load; the others are of what follows it."""

OF_ONE_DEVICE: Mapping[str, Objective] = MappingProxyType(
    {name: each for name, each in OBJECTIVES.items() if not each.of_crowd}
)
"""Those that need no crowd."""

DEFAULT_OBJECTIVE = "balance"
"""Name of the objective where none is asked for."""


def objective_named(name: str) -> Objective:
    """Return the objective of a name.

    Raises:
        UsageError: If there is none.
    """
    if name not in tuple(OBJECTIVES):
        raise unknown_name("objective", name, OBJECTIVES)
    return OBJECTIVES[name]
