"""What the command line refuses or fails at: one clear line each, also at interrupts and for readers that go away."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import runtime_models
from command_line import WAIT_S, Run, json_of, one_line, process
from onnx import TensorProto, helper

from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.commands.console import shortened
from splitload.commands.parser import parser
from splitload.plan.objectives import OBJECTIVES

TRAIN = ["train", "model.onnx", "--device", "s20"]


USAGE: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "no command given (see 'splitload --help')"),
    "command": (["trian"], "unknown command 'trian'. Did you mean train"),
    "nonsense": (["nonsense"], "unknown command 'nonsense'. Known: bench, cache, collaborate, crowd, devices"),
    "nothing near": (["nosuch"], "unknown command 'nosuch'. Known: bench, cache, collaborate, crowd, devices"),
    "option": ([*TRAIN, "--speed"], "unrecognized arguments: --speed. Did you mean --seed"),
    "option in the place of one that is required": (
        ["train", "model.onnx", "--devise=s20"],
        "unrecognized arguments: --devise. Did you mean --device? (see 'splitload train --help')",
    ),
    "option like none": (["zoo", "--xyzzy"], "unrecognized arguments: --xyzzy (see"),
    "option before the command": (["--versoin", "zoo"], "unrecognized arguments: --versoin. Did you mean --version?"),
    "action": (["cache", "cler"], "unknown action 'cler'. Did you mean clear?"),
    "no device": (["train", "model.onnx"], "required: --device"),
    "device": (["train", "model.onnx", "--device", "s21"], "unknown device 's21'. Did you mean s20?"),
    "agent": ([*TRAIN, "--agent", "qlearning"], "unknown agent 'qlearning'. Did you mean q-learning"),
    "objective": ([*TRAIN, "--objective", "tffo"], "unknown objective 'tffo'. Did you mean ttfo?"),
    "zoo": (["train", "zoo:mobilenet", "--device", "s20"], "unknown zoo model 'mobilenet'. Did you mean mobilenet_v1?"),
    **{
        f"{option} {word}": ([*TRAIN, f"{option}={word}"], "whole number of at least 1")
        for option in ("--max-stages", "--episodes", "--max-blocks")
        for word in ("0", "-1", "x", "1.5", "")
    },
    "seed": ([*TRAIN, "--seed", "x"], "--seed"),
    "seed below 0": ([*TRAIN, "--seed=-5"], "whole number of at least 0"),
    "no name": ([*TRAIN, "-o", ""], "-o needs a name"),
    "word too many": (["devices", "extra"], "unrecognized arguments: extra (see 'splitload devices --help')"),
    "no folder for outputs": (["run", "BUNDLE", "-o", ""], "-o needs a name"),
    "no model": (["train", "", "--device", "s20"], "MODEL needs a name"),
    "no name of a device": (["train", "model.onnx", "--device="], "--device needs a name"),
    **{
        f"no bundle to {word}": ([word, ""], "BUNDLE needs a name") for word in ("run", "inspect", "verify", "finetune")
    },
    "no target": (["install", "BUNDLE", ""], "TARGET needs a name"),
    "no file for a profile": (["profile", "model.onnx", "--device", "s20", "-o", ""], "-o needs a name"),
    "no data": (["finetune", "BUNDLE", "--data="], "--data needs a name"),
    "split points that do not fit": (["train", "MODEL", "--device", "s20", "--split-points=99"], "split points [99]"),
    "case": (["train", "model.onnx", "--device", "S20"], "unknown device 'S20'. Did you mean s20?"),
    "split points": ([*TRAIN, "--split-points", "1,x"], "block numbers with commas between"),
    "input pair": ([*TRAIN, "--input", "x"], "--input takes NAME=FILE.npy"),
    "input file": ([*TRAIN, "--input", "x=no.npy"], "cannot read 'no.npy'"),
    "input that is none": ([*TRAIN, "--input", "x=text.npy"], "cannot read 'text.npy' as a .npy array"),
    "input name": (["run", "BUNDLE", "--input", "q=good.npy"], "the model has no input ['q']"),
    "input shape": (["run", "BUNDLE", "--input", "x=good.npy"], "the model does not run on these inputs"),
    "threads": (["run", "BUNDLE", "--threads", "0"], "whole number of at least 1"),
    "runs": (["bench", "model.onnx", "--runs", "0"], "whole number of at least 1"),
}


@pytest.mark.parametrize(("words", "message"), USAGE.values(), ids=USAGE)
def test_usage(cli: Run, chain_model: Path, chain_bundle: Path, words: list[str], message: str) -> None:
    Path("text.npy").write_text("text")
    np.save("good.npy", np.zeros(3, np.float32))
    paths = {"BUNDLE": chain_bundle, "MODEL": chain_model}
    assert message in one_line(cli(*(paths.get(word, word) for word in words)), 2)


def newer_opset() -> bytes:
    model = runtime_models.chain()
    model.opset_import[0].version = 99
    return bytes(model.SerializeToString())


FAILS: dict[str, tuple[list[str], str]] = {
    "no model": (["train", "no.onnx", "--device", "s20"], "no model file 'no.onnx'; give an .onnx file, zoo:NAME"),
    "truncated": (["train", "cut.onnx", "--device", "s20"], "'cut.onnx' is truncated or not an ONNX model"),
    "not ONNX": (["train", "text.onnx", "--device", "s20"], "'text.onnx' is truncated or not an ONNX model"),
    "empty": (["profile", "empty.onnx", "--device", "s20"], "'empty.onnx' is truncated or not an ONNX model"),
    "folder": (["bench", "folder"], "'folder' is a folder; give an .onnx file"),
    "opset": (["train", "opset.onnx", "--device", "s20"], "cannot load 'opset.onnx'"),
    "no bundle": (["run", "folder"], "'folder' is not a bundle: it has no manifest.json"),
    "no such bundle": (["inspect", "nothing"], "'nothing' is not a bundle: there is no such folder"),
    "model as a bundle": (["verify", "text.onnx"], "'text.onnx' is not a bundle"),
    "other profile": (
        ["train", "MODEL", "--device", "other.json", "-o", "o"],
        "other.json is a profile of 'other' (",
    ),
    "no profile": (["train", "MODEL", "--device", "text.json"], "text.json"),
    "output parent": (["train", "MODEL", "--device", "s20", "-o", "no/b.splitload"], "there is no folder 'no'"),
    "output file": (["train", "MODEL", "--device", "s20", "-o", "text.onnx"], "exists and is not a bundle"),
    "profile parent": (["profile", "MODEL", "--device", "s20", "-o", "no/p.json"], "there is no folder 'no'"),
}


@pytest.mark.parametrize(("words", "message"), FAILS.values(), ids=FAILS)
def test_failures(cli: Run, chain_model: Path, words: list[str], message: str) -> None:
    Path("folder").mkdir()
    for name in ("text.onnx", "text.json"):
        Path(name).write_text("this is no model")
    Path("empty.onnx").write_bytes(b"")
    Path("cut.onnx").write_bytes(chain_model.read_bytes()[:-100])
    Path("opset.onnx").write_bytes(newer_opset())
    if "other.json" in words:
        node = helper.make_node("Tanh", ["x"], ["y"])
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
        graph = helper.make_graph([node], "g", ends[:1], ends[1:])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "other.onnx")
        assert cli("profile", "other.onnx", "--device", "s20", "-o", "other.json")[0] == 0
    before = sorted(Path().rglob("*"))
    assert message in one_line(cli(*(chain_model if word == "MODEL" else word for word in words)), 1)
    assert sorted(Path().rglob("*")) == before


def test_output_that_is_no_bundle_is_refused_before_any_work(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitload.planner.read_model.open_source", lambda *_: pytest.fail("worked"))
    Path("precious").mkdir()
    Path("precious/manifest.json").write_text("{}")
    assert "exists and is not a bundle" in one_line(cli("train", "--device", "s20", "-o", "precious"), 1)


def test_full_disk(cli: Run, chain_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("splitload.build.assemble.write_manifest", fail)
    line = one_line(cli("train", chain_model, "--device", "s20", "--agent", "exact", "-o", "b.splitload"), 1)
    assert "cannot write 'b.splitload': No space left on device; nothing was changed" in line
    assert not list(Path().iterdir())


def test_unexpected_errors_say_how_to_see_more(cli: Run, chain_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("splitload.commands.bundles.read_manifest", fail)
    code, _, err = cli("inspect", chain_bundle)
    assert (code, err) == (
        1,
        "splitload: ZeroDivisionError: two lines (this should not happen; --debug shows where)\n",
    )
    code, _, err = cli("inspect", chain_bundle, "--debug")
    assert code == 1
    assert "Traceback" in err


INTERRUPTED = {
    "search": (
        "splitload.agents.q_learning:QLearning._play",
        50,
        "the same command goes on with the search. The best plan",
    ),
    "building": ("splitload.graphs.stages:StageWriter.write", 1, "nothing was written. The best plan so far has"),
    "zoo": ("splitload.frontends.zoo:_write_mobilenet", 1, "interrupted; nothing was written"),
    "profile": ("splitload.devices.simulated:SimulatedDevice.profile", 1, "interrupted; nothing was written"),
}


@pytest.mark.parametrize(("place", "count", "message"), INTERRUPTED.values(), ids=INTERRUPTED)
def test_interrupt(cli: Run, chain_model: Path, tmp_path: Path, place: str, count: int, message: str) -> None:
    """A real signal, at the moment that the count-th call of a function begins."""
    code = f"""
