"""Benchmarks: fresh processes, arms interleaved, every sample kept.

`sampling` starts one process for each sample; `__main__` is that process. `arms` says what is compared and has the
files made that other engines read (`convert`). `pagecache` and `storage` make reads cold and slow, `deep` makes a model
of any depth.
"""

from splitload.bench.sampling import FIGURES, Arm, compare, first_outputs, run_arms, summarize

__all__ = ["FIGURES", "Arm", "compare", "first_outputs", "run_arms", "summarize"]
