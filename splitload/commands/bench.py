"""`splitload bench`: what a bundle gains over what a user would do otherwise."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import splitload
from splitload.base.entries import discard
from splitload.base.errors import BundleError, ModelError, SplitloadError, StageError, UsageError
from splitload.base.phrases import count_of
from splitload.build.assemble import VariantPlan
from splitload.bundle.read import read_manifest
from splitload.bundle.verification import verify
from splitload.commands.console import Console
from splitload.commands.gain_sentence import buffers_sentence, gain_sentence
from splitload.devices import Device, Measuring, open_device
from splitload.devices.pairing import paired, without_codes
from splitload.frontends import deep, open_source
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.stage_store import StageStore
from splitload.measure import pagecache
from splitload.measure.arm_names import PORTABLE_ARMS
from splitload.measure.arms import ARMS, Subject, make_arm
from splitload.measure.fresh import Runner
from splitload.measure.provenance import provenance
from splitload.measure.sampling import Arm, Sample, compare, outputs_of, run_arms, summarize
from splitload.measure.storage import Controller, reader
from splitload.plan.graph import ModelGraph
from splitload.plan.profile import Profile
from splitload.planner.gain import gain_of
from splitload.planner.read_model import read_and_profile
from splitload.planner.search import Search
from splitload.planner.trial import choose_measured
from splitload.planner.write_bundle import write_bundle
from splitload.runtime.answers import unreturned
from splitload.runtime.inputs import read_feeds
from splitload.runtime.variants import choose

_ESSENTIAL = ("stock", "splitload")  # an arm that cannot run here is left out, but not these
_RIGHT = (*_ESSENTIAL, "tuned")  # nor is one of these that runs and computes something else
_FOLDERS = re.compile(r"(?<![\w.:/])(?:/[\w.+@~-]+)+/(?=[\w.])")
_MIB = 1 << 20
_NARROW = {  # so that all arms fit into 80 columns
    "ort-format": "ort-\nformat",
    "torch-mmap": "torch-\nmmap",
    "openvino": "open-\nvino",
    "splitload": "split-\nload",
    "splitload-buffers": "split-\nload-\nbuffers",
}
_T = TypeVar("_T")


def bench(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Compare the bundle with what a user would do otherwise; return what `--json` prints.

    Raises:
        SplitloadError: If the model cannot be read, an arm that was asked for does not apply, or an arm fails.
    """
    controller = _checked(options)
    feeds = read_feeds(options.input)
    model = options.model if options.deep is None else f"deep:{options.deep}"
    device, measuring = _device(options, cache)
    names = [name for name in ARMS if name in (options.arms or (ARMS if measuring.is_here else PORTABLE_ARMS))]
    subject, plan = _subject(options, device, measuring, model, names, feeds, console, cache)
    arms, differences, left_out = _arms(names, bool(options.arms), subject, measuring.run, console)
    samples = _sampled(options, subject, arms, measuring.run, controller, console, cache)
    summary = {name: summarize(rows) for name, rows in samples.items()}
    _show(console, options, subject, "" if measuring.is_here else f" on {device.name}", summary)
    if plan is not None:
        console.print(f"splitload: {count_of(plan['num_stages'], 'stage')}, split points {plan['split_points']}")
    for reason in dict.fromkeys(left_out.values()):
        console.print(f"left out: {', '.join(name for name in left_out if left_out[name] == reason)}: {reason}")
    gain = None
    if plan is not None and subject.bundle is not None:
        trial = read_manifest(subject.bundle).plan.get("trial")
        gain = gain_of(summary, plan["num_stages"], options.runs, trial)
    if gain is not None:
        console.print(gain_sentence(gain))
    if (with_buffers := buffers_sentence(summary, options.runs)) is not None:
        console.print(with_buffers)
    return {
        "kind": "bench",
        "schema_version": 2,
        "model": _without_folders(model),
        "model_sha256": subject.source.sha256,
        "model_bytes": subject.source.size_bytes,
        "device": {"name": device.name, **measuring.environment},
        "runs": options.runs,
        "page_cache": "cold" if options.cold else "warm",
        "evicted_by": "posix_fadvise, verified with mincore" if options.cold else None,
        "storage_capped_by": f"cgroup version {controller.version}" if controller else None,
        "storage_bytes_per_s": options.storage_mbps * 1e6 if controller else None,
        "source": "measured",
        "plan": plan,
        "gain": None if gain is None else gain.to_json(),
        "arms": summary,
        "left_out": left_out,
        "max_abs_difference": differences,
        "files_bytes": {arm.name: sum(file.stat().st_size for file in arm.all_files()) for arm in arms},
        "samples": samples,
        "provenance": provenance(["splitload", *map(_without_folders, without_codes(options.words))]),
    }


