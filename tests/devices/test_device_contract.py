"""The contract of all devices, simulated, stored and measuring ones: what a search and a build rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from far_devices import FarDevice
from served_devices import Served, served

from splitload import devices
from splitload.build.assemble import Steps, VariantPlan, build_bundle
from splitload.bundle.read import read_manifest
from splitload.devices import tuning
from splitload.devices.host import HostDevice
from splitload.devices.ledger import SAMPLES
from splitload.devices.pairing import read_address
from splitload.devices.remote import RemoteDevice
from splitload.devices.stored import write_profile
from splitload.measure.sampling import Arm
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile

SIMULATED = [name for name, path in devices.names().items() if path is not None]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("service")) as made:
        yield made


@pytest.fixture
def remote(service: Served, host_cache: Path) -> Iterator[Callable[[], devices.Device]]:
    made: list[RemoteDevice] = []

    def make() -> devices.Device:
        made.append(RemoteDevice(read_address(service.url, host_cache), host_cache, repeats=1))
        return made[-1]

    yield make
    for each in made:
        each.close()


Remote = Callable[[], devices.Device]


def open_one(name: str, graphs: dict[str, ModelGraph], kept: Path, folder: Path, remote: Remote) -> devices.Device:
    if name == "host":
        return HostDevice(kept, repeats=1)
    if name == "served":
        return remote()
    if name == "far":
        return FarDevice(kept)
    if name in SIMULATED:
        return devices.open_device(name, folder)
    simulated = devices.open_device("s20", folder)
    write_profile(folder / "stored.json", simulated.profile(graphs["portable"]))
    return devices.open_device(str(folder / "stored.json"), folder)


@pytest.fixture(params=["host", "far", "served", *SIMULATED, "stored"])
def device(
    request: pytest.FixtureRequest, graphs: dict[str, ModelGraph], host_cache: Path, tmp_path: Path, remote: Remote
) -> devices.Device:
    return open_one(request.param, graphs, host_cache, tmp_path, remote)


class TestEveryDevice:
    """What a search relies on, whatever the device."""

    def test_says_what_it_is(self, device: devices.Device) -> None:
        assert device.name
        assert device.source in ("measured", "simulated")
        assert device.graph_kind in ("native", "portable")
        assert device.description
        assert "\n" not in device.description

    def test_profiles_every_block_of_the_graph(self, device: devices.Device, graphs: dict[str, ModelGraph]) -> None:
        graph = graphs[device.graph_kind]
        calls: list[tuple[int, int]] = []
        profile = device.profile(graph, on_progress=lambda done, total: calls.append((done, total)))
        assert [block.name for block in profile.blocks] == [block.name for block in graph.blocks]
        assert [block.weights_bytes for block in profile.blocks] == [block.weights_bytes for block in graph.blocks]
        assert (profile.model, profile.model_sha256) == (graph.name, graph.source_sha256)
        assert (profile.device, profile.source, profile.graph) == (device.name, device.source, device.graph_kind)
        assert all(block.cost.load_s > 0 and block.cost.inference_s >= 0 for block in profile.blocks)
        assert profile.contention.threads >= 1
        assert all(done <= total for done, total in calls)

    def test_answers_the_same_again(self, device: devices.Device, graphs: dict[str, ModelGraph]) -> None:
        graph = graphs[device.graph_kind]
        assert device.profile(graph) == device.profile(graph)

    def test_its_profile_survives_a_file(
        self, device: devices.Device, graphs: dict[str, ModelGraph], tmp_path: Path
    ) -> None:
        profile = device.profile(graphs[device.graph_kind])
        write_profile(tmp_path / "again.json", profile)
        assert Profile.read(tmp_path / "again.json") == profile

    def test_measures_only_where_its_profile_is_measured(self, device: devices.Device) -> None:
        assert device.measuring is None or device.source == "measured"


@pytest.fixture(params=["host", "far", "served"])
def measuring(
    request: pytest.FixtureRequest, graphs: dict[str, ModelGraph], host_cache: Path, remote: Remote
) -> devices.Measuring:
    found = open_one(request.param, graphs, host_cache, host_cache, remote).measuring
    assert found is not None
    return found


@pytest.mark.parametrize("name", [*SIMULATED, "stored"])
def test_what_computes_says_that_it_does_not_measure(
    name: str, graphs: dict[str, ModelGraph], host_cache: Path, tmp_path: Path, remote: Remote
) -> None:
    assert open_one(name, graphs, host_cache, tmp_path, remote).measuring is None


class TestEveryDeviceThatMeasures:
    """What a trial, a budget and a build rely on."""

    def test_guesses_before_it_measures(self, measuring: devices.Measuring, graphs: dict[str, ModelGraph]) -> None:
        guessed = measuring.guess(graphs["native"])
        assert guessed.source == "simulated"
        assert guessed.environment["repeats"] == str(SAMPLES)
        assert [block.name for block in guessed.blocks] == [block.name for block in graphs["native"].blocks]

    def test_measures_further_segments(self, measuring: devices.Measuring, graphs: dict[str, ModelGraph]) -> None:
        profile = measuring.measure(graphs["native"], [(0, 2)])
        assert profile.source == "measured"
        assert profile.segments[0, 2].load_s > 0

    def test_samples_stages_and_plans(self, measuring: devices.Measuring, graphs: dict[str, ModelGraph]) -> None:
        graph = graphs["native"]
        count = len(graph.blocks)
        with measuring.runs(graph) as runs:
            costs, serial_share = runs.sample([(0, 1), (1, count)], [(1, 2)], pair=True)
            first = runs.first_output(Partition(count, (1,)), 2)
        assert [segment for segment, _ in costs] == [(0, 1), (1, 2), (1, count)]
        assert all(cost.load_s > 0 for _, cost in costs)
        assert serial_share is not None
        assert 0 < first.load_s < first.ttfo_s
        assert not list(graph.path.parent.glob(".measure-*"))

    def test_loads_and_tunes_a_bundle(
        self,
        measuring: devices.Measuring,
        graphs: dict[str, ModelGraph],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(tuning, "MIN_WEIGHTS_BYTES", 0)
        monkeypatch.setattr(tuning, "REPEATS", 1)
        native, portable = graphs["native"], graphs["portable"]
        inputs = native.input_tensors()
        plans = [VariantPlan(native, Partition(3, (1,)), 2), VariantPlan(portable, Partition(len(portable.blocks)), 1)]
        done: list[tuple[int, int]] = []

        def choose(folder: Path, variant: Any) -> Any:
            chosen = measuring.tune(folder, variant, inputs, {}, lambda *step: done.append(step))
            assert [stage.graph for stage in chosen.stages] == [stage.graph for stage in variant.stages]
            return chosen

        build_bundle(tmp_path / "m.splitload", plans, device="any", steps=Steps(choose=choose))
        assert done[-1] == (len(tuning.SCHEMES), len(tuning.SCHEMES))
        assert len(read_manifest(tmp_path / "m.splitload", "hashes").variants[0].stages) == 2
        sample = measuring.first_output(Arm("splitload", tmp_path / "m.splitload", 2), inputs, {})
        assert sample["process_s"] > sample["ttfo_s"] > 0
        assert {"load_s", "first_inference_s"} <= sample.keys()
