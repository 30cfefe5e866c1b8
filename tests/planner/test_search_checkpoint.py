"""A search that is interrupted, or killed, goes on with the same command and ends as it would have ended."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from splitload.agents import QLearning
from splitload.base.atomic import write_text
from splitload.base.errors import OutputError
from splitload.base.sealed import KEY
from splitload.cli import main
from splitload.envs import SplitEnv
from splitload.frontends import deep
from splitload.plan.profile import Profile
from splitload.planner import checkpoint_file as checkpoint

WAIT_S = 60
WORDS = ["train", "deep.onnx", "--device", "deep.json", "--objective", "ttfo", "--max-stages", "5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 30 blocks that load in unequal times, its profile on two threads, and a cache that knows both."""
    made = tmp_path_factory.mktemp("deep")
    onnx.save(deep.build(30), made / "deep.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLITLOAD_CACHE", str(made / "cache"))
        words = ["profile", str(made / "deep.onnx"), "--device", "s20", "-o", str(made / "deep.json"), "--json"]
        assert main(words) == 0
    profile = Profile.read(made / "deep.json")
    blocks = tuple(
        replace(block, cost=replace(block.cost, load_s=0.01 + 0.09 * (7 * number % 19) / 19, read_s=0.0))
        for number, block in enumerate(profile.blocks)
    )
    contention = profile.contention._replace(threads=2)
    profile = replace(profile, blocks=blocks, contention=contention, stage_fixed_s=0.0, segments={})
    (made / "deep.json").write_text(json.dumps(profile.to_json()))
    return made


@dataclass
class Cli:
    """Runs command lines in this process, in a folder of their own; `kept` are the files of searches in the cache."""

    capsys: pytest.CaptureFixture[str]
    cache: Path

    def __call__(self, *words: str) -> tuple[int, str, str]:
        return main(list(words)), *self.capsys.readouterr()

    def found(self, *words: str) -> Any:
        """Return what `--json` prints, without what differs from run to run; notes are allowed."""
        code, out, err = self(*words, "--json")
        assert code == 0, err
        value = json.loads(out)
        del value["search_s"], value["replaced"]
        return value

    def error(self, code: int, *words: str) -> str:
        got, out, err = self(*words)
        assert (got, out) == (code, ""), err
        *notes, line = err.splitlines(keepends=True)
        assert line.startswith("splitload: ")
        assert all(note.startswith("resuming the search at episode ") for note in notes)
        return line

    @property
    def kept(self) -> list[Path]:
        return sorted((self.cache / "searches").glob("*")) if (self.cache / "searches").exists() else []


