"""Devices: what each must refuse and compute, besides the contract of `test_device_contract.py`."""

from __future__ import annotations

import json
import re
import threading
import tomllib
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import onnxruntime as ort
import pytest
from device_graphs import make_graph

from splitload import devices
from splitload.base.errors import CacheWarning, ModelError, OutputError, ProfileError, UsageError
from splitload.devices.host import HostDevice, _onnxruntime_version
from splitload.devices.measuring import profile_loads
from splitload.devices.simulated import DeviceModel, SimulatedDevice
from splitload.devices.stored import StoredDevice, write_profile
from splitload.measure import stages
from splitload.measure.fresh import run_job
from splitload.measure.job import Job, LoadModel
from splitload.plan.graph import ModelGraph
from splitload.plan.profile import Profile
from splitload.plan.schedule import Contention
from splitload.runtime.capi.find import VARIABLE, beside_module
from splitload.runtime.capi.library import version_of

TOML = """
schema_version = 2
name = "toy"
description = "for tests"
threads = 4
storage_bandwidth_bytes_per_s = 1000.0
prepare_bytes_per_s = 250.0
node_s = 0.5
stage_fixed_s = 0.25
flops_per_s = 100
serial_share = 0.2
thread_penalty = 0.1
[sources]
threads = "made up"
"""


FILES = {name: path for name, path in devices.names().items() if path is not None}
SIMULATED = list(FILES)


def test_names_and_unknown_devices(tmp_path: Path) -> None:
    assert {"host", "pixel6", "redmi9", "rpi4", "s20"} <= set(devices.names())
    with pytest.raises(UsageError, match=r"unknown device 's21'. Did you mean s20\? Known: host"):
        devices.open_device("s21", tmp_path)
    for name in ("192.0.2.2:8750", "ftp://192.0.2.2:8750"):
        with pytest.raises(UsageError, match=f"unknown device '{name}'; a served one is https://HOST:PORT"):
            devices.open_device(name, tmp_path)
    for name in ("none.toml", "none.json"):
        with pytest.raises(UsageError, match=f"no device or profile file '{name}'"):
            devices.open_device(name, tmp_path)


@pytest.mark.parametrize("name", SIMULATED)
class TestEveryShippedDeviceFile:
    """What a reader relies on."""

    def test_is_named_as_its_file(self, name: str, tmp_path: Path) -> None:
        assert devices.open_device(name, tmp_path).name == name

    def test_says_of_every_figure_where_it_comes_from(self, name: str) -> None:
        data = tomllib.loads(FILES[name].read_text(encoding="utf-8"))
        figures = [field.name for field in fields(DeviceModel) if isinstance(data[field.name], int | float)]
        assert sorted(data["sources"]) == sorted(figures)
        for key, source in data["sources"].items():
            known = ("assumed: ", "fitted to Table 1", "scaled from s20 ", "Table 1 of the ICLR 2021 submission")
            assert source.startswith(known) or re.search(r"https?://\S+\.\S+", source), f"{key}: {source}"

    def test_is_fitted_or_scaled_from_what_is_by_one_factor(self, name: str) -> None:
        figures, s20 = SimulatedDevice.read(FILES[name]).model, SimulatedDevice.read(FILES["s20"]).model
        factor = figures.prepare_bytes_per_s / s20.prepare_bytes_per_s
        assert figures.flops_per_s / s20.flops_per_s == pytest.approx(factor, rel=0.01)
        assert s20.node_s / figures.node_s == pytest.approx(factor, rel=0.01)
        assert s20.stage_fixed_s / figures.stage_fixed_s == pytest.approx(factor, rel=0.01)
        assert (figures.serial_share, figures.thread_penalty) == (s20.serial_share, s20.thread_penalty)


def toy(folder: Path, text: str = TOML) -> SimulatedDevice:
    path = folder / "toy.toml"
    path.write_text(text, encoding="utf-8")
    device = devices.open_device(str(path), folder)
    assert isinstance(device, SimulatedDevice)
    return device


