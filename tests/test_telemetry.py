"""No process of splitload's leaves traces of the runtime's telemetry, nor looks its maker up, unless the user wants it.

onnxruntime has it in its Linux wheels from 1.29 on; each test first sees it at work where splitload is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

HAS_TELEMETRY = sys.platform.startswith("linux") and tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 29)
SWITCHES = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS"}  # what keeps it from working
NOT_OURS = "import onnxruntime"
OURS = "import splitload, onnxruntime"
pytestmark = pytest.mark.skipif(not HAS_TELEMETRY, reason="this onnxruntime has no telemetry")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def traces(home: Path, *words: str, **variables: str) -> list[str]:
    """Return the files below a fresh HOME that a Python process leaves there, beside splitload's own."""
    kept = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "SPLITLOAD_CACHE": str(home / "splitload")}
    done = subprocess.run(
        [sys.executable, *words], env=kept | places | variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [str(file) for file in home.rglob("*") if file.is_file() and "Microsoft" in file.parts]


def test_the_runtime_alone_leaves_traces(home: Path) -> None:
    assert traces(home, "-c", NOT_OURS)


def test_a_program_that_imports_splitload_leaves_none(home: Path, chain_bundle: Path) -> None:
    assert not traces(home, "-c", OURS)
    assert not traces(home, "-c", f"from splitload import ParallelLoader; ParallelLoader({str(chain_bundle)!r}).wait()")


def test_nor_does_a_command_or_a_child_of_ours(home: Path, chain_bundle: Path) -> None:
    child = f"import splitload, subprocess, sys; subprocess.run([sys.executable, '-c', {NOT_OURS!r}], check=True)"
    assert not traces(home, "-c", child)
    assert not traces(home, "-m", "splitload", "run", str(chain_bundle))


def test_who_wants_it_keeps_it(home: Path) -> None:
    assert traces(home, "-c", OURS, ORT_DISABLE_TELEMETRY="0")


LOOKUPS = """
import os, socket, subprocess, sys, tempfile, threading
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
with tempfile.NamedTemporaryFile("w") as file:
    file.write("nameserver 127.0.0.1\\n")
    file.flush()
    subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
server.settimeout(20)  # the first lookup comes after nine seconds
child = subprocess.Popen([sys.executable, "-c", sys.argv[1] + "; import time; time.sleep(60)"])
try:
    print(server.recvfrom(512)[0])
except TimeoutError:
    print("no lookup")
finally:
    child.kill()
"""


@pytest.mark.root
@pytest.mark.slow
def test_a_network_without_anyone_sees_no_lookup(tmp_path: Path) -> None:
    """In a network and mount namespace of its own, whose only server of names is the test's."""
    kept = {name: value for name, value in os.environ.items() if name not in SWITCHES} | {"HOME": str(tmp_path)}
    command = ["unshare", "--net", "--mount", sys.executable, "-c", LOOKUPS]
    alone, ours = (
        subprocess.Popen([*command, code], env=kept, stdout=subprocess.PIPE, text=True) for code in (NOT_OURS, OURS)
    )
    assert "microsoft" in alone.communicate(timeout=60)[0]
    assert ours.communicate(timeout=60)[0] == "no lookup\n"
