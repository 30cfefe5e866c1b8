"""Faults of served devices: requests of any kind, many clients, links that are cut, services that are killed.

`python -m splitload.studies.served_faults --help`. Everything is real but for who pulls the plug: processes of
`splitload serve` on this machine, jobs in fresh processes, models whose outputs tell whose answer it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.errors import MissingPackageError, ModelError, StageError
from splitload.base.packages import has
from splitload.bundle.manifest import TensorSpec
from splitload.bundle.read import read_manifest
from splitload.commands.console import Console
from splitload.deploy.credentials import read_code
from splitload.devices.connection import Connection
from splitload.devices.pairing import Address
from splitload.devices.remote import RemoteMachine
from splitload.measure.fresh import save_inputs
from splitload.measure.job import Input, LoadModel
from splitload.measure.process import python
from splitload.studies.cut_links import CUT_NEVER, CutLink, cut_link
from splitload.studies.served_process import ServedProcess
from splitload.studies.study import at_least, errors_in_one_line, growing_record, study_parser

EXAMPLES, CLIENTS, CUTS, KILLS = 150, 50, 200, 50
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
CONFIGURATION = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", "507"]\n'
WIDTH = 256  # of a model's weight: 256 KiB
CUT_BYTES = 200_000  # of a link, at most, between two cuts
CUT_S = (0.0, 0.6)  # between two cuts at moments
UP_S = (0.3, 3.0)  # of a service, between its start and its end
BUDGET = 24  # measured loads of a search


def served(folder: Path) -> ServedProcess:
    """Return a device whose cache is in a folder."""
    return ServedProcess(folder / "device", "--http")


def connected(device: ServedProcess, port: int | None = None) -> Connection:
    """Return a connection to a device, perhaps through a proxy's port."""
    code = read_code(device.url.partition("#")[2])
    return Connection(Address(f"http://127.0.0.1:{port or device.port}", code))


def damaged_files(device: ServedProcess) -> list[str]:
    """Return the whole files in the cache of a device that are not what their names say."""
    files = [each for each in (device.cache / "serve" / "files" / "files").iterdir() if not each.suffix]
    return [each.name for each in files if hashlib.sha256(each.read_bytes()).hexdigest() != each.name]


def write_model(folder: Path, number: int) -> Path:
    """Write a model of one product whose weight is of its number, and return it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(_weight(number), "w")
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH])] for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", *ends, [weight])
    path = folder / f"{number}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def answers_right(machine: RemoteMachine, folder: Path, number: int) -> bool:
    """Have a device run the model of a number; return whether the output is that model's."""
    folder.mkdir()
    model = write_model(folder, number)
    value = np.random.default_rng(number).standard_normal((1, WIDTH)).astype(np.float32)
    inputs: tuple[Input, ...] = save_inputs([TensorSpec("x", "tensor(float)", (1, WIDTH))], {"x": value}, folder)
    job = LoadModel("stock", model.name, inputs, steady=False, outputs=True)
    answer = machine.run(job, folder, ModelError)
    found = np.load(folder / answer["outputs"][0], allow_pickle=False)
    return bool(np.allclose(found, value @ _weight(number), rtol=1e-4, atol=1e-4))


def _weight(number: int) -> Any:
    return np.random.default_rng(1000 + number).standard_normal((WIDTH, WIDTH)).astype(np.float32)


def any_requests(folder: Path, examples: int, seed: int) -> dict[str, Any]:
    """Have schemathesis send requests made from the service's own description, right ones and wrong ones.

    Raises:
        MissingPackageError: If it is not installed.
    """
    if not has("schemathesis"):
        raise MissingPackageError("requests are made by the package 'schemathesis': pip install schemathesis")
    service = served(folder)
    (folder / "schemathesis.toml").write_text(CONFIGURATION, encoding="utf-8")
    words = [
        "run", f"http://127.0.0.1:{service.port}/openapi.json", "-H",
        f"Authorization: Bearer {read_code(service.url.partition('#')[2]).token}", "--checks", CHECKS, "--phases",
        "coverage,fuzzing", "--max-examples", str(examples), "--seed", str(seed), "--no-color", "--warnings", "off",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            python("schemathesis.cli", *words), cwd=folder, capture_output=True, encoding="utf-8", check=False
        )
    finally:
        service.kill()
    cases = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    if cases is None:
        raise StageError(f"schemathesis does not say what it did: {' '.join(done.stdout.split())[-300:]}")
    generated, passed = map(int, cases.groups())
    return {"part": "requests", "exit_code": done.returncode, "requests": generated, "as_described": passed}