def test_simulated_times_follow_from_nodes_and_bytes(tmp_path: Path, graphs: dict[str, ModelGraph]) -> None:
    profile = toy(tmp_path).profile(graphs["portable"])
    for block, of in zip(profile.blocks, graphs["portable"].blocks, strict=True):
        assert block.cost.read_s == pytest.approx(of.weights_bytes / 1000)
        assert block.cost.load_s == pytest.approx(
            0.25 + (of.end - of.start) * 0.5 + of.weights_bytes * (1 / 1000 + 1 / 250)
        )
        assert block.cost.inference_s == block.cost.first_inference_s == pytest.approx(of.flops / 100)
    matrices = 3 * 16 * 16 * 4
    nodes = len(graphs["portable"].nodes)
    assert profile.whole().load_s == pytest.approx(0.25 + nodes * 0.5 + matrices * (1 / 1000 + 1 / 250))
    assert profile.stage_fixed_s == 0.25
    assert profile.contention == Contention(4, 0.2, 0.1)
    assert sum(block.flops for block in graphs["portable"].blocks) == 3 * (2 * 16 * 16 + 16)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threads = 4", "threads = 4\nvolume = 11", r"unknown keys \['volume'\]; known are name, "),
        ("threads = 4", "", r"missing keys \['threads'\]; each must be given, above \[sources\]"),
        ("threads = 4", "threads = 0", "threads must be a whole number of at least 1"),
        ("threads = 4", "threads = 2.5", "threads must be a whole number of at least 1"),
        ("threads = 4", "threads = true", "threads must be a whole number of at least 1"),
        ("schema_version = 2", "schema_version = 1", "must be 2, it is 1, where .* add prepare_bytes_per_s and node_s"),
        ("schema_version = 2", "schema_version = 3", "must be 2, it is 3; write schema_version = 2 .* keys: name, "),
        ("schema_version = 2", "", "must be 2, it is missing; write schema_version = 2 at the top"),
        ('name = "toy"', "name = 3", "name must be a string"),
        ('"for tests"', '"for\\ntests"', "description must be a string of one line"),
        ("= 1000.0", "= -1000.0", "storage_bandwidth_bytes_per_s must be above 0"),
        ("= 1000.0", "= 0", "storage_bandwidth_bytes_per_s must be above 0"),
        ("= 0.25", "= -0.25", "stage_fixed_s must be at least 0"),
        ("= 0.25", "= nan", "stage_fixed_s must be a finite number"),
        ("= 0.25", "= inf", "stage_fixed_s must be a finite number"),
        ("= 0.25", "= 1" + 400 * "0", "stage_fixed_s must be a finite number"),
        ("node_s = 0.5", "node_s = true", "node_s must be a finite number"),
        ("= 0.25", '= "fast"', "stage_fixed_s must be a finite number"),
        ("serial_share = 0.2", "serial_share = 1.5", "serial_share must be a share of at most 1"),
        ("threads = 4", "threads 4", "not TOML"),
        ("threads = 4", "threads = " + 20_000 * "[", "not TOML"),
    ],
)
def test_bad_device_files(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert TOML.count(old) == 1
    with pytest.raises(ProfileError, match=message) as caught:
        toy(tmp_path, TOML.replace(old, new))
    assert str(caught.value).startswith("toy.toml: ")


def test_a_stored_profile_is_of_one_model_and_one_division(tmp_path: Path, graphs: dict[str, ModelGraph]) -> None:
    path = tmp_path / "stored.json"
    write_profile(path, toy(tmp_path).profile(graphs["portable"]))
    device = StoredDevice(path)
    assert "toy-model" in device.description
    (tmp_path / "other").mkdir()
    other = make_graph(tmp_path / "other", "portable", models.chain(5))
    with pytest.raises(ProfileError, match=r"is a profile of 'toy-model' \(\w{12}…\), not of 'toy-model'"):
        device.profile(other)
    fewer = ModelGraph(**{**vars_of(graphs["portable"]), "max_blocks": 2})
    with pytest.raises(ProfileError, match="--max-blocks"):
        device.profile(fewer)
    path.write_text(json.dumps({"schema_version": 9}))
    with pytest.raises(ProfileError, match="schema version 9"):
        devices.open_device(str(path), tmp_path)


def vars_of(graph: ModelGraph) -> dict[str, Any]:
    return {name: getattr(graph, name) for name in ModelGraph.__dataclass_fields__}


def test_host_measures_once_and_again_only_when_asked(host_cache: Path, graphs: dict[str, ModelGraph]) -> None:
    first = HostDevice(host_cache, repeats=1).profile(graphs["native"])
    runs = list[Job]()

    def run(job: Job, *rest: Any, **options: Any) -> dict[str, Any]:
        runs.append(job)
        return run_job(job, *rest, **options)

    assert HostDevice(host_cache, repeats=1, run=run).profile(graphs["native"]) == first
    assert runs == []
    refreshing = HostDevice(host_cache, repeats=1, refresh=True, run=run)
    second = refreshing.profile(graphs["native"])
    assert len(runs) == 5  # the blocks, and twice each of two plans
    assert refreshing.profile(graphs["native"]) == second
    assert len(runs) == 5
    (stored,) = (host_cache / "profiles").glob("*.json")
    stored.write_text(json.dumps({"schema_version": 0}))
    with pytest.warns(CacheWarning, match="it is made anew"):  # it has no hash of its own: measured again
        HostDevice(host_cache, repeats=1, run=run).profile(graphs["native"])
    assert len(runs) == 10
    assert not list(graphs["native"].path.parent.glob(".measure-*"))


def test_host_loads_two_plans_as_those_of_a_bundle(host_cache: Path, graphs: dict[str, ModelGraph]) -> None:
    from splitload.bundle.read import read_manifest

    stages = list[int]()

    def count(job: Job, folder: Path, *rest: Any, **options: Any) -> dict[str, Any]:
        answer = run_job(job, folder, *rest, **options)  # the loader of a fresh process takes the folder for a bundle
        if isinstance(job, LoadModel):
            assert 0 < answer["load_s"] < answer["ttfo_s"]
            stages.append(len(read_manifest(folder, "hashes").variants[0].stages))
            answer = {"load_s": 100.0, "ttfo_s": 200.0 * len(stages)}
        return answer

    profile = HostDevice(host_cache, repeats=1, refresh=True, run=count).profile(graphs["native"])
    assert stages == [1, profile.num_blocks, 1, profile.num_blocks], "three blocks: a cut cannot be of four stages"
    assert profile.contention.start_s == pytest.approx(100.0, rel=0.01)
    later_s = (400 + 800) / 2 - 100  # of the cut, whose loads and inferences take next to nothing
    assert profile.contention.cut_infer_s == pytest.approx(later_s / profile.num_blocks, rel=0.01)
    assert profile_loads(graphs["native"], 1) == profile.num_blocks + 5 + len(stages) // 2 * (1 + profile.num_blocks)


def test_a_profile_does_without_a_cut_that_cannot_be_loaded(host_cache: Path, graphs: dict[str, ModelGraph]) -> None:
    def fail(job: Job, *rest: Any, **options: Any) -> dict[str, Any]:
        if isinstance(job, LoadModel):
            raise ModelError("it failed")
        return run_job(job, *rest, **options)

    profile = HostDevice(host_cache, repeats=2, refresh=True, run=fail).profile(graphs["native"])
    assert (profile.contention.start_s, profile.contention.cut_infer_s) == (0.0, 0.0)


def test_host_measures_further_segments_and_keeps_them(host_cache: Path, graphs: dict[str, ModelGraph]) -> None:
    device = HostDevice(host_cache, repeats=1)
    profile = device.measure(graphs["native"], [(0, 2), (1, 2)])
    assert (0, 2) in profile.segments
    assert (0, 3) in profile.segments  # the whole
    assert (1, 2) not in profile.segments  # a block is not a segment
    assert device.measure(graphs["native"], [(0, 2)]) == profile
    assert profile.environment["page_cache"] == "warm"


@pytest.mark.parametrize("name", ["float16, double and string boundaries", "scalars and empty tensors"])
def test_host_measures_models_on_given_strings_and_scalars(tmp_path: Path, name: str) -> None:
    model, feeds = models.CONSTRUCTS[name]()
    graph = make_graph(tmp_path, "native", model)
    assert HostDevice(tmp_path, repeats=1).profile(graph, feeds=feeds).num_blocks == 3


def test_host_makes_up_bfloat16_inputs_in_the_worker(tmp_path: Path) -> None:
    model = models.text("g (bfloat16[3] x) => (float[3] y) { y = Cast <to=1> (x) }")
    profile = HostDevice(tmp_path, repeats=1).profile(make_graph(tmp_path, "native", model))
    assert profile.num_blocks == 1
    assert profile.whole() == profile.blocks[0].cost


def test_host_says_in_one_line_why_it_cannot_measure(tmp_path: Path) -> None:
    model = models.text("g (float[2,3] x, int64[1] to) => (float[n] y) { a = Tanh(x)\n y = Reshape(a, to) }")
    graph = make_graph(tmp_path, "native", model)
    with pytest.raises(
        ModelError, match=r"cannot be measured on this host; give fitting inputs with --input .*made up: x, to\): "
    ) as caught:
        HostDevice(tmp_path, repeats=1).profile(graph)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="input 'x' is no array"):
        HostDevice(tmp_path, repeats=1).profile(graph, feeds={"x": [np.ones(3)]})
    assert not (tmp_path / "profiles").exists()


def test_an_old_profile_stays_where_a_new_one_cannot_be_written(
    tmp_path: Path, graphs: dict[str, ModelGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = toy(tmp_path).profile(graphs["portable"])
    with pytest.raises(OutputError, match="cannot write profile"):
        write_profile(tmp_path / "none" / "p.json", profile)
    path = tmp_path / "p.json"
    write_profile(path, profile)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_profile(path, profile)
    assert Profile.read(path) == profile
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("named", ["", "missing.so"])
def test_the_version_of_this_host_is_that_of_what_measures(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, named)
    monkeypatch.setattr(ort, "__version__", "of the module")
    assert _onnxruntime_version() == ("of the module" if named else version_of(beside_module()))


def test_serial_share_of_unequal_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    lock = threading.Lock()

    def load(seconds: float) -> None:  # one after the other, whoever asks: all of loading is serial
        with lock:
            clock[0] += seconds

    monkeypatch.setattr(stages, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert stages.serial_share([partial(load, 0.5), partial(load, 8.0)]) == pytest.approx(1.0)
    assert stages.serial_share([]) is None
