"""`splitload crowd worker`, `scheduler` and `certificates`, in processes of their own on this host."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Run, json_of, one_line, process
from crowd_processes import WAIT_S, started

from splitload.commands import crowd_worker
from splitload.commands.console import Console
from splitload.crowd import reach
from splitload.crowd.certificates import make_certificates, security_from

pytest.importorskip("cryptography")
distributed = pytest.importorskip("distributed")


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    make_certificates(tmp_path / "certificates")
    return tmp_path / "certificates"


@pytest.fixture
def scheduler(certificates: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    words = ("scheduler", "--certificates", certificates, "--host", "127.0.0.1", "--port", "0")
    with started(tmp_path, *words) as running:
        yield running


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code of a process that was told to end, and what it says about that."""
    _, said = process.communicate(timeout=WAIT_S)
    return process.returncode, said


def listeners(pid: int) -> set[str]:
    import psutil

    return {each.laddr.ip for each in psutil.Process(pid).net_connections() if each.status == psutil.CONN_LISTEN}


def test_a_worker_runs_until_sigterm_and_leaves_nothing(
    scheduler: tuple[subprocess.Popen[str], str], certificates: Path, tmp_path: Path
) -> None:
    """Even while a task runs that takes longer than anybody waits."""
    cache = tmp_path / "cache"
    cache.mkdir()
    words = ("worker", scheduler[1], "--certificates", certificates, "--name", "pi1", "--memory", "160MB")
    with started(cache, *words, "--cache-size", "2MB", "--json") as (worker, address):
        security = security_from(certificates, "client")
        with distributed.Client(scheduler[1], security=security, set_as_default=False) as client:
            told = client.scheduler_info()["workers"][address]
            assert (told["name"], told["memory_limit"], told["nthreads"]) == ("pi1", 160_000_000, 1)
            assert client.submit(lambda: __import__("sys").modules.get("numpy")).result() is None
            setting = client.submit(lambda: __import__("dask").config.get("splitload.crowd")).result()
            assert setting == {"cache-folder": str(cache / "crowd" / "pi1"), "cache-bytes": 2_000_000}
            assert listeners(worker.pid) == listeners(scheduler[0].pid) == {"127.0.0.1"}
            begun = tmp_path / "begun"
            running = client.submit(lambda: (begun.touch(), time.sleep(2 * WAIT_S)))
            while not begun.exists():
                time.sleep(0.01)
            worker.send_signal(signal.SIGTERM)
            out, said = worker.communicate(timeout=WAIT_S)
            assert (worker.returncode, said) == (0, "the worker 'pi1' ended\n")
            assert json.loads(out) == {"name": "pi1", "scheduler": scheduler[1], "ended_for": "SIGTERM"}
            running.cancel()
    assert [path for path in cache.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        (signal.SIGKILL, 1, "splitload: the scheduler at {} is gone, and the worker 'pi1' ended\n"),
        (signal.SIGTERM, 0, "the worker 'pi1' ended with its scheduler\n"),
    ],
    ids=["killed", "ended"],
)
def test_a_worker_ends_with_its_scheduler(
    scheduler: tuple[subprocess.Popen[str], str],
    certificates: Path,
    tmp_path: Path,
    cli: Run,
    monkeypatch: pytest.MonkeyPatch,
    how: signal.Signals,
    code: int,
    said: str,
) -> None:
    words = ("worker", scheduler[1], "--certificates", certificates, "--name", "pi1")
    with started(tmp_path, *words) as (worker, _):
        if how == signal.SIGKILL:
            line = one_line(cli("crowd", *words), 1)
            assert "another worker there has this name; give --name" in " ".join(line.split())
        scheduler[0].send_signal(how)
        assert ended(worker) == (code, said.format(scheduler[1]))
    scheduler[0].wait(WAIT_S)


