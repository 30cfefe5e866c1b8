"""A native variant runs wherever its canary lives; elsewhere the portable one does, and whoever runs it is told."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from runtime_models import feeds

import splitload.runtime.canary
import splitload.runtime.variants
from splitload import ParallelLoader, PortableWarning
from splitload.base.errors import MissingPackageError
from splitload.base.machine import cpu_architecture
from splitload.base.regular import sha256_of
from splitload.bundle.manifest import MANIFEST, Canary, File, Manifest, Needs
from splitload.bundle.read import read_manifest
from splitload.bundle.write import write_manifest
from splitload.cli import main
from splitload.runtime.variants import Choice, check_floor, layout_block, likely

OTHER = "99.0.1"  # a version that made nothing here
FAMILY = cpu_architecture().partition("+")[0]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(native_bundle: Path, tmp_path: Path, cache: Path) -> Path:
    """A native bundle to change."""
    return Path(shutil.copytree(native_bundle, tmp_path / "own.splitload", copy_function=shutil.copyfile))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The canaries that are run."""
    real, made = splitload.runtime.canary.answers, []

    def answers(graph: Path, own_threads: bool = True) -> Any:
        made.append(graph)
        return real(graph, own_threads)

    monkeypatch.setattr(splitload.runtime.canary, "answers", answers)
    return made


def choose(bundle: Path, manifest: Manifest, runtime: str) -> Choice:
    """Return what runs here, once it is remembered that a canary has passed."""
    found = splitload.runtime.variants.choose(bundle, manifest, runtime)
    splitload.runtime.canary.remember()
    for thread in threading.enumerate():
        if thread.name == "splitload-canary":
            thread.join()
    return found


def changed(manifest: Manifest, **native: Any) -> Manifest:
    first, *others = manifest.variants
    return manifest._replace(variants=(first._replace(**native), *others))


def canary_of(bundle: Path) -> tuple[Path, Path]:
    needs = read_manifest(bundle).variants[0].needs
    assert needs is not None and needs.canary is not None
    return bundle / needs.canary.graph.name, bundle / needs.canary.answers.name


def test_nothing_runs_where_the_variant_was_made(bundle: Path, runs: list[Path]) -> None:
    assert choose(bundle, read_manifest(bundle), ort.__version__).variant.kind == "native"
    assert not runs


def test_another_version_runs_the_canary_once(bundle: Path, runs: list[Path], cache: Path) -> None:
    manifest = read_manifest(bundle)
    for _ in range(3):
        assert choose(bundle, manifest, OTHER) == (manifest.variants[0], None)
    assert len(runs) == 1
    choose(bundle, manifest, "99.0.2")
    assert len(runs) == 2
    assert len(list((cache / "canaries").iterdir())) == 2  # and nothing else


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"passed\n"])
def test_a_memory_that_is_damaged_counts_for_nothing(
    bundle: Path, runs: list[Path], cache: Path, damage: bytes
) -> None:
    manifest = read_manifest(bundle)
    choose(bundle, manifest, OTHER)
    (kept,) = (cache / "canaries").iterdir()
    good = kept.read_bytes()
    kept.write_bytes(damage)
    choose(bundle, manifest, OTHER)
    assert len(runs) == 2
    assert kept.read_bytes() == good
    choose(bundle, manifest, OTHER)
    assert len(runs) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["FIFO", "folder"])
def test_a_memory_that_is_no_file_counts_for_nothing(
    bundle: Path, runs: list[Path], cache: Path, make: Callable[[Path], None]
) -> None:
    manifest = read_manifest(bundle)
    choose(bundle, manifest, OTHER)
    (kept,) = (cache / "canaries").iterdir()
    kept.unlink()
    make(kept)
    asked = threading.Thread(target=choose, args=(bundle, manifest, OTHER), daemon=True)
    asked.start()
    asked.join(60)
    assert not asked.is_alive(), "it waits for somebody to write"
    assert len(runs) == 2


