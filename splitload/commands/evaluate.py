"""How near learned plans come to the exact optimum: `python -m splitload.commands.evaluate --help`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitload.agents import exact
from splitload.agents.q_learning import QLearning
from splitload.cli import user_cache
from splitload.commands.console import Console
from splitload.commands.records import write_record
from splitload.devices import open_device
from splitload.envs.costs import cost_matrices
from splitload.envs.split import SplitEnv
from splitload.frontends import open_source, zoo
from splitload.frontends.onnx import load_graph
from splitload.profile import Profile


def evaluate(profile: Profile, max_stages: int, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Learn a balanced plan for every number of stages and seed; return each beside the optimum for the same number.

    Args:
        profile: Costs of the model on the device.
        max_stages: The most stages.
        seeds: Seeds of the agent.
    """
    load_s = cost_matrices(profile).load_s
    counts = range(1, min(max_stages, profile.num_blocks) + 1)
    rows = []
    for seed in seeds:
        start = time.perf_counter()
        env = SplitEnv(profile, objective="balance", max_stages=counts[-1])
        result = QLearning(env, seed=seed).train(num_stages=counts)
        search_s = time.perf_counter() - start
        for count in counts:
            _, largest_s = exact.balance(load_s, count)
            optimum_s = largest_s * profile.contention.slowdown(count)
            plan = result.plans[count]
            rows.append(
                {
                    "num_stages": count,
                    "seed": seed,
                    "learned_s": plan.value_s,
                    "exact_s": optimum_s,
                    "split_points": list(plan.split_points),
                    "stopped": result.stopped[count],
                    "search_s": search_s,
                }
            )
    return rows


def main(words: Sequence[str] | None = None) -> int:
    """Evaluate zoo models on devices, write a record, and return 1 if a plan is more than 5 % off."""
    words = list(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(prog="python -m splitload.commands.evaluate", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: every zoo model")
    parser.add_argument("--device", action="append", help="default: s20 and host")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1 (default: %(default)s)")
    parser.add_argument("--max-stages", type=int, default=8, metavar="K")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the record here")
    options = parser.parse_args(words)
    console = Console(json=False)
    cache = user_cache()
    rows = []
    for model in options.models or [f"zoo:{name}" for name in zoo.names()]:
        for name in options.device or ["s20", "host"]:
            device = open_device(name, cache)
            source = open_source(model, cache)
            profile = device.profile(load_graph(source, device.graph_kind, cache))
            found = evaluate(profile, options.max_stages, range(options.seeds))
            ratios = [row["learned_s"] / row["exact_s"] for row in found]
            slowest_s = max(row["search_s"] for row in found)
            console.print(
                f"{source.name:<14} {name:<5} {profile.num_blocks:>3} blocks, {len(ratios)} plans: "
                f"learned ÷ exact worst {max(ratios):.4f}; slowest search {slowest_s:.1f} s"
            )
            rows.append(
                {
                    "model": source.name,
                    "model_sha256": source.sha256,
                    "device": name,
                    "source": profile.source,
                    "num_blocks": profile.num_blocks,
                    "worst_ratio": max(ratios),
                    "slowest_search_s": slowest_s,
                    "plans": found,
                }
            )
    if options.output:
        write_record(options.output, "search", "splitload.commands.evaluate", words, rows)
    return int(any(row["worst_ratio"] > 1.05 for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
