"""What served devices said is kept and shown, without their codes; whatever is damaged is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from splitload.base.errors import UsageError
from splitload.cli import main
from splitload.deploy.credentials import Code
from splitload.devices import discovery, open_device, remote
from splitload.devices.acquaintances import acquaintances, remember, url_of
from splitload.devices.measured import measurements
from splitload.devices.pairing import Address, read_address
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention

SAID = {
    "name": "board", "cpu_model": "Cortex-A76", "onnxruntime": "1.32.0", "threads": 4, "memory_bytes": 4_000_000_000,
    "storage_read_bytes_per_s": 45.6e6, "features": ["neon"],
}  # fmt: skip
CODE = Code("a" * 26, None)


def address(cache: Path) -> Address:
    return read_address(f"http://127.0.0.1:8750/#{CODE.text()}", cache)


def test_what_is_kept(tmp_path: Path) -> None:
    remember(address(tmp_path), SAID)
    (found,) = acquaintances(tmp_path)
    assert found._replace(opened_s=0).to_json() == {
        "name": "board", "url": "http://127.0.0.1:8750", "cpu_model": "Cortex-A76", "threads": 4,
        "memory_bytes": 4_000_000_000, "storage_read_bytes_per_s": 45_600_000, "onnxruntime": "1.32.0", "opened_s": 0,
    }  # fmt: skip


@pytest.mark.parametrize("value", [True, -1, float("nan"), float("inf"), "much", None])
def test_what_cannot_be_is_not_known(tmp_path: Path, value: object) -> None:
    remember(address(tmp_path), {**SAID, "memory_bytes": value})
    (found,) = acquaintances(tmp_path)
    assert found.memory_bytes is None


def test_what_is_damaged_is_left_out(tmp_path: Path) -> None:
    remember(address(tmp_path), SAID)
    (file,) = (tmp_path / "devices").glob("*.said")
    file.write_text(file.read_text().replace("1.32.0", '", "'))
    assert acquaintances(tmp_path) == []
    remember(Address("http://127.0.0.1:8750", CODE), SAID)  # whose code is not kept
    assert acquaintances(tmp_path) == []


def test_a_device_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RemoteDevice", lambda address, *_, **__: address.url)
    remember(address(tmp_path), SAID)
    assert (url_of("board", tmp_path), url_of("phone", tmp_path)) == ("http://127.0.0.1:8750", None)
    assert open_device("board", tmp_path) == "http://127.0.0.1:8750"
    with pytest.raises(UsageError, match="Did you mean board"):
        open_device("bord", tmp_path)
    remember(read_address(f"http://127.0.0.1:8751/#{CODE.text()}", tmp_path), SAID)
    with pytest.raises(UsageError, match=r"several .* 'board': .* http://127\.0\.0\.1:8750, http://127\.0\.0\.1:8751"):
        open_device("board", tmp_path)


def test_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = tuple(BlockProfile(f"b{number}", 9, Cost(0.01, 0.002, 0.001)) for number in range(3))
    profile = Profile("toy", "a" * 64, "native", "board", "measured", blocks, 0.0, Contention(2, 0.0, 0.0))
    (profiles := tmp_path / "profiles").mkdir()
    for name, each in (
        ("b", replace(profile, device="phone", environment={"page_cache": "cold"})),
        ("a", profile),
        ("c", replace(profile, segments={(0, 3): Cost(0.02, 0.007, 0.006)}, graph="portable")),
    ):
        (profiles / f"{name}.json").write_text(json.dumps(each.to_json()))
    (profiles / "damaged.json").write_text("{")
    found = measurements(tmp_path)
    assert [(each.device, each.graph, each.page_cache, each.num_blocks) for each in found] == [
        ("board", "native", "warm", 3), ("board", "portable", "warm", 3), ("phone", "native", "cold", 3),
    ]  # fmt: skip
    assert [each.first_inference_s for each in found] == pytest.approx([0.006, 0.007, 0.006])
    assert found[1].load_s == 0.02
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("measured so far", "phone", "cold", "20.0 ms", "7.0 ms"))


def test_the_command_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["devices"]) == 0
    assert "served devices" not in capsys.readouterr().out
    remember(address(tmp_path), SAID)
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("board", "Cortex-A76, 4 threads", "4.0 GB", "46 MB/s", "1.32.0"))
    found = [discovery.Found("phone", "https://192.0.2.7:8750")]
    monkeypatch.setattr(discovery, "discover", lambda: found)
    assert main(["devices", "--discover", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["found"], told["served"][0]["name"]) == ([found[0]._asdict()], "board")
    assert CODE.text() not in json.dumps(told) + shown
    found.clear()
    assert main(["devices", "--discover"]) == 0
    assert "serve --announce" in capsys.readouterr().out