@pytest.fixture
def cli(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    for name in ("deep.onnx", "deep.json"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.setenv("SPLITLOAD_CACHE", str(folder / "cache"))
    monkeypatch.chdir(tmp_path)
    made = Cli(capsys, folder / "cache")
    for path in made.kept:
        path.unlink()
    return made


@contextlib.contextmanager
def interrupted(episodes: int) -> Iterator[None]:
    """Have a real signal come amid an episode, counted from where the search begins or resumes; write at it only."""
    real_play, real_step = QLearning._play, SplitEnv.step
    played: list[int] = []

    def play(self: QLearning, *arguments: Any) -> Any:
        played.append(1)
        return real_play(self, *arguments)

    def step(self: SplitEnv, action: Any) -> Any:
        if len(played) == episodes and self._bounds == [0]:
            os.kill(os.getpid(), signal.SIGINT)
        return real_step(self, action)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QLearning, "_play", play)
        patch.setattr(SplitEnv, "step", step)
        patch.setattr(checkpoint, "INTERVAL_S", 1e9)
        yield
    assert len(played) == episodes
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("agent", ["best", "q-learning", "sarsa"])
@pytest.mark.parametrize("objective", ["balance", "ttfo"])
def test_the_same_command_resumes(cli: Cli, agent: str, objective: str) -> None:
    words = [*WORDS, "--agent", agent, "--objective", objective, "--episodes", "900", "-o", "b.splitload"]
    whole = cli.found(*words)
    assert not cli.kept
    with interrupted(100):
        line = cli.error(130, *words)
    assert "interrupted; the same command goes on with the search. The best plan so far has" in line
    assert not list(Path().glob("*.splitload.*"))
    (kept,) = cli.kept
    code, out, err = cli(*words, "--json")
    assert code == 0
    assert err == f"resuming the search at episode 100, kept in '{kept}'\n"
    assert {**json.loads(out), "search_s": 0, "replaced": None} == {**whole, "search_s": 0, "replaced": None}
    assert not cli.kept
    assert cli(*words, "--json")[2] == "", "a finished search is not resumed"


def test_a_search_may_be_interrupted_again_and_again(cli: Cli) -> None:
    words = [*WORDS, "--episodes", "700"]
    whole = cli.found(*words, "--curve", "whole.csv")
    for _ in range(3):
        with interrupted(150):
            cli.error(130, *words)
    assert cli.found(*words, "--curve", "resumed.csv") == whole
    assert Path("resumed.csv").read_bytes() == Path("whole.csv").read_bytes()


@pytest.mark.parametrize("other", ["--seed=1", "--objective=balance", "--max-stages=4", "--agent=sarsa"])
def test_another_search_does_not_resume_it(cli: Cli, other: str) -> None:
    words = [*WORDS, "--episodes", "300"]
    with interrupted(100):
        cli.error(130, *words)
    before = cli.kept[0].read_bytes()
    assert cli(*words, other, "--json")[2] == ""
    assert [path.read_bytes() for path in cli.kept] == [before]
    assert "resuming" in cli(*words, "--episodes", "310", "--json")[2], "how long it goes on is no part of it"


def test_a_file_of_the_user_stays_and_goes_on_with_more_episodes(cli: Cli) -> None:
    whole = cli.found(*WORDS, "--episodes", "800")
    kept = ["--checkpoint", "kept.json"]
    few = cli.found(*WORDS, *kept, "--episodes", "200")
    assert few["episodes"] == 200
    assert not cli.kept
    for expected in (whole, whole):  # the second time it is read and nothing is left to do
        assert cli.found(*WORDS, *kept, "--episodes", "800") == expected
    assert cli.found(*WORDS, *kept, "--episodes", "10")["episodes"] == 800
    data = json.loads(Path("kept.json").read_text())
    assert list(data) == ["format", "version", "search", "agent", KEY]
    assert (data["format"], data["version"], data["search"]["seed"]) == ("splitload-search", 2, 0)
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_an_interrupt_keeps_the_search_in_the_users_file(cli: Cli) -> None:
    words = [*WORDS, "--episodes", "500"]
    whole = cli.found(*words)
    with interrupted(77):
        cli.error(130, *words, "--checkpoint", "kept.json")
    assert not cli.kept
    assert cli.found(*words, "--checkpoint", "kept.json") == whole


DAMAGE: dict[str, tuple[Any, str]] = {
    "empty": ("", "it is not JSON"),
    "half": (None, "it is not JSON"),
    "nested": ("[" * 200_000, "recursion"),
    "no object": ("[]", "its format is not 'splitload-search'"),
    "other format": ({"format": "bundle"}, "its format is not 'splitload-search'"),
    "version": ({"version": 1}, "it has version 1, this splitload reads version 2"),
    "more keys": ({"extra": 1}, "it must have the keys format, version, search and agent, and no others"),
    "no search": ({"search": None}, "its search must have the keys"),
    "no agent": ({"agent": None}, "the checkpoint must be an object, it is None"),
    "infinity": ({"agent": {"settings": float("inf")}}, "lacks"),
}


DAMAGE["digit"] = (  # which no check of what it says could find
    lambda text: text.replace('"episode":100', '"episode":101'),
    "it is damaged, its own SHA-256 differs",
)


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoints(cli: Cli, change: Any, message: str) -> None:
    words = [*WORDS, "--episodes", "300"]
    whole = cli.found(*words)
    with interrupted(100):
        cli.error(130, *words)
    (kept,) = cli.kept
    text = kept.read_text()
    damaged = text[: len(text) // 2] if change is None else change
    if isinstance(damaged, dict):  # what is changed by hand has no hash of its own
        damaged = json.dumps({**{key: each for key, each in json.loads(text).items() if key != KEY}, **damaged})
    elif callable(damaged):
        damaged = damaged(text)
    for path in (kept, Path("kept.json")):
        path.write_text(damaged)
    line = cli.error(1, *words, "--checkpoint", "kept.json", "-o", "new.splitload")
    assert line.startswith("splitload: the checkpoint 'kept.json' cannot be used: ")
    assert message in line
    assert line.endswith("; delete it, or give another file\n")
    assert Path("kept.json").read_text() == damaged
    assert not Path("new.splitload").exists()
    code, out, err = cli(*words, "--json")
    assert code == 0, err
    assert message in err
    assert err.endswith("; the search starts anew\n")
    assert {**json.loads(out), "search_s": 0, "replaced": None} == {**whole, "search_s": 0, "replaced": None}
    assert not cli.kept


def test_a_checkpoint_that_is_too_large_is_not_read(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.found(*WORDS, "--episodes", "100", "--checkpoint", "kept.json")
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 1000)
    line = cli.error(1, *WORDS, "--episodes", "100", "--checkpoint", "kept.json")
    assert "no checkpoint has more than 1000; delete it" in line
    line = cli.error(1, *WORDS, "--episodes", "100", "--checkpoint", "new.json")
    assert "cannot write checkpoint 'new.json': it would be larger than 1000 bytes" in line


def test_a_file_of_another_search_is_refused_with_the_difference(cli: Cli) -> None:
    words = [*WORDS, "--episodes", "100", "--checkpoint", "kept.json"]
    cli.found(*words)
    before = Path("kept.json").read_bytes()
    line = cli.error(1, *words, "--seed", "3", "--objective", "balance")
    assert "it is of another search, with objective 'ttfo' and not 'balance', seed 0 and not 3; delete it" in line
    assert "num_stages [1, 2, 3, 4, 5] and not [1, 2, 3]" in cli.error(1, *words, "--max-stages", "3")
    profile = json.loads(Path("deep.json").read_text())
    profile["blocks"][3]["load_s"] *= 2
    Path("other.json").write_text(json.dumps(profile))
    assert "with profile_sha256 '" in cli.error(1, *words, "--device", "other.json")
    assert Path("kept.json").read_bytes() == before


@pytest.mark.parametrize("option", ["--checkpoint", "--curve"])
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["kept", "--agent", "exact"], 2, "is of an agent that learns, best or q-learning or sarsa; exact does not"),
        (["kept", "--split-points", "5"], 2, "is of a search, and with --split-points there is none"),
        ([""], 2, "needs a name"),
        (["none/kept"], 1, "there is no folder 'none'"),
        (["."], 1, "it exists and is not a file"),
    ],
)
def test_files_that_cannot_be_meant(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, option: str, words: list[str], code: int, message: str
) -> None:
    monkeypatch.setattr("splitload.planner.read_model.open_source", lambda *_: pytest.fail("worked"))
    line = cli.error(code, *WORDS, option, *words)
    assert option.removeprefix("--") in line
    assert message in line


