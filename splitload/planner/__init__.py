"""From a request to a plan and a bundle: search, trial, refinement, seeds, checkpoints.

`request` says what is asked for, `train` does it and tells a `report` meanwhile, `result` is what came of it. On the
way `read_model` makes a graph and a profile, `make_plan` chooses among the ways to a plan (`search`, `seeds`,
`refine`), `trial` measures it, `write_bundle` builds it, and `gain` measures what was built. `from_torch` asks for all
this on behalf of a torch module, `specialize` for a bundle on another machine.
"""