def many_clients(folder: Path, count: int) -> dict[str, Any]:
    """Have so many clients place orders at once, each for a model of its own."""
    service = served(folder)

    def client(number: int) -> str:
        connection = connected(service)
        try:
            return "right" if answers_right(RemoteMachine(connection), folder / f"{number}", number) else "wrong"
        except Exception as error:
            return f"failed: {type(error).__name__}: {error}"
        finally:
            connection.close()

    began_s = time.perf_counter()
    try:
        with ThreadPoolExecutor(count) as pool:
            outcomes = Counter(pool.map(client, range(count)))
    finally:
        service.kill()
    return {
        "part": "clients", "clients": count, "outcomes": dict(outcomes), "seconds": time.perf_counter() - began_s,
        "damaged_files": damaged_files(service),
    }  # fmt: skip


def cut_links(folder: Path, count: int, drawn: random.Random, *, at_moments: bool) -> dict[str, Any]:
    """Have jobs done over a link that is cut so often, at random moments or after random numbers of bytes, both ways.

    Most bytes are of files that are sent up, and most moments pass while a job is done.
    """
    service, outcomes, number, file_bytes = served(folder), Counter[str](), 0, 0
    draw = (lambda: CUT_NEVER) if at_moments else (lambda: drawn.randrange(1, CUT_BYTES))
    try:
        with cut_link(service.port, draw) as link, _cutting(link, count, drawn, at_moments):
            connection = connected(service, link.port)
            machine = RemoteMachine(connection)
            while link.cuts < count:
                right = answers_right(machine, folder / f"{number}", number)
                outcomes["right" if right else "wrong"] += 1
                file_bytes += sum(each.stat().st_size for each in (folder / f"{number}").iterdir()
                                  if each.name != "output-0.npy")  # fmt: skip
                number += 1
            cuts, up_bytes = link.cuts, link.up_bytes
            link.stay()
            connection.close()
    finally:
        service.kill()
    return {
        "part": "links", "cut_at": "moments" if at_moments else "bytes",
        "cuts": cuts, "jobs": number, "outcomes": dict(outcomes), "file_bytes": file_bytes,
        "up_bytes": up_bytes, "damaged_files": damaged_files(service),
    }  # fmt: skip


@contextmanager
def _cutting(link: CutLink, count: int, drawn: random.Random, at_moments: bool) -> Iterator[None]:
    """Cut a link so often while something is done, at random moments; or leave that to its bytes."""
    is_over = threading.Event()

    def cut() -> None:
        while link.cuts < count and not is_over.wait(drawn.uniform(*CUT_S)):
            link.cut()

    thread = threading.Thread(target=cut)
    if at_moments:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        if at_moments:
            thread.join()


def killed_services(folder: Path, count: int, drawn: random.Random) -> dict[str, Any]:
    """Kill the service so often while searches measure on it, and start it again."""
    service, kills, damaged = served(folder), 0, 0
    searches: list[dict[str, Any]] = []
    model = _chain(folder / "chain.onnx")
    try:
        while kills < count:
            name = f"{len(searches)}"
            command = python(
                "splitload.__main__", "train", str(model), "--device", service.url, "--budget", str(BUDGET), "--json",
                "--seed", name, "-o", str(folder / f"{name}.splitload"),
            )  # fmt: skip
            environment = {**os.environ, "SPLITLOAD_CACHE": str(folder / f"desk-{name}")}
            search = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            reader = _Output(search)
            kept, before = 0, kills
            while search.poll() is None:
                try:
                    search.wait(drawn.uniform(*UP_S))
                except subprocess.TimeoutExpired:
                    if kills < count:
                        service.kill()
                        kills += 1
                        damaged += len(damaged_files(service))
                        kept = max(kept, _lines_kept(folder / f"desk-{name}"))
                        service.start()
            out, errors = reader.result()
            searches.append(
                {"kills": kills - before, "exit_code": search.returncode, "samples_in_journal": kept,
                 "valid_bundle": search.returncode == 0 and _is_valid(folder / f"{name}.splitload"),
                 "error": errors.strip().splitlines()[-1:] if search.returncode else [],
                 "is_json": bool(out) and isinstance(json.loads(out), dict)}
            )  # fmt: skip
    finally:
        service.kill()
    return {"part": "kills", "kills": kills, "searches": searches, "damaged_files": damaged}


