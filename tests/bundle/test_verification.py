"""`splitload verify`: every byte of a bundle of either kind, and nothing that blocks who opens one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from splitload import ParallelLoader
from splitload.base.errors import BundleError
from splitload.base.regular import sha256_of
from splitload.base.sealed import KEY, is_intact, seal
from splitload.bundle.manifest import MANIFEST
from splitload.bundle.read import read_manifest
from splitload.bundle.verification import verify
from splitload.cli import main

WAIT_S = 60
GOLDEN = Path(__file__).parent / "golden" / "v1.splitload"


@pytest.fixture
def never_waits() -> Iterator[None]:
    """End a test that blocks, as one that opens a FIFO would."""

    def give_up(*_: Any) -> None:
        raise AssertionError("it waits for a FIFO")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(WAIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def own_native(native_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(native_bundle, tmp_path / "native.splitload", copy_function=shutil.copyfile))


@pytest.fixture
def torch_bundle(tmp_path: Path) -> Path:
    torch = pytest.importorskip("torch")
    import splitload.torch

    layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    splitload.torch.save(layers, torch.ones(1, 8), tmp_path / "torch.splitload", num_stages=2)
    return tmp_path / "torch.splitload"


def flips(bundle: Path) -> int:
    """Flip a bit at several places of every file, and have each seen; return how many."""
    count = 0
    for file in sorted(path for path in bundle.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        file.chmod(0o644)
        for place in {0, len(whole) // 3, len(whole) // 2, len(whole) - 2}:
            damaged = bytearray(whole)
            damaged[place] ^= 0x10
            file.write_bytes(damaged)
            with pytest.raises(BundleError):
                verify(bundle)
            count += 1
        file.write_bytes(whole)
    verify(bundle)
    return count


def test_a_flipped_bit_anywhere_is_seen(own_native: Path) -> None:
    found = verify(own_native)
    assert found.files == len(list(own_native.iterdir()))
    assert found.files_bytes == sum(file.stat().st_size for file in own_native.iterdir())
    assert (found.links, found.tails, found.unfinished, found.manifest_hash) == (0, (), 0, True)
    assert flips(own_native) >= 4 * 9


def test_a_flipped_bit_of_a_torch_bundle_is_seen(torch_bundle: Path) -> None:
    assert verify(torch_bundle).format == "splitload-torch"
    assert flips(torch_bundle) >= 4 * 3


def test_a_torch_bundle_is_verified_without_torch(torch_bundle: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from splitload.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "verify", str(torch_bundle), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == 3


def test_version_1_has_no_hash_of_its_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    assert not verify(GOLDEN).manifest_hash
    assert main(["verify", str(GOLDEN)]) == 0
    assert "the manifest itself has no hash" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["stray.bin", ".hidden", "tails/", "folder/"])
def test_what_the_manifest_does_not_name_is_refused(own_bundle: Path, name: str) -> None:
    if name.endswith("/"):
        (own_bundle / name).mkdir()
        (own_bundle / name / "file").write_bytes(b"1")
    else:
        (own_bundle / name).write_bytes(b"1")
    with pytest.raises(BundleError, match="is not part of the bundle: no hash covers it; remove it"):
        verify(own_bundle)


def test_weights_that_no_manifest_names_are_refused(own_bundle: Path) -> None:
    stage = next(own_bundle.glob("portable-00*.onnx"))
    model = onnx.load_model(stage, load_external_data=False)
    tensor = next(each for each in model.graph.initializer if each.external_data)
    location = next(entry for entry in tensor.external_data if entry.key == "location")
    shutil.copyfile(own_bundle / location.value, own_bundle / "other.bin")
    location.value = "other.bin"
    stage.write_bytes(model.SerializeToString())
    data = json.loads((own_bundle / MANIFEST).read_text())
    del data[KEY]
    for variant in data["variants"]:
        for entry in variant["stages"]:
            if entry["graph"]["name"] == stage.name:
                entry["graph"] |= {"bytes": stage.stat().st_size, "sha256": sha256_of(stage)}
    (own_bundle / MANIFEST).write_text(json.dumps(data))
    for check in (verify, lambda bundle: read_manifest(bundle, "hashes")):
        with pytest.raises(BundleError, match=r"reads weights from 'other.bin', which its bundle does not name"):
            check(own_bundle)


def test_files_may_be_links_as_in_the_cache_of_a_hub(own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blobs = own_bundle.with_name("blobs")
    blobs.mkdir()
    for number, file in enumerate(sorted(own_bundle.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("..") / "blobs" / str(number))
    found = verify(own_bundle)
    assert found.links == found.files
    assert main(["verify", str(own_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["links"] == found.files
    with ParallelLoader(own_bundle, verify="hashes"):
        pass


@pytest.mark.parametrize("mode", ["none", "sizes", "hashes"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
@pytest.mark.usefixtures("never_waits")
def test_only_regular_files_are_opened(own_native: Path, kind: str, mode: Any) -> None:
    for file in sorted(own_native.iterdir()):
        kept = file.with_name("kept")
        file.rename(kept)
        if kind == "fifo":
            os.mkfifo(file)
        elif kind == "device":
            file.symlink_to("/dev/zero")
        else:
            file.mkdir()
        for check in (lambda: ParallelLoader(own_native, verify=mode), lambda: verify(own_native)):
            with pytest.raises(BundleError, match=r"is a (FIFO|device|folder), and a bundle holds files only"):
                check()
        file.rmdir() if kind == "folder" else file.unlink()
        kept.rename(file)


@pytest.mark.parametrize("mode", ["none", "sizes", "hashes"])
@pytest.mark.usefixtures("never_waits")
def test_only_regular_files_of_a_torch_bundle_are_opened(torch_bundle: Path, mode: Any) -> None:
    import splitload.torch

    torch = pytest.importorskip("torch")
    for file in sorted(torch_bundle.iterdir()):
        kept = file.rename(file.with_name("kept"))
        os.mkfifo(file)
        with torch.device("meta"):
            module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
        with pytest.raises(BundleError, match="is a FIFO, and a bundle holds files only"):
            splitload.torch.load(module, torch_bundle, verify=mode)
        file.unlink()
        kept.rename(file)


@pytest.mark.parametrize("value", [{"a": 1}, {"a": {"b": [1, {}]}, "c": "}"}])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_sealed_file_is_json_and_tells_of_every_bit(value: Any, indent: int | None) -> None:
    text = seal(json.dumps(value, indent=indent))
    parsed = json.loads(text)
    assert len(parsed.pop(KEY)) == 64
    assert parsed == value
    data = text.encode()
    assert is_intact(data)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            assert not is_intact(bytes(damaged))
    assert not is_intact(json.dumps(parsed).encode())


def test_a_changed_weight_is_found_by_hashes_alone(own_bundle: Path) -> None:
    weights = max(own_bundle.glob("*.bin"), key=lambda file: file.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[0] ^= 1
    weights.write_bytes(data)
    ParallelLoader(own_bundle).close()
    with pytest.raises(BundleError, match=weights.name):
        ParallelLoader(own_bundle, verify="hashes")
    assert main(["run", str(own_bundle)]) == 0
    assert main(["verify", str(own_bundle)]) == 1


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"format": "splitload-bundle", "version": 1}'])
@pytest.mark.parametrize("words", [["run"], ["inspect"], ["verify"], ["tails"], ["specialize"], ["install"]], ids=str)
def test_a_manifest_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], manifest: str
) -> None:
    (tmp_path / "b.splitload").mkdir()
    path = tmp_path / "b.splitload" / MANIFEST
    path.write_text(manifest)
    target = [str(tmp_path / "c.splitload")] if words == ["install"] else []
    assert main([*words, str(path.parent), *target]) == 1
    assert capsys.readouterr().err.startswith(f"splitload: '{path}': ")
