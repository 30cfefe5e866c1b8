"""`splitload run --device`: a bundle runs on a served device, and its outputs come back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from served_devices import Served, served

from splitload.cli import main


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("service")) as made:
        yield made


def test_the_outputs_are_those_of_this_machine(
    service: Served, chain_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    words = []
    for name, shape in (("x", (1, 16)), ("z", (16,))):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal(shape).astype(np.float32))
        words += ["--input", f"{name}={tmp_path / f'{name}.npy'}"]
    there, here = tmp_path / "there", tmp_path / "here"
    assert main(["run", str(chain_bundle), *words, "-o", str(here)]) == 0
    assert main(["run", str(chain_bundle), *words, "--device", service.url, "-o", str(there)]) == 0
    shown = capsys.readouterr().out
    assert "chain on board: " in shown
    assert service.url.partition("#")[2] not in shown
    for file in json.loads((there / "outputs.json").read_text()).values():
        assert np.array_equal(np.load(here / file), np.load(there / file))
    assert main(["run", str(chain_bundle), *words, "--device", service.place, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["device"], result["timeline"]["source"]) == ("board", "measured")
    assert 0 < result["load_s"] < result["ttfo_s"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "s20"], "times of 's20' are computed, and nothing runs there"),
        (["--device", "host", "--residency", "stage"], "--residency is for bundles that run on this machine"),
        (["--device", "host", "--tail", "mine"], "--tail is for bundles that run on this machine"),
        (["--device", "https://127.0.0.1:9"], "the device at https://127.0.0.1:9 is not known here yet"),
    ],
)
def test_what_does_not_run_there(
    words: list[str], message: str, chain_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(chain_bundle), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
