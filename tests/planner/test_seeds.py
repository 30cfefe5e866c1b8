"""Searches with several seeds: which plan is taken, what is told, and requests that cannot be meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.planner import seeds
from splitload.planner.agents import SEEDED
from splitload.planner.search import Search
from splitload.planner.seeds import SeedRun, best_of, run_seed

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def train(
    chain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run `splitload train` on a small model; return exit code, stdout and stderr."""
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["train", str(chain_model), "--device", "s20", "-o", "out.splitload", *words])
        return code, *capsys.readouterr()

    return run


def run_of(seed: int, deciding_s: float, value_s: float = 1.0) -> SeedRun:
    return SeedRun(seed, Partition(4), 1, 0.1, value_s, deciding_s, None)


def test_the_first_done_is_best_and_the_lowest_seed_among_equals() -> None:
    assert best_of([run_of(3, 2.0), run_of(4, 1.0), run_of(5, 1.0)]).seed == 4
    assert best_of([run_of(3, 1.0, 2.0), run_of(4, 1.0, 1.0)]).seed == 4


@pytest.mark.parametrize("objective", ["balance", "ttfo"])
def test_a_run_is_the_search_with_its_seed(objective: str) -> None:
    blocks = tuple(BlockProfile(f"b{number}", 9, Cost(1.0 + number % 3, 0.1, 0.1)) for number in range(9))
    profile = Profile("m", "a" * 64, "native", "dev", "measured", blocks, 0.1, Contention(4))
    settings = {"agent": "random", "objective": objective, "max_stages": 3}
    run = run_seed(profile, 7, settings)
    found = Search(profile, seed=7, **settings).run()  # type: ignore[arg-type]
    schedule = profile.schedule(run.partition)
    assert (run.seed, run.partition) == (7, found.partition)
    assert run.value_s == found.values_s["random"]
    assert run.deciding_s == (schedule.load_makespan_s if objective == "balance" else schedule.ttfo_s)


@pytest.mark.parametrize("agent", SEEDED)
def test_the_best_of_several_seeds_is_taken(train: Run, agent: str) -> None:
    words = ("--agent", agent, "--max-stages", "3", "--objective", "ttfo", "--json")
    code, out, err = train("--seed", "5", "--seeds", "3", "--jobs", "1", *words)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [run["seed"] for run in found["seeds"]] == [5, 6, 7]
    assert list(found["seeds"][0]) == ["seed", "value_s", "num_stages", "episodes", "search_s"]
    best = min(found["seeds"], key=lambda run: run["value_s"])
    assert found["ttfo_s"]["predicted"] == pytest.approx(best["value_s"])
    assert found["plan"]["num_stages"] == best["num_stages"]
    assert read_manifest(Path("out.splitload")).plan["seed"] == best["seed"]
    code, out, _ = train("--seed", str(best["seed"]), *words)
    alone: dict[str, Any] = json.loads(out)
    assert "seeds" not in alone
    assert alone["plan"] == found["plan"]
    assert alone["value"] == found["value"]


def test_the_seeds_are_shown(train: Run) -> None:
    code, out, _ = train("--seeds", "2", "--jobs", "2", "--max-stages", "2")
    assert code == 0
    assert "plans of 2 seeds; seed 0 is taken" in out


def test_an_interrupt_tells_the_best_so_far(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[SeedRun] = []

    def interrupted(*job: Any) -> SeedRun:
        if done:
            raise KeyboardInterrupt
        done.append(run_seed(*job))
        return done[0]

    monkeypatch.setattr(seeds, "run_seed", interrupted)
    code, _, err = train("--seeds", "3", "--jobs", "1", "--max-stages", "3")
    assert code == 130
    points = ",".join(map(str, done[0].partition.split_points))
    assert f"--split-points={points} " in err
    code, _, err = train("--seeds", "3", "--jobs", "1", "--max-stages", "3")
    assert code == 130
    assert "before a first plan" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--seeds", "0"], 2, "at least 1"),
        (["--seeds", "2", "--agent", "exact"], 2, "same for every seed"),
        (["--seeds", "2", "--agent", "uniform"], 2, "same for every seed"),
        (["--seeds", "2", "--split-points", "1"], 2, "leave one of them out"),
        (["--jobs", "2"], 2, "give --seeds"),
        (["--cluster", "tcp://localhost:8786"], 2, "give --seeds"),
        (["--seeds", "2", "--cluster", "localhost"], 2, "tcp://HOST:PORT"),
        (["--seeds", "2", "--jobs", "2", "--cluster", "tcp://localhost:8786"], 2, "not both"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line(train: Run, words: list[str], code: int, said: str) -> None:
    got, out, err = train(*words)
    assert (got, out) == (code, "")
    assert err.count("\n") == 1
    assert said in err
