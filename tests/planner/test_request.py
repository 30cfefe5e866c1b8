"""A request is the same from the command line and from Python: settings, defaults, help, and what is refused."""

from __future__ import annotations

import inspect
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

import splitload.planner
from splitload.base.errors import UsageError
from splitload.commands.parser import parser
from splitload.planner.from_torch import from_torch
from splitload.planner.request import DEFAULTS, SETTINGS, TrainRequest

CACHE = Path("cache")


def options_of_train() -> dict[str, Any]:
    commands = next(action.choices for action in parser()._actions if action.dest == "command_name")
    assert isinstance(commands, dict)
    return {action.dest: action for action in commands["train"]._actions}


def request(**settings: Any) -> TrainRequest:
    return TrainRequest(**{"device": "s20", "cache": CACHE, **settings})


def test_the_command_line_has_every_setting() -> None:
    options = options_of_train()
    assert set(options) - set(SETTINGS) == {"help", "json", "debug", "input"}
    for name, setting in SETTINGS.items():
        assert tuple(options[name].option_strings) == setting.flags
        assert options[name].help.startswith(setting.help)
        assert options[name].default == DEFAULTS.get(name)
        assert options[name].required == (name not in DEFAULTS and bool(setting.flags))


def test_from_torch_says_what_the_command_line_says() -> None:
    keywords = inspect.signature(from_torch).parameters
    told = " ".join((inspect.getdoc(from_torch) or "").split())
    shared = [name for name in SETTINGS if name in keywords]
    assert len(shared) == 9
    for name in shared:
        if name in DEFAULTS:
            assert keywords[name].default == DEFAULTS[name]
        text = re.sub(r" \(default: %\(default\)s\)$", "", SETTINGS[name].help)
        assert f"{name}: {text[0].upper()}{text[1:]}." in told or f"{name}: {text}." in told


WRONG = [
    ("max_stages", 0), ("max_stages", 2.5), ("max_stages", True), ("max_blocks", -1), ("seed", -1), ("seeds", 0),
    ("episodes", "many"), ("jobs", 0), ("budget", 0), ("new_head", 0), ("agent", "q-learnin"), ("objective", "speed"),
    ("split_points", "1,x"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_python_and_the_command_line_refuse_alike(name: str, value: Any) -> None:
    with pytest.raises(UsageError) as here:
        request(**{name: value})
    with pytest.raises(UsageError) as there:
        parser().parse_args(["train", "--device=s20", f"{SETTINGS[name].flags[-1]}={value}"])
    assert str(here.value) == str(there.value)


def test_a_device_is_required() -> None:
    with pytest.raises(UsageError) as here:
        request(device=None)
    with pytest.raises(UsageError) as there:
        parser().parse_args(["train"])
    assert str(here.value) == str(there.value)


def test_a_value_may_be_given_as_a_word() -> None:
    made = request(trainable=1, split_points=[2, 4], max_stages="3")
    assert (made.trainable, made.split_points, made.max_stages) == ("1", (2, 4), 3)
    assert replace(made, model="m.onnx").split_points == (2, 4)


def test_a_request_does_not_change() -> None:
    made = request(new_head=5)
    with pytest.raises(FrozenInstanceError):
        made.trainable = "1"  # type: ignore[misc]
    assert (made.trainable, made.trained) == (None, "1")
    assert request(new_head=5, trainable="fc").trained == "fc"
    assert request().trained is None


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "mobilenet_v1.splitload"),
        ({"model": "models/net.onnx"}, "net.splitload"),
        ({"model": "package.module:make net"}, "make-net.splitload"),
        ({"model": "net.onnx", "output": "other/b"}, "other/b"),
    ],
)
def test_where_the_bundle_goes(settings: dict[str, str], name: str) -> None:
    assert request(**settings).target == Path(name)


TOGETHER = [
    ({"output": ""}, "-o needs a name, for example -o model.splitload"),
    ({"trainable": "1", "max_stages": 1}, "--trainable needs two stages, one frozen and one trained"),
    ({"new_head": 3, "max_stages": 1}, "--trainable needs two stages, one frozen and one trained"),
    ({"jobs": 2}, "--jobs and --cluster share out the searches of several seeds: give --seeds as well"),
    ({"seeds": 2, "split_points": [1]}, "--seeds searches, and --split-points gives a plan"),
    ({"seeds": 2, "agent": "exact"}, "--seeds: 'exact' finds the same for every seed"),
    ({"seeds": 2, "jobs": 2, "cluster": "tcp://here:1"}, "give --jobs or --cluster, not both"),
    ({"budget": 9, "seeds": 2}, "leave out --seeds or --budget"),
    ({"budget": 9, "curve": "c.csv"}, "leave out --curve or --budget"),
    ({"curve": ""}, "--curve needs a name"),
    ({"checkpoint": "k", "split_points": [1]}, "--checkpoint is of a search, and with --split-points there is none"),
    (
        {"checkpoint": "k", "agent": "exact"},
        "--checkpoint is of an agent that learns, best or q-learning or sarsa; exact does",
    ),
    ({"curve": "c", "seeds": 2}, "--curve is of one search, and --seeds makes 2"),
    ({"curve": "b", "output": "b"}, "--curve 'b' is where the bundle goes"),
    ({"curve": "f", "checkpoint": "f"}, "--curve and --checkpoint are both 'f'"),
]


@pytest.mark.parametrize(("settings", "message"), TOGETHER)
def test_settings_that_do_not_fit_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        request(**settings)


def test_a_planner_knows_no_command_line() -> None:
    for file in Path(splitload.planner.__file__).parent.glob("*.py"):
        assert not re.search(r"^\s*(import|from) (argparse|splitload\.commands)", file.read_text(), re.MULTILINE), file


@pytest.mark.parametrize("value", [["a"], b"a", object(), {"a": 1}])
def test_what_no_word_says_is_no_setting(value: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="argument --trainable: it takes text or numbers, not"):
        TrainRequest(device="s20", cache=tmp_path, trainable=value)
