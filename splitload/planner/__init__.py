"""From a request to a plan and a bundle: search, trial, refinement, seeds, checkpoints."""
