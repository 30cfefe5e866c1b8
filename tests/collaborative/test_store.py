"""A collaboration on disk: its graphs read the bundle's weights, both machines' programs answer as the model does."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from shared_models import PIXELS, Made, collaboration_in, graph_of, images

from splitload.base.errors import BundleError, UsageError
from splitload.bundle.collaboration import Collaboration, beside, read_collaboration, validate_collaboration
from splitload.bundle.manifest import MANIFEST
from splitload.collaborative.pieces import Pieces
from splitload.collaborative.store import write
from splitload.deploy.shared_run import PieceRunner
from splitload.graphs.here import HERE

FEEDS = {"x": np.random.default_rng(3).standard_normal((1, 3, PIXELS, PIXELS)).astype(np.float32)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return collaboration_in(tmp_path_factory.mktemp("collaboration"))


def test_both_programs_answer_as_the_model_does(made: Made) -> None:
    collaboration = read_collaboration(made.folder)
    assert made.folder == beside(made.bundle)
    assert [plan.bytes_per_s for plan in collaboration.plans] == [0.0, 5e4, 1e5, 1e6]
    assert any(len(plan.arms[0].server) > 3 for plan in collaboration.plans), "some plan is shared"
    (expected,) = HERE.run(made.graph.path, ["y"], FEEDS)
    for number in range(len(collaboration.plans)):
        np.testing.assert_allclose(_answer(made, collaboration, number), expected, rtol=1e-4, atol=1e-5)


def _answer(made: Made, collaboration: Collaboration, number: int) -> Any:
    plan = collaboration.plans[number].arms[0]
    device, server = (PieceRunner(made.folder, made.bundle, collaboration) for _ in range(2))
    up, down = queue.Queue[Any](), queue.Queue[Any]()

    def waiting(line: queue.Queue[Any]) -> Callable[[Any], Any]:
        def wait(step: Any) -> Any:
            sent, rows = line.get(timeout=20)
            assert sent[1:] == step[1:], "messages come in the order in which they are waited for"
            return rows

        return wait

    own = server.store()
    thread = threading.Thread(target=server.follow, args=(plan.server, own, lambda *each: down.put(each), waiting(up)))
    thread.start()
    store = device.store()
    for name, value in FEEDS.items():
        store.put(name, 0, device.tensors[name].shape[device.tensors[name].axis or 0], value)
    device.follow(plan.device, store, lambda *each: up.put(each), waiting(down))
    thread.join()
    return store.get("y", 0, None)


def test_graphs_are_small_as_they_read_the_weights_of_the_bundle(made: Made) -> None:
    collaboration = read_collaboration(made.folder)
    weights = sum(made.graph.weights_bytes.values())
    whole = collaboration.pieces[collaboration.plans[0].arms[0].device[0].number]
    assert whole.graph.bytes < weights / 4
    files = {path.name for path in made.folder.iterdir()}
    assert files == {MANIFEST, *(piece.graph.name for piece in collaboration.pieces)}


def test_a_damaged_one_is_refused(made: Made, tmp_path: Path) -> None:
    data = json.loads((made.folder / MANIFEST).read_text())

    def sent(each: Any) -> Any:
        return each["plans"][-1]["arms"][0]["device"][0]["parts"]

    def refused(change: Callable[[Any], object], message: str) -> None:
        changed = json.loads(json.dumps(data))
        change(changed)
        with pytest.raises(BundleError, match=message):
            validate_collaboration(changed)

    refused(lambda each: each.update(format="splitload-bundle"), "not a collaboration's")
    refused(lambda each: each.update(version=2), "reads version 1")
    refused(lambda each: each.update(extra=1), "unknown keys")
    refused(lambda each: each["tensors"][0].update(axis=9), "do not begin")
    refused(lambda each: each["levels"][1].update(num_rows=7), "which '.*' has not")
    refused(lambda each: each["pieces"][0]["graph"].update(name="../x.onnx"), "not a plain file name")
    refused(lambda each: each["pieces"][0]["reads"][0].update(stop=10**6), "has no rows")
    refused(lambda each: each["plans"].reverse(), "order of their links")
    refused(lambda each: each["plans"][-1]["arms"][0]["device"].pop(0), "is not what the")
    refused(lambda each: sent(each).clear(), "that there is not")
    refused(lambda each: sent(each).append(sent(each)[0]), "that there is not")
    refused(lambda each: sent(each).append({"tensor": "y", "start": 0, "stop": None}), "that there is not")
    refused(lambda each: sent(each)[0].update(stop=10**6), "has no rows")
    refused(lambda each: each["plans"][-1]["arms"][1].update(name="shared"), "no name twice")
    refused(lambda each: each["plans"][0]["arms"][0].update(name="mine"), "must have 'shared'")


def test_a_bundle_of_another_model_is_refused(made: Made, tmp_path: Path) -> None:
    other = graph_of(tmp_path, model=models.chain(4, width=16))
    with pytest.raises(UsageError, match="of another model"):
        write(made.bundle, other, Pieces(made.graph), [])


def test_what_was_there_and_is_no_collaboration_stays(made: Made, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "photo.jpg").write_bytes(b"")
    with pytest.raises(Exception, match="mine"):
        write(made.bundle, made.graph, Pieces(made.graph), [], place)
    assert images() is not None
    assert (place / "photo.jpg").exists()
