"""A bundle as a chain: what each stage hands on, and which variant each worker runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitload.bundle.manifest import Manifest
from splitload.crowd.chain import Chains, chain_of, read_bundle
from splitload.deploy.stage_names import stage_key


@pytest.fixture(scope="module")
def manifest(native_bundle: Path) -> Manifest:
    return read_bundle(native_bundle)


def made_here(manifest: Manifest) -> dict[str, str]:
    return {"cpu": str(manifest.variants[0].cpu), "runtime": str(manifest.variants[0].runtime)}


def test_each_stage_carries_what_later_ones_read(manifest: Manifest) -> None:
    for variant in manifest.variants:
        chain = chain_of(manifest, variant, keep_mapped=True)
        there = set(chain.given)
        assert there == {"x", "z"}
        for link in chain.links:
            assert there >= set(link.order.inputs)
            assert set(link.carried) <= there
            there = set(link.carried) | set(link.needed)
            assert link.order.key == stage_key(link.order.files)
            assert not link.order.prepack and link.order.mapped
        assert there == {"y", "early"}
        carried = [name for link in chain.links for name in link.carried]
        assert "x" not in carried  # the first stage alone reads it
        assert {"z", "early"} <= set(carried)


def test_weights_of_another_variant_are_restored_once_where_memory_allows(manifest: Manifest) -> None:
    """No session takes over in a crowd; each run would restore them."""
    native, portable = manifest.variants
    assert all(stage.shares for stage in portable.stages)
    for variant, keep_mapped, optimize in ((portable, False, True), (portable, True, False), (native, False, False)):
        links = chain_of(manifest, variant, keep_mapped=keep_mapped).links
        assert {link.order.optimize for link in links} == {optimize}


def test_a_worker_runs_what_is_for_it(manifest: Manifest) -> None:
    native, other = made_here(manifest), {"cpu": "abacus", "runtime": "1.0"}
    alike = Chains(manifest, {"a": native, "b": native}, keep_mapped=True)
    assert {chain.variant.kind for chain in alike.of.values()} == {"native"} and alike.notes == {}
    mixed = Chains(manifest, {"a": native, "b": other}, keep_mapped=True)
    kinds = {address: chain.variant.kind for address, chain in mixed.of.items()}
    assert kinds["b"] == "portable" and set(mixed.notes) >= {"b"}
    assert "it is abacus with onnxruntime 1.0" in mixed.notes["b"] and "specialize --add" in mixed.notes["b"]
    mixes = mixed.of["a"].fits_beside(mixed.of["b"])
    assert kinds["a"] == ("native" if mixes else "portable")


def test_who_comes_later_runs_what_fits_the_others(manifest: Manifest) -> None:
    portable = Chains(manifest, {"a": {"cpu": "abacus", "runtime": "1.0"}}, keep_mapped=True)
    assert portable.join("b", made_here(manifest))
    native = Chains(manifest, {"a": made_here(manifest)}, keep_mapped=True)
    joins = native.join("b", {"cpu": "abacus", "runtime": "1.0"})
    fits = chain_of(manifest, manifest.variants[-1], keep_mapped=True).fits_beside(native.common)
    assert joins == fits == ("b" in native.of)
