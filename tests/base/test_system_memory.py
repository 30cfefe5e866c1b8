"""What a process takes of memory, and what the system and its control group leave it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from splitload.base import memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
MIB = 1 << 20


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with 1 GiB available, whose process is in the group /a/b of the second version, which has no limits."""
    for name in ("_GROUPS", "_OWN", "_SYSTEM"):
        monkeypatch.setattr(memory, name, str(tmp_path / name))
    (tmp_path / "_SYSTEM").write_text(f"MemTotal: 9 kB\nMemAvailable:   {MIB} kB\n")
    (tmp_path / "_OWN").write_text("0::/a/b\n")
    (tmp_path / "_GROUPS" / "a" / "b").mkdir(parents=True)
    return tmp_path


def limit(group: Path, most: str, taken: int, cached: int) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{taken}\n")
    (group / "memory.stat").write_text(f"anon 7\ninactive_file {cached - 1}\nactive_file 1\n")


def test_without_limits_it_is_what_the_system_has(system: Path) -> None:
    limit(system / "_GROUPS" / "a" / "b", "max", 5 * MIB, 2 * MIB)
    assert memory.left_bytes() == 1024 * MIB


def test_the_group_with_the_least_counts_and_cached_files_are_left(system: Path) -> None:
    limit(system / "_GROUPS" / "a" / "b", str(100 * MIB), 70 * MIB, 10 * MIB)
    assert memory.left_bytes() == 40 * MIB
    limit(system / "_GROUPS" / "a", str(90 * MIB), 85 * MIB, MIB)  # of all groups below
    assert memory.left_bytes() == 6 * MIB
    limit(system / "_GROUPS" / "a", str(80 * MIB), 85 * MIB, MIB)
    assert memory.left_bytes() == 0


def test_the_first_version_of_groups(system: Path) -> None:
    (system / "_OWN").write_text("5:cpu:/x\n4:memory:/a\n0::/\n")
    group = system / "_GROUPS" / "memory" / "a"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(str(100 * MIB))
    (group / "memory.usage_in_bytes").write_text(str(70 * MIB))
    (group / "memory.stat").write_text(f"cache 1\ntotal_inactive_file {2 * MIB}\ntotal_active_file {3 * MIB}\n")
    assert memory.left_bytes() == 35 * MIB


def test_where_nothing_tells(system: Path) -> None:
    (system / "_SYSTEM").unlink()
    (system / "_OWN").unlink()
    assert memory.left_bytes() is None


def test_the_peak_of_a_process_begins_anew() -> None:
    program = "import sys; b'x' * (64 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert (
            (memory.taken_bytes("VmHWM", process.pid) or 0) > 64 * MIB > (memory.taken_bytes("VmRSS", process.pid) or 0)
        )
        memory.reset_peak(process.pid)
        assert 0 < (memory.taken_bytes("VmHWM", process.pid) or 0) < 64 * MIB
    assert memory.taken_bytes("VmRSS", process.pid) is None
    with pytest.raises(OSError):
        memory.reset_peak(process.pid)