def test_a_memory_of_another_processor_counts_for_nothing(
    bundle: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(bundle)
    choose(bundle, manifest, OTHER)
    monkeypatch.setattr(splitload.runtime.canary, "cpu_model", lambda: "Abacus 3000")
    choose(bundle, manifest, OTHER)
    assert len(runs) == 2


@pytest.mark.parametrize("place", [None, "file"])
def test_without_a_cache_it_runs_each_time(
    bundle: Path, runs: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch, place: str | None
) -> None:
    if place is None:
        monkeypatch.setattr(splitload.runtime.canary, "cache_place", lambda: None)
    else:
        cache.write_text("no folder")
    manifest = read_manifest(bundle)
    for _ in range(2):
        assert choose(bundle, manifest, OTHER).variant.kind == "native"
    assert len(runs) == 2


def wrong_answers(bundle: Path) -> None:
    answers = canary_of(bundle)[1]
    pairs = np.fromfile(answers, "<f4").reshape(2, -1)
    pairs[:, 0] += 1
    pairs.tofile(answers)


def no_number(bundle: Path) -> None:
    answers = canary_of(bundle)[1]
    np.full(answers.stat().st_size // 4, np.nan, "<f4").tofile(answers)


def other_sizes(bundle: Path) -> None:
    answers = canary_of(bundle)[1]
    answers.write_bytes(answers.read_bytes()[:-8])


def unreadable(bundle: Path) -> None:
    canary_of(bundle)[0].write_bytes(b"\x08\0\0\0ORTM later")


def with_canary_of(bundle: Path, manifest: Manifest) -> Manifest:
    """Return the manifest of a bundle whose canary was made as it is now."""
    needs = manifest.variants[0].needs
    assert needs is not None
    graph, answers = (
        File(path.name, path.stat().st_size, sha256_of(path))
        for path in (bundle / file.name for file in needs.canary.files())  # type: ignore[union-attr]
    )
    return changed(manifest, needs=needs._replace(canary=Canary(graph, answers)))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (wrong_answers, "1 of 3 values are wrong"),
        (no_number, "values are wrong"),
        (other_sizes, "it gives 3 values, not 2"),
        (unreadable, "dies"),
    ],
)
def test_a_canary_that_dies_leaves_the_portable_variant(
    bundle: Path, cache: Path, runs: list[Path], damage: Any, reason: str
) -> None:
    damage(bundle)
    manifest = with_canary_of(bundle, read_manifest(bundle, "none"))
    for _ in range(2):
        variant, why = choose(bundle, manifest, OTHER)
        assert variant.kind == "portable"
        assert reason in str(why)
        assert f"'splitload specialize {bundle}'" in str(why)
    assert len(runs) == 2  # that it died is not kept: the bundle may be mended
    assert not (cache / "canaries").exists()


def test_version_1_wants_the_very_version(bundle: Path, runs: list[Path]) -> None:
    manifest = changed(read_manifest(bundle), needs=None)
    assert choose(bundle, manifest, ort.__version__).variant.kind == "native"
    variant, why = choose(bundle, manifest, OTHER)
    assert variant.kind == "portable"
    assert f"onnxruntime {OTHER}" in str(why)
    assert f"onnxruntime {ort.__version__} exactly" in str(why)
    assert not runs


def needs(block: int | None, bundle: Path) -> Needs:
    made = read_manifest(bundle).variants[0].needs
    assert made is not None
    return made._replace(block=block)


@pytest.mark.parametrize(
    ("here", "made", "block", "fits"),
    [
        ("x86_64+avx2", "x86_64+avx", 8, True),
        ("x86_64+avx512f", "x86_64+avx2", 8, False),
        ("x86_64+avx2", "x86_64+avx512f", 16, False),
        ("x86_64+avx2", "x86_64+avx512f", None, True),
        ("aarch64", "x86_64+avx2", None, False),
        ("aarch64+other", "aarch64", 16, False),
        ("aarch64+other", "aarch64", None, True),
    ],
)
def test_the_processor_must_hold_as_many_channels_together(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, here: str, made: str, block: int | None, fits: bool
) -> None:
    manifest = changed(read_manifest(bundle), cpu=made, needs=needs(block, bundle))
    for room in (splitload.runtime.variants, splitload.runtime.canary):
        monkeypatch.setattr(room, "cpu_architecture", lambda: here)
    variant, why = choose(bundle, manifest, ort.__version__)
    assert variant.kind == likely(manifest).kind == ("native" if fits else "portable")
    assert (why is None) is fits