class _Output:
    """What a process prints, read while it runs."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._said: list[str] = []

        def read() -> None:
            self._said += [each.decode(errors="replace") for each in child.communicate()]

        self._thread = threading.Thread(target=read, daemon=True)
        self._thread.start()

    def result(self) -> tuple[str, str]:
        """Return stdout and stderr, once the process has ended."""
        self._thread.join()
        return self._said[0], self._said[1]


def _chain(path: Path) -> Path:
    """Write a model of several products in a row, and return it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights = [], []
    for number in range(6):
        weights.append(numpy_helper.from_array(_weight(number), f"w{number}"))
        nodes.append(helper.make_node("MatMul", [f"t{number}", f"w{number}"], [f"s{number}"]))
        nodes.append(helper.make_node("Tanh", [f"s{number}"], [f"t{number + 1}"]))
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH])] for name in ("t0", "t6")]
    graph = helper.make_graph(nodes, "chain", *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _lines_kept(cache: Path) -> int:
    """Return how many samples the journals in a cache hold."""
    return sum(each.read_bytes().count(b"\n") for each in cache.glob("profiles/*.journal"))


def _is_valid(bundle: Path) -> bool:
    return bool(read_manifest(bundle, "hashes").variants)


def went_wrong(row: Mapping[str, Any]) -> bool:
    """Return whether a row tells of an answer or a file that is not as it should be."""
    return (
        bool(row.get("damaged_files"))
        or row.get("exit_code", 0) != 0
        or any(outcome != "right" for outcome in row.get("outcomes", ()))
        or not all(each["exit_code"] == 0 and each["valid_bundle"] for each in row.get("searches", ()))
    )


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Have all faults happen, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("served_faults", __doc__)
    for name, default, text in (
        ("examples", EXAMPLES, "requests that are made up for each path"),
        ("clients", CLIENTS, "clients at once"), ("cuts", CUTS, "cuts of a link"),
        ("kills", KILLS, "kills of a service"),
    ):  # fmt: skip
        parser.add_argument(
            f"--{name}", type=at_least(0), default=default, metavar="N", help=f"{text} (default: {default})"
        )
    parser.add_argument("--seed", type=at_least(0), default=1, metavar="N", help="of what is random")
    options = parser.parse_args(words)
    drawn, console = random.Random(options.seed), Console(json=False)  # noqa: S311
    parts: list[tuple[int, Callable[[Path], dict[str, Any]]]] = [
        (options.examples, lambda folder: any_requests(folder, options.examples, options.seed)),
        (options.clients, lambda folder: many_clients(folder, options.clients)),
        *(
            (count, partial(cut_links, count=count, drawn=drawn, at_moments=at_moments))
            for at_moments, count in ((False, options.cuts - options.cuts // 2), (True, options.cuts // 2))
        ),
        (options.kills, lambda folder: killed_services(folder, options.kills, drawn)),
    ]
    is_wrong = False
    with growing_record(options.output, "served_faults", "splitload.studies.served_faults", words) as add:
        for count, part in parts:
            if count:
                with tempfile.TemporaryDirectory(prefix="splitload-faults-") as folder:
                    row = {"source": "measured", **part(Path(folder))}
                console.print(json.dumps(row))
                add([row])
                is_wrong |= went_wrong(row)
    return int(is_wrong)


if __name__ == "__main__":
    raise SystemExit(main())