def test_ctrl_c_ends_a_scheduler_and_its_worker(tmp_path: Path) -> None:
    with started(tmp_path, "scheduler", "--port", "0") as (scheduler, address):
        assert address.startswith("tcp://127.0.0.1:")
        with started(tmp_path, "worker", address) as (worker, _):
            assert listeners(worker.pid) == {"127.0.0.1"}
            worker.send_signal(signal.SIGINT)
            assert ended(worker) == (130, f"splitload: interrupted; the worker '{socket.gethostname()}' ended\n")
        scheduler.send_signal(signal.SIGINT)
        assert ended(scheduler) == (130, "splitload: interrupted; the scheduler ended\n")
    assert not list(tmp_path.iterdir())


def test_certificates_are_made_once(cli: Run, tmp_path: Path) -> None:
    made = json_of(cli("crowd", "certificates", "made", "--days", "7", "--json"))
    assert made["certificates"] == "made"
    assert "is there already" in one_line(cli("crowd", "--json", "certificates", "made"), 1)
    assert "needs a name, not ''" in one_line(cli("crowd", "certificates", ""), 2)


def test_a_port_that_is_taken_is_told(certificates: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        words = ("scheduler", "--certificates", certificates, "--host", "127.0.0.1", "--port", port)
        done = process(tmp_path / "cache", tmp_path, "crowd", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"splitload: no scheduler can listen at 127.0.0.1, port {port}: Address already in use\n"


def test_certificates_that_expire_soon_are_told_of(tmp_path: Path) -> None:
    make_certificates(tmp_path / "made", days=7)
    console = Console(json=False)
    told: list[str] = []
    console.note = told.append  # type: ignore[method-assign]
    crowd_worker.note_expiry(console, tmp_path / "made", "client")
    assert "expire on" in told[0]


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["worker", "tcp://192.0.2.1:8786"], 2, "is refused: whoever can reach a crowd"),
        (["worker", "tls://192.0.2.1:8786"], 2, "needs --certificates DIR"),
        (
            ["worker", "tls://192.0.2.1:8786", "--certificates", "missing"],
            1,
            "cannot read the certificates in 'missing'",
        ),
        (["worker", "pi:8786"], 2, "begins with neither tls:// nor tcp://"),
        (["worker", "tcp://127.0.0.1:1"], 1, "no scheduler listens at tcp://127.0.0.1:1"),
        (["worker", "tcp://127.0.0.1:1", "--name", "../x"], 2, "give --name"),
        (["worker", "tcp://127.0.0.1:1", "--memory", "much"], 2, "it must be a size such as 48MB"),
        (["worker", "tcp://127.0.0.1:1", "--memory", "20MB"], 2, "the runtime alone takes 20.0 MB"),
        (["worker", "tcp://127.0.0.1:1", "--port", "70000"], 2, "a port from 0 to 65535"),
        (["worker", "tcp://127.0.0.1:1", "--treads", "1"], 2, "unrecognized arguments: --treads"),
        (["worker"], 2, "the following arguments are required: ADDRESS"),
        (["wroker"], 2, "unknown command 'wroker'. Did you mean worker?"),
        ([], 2, "no command given"),
        (["scheduler", "--host", "192.0.2.1"], 2, "is refused: whoever can reach a crowd"),
        (["certificates"], 2, "the following arguments are required: DIR"),
        (["certificates", "x", "--days", "4000"], 2, "valid for 1 to 3650 days"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_told_in_a_line(
    cli: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, why: str
) -> None:
    monkeypatch.setattr(reach, "CONNECT_S", 0.2)
    assert why in " ".join(one_line(cli("crowd", *words), code).split())


def test_without_dask_the_command_that_installs_it_is_told(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("dask", "distributed")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "distributed", None)
    line = one_line(cli("crowd", "scheduler", "--port", "0"), 1)
    assert "needs the package 'distributed'" in " ".join(line.split())
    assert "pip install '.[crowd]'" in " ".join(line.split())