def _sampled(
    options: argparse.Namespace,
    subject: Subject,
    arms: Sequence[Arm],
    run: Runner,
    controller: Controller | None,
    console: Console,
    cache: Path,
) -> dict[str, list[Sample]]:
    """Return the samples of each arm, with storage capped where that is asked for."""
    storage_s = None
    with contextlib.ExitStack() as stack:
        if controller is not None:
            files = {arm.name: arm.all_files() for arm in arms}
            most_bytes = max(sum(file.stat().st_size for file in each) for each in files.values())
            every = [file for each in files.values() for file in each]
            stack.enter_context(controller.capped([cache, *every], round(options.storage_mbps * 1e6)))
            storage_s = stack.enter_context(reader(cache, most_bytes))
        show = stack.enter_context(console.progress("benchmark", unit="samples"))
        return run_arms(
            arms,
            subject.graph.input_tensors(),
            subject.feeds,
            options.runs,
            show,
            cold=options.cold,
            storage_s=storage_s,
            run=run,
        )


def _checked(options: argparse.Namespace) -> Controller | None:
    """Check what can be checked before any work; return what caps the storage, where that is asked for."""
    if options.model is None and options.deep is None:
        raise UsageError("bench needs a MODEL or --deep N (see 'splitload bench --help')")
    if options.model is not None and options.deep is not None:
        raise UsageError("bench takes a MODEL or --deep N, not both (see 'splitload bench --help')")
    if options.cold and options.device == "host":
        pagecache.check()
    if options.storage_mbps is None:
        return None
    if options.device != "host":
        raise UsageError("--storage-mbps caps the disk of this machine; leave it out, or --device")
    if not options.cold:
        raise UsageError("--storage-mbps needs --cold: what is cached is not read from storage")
    return Controller.find()


def _device(options: argparse.Namespace, cache: Path) -> tuple[Device, Measuring]:
    """Return the device, and itself as what measures.

    Raises:
        UsageError: If nothing is measured there, or an arm is of this machine alone.
    """
    if options.device != "host":
        for name in options.arms or ():
            if name not in PORTABLE_ARMS:
                raise UsageError(
                    f"arm '{name}' is measured on host alone; a served device has {', '.join(PORTABLE_ARMS)}"
                )
    device = open_device(paired(options.device, cache), cache)
    if device.measuring is None:
        raise UsageError(
            f"times of '{device.name}' are computed, and a benchmark measures; name host or a served device"
        )
    return device, device.measuring


def _subject(
    options: argparse.Namespace,
    device: Device,
    measuring: Measuring,
    model: str,
    names: Sequence[str],
    feeds: Mapping[str, Any],
    console: Console,
    cache: Path,
) -> tuple[Subject, dict[str, Any] | None]:
    """Return the model, with a bundle where the splitload arm is among the names, and the plan of that bundle."""
    import onnxruntime as ort

    word = options.model if options.deep is None else str(deep.path(options.deep, cache))
    bundle, plan = None, None
    if any(name.startswith("splitload") for name in names):
        source, graph, measured = read_and_profile(word, device, console, cache, feeds, max_blocks=options.max_blocks)
        feeds = {**source.examples, **feeds}
        if options.bundle is None:
            bundle = _bundle(measuring, console, cache, source, graph, measured, feeds)
        else:
            bundle = Path(options.bundle)
        manifest = read_manifest(bundle)
        if manifest.model_sha256 != source.sha256:
            raise UsageError(f"'{bundle}' is a bundle of '{manifest.model}', not of {model}")
        variant = manifest.variants[0]
        if measuring.is_here:
            variant, why_portable = choose(bundle, manifest, ort.__version__)
            if why_portable is not None:
                console.note(why_portable)
        split_points = [stage.blocks[1] for stage in variant.stages[:-1]]
        plan = {"num_stages": len(split_points) + 1, "split_points": split_points}
    else:
        with console.status(f"reading {model}"):
            source = open_source(word, cache)
            feeds = {**source.examples, **feeds}
            most = options.max_blocks
            graph = load_graph(source, "native", cache, max_blocks=most, feeds=feeds, runtime=measuring.runtime)
    synthetic = options.deep is not None
    return Subject(model, source, graph, bundle, feeds, cache, synthetic, measuring.runtime), plan


def _arms(
    names: Sequence[str], asked_for: bool, subject: Subject, run: Runner, console: Console
) -> tuple[list[Arm], dict[str, float], dict[str, str]]:
    """Return the arms that compute what stock computes, how far they are from it, and why others are left out.

    Each is run once, unmeasured. One that this version of onnxruntime, say, cannot run is left out, unless it was asked
    for by name, or nothing can be compared without it.
    """
    if reason := unreturned(subject.graph.output_tensors()):
        raise ModelError(f"there is no answer of a stock session to compare with: {reason}")
    inputs = subject.graph.input_tensors()
    left_out: dict[str, str] = {}

    def attempt(name: str, step: Callable[..., _T], *arguments: Any) -> _T | None:
        try:
            with console.status(f"preparing {name}"):
                return step(*arguments)
        except SplitloadError as error:
            if name in (_RIGHT if step is compare else _ESSENTIAL):
                raise
            reason = re.sub(rf"^(benchmark )?arm '{name}' ", "", " ".join(str(error).split()))
            if asked_for:
                kind = UsageError if isinstance(error, UsageError) else StageError
                raise kind(f"arm '{name}' cannot be compared: {reason}") from error
            left_out[name] = _without_folders(reason)
            return None

    stock = make_arm("stock", subject)
    with console.status("preparing stock"):
        expected = outputs_of(stock, inputs, subject.feeds, run)
    arms, differences = [], {}
    for name in names:
        arm = stock if name == "stock" else attempt(name, make_arm, name, subject)
        outputs = None if arm is None else attempt(name, outputs_of, arm, inputs, subject.feeds, run)
        distance = None if outputs is None else attempt(name, compare, name, expected, outputs)
        if arm is not None and distance is not None:
            arms.append(arm)
            differences[name] = distance
    return arms, differences, left_out