import importlib, operator, os, signal, sys
from splitload.cli import main
module, _, path = {place!r}.partition(":")
owner, _, name = path.rpartition(".")
module = importlib.import_module(module)
owner = operator.attrgetter(owner)(module) if owner else module
real, calls = getattr(owner, name), []
def interrupted(*arguments, **options):
    calls.append(1)
    if len(calls) == {count}:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*arguments, **options)
setattr(owner, name, interrupted)
raise SystemExit(main())
"""
    cache = tmp_path / "fresh"  # which holds neither the zoo's model nor a search to resume
    words = ["zoo:mobilenet_v1" if place.endswith("mobilenet") else str(chain_model)]
    out = tmp_path / "a folder"
    out.mkdir()
    bundle = out / "b.splitload"
    done = process(
        cache,
        tmp_path,
        "train",
        *words,
        "--device",
        "s20",
        "-o",
        bundle,
        "--max-blocks=9",
        "--objective=ttfo",
        code=code,
    )
    line = one_line((done.returncode, done.stdout, done.stderr), 130)
    assert message in line
    assert not list(out.iterdir())
    assert not [path for path in cache.rglob("*") if path.suffix == ".making" or path.name.startswith(".making")]
    if "to build it: " in line:
        command = shlex.split(line.partition("to build it: ")[2])
        found = json_of(cli(*command[1:], "--json"))
        assert found["bundle"] == str(bundle)
        assert found["objective"] == "ttfo"
        assert f"has {found['plan']['num_stages']} stage" in line


@pytest.mark.usefixtures("few_samples")
def test_interrupt_while_measuring_says_that_the_bundle_is_there(
    cli: Run, chain_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("splitload.planner.train.measure_gain", interrupt)
    line = one_line(cli("train", chain_model, "--device", "host", "--agent", "exact", "-o", "b.splitload"), 130)
    assert "the bundle 'b.splitload' is complete" in line
    read_manifest(Path("b.splitload"), "hashes")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--device", "s20"], ["profile", "m.onnx", "--device", "s20"], ["bench", "m.onnx"], ["run", "b"],
        ["inspect", "b"], ["verify", "b"], ["specialize", "b"], ["finetune", "b"], ["tails", "b"],
        ["devices"], ["zoo"], ["cache"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_every_command_that_is_interrupted_exits_with_130(
    cli: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    module, _, name = parser().parse_args(words).function.partition(":")
    monkeypatch.setattr(f"splitload.commands.{module}.{name}", interrupt)
    assert "interrupted; nothing was written" in one_line(cli(*words), 130)


def test_help_is_plain_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    commands = next(action.choices for action in parser()._actions if action.dest == "command_name")
    assert commands is not None
    for words in ([], *([name] for name in commands)):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        assert capsys.readouterr().out.isascii(), words


@pytest.mark.parametrize("words", [["zoo"], ["zoo", "--json"], ["--help"]])
def test_reader_that_goes_away(cache: Path, words: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "splitload", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(WAIT_S) in (0, 1)


def test_output_that_cannot_be_written(cache: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "splitload", "zoo"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot read or write the output: No space left on device" in done.stderr


def test_python_m_splitload(cache: Path, tmp_path: Path) -> None:
    done = process(cache, tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert process(cache, tmp_path, "-V").stdout == done.stdout
    assert done.stdout.startswith("splitload ")
    done = process(cache, tmp_path, "run", ".")
    one_line((done.returncode, done.stdout, done.stderr), 1)


def test_no_messages_of_onnxruntime(cache: Path, own_bundle: Path, tmp_path: Path) -> None:
    graph = next(own_bundle.glob("*-01-*.onnx"))
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    done = process(cache, tmp_path, "run", own_bundle)
    assert "stage 2 of" in one_line((done.returncode, done.stdout, done.stderr), 1)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_command_line_offers_every_objective(capsys: pytest.CaptureFixture[str], name: str) -> None:
    words = ["train", "m.onnx", "--device", "s20", "--objective", name]
    assert parser().parse_args(words).objective == name
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert f"{name}: {OBJECTIVES[name].wish}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("fc", "fc"),
        ("conv1/conv … fc", "conv1/conv … fc"),
        ("block10/depthwise/conv … block12/pointwise/relu", "block10/…/conv … block12/…/relu"),
        ("/block10/depthwise/a/conv … flatten", "block10/…/conv … flatten"),
        ("one_long_name_without_any_parts_in_it", "one_long_name_wi…any_parts_in_it"),
    ],
)
def test_shortened(name: str, short: str) -> None:
    assert shortened(name) == short
    assert len(short) <= 32
