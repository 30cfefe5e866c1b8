"""Emulated devices: nothing is left of them, whatever happens; what runs on them is right, and their limits hold."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from splitload.base.errors import StageError
from splitload.bundle.read import read_manifest
from splitload.crowd.mechanisms import Mechanisms
from splitload.frontends.onnx import Source
from splitload.studies import emulated_tables
from splitload.studies.control_groups import members_of
from splitload.studies.crowd_faults import Storm, killed_batch
from splitload.studies.crowd_runs import begin_anew, run_batch
from splitload.studies.crowd_subjects import Subject
from splitload.studies.emulated_network import BRIDGE, Network
from splitload.studies.emulated_processes import Processes, start_of
from splitload.studies.emulation import CONTROLLERS, DEVICES, Emulation, Limits

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture
def subject(chain_model: Path, native_bundle: Path) -> Subject:
    manifest = read_manifest(native_bundle)
    source = Source.open(chain_model, "chain")
    return Subject(source, native_bundle, manifest.inputs, tuple(spec.name for spec in manifest.outputs))


class System:
    """Stands in for `ip` and `tc`: keeps what was made, and refuses the command with a word."""

    def __init__(self, refuses: str = "nothing") -> None:
        self.refuses = refuses
        self.spaces: list[str] = []
        self.links: list[str] = ["lo", "splitload", "splitload-x"]
        self.caps: list[str] = []

    def __call__(self, words: Sequence[str]) -> str:
        if self.refuses in words:
            raise StageError("refused")
        match words[0], *words[1:]:
            case "ip", "-json", "netns", "list":
                return json.dumps([{"name": name} for name in self.spaces]) if self.spaces else ""
            case "ip", "-json", "link", "show":
                return json.dumps([{"ifname": name} for name in self.links])
            case "ip", "netns", "add", name:
                self.spaces.append(name)
            case "ip", "netns", "delete", name:
                self.spaces.remove(name)
            case "ip", "link", "add", name, *_:
                self.links.append(name)
            case "ip", "link", "delete", name:
                self.links.remove(name)
            case "tc", *rest:
                self.caps.append(rest[rest.index("rate") + 1])
        return ""


def test_a_network_is_made_and_removed() -> None:
    system = System()
    network = Network(3, 40_000_000, system)
    assert (len(system.spaces), len(system.links), system.caps) == (3, 7, ["40000000bit"] * 6)
    assert len({network.host(number) for number in range(3)}) == 3
    network.close()
    network.close()
    assert (system.spaces, system.links) == ([], ["lo", "splitload", "splitload-x"])


def test_nothing_is_left_of_a_network_that_is_refused() -> None:
    system = System(refuses="tc")
    with pytest.raises(StageError, match="refused"):
        Network(3, 40_000_000, system)
    assert (system.spaces, system.links) == ([], ["lo", "splitload", "splitload-x"])


def test_processes_that_a_killed_study_left_are_ended_and_no_others(tmp_path: Path) -> None:
    left, other = (subprocess.Popen(SLEEP) for _ in range(2))
    try:
        assert int(start_of(left.pid) or 0) > 0
        ledger = tmp_path / "ledger"
        ledger.write_text(f"{left.pid} {start_of(left.pid)}\n{other.pid} 1\nnonsense\n4194304999 1\n")
        processes = Processes(ledger)
        assert left.wait(10) == -9
        assert other.poll() is None  # its number came again: it has started at another moment
        with pytest.raises(StageError, match="another study"):
            Processes(ledger)
        started = processes.start(SLEEP, tmp_path / "log", {})
        assert ledger.read_text() == f"{started.pid} {start_of(started.pid)}\n"
        processes.close()
        processes.close()
        assert started.returncode == -9
        Processes(ledger).close()
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


def test_a_ledger_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StageError, match="cannot list"):
        Processes(tmp_path / "ledger")


def test_batches_on_plain_processes(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # another study may have emulated devices now
    with Emulation(2, Limits(), tmp_path, limited=False) as emulation:
        assert len(emulation.missing) == 3
        sample = run_batch(emulation, subject, range(6))
        assert (sample["lost"], sample["wrong"], sample["doubled"], sample["failed"]) == (0, 0, 0, 0)
        assert sample["least_difference"] > 1e-3
        assert sum(stage["count"] for device in sample["stages"].values() for stage in device.values()) == 6 * 4
        assert all(size > 0 for size in sample["peak_bytes"].values())
        cold = run_batch(emulation, subject, range(2), Mechanisms(recovery=False), cold=True)
        assert cold["stages_from_client_bytes"] > 0
        killed = killed_batch(emulation, subject, range(40), "device-2", 0.02)
        assert (killed["killed"], killed["lost"], killed["wrong"], killed["failed"]) == ("device-2", 0, 0, 0)
        row = {"of": "kills", "model": "chain", "stage_bytes": [1] * 4, "num_devices": 2, "limits": None}
        row["samples"] = {"undisturbed": [sample, None], "a worker killed": [killed]}
        head, rows = emulated_tables.batches([("", {"rows": [row]})])
        assert [each[4] for each in rows] == ["1 of 2", "1 of 1"]
        assert {len(each) for each in rows} == {len(head)}
        assert emulated_tables.targets([("", {"rows": [row]})])[1][0][2] == "0"
    assert not list(tmp_path.glob("splitload-*.making"))


@pytest.mark.root
def test_emulated_devices_have_limits_and_leave_nothing(subject: Subject, tmp_path: Path) -> None:
    with Emulation(2, Limits(link_bits_per_s=8_000_000), tmp_path) as emulation:
        assert emulation.missing == ()
        assert len(members_of(DEVICES, CONTROLLERS)) == 2
        with pytest.raises(StageError, match="another study"):
            Emulation(1, Limits(), tmp_path)
        begin_anew(emulation, subject)
        sample = run_batch(emulation, subject, range(6))
        assert (sample["wrong"], sample["stages_from_client_bytes"]) == (0, 0)  # stages were on the disks
        start_s = time.perf_counter()
        emulation.client.run(bytes, 4_000_000, workers=[emulation.address_of("device-1")])
        assert time.perf_counter() - start_s > 3.0  # 4 MB at 1 MB/s, less what may be sent at once
        storm = Storm(emulation, 200, kills=1, cuts=1, seed=3)
        try:
            sample = run_batch(emulation, subject, range(200), on_output=storm.on_output)
        finally:
            storm.end()
        assert sorted(each["fault"] for each in storm.done) == ["cut", "kill"]
        assert (sample["lost"], sample["wrong"], sample["doubled"], sample["failed"]) == (0, 0, 0, 0)
        assert emulation.out_of_memory() == 0
    assert members_of(DEVICES, CONTROLLERS) == set()
    assert BRIDGE not in subprocess.run(["ip", "link"], check=True, capture_output=True, text=True).stdout
    assert "splitload-" not in subprocess.run(["ip", "netns"], check=True, capture_output=True, text=True).stdout
