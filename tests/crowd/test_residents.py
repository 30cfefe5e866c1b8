"""The stages in a worker's memory: a table is there in places only, and its rows leave with the run that read them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import runtime_models
from onnx import helper, numpy_helper

from splitload.bundle.manifest import File
from splitload.crowd.chain import chain_of, read_bundle
from splitload.crowd.codec import decoded, encoded, opened, parcel
from splitload.crowd.orders import TaskOrder
from splitload.crowd.residents import Residents
from splitload.deploy.stage_cache import StageCache
from splitload.runtime import mapped
from splitload.runtime.capi.memory import memory_of
from splitload.runtime.capi.tensor import in_form, tensor_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing is given back")
ROWS, WIDTH = 40_000, 64


@pytest.fixture(scope="module")
def table() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(table: np.ndarray[tuple[int, int], np.dtype[np.float32]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One stage, most of which is a table of 10 MB."""
    of, folder = helper.make_tensor_value_info, tmp_path_factory.mktemp("table")
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"], name="a/gather"),
        helper.make_node("Tanh", ["rows"], ["y"], name="b/tanh"),
    ]
    weights = [numpy_helper.from_array(table, "table")]
    graph = helper.make_graph(nodes, "table", [of("x", 7, [4])], [of("y", 1, [4, WIDTH])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "table.onnx")
    return runtime_models.bundle(folder / "table.onnx", folder / "table.splitload", 1, native=True)


def filled(folder: Path, bundle: Path, files: tuple[File, ...], key: str) -> StageCache:
    cache = StageCache(folder, 1 << 30)
    for file in files:
        assert cache.request(key, files)
        assert cache.write(file, 0, (bundle / file.name).read_bytes()) == file.bytes
        cache.release(key)
    return cache


def mapped_bytes(path: Path) -> int:
    """Return how much of a file this process has mapped and in memory."""
    spans = {f"{begin:x}-{end:x}" for begin, end in mapped.spans(mapped.identities([os.fspath(path)]))}
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        if line.endswith("kB") and inside and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
        elif "-" in line.split()[0]:
            inside = line.split()[0] in spans
    return found


def test_the_rows_of_a_table_leave_with_the_run_that_read_them(
    bundle: Path, table: np.ndarray[tuple[int, int], np.dtype[np.float32]], tmp_path: Path
) -> None:
    manifest = read_bundle(bundle)
    (link,) = chain_of(manifest, manifest.variants[0], keep_mapped=True).links
    assert link.order.table_start is not None
    cache = filled(tmp_path / "cache", bundle, link.order.files, link.order.key)
    residents = Residents(cache)
    order = TaskOrder(
        crowd="c", attempt=1, stage=link.order, runs=True, needed=link.needed, carried=(), unload=(), alone=True,
        keep=True, compression="off", link_bytes_per_s=None,
    )  # fmt: skip
    assert residents.open(order) is not None
    file = cache.place(link.order.key, link.order.files) / link.order.graph
    for seed in range(3):
        rows = np.random.default_rng(seed).integers(0, ROWS, 4)
        made, _ = residents.run(order, opened(parcel({"x": encoded(memory_of(rows), compress=False)})))
        (answer,) = (in_form(tensor_of(decoded(data)), "numpy") for data in opened(made).values())
        np.testing.assert_allclose(answer, np.tanh(table[rows]), rtol=1e-6)
        assert mapped_bytes(file) <= 4 * mapped.PAGE_BYTES, "of the graph, and no row"
    residents.let_go_all()
    assert mapped.spans(mapped.identities([os.fspath(file)])) == []
    assert residents.keys() == []
    cache.close()