def test_an_unknown_block_wants_the_very_version(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = changed(read_manifest(bundle), cpu="aarch64", needs=needs(16, bundle))
    monkeypatch.setattr(splitload.runtime.variants, "cpu_architecture", lambda: "aarch64")
    assert choose(bundle, manifest, ort.__version__).variant.kind == "native"
    assert choose(bundle, manifest, OTHER).variant.kind == "portable"


def test_the_block_is_what_the_runtime_takes_here() -> None:
    from splitload.graphs.layout import channel_block

    if layout_block(cpu_architecture()) is not None:
        assert layout_block(cpu_architecture()) == channel_block()
    assert layout_block("x86_64+i386") is None  # what Windows and macOS call a level


def test_the_first_that_fits_of_several(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    native, portable = manifest.variants
    other = native._replace(cpu="pdp11", needs=None)
    assert choose(bundle, manifest._replace(variants=(other, native, portable)), OTHER) == (native, None)


def test_whoever_gets_less_is_told_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitload.runtime.variants, "cpu_architecture", lambda: "pdp11")
    with pytest.warns(PortableWarning, match="here is pdp11 with onnxruntime .* native one is for") as told:
        model = ParallelLoader(bundle)
    assert [Path(each.filename).name for each in told] == [Path(__file__).name]  # their line, not one of ours
    with model, warnings.catch_warnings():
        warnings.simplefilter("error")
        with ParallelLoader(bundle) as again:
            assert again.why_portable == model.why_portable
            assert again.variant.kind == "portable"
            assert len(again.run(None, feeds())) == 2


def test_a_portable_bundle_promises_nothing_more(own_bundle: Path) -> None:
    with ParallelLoader(own_bundle) as model:
        assert model.why_portable is None


@pytest.mark.parametrize("version", ["1.25.1", "0.9", "1.5.2"])
def test_a_runtime_that_is_too_old_is_one_line(version: str) -> None:
    with pytest.raises(
        MissingPackageError, match=rf'^onnxruntime {version} is older .*install --upgrade "onnxruntime>=1\.26"'
    ):
        check_floor(version)


@pytest.mark.parametrize("version", ["1.26.0", "1.32.0", "2.0", "unknown", "1.26.0rc1"])
def test_others_are_taken(version: str) -> None:
    check_floor(version)


def test_damage_to_a_canary_is_found_by_its_hash(bundle: Path) -> None:
    text = json.loads((bundle / MANIFEST).read_text())["variants"][0]["needs"]["canary"]
    assert {text["graph"]["name"], text["answers"]["name"]} == {path.name for path in canary_of(bundle)}
    from splitload.base.errors import BundleError

    wrong_answers(bundle)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        read_manifest(bundle, "hashes")


def test_a_damaged_canary_hides_no_other_reason(bundle: Path) -> None:
    wrong_answers(bundle)
    manifest = read_manifest(bundle)
    native, portable = manifest.variants
    other = native._replace(cpu="pdp11", needs=None)
    choice = choose(bundle, manifest._replace(variants=(native._replace(runtime=OTHER), other, portable)), "99.0.3")
    assert choice.variant == portable
    assert choice.why_portable is not None
    damage, rest = choice.why_portable.split(". Besides, here is ")
    assert damage.endswith("copy the bundle again")
    assert f"with onnxruntime 99.0.3, and a native one is for pdp11 with onnxruntime {native.runtime}" in rest
    assert rest.endswith(f". 'splitload specialize {bundle}' makes a native one for this machine")


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_canary_is_no_fault_of_the_runtime(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], which: int
) -> None:
    file = canary_of(bundle)[which]
    file.write_bytes(bytes(file.stat().st_size))
    first, *others = read_manifest(bundle).variants
    write_manifest(bundle, read_manifest(bundle)._replace(variants=(first._replace(runtime=OTHER), *others)))
    told = f"'{file}' is not what the manifest says (SHA-256 differs): it is damaged; copy the bundle again"
    with pytest.warns(PortableWarning, match="SHA-256 differs") as warned, ParallelLoader(bundle) as model:
        assert model.variant.kind == "portable"
        assert str(warned[0].message) == model.why_portable
        assert model.why_portable == f"'{bundle}' runs its portable graph, which loads slower: {told}"
    assert main(["inspect", str(bundle)]) == 0
    assert "it is damaged; copy the bundle again" in " ".join(capsys.readouterr().err.split())
    assert main(["verify", str(bundle)]) == 1
    assert told in " ".join(capsys.readouterr().err.split())
