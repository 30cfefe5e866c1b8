"""Large pages: asked for where memory is the runtime's own, and for nothing beside it."""

from __future__ import annotations

import inspect
import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from splitload.runtime.capi.library import Library, RuntimeFailure, library
from splitload.runtime.capi.memory import address_of
from splitload.runtime.capi.pages import PAGE_BYTES, in_large_pages
from splitload.runtime.capi.session import open_session
from splitload.runtime.tiny import TINY_MODEL

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = pytest.mark.skipif(not SETTING.exists(), reason="this system has no large pages that are asked for")


def asked_for() -> list[tuple[int, int]]:
    """Return the ranges of addresses whose memory asks for large pages."""
    ranges = []
    with open("/proc/self/smaps", errors="replace") as file:  # noqa: PTH123 - a program without pathlib has this function too
        for line in file:
            word = line.split()[0]
            if not word.endswith(":"):
                begin, end = (int(each, 16) for each in word.split("-"))
            elif word == "VmFlags:" and "hg" in line.split():
                ranges.append((begin, end))
    return ranges


def bytes_asked_for(begin: int, end: int) -> int:
    """Return how much of a range of addresses asks for large pages; the system may join it with its neighbours."""
    return sum(max(0, min(end, last) - max(begin, first)) for first, last in asked_for())


def test_whole_large_pages_are_asked_for_and_their_neighbours_are_not() -> None:
    memory = mmap.mmap(-1, 4 * PAGE_BYTES)
    address = address_of(memory)
    begin, end = address + 1, address + 4 * PAGE_BYTES - 1
    in_large_pages(begin, end)
    first, last = -(-begin // PAGE_BYTES) * PAGE_BYTES, end // PAGE_BYTES * PAGE_BYTES
    assert bytes_asked_for(first, last) == last - first >= 2 * PAGE_BYTES
    assert bytes_asked_for(address, address + 4 * PAGE_BYTES) == last - first


@pytest.mark.parametrize("wanted", [True, False])
def test_a_session_computes_in_large_pages_where_that_is_wanted(wanted: bool) -> None:
    program = f"""
import array
from splitload.runtime.capi.library import library
from splitload.runtime.capi.memory import memory_of
from splitload.runtime.capi.pages import PAGE_BYTES
from splitload.runtime.capi.session import open_session, value_of
from splitload.runtime.capi.tensor import tensor_of
from splitload.runtime.tiny import TINY_MODEL
{inspect.getsource(asked_for)}
session = open_session(library(), TINY_MODEL, {{}}, threads=1, large_pages={wanted})
print(sum(end - begin for begin, end in asked_for()) >= 3 * PAGE_BYTES)
[output] = session.run(["y"], {{"x": value_of(library(), memory_of(array.array("f", [2.5])))}}, {{}})
print(list(tensor_of(output.memory).numbers()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(wanted), "[2.5]"]


def test_a_session_without_room_for_large_pages_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeFailure(1, "no room")

    monkeypatch.setattr(Library, "widen_arena", fails)
    session = open_session(library(), TINY_MODEL, {}, threads=1, large_pages=True)
    assert session.output_names() == ["y"]


@pytest.mark.parametrize("length", [0, PAGE_BYTES - 1])
def test_less_than_a_large_page_is_left_as_it_is(length: int) -> None:
    memory = mmap.mmap(-1, 4 * PAGE_BYTES)
    address = address_of(memory)
    begin = -(-address // PAGE_BYTES) * PAGE_BYTES + 1
    in_large_pages(begin, begin + length)
    assert bytes_asked_for(address, address + 4 * PAGE_BYTES) == 0


def test_the_heap_of_a_thread_that_makes_the_environment_asks_for_them_and_works() -> None:
    program = f"""
import threading
from splitload.runtime.capi.pages import PAGE_BYTES, widen_heap
{inspect.getsource(asked_for)}
before, kept = sum(end - begin for begin, end in asked_for()), []

def work():
    widen_heap()
    kept.extend(bytes(1000) for _ in range(20_000))

thread = threading.Thread(target=work)
thread.start()
thread.join()
assert all(each == bytes(1000) for each in kept)
print(sum(end - begin for begin, end in asked_for()) - before >= 3 * PAGE_BYTES)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
