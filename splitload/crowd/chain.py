"""What a bundle is to a crowd: a chain of stages, each with what it is sent as, what it reads and what it hands on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from splitload.base.errors import BundleError, UsageError
from splitload.bundle.manifest import Manifest, StageEntry, Variant
from splitload.bundle.read import read_manifest
from splitload.bundle.tails import names as tails_of
from splitload.crowd.entities import Stage
from splitload.crowd.orders import StageOrder
from splitload.deploy.stage_names import stage_key
from splitload.runtime.capi.elements import BY_TYPE

# Of weights, by a worker of speed 1: guesses until the first task is measured
_READ_BYTES_PER_S, _RUN_BYTES_PER_S = 200e6, 1e9


@dataclass(frozen=True)
class Link:
    """One stage of a chain.

    Attributes:
        order: What a worker is told of it.
        needed: Names of its outputs that are read later.
        carried: Names of tensors of earlier stages, or of the model's inputs, that are read later than by it.
        scheduled: The stage as the scheduler sees it.
    """

    order: StageOrder
    needed: tuple[str, ...]
    carried: tuple[str, ...]
    scheduled: Stage


@dataclass(frozen=True)
class Chain:
    """One variant of a bundle as a chain.

    Attributes:
        variant: Which one.
        links: Its stages, in order.
        given: Names of the model's inputs that are read.
    """

    variant: Variant
    links: tuple[Link, ...]
    given: tuple[str, ...]

    def fits_beside(self, other: Chain) -> bool:
        """Return whether both hand on the same tensors everywhere, so that a worker of each can take turns."""

        def edges(chain: Chain) -> list[tuple[object, ...]]:
            described = {spec.name: spec for link in chain.links for spec in link.order.outputs}
            return [
                (link.needed, link.carried, *(described[name] for name in link.needed if name in described))
                for link in chain.links
            ]

        def known(chain: Chain) -> bool:  # a blocked layout has no shape
            return all(spec.shape is not None for link in chain.links[:-1] for spec in link.order.outputs)

        return edges(self) == edges(other) and self.given == other.given and known(self) and known(other)


def read_bundle(bundle: str | Path) -> Manifest:
    """Return what a bundle says, every byte of which is checked, as it goes to other devices.

    Raises:
        BundleError: If it is damaged, or has tensors of something else than numbers.
        UsageError: If it has a personalized last stage, which a crowd does not run.
    """
    folder = Path(bundle)
    manifest = read_manifest(folder, "hashes")
    types = {spec.type for spec in (*manifest.inputs, *manifest.outputs)}
    types |= {spec.type for variant in manifest.variants for stage in variant.stages for spec in stage.outputs}
    if others := sorted(types - BY_TYPE.keys()):
        raise BundleError(f"a crowd hands on tensors of numbers, and '{bundle}' has {', '.join(others)}")
    if manifest.training is not None and (tails := sorted(tails_of(folder))):
        raise UsageError(
            f"'{bundle}' has the personalized last stage '{tails[0]}', and a crowd runs bundles as they were built; "
            "give a copy without its tails"
        )
    return manifest


def chain_of(manifest: Manifest, variant: Variant, *, keep_mapped: bool) -> Chain:
    """Return a variant of a bundle as a chain that gives all outputs of the model.

    Args:
        manifest: What the bundle says.
        variant: One of its variants.
        keep_mapped: Whether all weights stay mapped as they are in the files: rearranged for speed, or read into
            memory, they would be there twice.
    """
    wanted = {spec.name for spec in manifest.outputs}
    steps = variant.steps(wanted)
    read_from: list[set[str]] = [set(wanted)]  # what is read behind each stage, the last one first
    for index, _, _ in reversed(steps):
        read_from.append(read_from[-1] | set(variant.stages[index].inputs))
    later = read_from[::-1]
    there = {spec.name for spec in manifest.inputs} & later[0]
    given = tuple(sorted(there))
    files = {file.name: file for file in manifest.files()}
    restored = frozenset[int]() if keep_mapped else _restoring(variant)  # once, as no session takes over there
    links = []
    for number, (index, needed, _) in enumerate(steps):
        stage = variant.stages[index]
        carried = tuple(sorted(there & later[number + 1]))
        names = [stage.graph.name, *([] if stage.weights is None else [stage.weights.name]), *stage.shares]
        own = tuple(files[name] for name in dict.fromkeys(names))
        prepack = stage.prepack and not keep_mapped
        order = StageOrder(
            key=stage_key(own),
            name=stage.name,
            graph=stage.graph.name,
            files=own,
            inputs=stage.inputs,
            outputs=stage.outputs,
            prepack=prepack,
            mapped=stage.mapped or keep_mapped,
            optimize=stage.optimizes(prepack) or index in restored,
            table_start=stage.table_start,
        )
        links.append(Link(order, tuple(needed), carried, _scheduled(number, stage, order)))
        there = set(carried) | set(needed)
    return Chain(variant, tuple(links), given)


def _restoring(variant: Variant) -> frozenset[int]:
    """Return the numbers of the stages that read weights of another variant, and restore their order in every run."""
    own = {file.name for stage in variant.stages for file in (stage.graph, stage.weights) if file is not None}
    return frozenset(
        number for number, stage in enumerate(variant.stages) if stage.reoptimize and not own.issuperset(stage.shares)
    )


class Chains:
    """The chain that each worker runs.

    Each runs the first variant that is for its processor and runtime, where these hand on the same tensors; otherwise
    all run the first that is for all of them.

    Attributes:
        common: What fits all workers that were there first.
        of: What each runs, by its address.
        notes: Why that is not the first of the bundle, by address, where it is not.

    Args:
        manifest: What the bundle says.
        workers: "cpu" and "runtime" of each worker that is there, by its address; at least one.
        keep_mapped: See `chain_of`.
    """

    def __init__(self, manifest: Manifest, workers: Mapping[str, Mapping[str, str]], *, keep_mapped: bool) -> None:
        self._chains = [chain_of(manifest, variant, keep_mapped=keep_mapped) for variant in manifest.variants]
        self.common = _first_fitting(self._chains, workers.values())
        own = {address: _first_fitting(self._chains, [worker]) for address, worker in workers.items()}
        mixes = all(chain is self.common or chain.fits_beside(self.common) for chain in own.values())
        self.of: dict[str, Chain] = own if mixes else dict.fromkeys(workers, self.common)
        self.notes: dict[str, str] = {}
        for address, chain in own.items():
            self._note(address, workers[address], chain, "it runs" if mixes else "all workers run")

    def join(self, address: str, worker: Mapping[str, str]) -> bool:
        """Choose what a worker runs that comes later; return whether there is anything that fits the others."""
        own = _first_fitting(self._chains, [worker])
        self._note(address, worker, own, "it runs")
        if own is self.common or own.fits_beside(self.common):
            self.of[address] = own
        elif self.common.variant.fits(worker["cpu"], worker["runtime"]):
            self.of[address] = self.common
        return address in self.of

    def _note(self, address: str, worker: Mapping[str, str], own: Chain, what: str) -> None:
        best = self._chains[0]
        if own is not best:
            self.notes[address] = (
                f"it is {worker['cpu']} with onnxruntime {worker['runtime']}, and the native stages are for "
                f"{best.variant.cpu} with {best.variant.runtime}: {what} the portable graph, which is slower; "
                "'splitload specialize --add' there makes native ones"
            )


def _first_fitting(chains: Iterable[Chain], workers: Collection[Mapping[str, str]]) -> Chain:
    return next(
        chain for chain in chains if all(chain.variant.fits(worker["cpu"], worker["runtime"]) for worker in workers)
    )


def _scheduled(number: int, stage: StageEntry, order: StageOrder) -> Stage:
    """Return a stage as the scheduler sees it; where the bundle does not say what memory it needs, its files do."""
    size = sum(file.bytes for file in order.files)
    parts = (stage.working_bytes, stage.passing_bytes, stage.session_bytes, stage.mapped_bytes)
    known = [part for part in parts if part is not None]
    return Stage(
        name=f"{number + 1} ({stage.name})",
        weights_bytes=size,
        memory_bytes=sum(known) if len(known) == len(parts) else size,
        run_s=max(1e-3, size / _RUN_BYTES_PER_S),
        load_s=size / _READ_BYTES_PER_S,
    )
