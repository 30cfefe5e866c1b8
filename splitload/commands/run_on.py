"""`splitload run --device`: load a bundle on a served device, infer once, and bring the outputs back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import DeviceError, UsageError
from splitload.base.phrases import count_of, milliseconds
from splitload.bundle.manifest import DEFAULT_TAIL
from splitload.bundle.read import read_manifest
from splitload.commands.console import Console
from splitload.commands.run import planned_files, show_outputs
from splitload.devices import open_device
from splitload.measure.sampling import Arm
from splitload.plan.schedule import Schedule, Task
from splitload.runtime.engine import ENGINES
from splitload.runtime.inputs import read_feeds


def run_on(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Load and infer on a device; return what `--json` prints.

    Raises:
        UsageError: If the device runs nothing, or an option is of this machine alone.
        SplitloadError: If the bundle is damaged, the inputs do not fit, or the device does not answer.
    """
    for option, given in (("--tail", options.tail != DEFAULT_TAIL), ("--residency", options.residency is not None)):
        if given:
            raise UsageError(f"{option} is for bundles that run on this machine; leave it out, or --device")
    bundle = Path(options.bundle)
    manifest = read_manifest(bundle, "hashes")
    folder = Path(options.output) if options.output else None
    files = {} if folder is None else planned_files(folder, manifest.outputs)
    feeds = read_feeds(options.input)
    device = open_device(options.device, user_cache())
    if device.measuring is None:
        raise UsageError(f"times of '{device.name}' are computed, and nothing runs there; name a served device")
    with console.status(f"running {manifest.model} on {device.name}"):
        outputs, answer = device.measuring.answer(Arm("splitload", bundle, options.threads), manifest.inputs, feeds)
    if lacks := sorted({"tasks", "engine", "variant", "load_s"} - answer.keys()):
        raise DeviceError(f"the answer of {device.name} lacks '{lacks[0]}': is its splitload as new as this one?")
    timeline = Schedule(tuple(Task(**task) for task in answer["tasks"]), "measured")
    why, engine, kind = answer.get("why_portable"), answer["engine"], answer["variant"]
    if why is not None:
        console.note(why)
    num_stages = len({task.stage for task in timeline.tasks})
    console.print(
        f"{manifest.model} on {device.name}: {count_of(num_stages, 'stage')} ({kind} graph), by onnxruntime's "
        f"{ENGINES.get(engine, engine)}"
    )
    console.drawing(timeline)
    console.print(f"time to first output: {milliseconds(answer['ttfo_s'])} measured, one run in a fresh process")
    names = [spec.name for spec in manifest.outputs]
    described = show_outputs(console, dict(zip(names, outputs, strict=True)), folder, files)
    result = {
        "bundle": options.bundle,
        "device": device.name,
        "engine": engine,
        "variant": kind,
        "why_portable": why,
        "num_stages": num_stages,
        "ttfo_s": answer["ttfo_s"],
        "load_s": answer["load_s"],
        "timeline": timeline.to_json(),
        "outputs": described,
    }
    return result if folder is None else {**result, "saved": files}