def test_a_cache_that_cannot_be_written_is_done_without(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OutputError("No space left on device")

    monkeypatch.setattr(checkpoint, "write_text", fail)
    monkeypatch.setattr(checkpoint, "INTERVAL_S", 0.0)
    code, _, err = cli(*WORDS, "--episodes", "100")
    assert (code, err) == (0, "the search is not kept for resuming: No space left on device\n")
    line = cli.error(1, *WORDS, "--episodes", "100", "--checkpoint", "kept.json")
    assert line == "splitload: No space left on device\n"


def test_searches_nobody_came_back_for_leave_the_cache(cli: Cli) -> None:
    (cli.cache / "searches").mkdir(exist_ok=True)
    old, new = (cli.cache / "searches" / name for name in ("old.json", "new.json"))
    for path, days in ((old, 31), (new, 29)):
        path.write_text("{}")
        then = time.time() - days * 86_400
        os.utime(path, (then, then))
    with interrupted(50):
        cli.error(130, *WORDS)
    assert not old.exists()
    assert new.exists()
    assert len(cli.kept) == 2


def test_interrupts_are_left_to_a_program_that_handles_them(cli: Cli) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        with contextlib.suppress(AssertionError), interrupted(50):  # which looks for Python's own handler at the end
            cli.found(*WORDS, "--episodes", "100")
        handler = signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]
    assert handler is not signal.default_int_handler
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main([*WORDS, "--episodes", "100", "--json"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_learning_curve(cli: Cli) -> None:
    for objective, column in (("ttfo", "return_s"), ("balance", "return")):
        words = [*WORDS, "--objective", objective, "--episodes", "400", "--curve", "curve.csv"]
        found = cli.found(*words, "--max-stages", "3")
        with Path("curve.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["num_stages", "episode", column, "best_value_s"]
        assert len(rows) == found["episodes"]
        for count in ("1", "2", "3"):
            of = [row for row in rows if row["num_stages"] == count]
            assert [int(row["episode"]) for row in of] == list(range(1, len(of) + 1))
            best = [float(row["best_value_s"]) for row in of]
            assert best == sorted(best, reverse=True)
            if objective == "ttfo":
                assert best[0] == pytest.approx(-float(of[0][column]))
                assert best[-1] == pytest.approx(-max(float(row[column]) for row in of), rel=1e-6)
        assert min(float(row["best_value_s"]) for row in rows) <= found["value"]["learned"] * (1 + 1e-12)
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


STARTED = """
import sys
from splitload.cli import main
from splitload.planner import checkpoint_file as checkpoint
checkpoint.INTERVAL_S, checkpoint.WRITING_SHARE = 0.01, 1.0
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_ends_in_mid_search_is_resumed(cli: Cli, number: signal.Signals) -> None:
    words = [*WORDS, "--episodes", "10000"]
    command = [sys.executable, "-c", STARTED, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        until_s = time.perf_counter() + WAIT_S
        while not any(path.suffix == ".json" for path in cli.kept) and time.perf_counter() < until_s:
            time.sleep(0.001)
        running.send_signal(number)
        running.wait(WAIT_S)
        assert running.returncode == (130 if number == signal.SIGINT else -number)
        if number == signal.SIGINT:
            assert "the same command goes on with the search" in running.stderr.read()
    code, out, err = cli(*words, "--json")
    assert code == 0, err
    assert 0 < int(err.split(",")[0].rpartition(" ")[2]) < 10_000
    resumed = json.loads(out)
    del resumed["search_s"]
    assert {key: value for key, value in resumed.items() if key != "replaced"} == cli.found(*words)


@pytest.mark.parametrize("place", ["write", "replace"])
def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    path = tmp_path / "file"
    write_text(path, "old", "text")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if place == "replace":
            patch.setattr(Path, "replace", fail)
        with pytest.raises(OutputError if place == "replace" else UnicodeEncodeError):
            write_text(path, "new" if place == "replace" else "\ud800", "text")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "new", "text")
    assert path.read_text() == "new"
