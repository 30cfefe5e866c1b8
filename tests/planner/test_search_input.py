"""What a search cannot be given: a profile that cannot be right, contradictory options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import PartitionError, UsageError
from splitload.cli import main
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.agents import AGENTS
from splitload.planner.search import Search

Fails = Callable[..., str]
FREE = "@"  # stands where a number in the JSON text is put that Python would not write


@pytest.fixture
def fails(
    chain_model: Path, runtime_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Fails:  # fmt: skip
    """Train the chain; return the one line that says why not. Nothing is written."""
    monkeypatch.setenv("SPLITLOAD_CACHE", str(runtime_folder / "search-input-cache"))
    monkeypatch.chdir(tmp_path)
    if not (runtime_folder / "chain.json").exists():
        words = ["profile", str(chain_model), "--device", "s20", "-o", str(runtime_folder / "chain.json"), "--json"]
        assert main(words) == 0
        capsys.readouterr()

    def run(code: int, *words: str, device: str = "s20") -> str:
        before = sorted(tmp_path.rglob("*"))
        got = main(["train", str(chain_model), "--device", device, "-o", "b.splitload", *words])
        out, err = capsys.readouterr()
        assert (got, out) == (code, ""), err
        assert err.startswith("splitload: ")
        assert err.count("\n") == 1
        assert "this should not happen" not in err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


CONTRADICTIONS: dict[str, tuple[list[str], str]] = {
    "no stages": (["--max-stages=0"], "whole number of at least 1"),
    "no stage left for what is frozen": (["--max-stages=1", "--trainable=2"], "--trainable needs two stages"),
    "a cut of trainable blocks": (
        ["--trainable=2", "--split-points=4,8"],
        "split points [4, 8] do not cut 8 blocks",
    ),
    "fewer stages than points": (
        ["--max-stages=2", "--split-points=1,2"],
        "--split-points make 3 stages, --max-stages is 2; leave one of the two out",
    ),
    "a frozen layer after": (["--trainable=layer2"], "is trainable, but 'layer3"),
    "a frozen layer between": (["--trainable=layer[35]"], "is trainable, but 'layer4/matmul' after it is not"),
    "no trainable layer": (["--trainable=0"], "--trainable 0: give 1 to 6, so many layers of the model have weights"),
    "too many": (["--trainable=7"], "--trainable 7: give 1 to 6"),
    "no such layer": (["--trainable=head"], "--trainable 'head' matches no layer with weights; the last ones are: "),
    "no pattern": (["--trainable=("], "--trainable '(' is no regular expression"),
    "no episodes": (["--episodes=0"], "whole number of at least 1"),
}


@pytest.mark.parametrize(("words", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions(fails: Fails, words: list[str], message: str) -> None:
    assert message in fails(2, *words)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.usefixtures("fails")
def test_every_agent_takes_as_many_stages_as_there_are(runtime_folder: Path, agent: str) -> None:
    profile = Profile.read(runtime_folder / "chain.json")
    found, most = (Search(profile, agent=agent, max_stages=count, episodes=1000).run() for count in (12, 11))
    assert found.partition == most.partition


@pytest.mark.parametrize("words", [[], ["--trainable=1"]], ids=["frozen", "trainable"])
def test_more_stages_than_blocks(
    fails: Fails, chain_model: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    given = ["train", str(chain_model), "--device", "s20", "--agent", "exact", "--max-stages=" + "9" * 30, *words]
    assert main([*given, "-o", "b.splitload", "--json"]) == 0
    out, err = capsys.readouterr()
    assert " blocks, and so at most as many stages" in err
    assert json.loads(out)["plan"]["num_stages"] <= 11


def test_as_many_stages_as_blocks_are_searched(fails: Fails, runtime_folder: Path) -> None:
    profile = Profile.read(runtime_folder / "chain.json")
    assert Search(profile, agent="exact", max_stages=11).identity["num_stages"] == [*range(1, 12)]
    assert Search(profile, agent="exact", max_stages=5, trainable_from=4).identity["num_stages"] == [*range(2, 6)]
    assert Search(profile, agent="exact", trainable_from=4).identity["num_stages"] == [*range(2, 6)]
    assert Search(profile, max_stages=6, trainable_from=4).identity["num_stages"] == [*range(2, 6)]
    with pytest.raises(UsageError, match="at least 1"):
        Search(profile, max_stages=0)


NUMBERS = {
    "negative": "-0.001",
    "NaN": "NaN",
    "infinite": "Infinity",
    "less than all": "-Infinity",
    "beyond floats": "1e999",
    "beyond sums": "1e308",
    "beyond digits": "1" + "0" * 4000,
    "beyond Python": "1" + "0" * 5000,
    "true": "true",
    "null": "null",
    "text": '"0.005"',
    "list": "[0.005]",
}
PLACES: dict[str, tuple[str | int, ...]] = {
    "load_s": ("blocks", 3, "load_s"),
    "first_inference_s": ("blocks", 3, "first_inference_s"),
    "inference_s": ("blocks", 3, "inference_s"),
    "read_s": ("blocks", 3, "read_s"),
    "stage_fixed_s": ("stage_fixed_s",),
    "serial_share": ("contention", "serial_share"),
}


def changed(runtime_folder: Path, place: tuple[str | int, ...], text: str | None) -> None:
    """Write the chain's profile as p.json, with a JSON text in place of a value, or without it."""
    data = json.loads((runtime_folder / "chain.json").read_text())
    inner: Any = data
    for key in place[:-1]:
        inner = inner[key]
    if text is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = FREE
    Path("p.json").write_text(json.dumps(data).replace(f'"{FREE}"', text or ""))


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("key", PLACES)
def test_numbers_that_no_profile_holds(fails: Fails, runtime_folder: Path, key: str, number: str) -> None:
    changed(runtime_folder, PLACES[key], number)
    line = fails(1, device="p.json")
    assert line.startswith("splitload: p.json: ")
    assert key in line or "not JSON" in line
    assert ("finite" in line and "not negative" in line) or "not JSON (Exceeds the limit" in line
    assert len(line) < 250


