"""Inferences that a device and a server share over TLS on loopback; and the device alone whenever that fails."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import shutil
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from shared_models import PIXELS, Made, collaboration_in

from splitload.base.errors import BundleError, DeviceError, UsageError
from splitload.deploy import channel as wire
from splitload.deploy.collaborator import Collaborator
from splitload.deploy.credentials import Credentials, credentials
from splitload.deploy.greeting import connect, read_server
from splitload.deploy.share_server import MOST_STRANGERS, ShareServer, Turns
from splitload.graphs.here import HERE

FEEDS = {"x": np.random.default_rng(3).standard_normal((1, 3, PIXELS, PIXELS)).astype(np.float32)}
PATIENT_S = 20.0


class Site:
    """A server on loopback, which can be ended and started again at the same port."""

    def __init__(self, made: Made, own: Credentials) -> None:
        self.made, self.own, self.port = made, own, 0
        self.said: list[str] = []
        self.start()

    @property
    def address(self) -> str:
        return f"tls://127.0.0.1:{self.port}/#{self.own.code.text()}"

    def start(self) -> None:
        self.server = ShareServer(self.made.folder, self.made.bundle, self.own, port=self.port, tell=self.said.append)
        self.port = self.server.port
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()

    def stop(self) -> None:
        self.server.close()
        self._thread.join(PATIENT_S)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return collaboration_in(tmp_path_factory.mktemp("collaboration"))


@pytest.fixture
def site(made: Made, tmp_path: Path) -> Iterator[Site]:
    site = Site(made, credentials(tmp_path / "own", tls=True))
    yield site
    site.stop()


@pytest.fixture
def expected(made: Made) -> Any:
    return HERE.run(made.graph.path, ["y"], FEEDS)[0]


def sharing(site: Site, **options: Any) -> Collaborator:
    return Collaborator(site.made.bundle, site.address, **{"deadline_s": PATIENT_S, **options})


def until(holds: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENT_S
    while not holds():
        assert time.monotonic() < deadline_s, "it does not come to that"
        time.sleep(0.01)


def test_an_inference_is_shared_and_right(site: Site, expected: Any) -> None:
    with sharing(site) as model:
        assert model.wait_for_server(PATIENT_S)
        for _ in range(3):
            (found,) = model.run(None, FEEDS)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            assert model.last is not None
            assert (model.last.by, model.last.why) == ("both", "")
        assert model.bytes_per_s is not None
        assert [each.name for each in model.get_outputs()] == ["y"]
    until(lambda: any("is gone" in line for line in site.said))


def test_what_no_plan_is_for_is_answered_alone(site: Site, expected: Any) -> None:
    with sharing(site) as model:
        assert model.wait_for_server(PATIENT_S)
        (found,) = model.run(["y"], {"x": FEEDS["x"].tolist()})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert model.last is not None
        assert (model.last.by, model.last.why) == (
            "device",
            "its inputs or outputs are others than the plan was made for",
        )
        with pytest.raises(Exception, match="nothing"):
            model.run(["nothing"], FEEDS)


def test_without_a_server_the_device_answers_and_says_why(made: Made, expected: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code = credentials(tmp_path / "own", tls=True).code.text()
    with Collaborator(made.bundle, f"tls://127.0.0.1:{port}/#{code}") as model:
        until(lambda: "no server answers" in model.why_alone)
        np.testing.assert_allclose(model.run(None, FEEDS)[0], expected, rtol=1e-4, atol=1e-5)
        assert model.last is not None
        assert model.last.why.startswith(f"no server answers at 127.0.0.1:{port}")
    with Collaborator(made.bundle, None) as model:
        np.testing.assert_allclose(model.run(None, FEEDS)[0], expected, rtol=1e-4, atol=1e-5)
        assert model.last is not None and model.last.why == "no server is given"


def test_a_server_that_is_ended_and_started_again(site: Site, expected: Any) -> None:
    with sharing(site) as model:
        assert model.wait_for_server(PATIENT_S)
        site.stop()
        for _ in range(2):
            np.testing.assert_allclose(model.run(None, FEEDS)[0], expected, rtol=1e-4, atol=1e-5)
            assert model.last is not None and model.last.by == "device"
        site.start()
        until(lambda: model.run(None, FEEDS) and model.last is not None and model.last.by == "both")


def test_past_the_deadline_the_device_finishes_alone(
    site: Site, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(site.server._runner, "follow", lambda *_: ended.wait(PATIENT_S))
    with sharing(site, deadline_s=0.1) as model:
        assert model.wait_for_server(PATIENT_S)
        np.testing.assert_allclose(model.run(None, FEEDS)[0], expected, rtol=1e-4, atol=1e-5)
        assert model.last is not None
        assert (model.last.by, model.last.why) == ("device", "the server took longer than 100 ms")
        ended.set()


def test_what_was_given_up_is_taken_and_the_connection_kept(
    site: Site, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow, waiting = site.server._runner.follow, threading.Event()

    def late(*arguments: Any) -> None:
        waiting.wait(PATIENT_S)
        follow(*arguments)

    with sharing(site, deadline_s=1.0) as model:
        assert model.wait_for_server(PATIENT_S)
        channel = model._channel
        with monkeypatch.context() as patch:
            patch.setattr(site.server._runner, "follow", late)
            model.run(None, FEEDS)
            assert model.why_alone == "the server took longer than 1000 ms"
            model.run(None, FEEDS)
            assert model.last is not None and model.last.by == "device"
        waiting.set()
        assert model.wait_for_server(PATIENT_S)
        for _ in range(3):
            np.testing.assert_allclose(model.run(None, FEEDS)[0], expected, rtol=1e-4, atol=1e-5)
        assert model.last is not None and model.last.by == "both"
        assert model._channel is channel, "nobody was let go"


def test_a_loader_that_is_dropped_keeps_neither_thread_nor_connection(site: Site) -> None:
    before = set(threading.enumerate())
    model = Collaborator(site.made.bundle, site.address)
    assert model.wait_for_server(PATIENT_S)
    model.run(None, FEEDS)
    assert site.server._channels
    gone = weakref.ref(model)
    del model
    gc.collect()
    until(lambda: gone() is None)
    until(lambda: not site.server._channels)
    until(lambda: not [each for each in set(threading.enumerate()) - before if "collaborator" in each.name])


def test_who_takes_long_to_say_who_it_is_keeps_nobody_out(site: Site) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(MOST_STRANGERS + 4):
            opened.enter_context(socket.create_connection(("127.0.0.1", site.port)))
        model = opened.enter_context(sharing(site))
        assert model.wait_for_server(PATIENT_S)


def test_a_traced_inference_tells_what_both_machines_did(site: Site) -> None:
    with sharing(site) as model:
        assert model.wait_for_server(PATIENT_S)
        model.run(None, FEEDS)
        assert model.moments == ()
        model.is_traced = True
        model.run(None, FEEDS)
        assert model.last is not None and model._plan is not None
        arm, found = model._plan[2], model.moments
        for where, steps, kind in (
            ("device", arm.device, "compute"),
            ("server", arm.server, "compute"),
            ("up", arm.device, "send"),
            ("down", arm.server, "send"),
        ):
            numbers = [step.number for step in steps if step.kind == kind]
            assert [each.number for each in found if each.where == where] == numbers
        assert all(0 <= each.start_s <= each.end_s <= model.last.latency_s for each in found)


def test_a_server_that_fails_says_so(site: Site, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise DeviceError("it burns")

    monkeypatch.setattr(site.server._runner, "follow", fails)
    with sharing(site) as model:
        assert model.wait_for_server(PATIENT_S)
        np.testing.assert_allclose(model.run(None, FEEDS)[0], expected, rtol=1e-4, atol=1e-5)
        assert model.last is not None
        assert model.last.by == "device"
        assert "it burns" in model.last.why or "ended" in model.last.why or "breaks" in model.last.why


def test_several_devices_share_one_server(site: Site, expected: Any) -> None:
    with contextlib.ExitStack() as opened:
        devices = [opened.enter_context(sharing(site)) for _ in range(3)]
        assert all(model.wait_for_server(PATIENT_S) for model in devices)
        found: list[Any] = [None] * len(devices)

        def go(at: int) -> None:
            for _ in range(3):
                found[at] = devices[at].run(None, FEEDS)[0]

        threads = [threading.Thread(target=go, args=(at,)) for at in range(len(devices))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each, model in zip(found, devices, strict=True):
            np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-5)
            assert model.last is not None and model.last.by == "both"


def test_who_waits_longest_is_next() -> None:
    turns, order = Turns(1), list[int]()
    with turns.one():
        threads = []
        for at in range(4):
            threads.append(threading.Thread(target=lambda at=at: _note(turns, order, at)))
            threads[-1].start()
            until(lambda at=at: len(turns._waiting) == at + 1)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]


def _note(turns: Turns, order: list[int], at: int) -> None:
    with turns.one():
        order.append(at)


def test_a_stranger_is_refused_and_a_strange_server_told_nothing(site: Site, made: Made, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no address of a server"):
        Collaborator(made.bundle, "tls://127.0.0.1/#x")
    other = credentials(tmp_path / "other", tls=True).code
    server = read_server(site.address)
    with pytest.raises(DeviceError, match="is not the server that the code is of; nothing was sent"):
        connect(server._replace(code=other))
    with pytest.raises(DeviceError, match="refuses: the code is not the one that it shows"):
        connect(server._replace(code=server.code._replace(token=other.token)))
    with pytest.raises(DeviceError, match="another collaboration"):
        connect(server, collaboration="0" * 64)


def test_messages_out_of_place_end_the_connection_and_nothing_else(site: Site, expected: Any) -> None:
    with sharing(site) as model:
        assert model.wait_for_server(PATIENT_S)
        for kind, number, size in ((wire.ROWS, 0, 4), (wire.BEGIN, 999, 0), (wire.WELCOME, 0, 0)):
            channel = connect(read_server(site.address), collaboration=model._sha256)
            channel.send(kind, number, parts=[bytes(size)])
            assert channel.receive(PATIENT_S).kind == wire.FAILED
            channel.close()
        with socket.create_connection(("127.0.0.1", site.port)) as raw:
            raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
        np.testing.assert_allclose(model.run(None, FEEDS)[0], expected, rtol=1e-4, atol=1e-5)
        assert model.last is not None and model.last.by == "both"


def test_plans_of_another_bundle_are_refused(made: Made, tmp_path: Path) -> None:
    bundle = tmp_path / "other.splitload"
    shutil.copytree(made.bundle, bundle)
    manifest = bundle / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(BundleError, match="was made for another bundle"):
        Collaborator(bundle, None, collaboration=made.folder)
    with pytest.raises(BundleError, match="collaborate plan"):
        Collaborator(made.bundle, None, collaboration=tmp_path / "none")


def test_after_an_interrupted_call_no_answer_is_that_of_another(
    site: Site, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"x": FEEDS["x"][..., ::-1].copy()}
    with sharing(site) as model:
        assert model.wait_for_server(PATIENT_S)

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(model._runner, "follow", interrupted)
            with pytest.raises(KeyboardInterrupt):
                model.run(None, other)
        for _ in range(3):
            np.testing.assert_allclose(model.run(None, FEEDS)[0], expected, rtol=1e-4, atol=1e-5)


def test_an_interrupt_while_an_inference_is_given_up_ends_the_connection(
    site: Site, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    def late(*_: Any) -> None:
        raise TimeoutError

    with sharing(site) as model:
        assert model.wait_for_server(PATIENT_S)
        channel = model._channel
        with monkeypatch.context() as patch:
            patch.setattr(model._runner, "follow", late)
            patch.setattr(model, "_give_up", interrupted)
            with pytest.raises(KeyboardInterrupt):
                model.run(None, {"x": FEEDS["x"][..., ::-1].copy()})
        for _ in range(3):
            np.testing.assert_allclose(model.run(None, FEEDS)[0], expected, rtol=1e-4, atol=1e-5)
        until(lambda: model._channel is not channel)


def test_only_who_waits_says_how_much_is_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    expecting: list[int] = []
    with sharing(site) as model:
        assert model.wait_for_server(PATIENT_S) and model._channel is not None
        monkeypatch.setattr(model._channel, "expect", lambda _: expecting.append(threading.get_ident()))
        model.run(None, FEEDS)
        model._changed.set()
        until(lambda: not model._changed.is_set())
        time.sleep(0.05)
        assert expecting == [threading.get_ident()]


def test_a_link_of_which_nothing_is_learned_is_probed(site: Site) -> None:
    with sharing(site) as model:
        assert model.wait_for_server(PATIENT_S) and model._plan is not None and model._plan[2].server
        learned_s = model._learned_s
        until(lambda: model._learned_s > learned_s)


def test_what_the_caller_is_told_with_may_fail(site: Site, expected: Any) -> None:
    def fails(_: str) -> None:
        raise RuntimeError("nobody listens")

    with sharing(site, tell=fails) as model:
        assert model.wait_for_server(PATIENT_S)
        site.stop()
        np.testing.assert_allclose(model.run(None, FEEDS)[0], expected, rtol=1e-4, atol=1e-5)
        site.start()


def test_graphs_for_another_processor_are_the_device_s_alone_and_no_server_s(
    made: Made, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitload.deploy.share_server.cpu_architecture", lambda: "m68k")
    own = credentials(tmp_path / "own", tls=True)
    with pytest.raises(DeviceError, match="this machine is m68k"):
        ShareServer(made.folder, made.bundle, own, port=0)
    with Collaborator(made.bundle, f"tls://127.0.0.1:1/#{own.code.text()}") as model:
        np.testing.assert_allclose(model.run(None, FEEDS)[0], expected, rtol=1e-4, atol=1e-5)
        assert "m68k" in model.why_alone
    with pytest.raises(UsageError, match="deadline_s takes seconds"):
        Collaborator(made.bundle, None, deadline_s=float("inf"))


def test_a_piece_that_reads_a_file_which_is_not_the_bundle_s_is_refused(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "hostile.collaboration"
    shutil.copytree(made.folder, folder)
    data = json.loads((folder / "manifest.json").read_text())
    piece = data["pieces"][0]["graph"]
    model = onnx.load(str(folder / piece["name"]), load_external_data=False)
    tensor = next(each for each in model.graph.initializer if each.external_data)
    next(each for each in tensor.external_data if each.key == "location").value = "other.bin"
    content = model.SerializeToString()
    for path in folder.iterdir():
        path.chmod(0o644)
    (folder / piece["name"]).write_bytes(content)
    piece.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (folder / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"other\.bin"):
        Collaborator(made.bundle, None, collaboration=folder)