def _bundle(
    device: Measuring,
    console: Console,
    cache: Path,
    source: Source,
    graph: ModelGraph,
    measured: Profile,
    feeds: Mapping[str, Any],
) -> Path:
    """Make the bundle that `train --device host --objective ttfo` makes, in the cache, unless it is there."""
    with console.status("searching a plan"):
        search = Search(measured, objective="ttfo")
        found = search.run()
    target = cache / "bench" / f"{source.sha256[:24]}{'' if device.is_here else f'-{device.name}'}.splitload"
    target.parent.mkdir(parents=True, exist_ok=True)
    given = [f"{name}: {value.dtype}{list(value.shape)}" for name, value in sorted(feeds.items())]
    made_with = f"{graph.path.parent.name} {provenance([])['git_commit']} {splitload.__version__}"
    notes: dict[str, Any] = {
        "objective": "ttfo",
        "searched": list(found.partition.split_points),
        "inputs": given,
        "made_with": made_with,
        "made_on": dict(device.environment),
    }
    if target.exists():
        try:
            verify(target)
            if read_manifest(target).plan.items() >= notes.items():
                return target
        except BundleError as error:
            discard(target, str(error))
    threads = measured.contention.threads
    with StageStore(cache) as store:  # what is tried is not written again
        found, trial = choose_measured(
            device, search, found, source, graph, threads, console, cache, feeds=feeds, store=store
        )
        notes["trial"] = None if trial is None else trial.to_json()
        notes["split_points"] = list(found.partition.split_points)
        plan = VariantPlan(graph, found.partition, threads)
        write_bundle(
            target,
            source,
            plan,
            console,
            cache,
            device=device.name,
            tuner=device,
            notes=notes,
            feeds=feeds,
            store=store,
        )
    return target


def _show(
    console: Console,
    options: argparse.Namespace,
    subject: Subject,
    place: str,
    summary: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> None:
    """Print the medians, one column an arm.

    Args:
        console: Where.
        options: Of the command line.
        subject: What was compared.
        place: " on" the device, "" for this machine.
        summary: What `summarize` returns, by the name of the arm.
    """

    def row(title: str, key: str, scale: float, what: str = "median") -> tuple[str, ...]:
        found = [figures.get(key) for figures in summary.values()]
        return title, *("" if figure is None else _short(figure[what] * scale) for figure in found)

    rows = [
        row("process ms", "process_s", 1e3),
        row("  exit", "exit_s", 1e3),
        row("  peak MiB", "process_peak_memory_bytes", 1 / _MIB),
        row("TTFO ms", "ttfo_s", 1e3),
        row("  min", "ttfo_s", 1e3, "min"),
        row("  max", "ttfo_s", 1e3, "max"),
        row("all loaded", "load_s", 1e3),
        row("first ms", "first_inference_s", 1e3),
        row("steady ms", "steady_inference_s", 1e3),
        row("peak MiB", "peak_memory_bytes", 1 / _MIB),
        row("  settled", "settled_memory_bytes", 1 / _MIB),
    ]
    if options.cold:
        rows.append(row("touched MB", "touched_bytes", 1e-6))
    if options.storage_mbps is not None:
        rows.append(row("limit ms", "limit_s", 1e3))
    medians = {name: figures["ttfo_s"]["median"] for name, figures in summary.items()}
    if "stock" in medians:
        rows.append(("stock÷arm", *(f"{medians['stock'] / median:.2f}" for median in medians.values())))
    cache = "cold files" if options.cold else "warm page cache"
    if options.storage_mbps is not None:
        cache += f", storage capped at {options.storage_mbps:g} MB/s"
    samples = f"medians of {count_of(options.runs, 'sample')} an arm, fresh processes in turns"
    title = f"{subject.graph.name}{place}: {samples}, {cache}"
    broken = _NARROW if len(summary) > 5 else {}
    console.table(title, ("", *(broken.get(name, name) for name in summary)), rows)


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _without_folders(text: str) -> str:
    """Return a text without the folders of absolute paths, for records that others read."""
    return _FOLDERS.sub("", text)