@pytest.mark.parametrize(
    "place",
    [
        *PLACES.values(),
        ("blocks", 3, "name"),
        ("blocks", 3, "weights_bytes"),
        ("blocks",),
        ("segments",),
        ("contention",),
        ("contention", "threads"),
        ("model",),
        ("model_sha256",),
        ("graph",),
        ("device",),
        ("source",),
        ("environment",),
        ("schema_version",),
    ],
)
def test_missing_values_are_named(fails: Fails, runtime_folder: Path, place: tuple[str | int, ...]) -> None:
    changed(runtime_folder, place, None)
    if place == ("contention", "serial_share"):  # has a default
        Profile.read(Path("p.json"))
        return
    line = fails(1, device="p.json")
    assert line.startswith("splitload: p.json: not a splitload profile: profile.")
    assert f"{place[-1]} is missing" in line


VALUES: dict[str, tuple[tuple[str | int, ...], str, str]] = {
    "schema": (
        ("schema_version",),
        "1",
        "p.json: schema version 1, expected 2; write it again with 'splitload profile'",
    ),
    "newer schema": (("schema_version",), "3", "p.json: schema version 3, expected 2"),
    "no schema": (("schema_version",), "null", "p.json: schema version None, expected 2"),
    "other model": (("model_sha256",), '"' + "0" * 64 + '"', "p.json is a profile of 'chain' (000000000000…), not of"),
    "other blocks": (("blocks", 3, "name"), '"conv"', "p.json has 11 other blocks than the model's 11"),
    "fewer blocks": (("blocks",), "[]", "a profile needs at least one block"),
    "hash": (("model_sha256",), "5", "profile.model_sha256 must be a string, it is 5"),
    "device": (("device",), "null", "profile.device must be a string, it is None"),
    "threads": (("contention", "threads"), "0", "threads must be at least 1, it is 0"),
    "many threads": (("contention", "threads"), "1" + "0" * 400, "threads must be at least 1, it is 1000"),
    "bytes": (("blocks", 3, "weights_bytes"), "1" + "0" * 400, "weights_bytes must be a count of at least 0"),
    "block": (("blocks", 3), "3", "profile.blocks[3] must be an object, it is int"),
    "segment": (("segments",), '[{"start": 0.5}]', "profile.segments[0].start must be a count"),
    "nested": (("environment",), "[" * 100_000, "p.json: not JSON (maximum recursion depth"),
}


@pytest.mark.parametrize(("place", "text", "message"), VALUES.values(), ids=VALUES)
def test_other_values(
    fails: Fails, runtime_folder: Path, place: tuple[str | int, ...], text: str, message: str
) -> None:
    changed(runtime_folder, place, text)
    assert message in fails(1, device="p.json")


def test_a_single_block_takes_no_split_points() -> None:
    with pytest.raises(PartitionError, match=r"\[1, 4\] do not cut a single block, which is one stage: give none"):
        Partition(1, (1, 4))
