"""The file that says a crowd: what is read, and one line for each way to be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitload.base.errors import UsageError
from splitload.plan.crowd import MAX_FILE_BYTES, RUNTIME_BYTES, Crowd, WorkerGroup

WORKERS = '[[workers]]\ncount = 3\nmemory = "160MB"\nspeed = 0.5\nlink_mbit_s = 40\n'
TEXT = f"batch = 5\n{WORKERS}"


def read(text: str, tmp_path: Path) -> Crowd:
    file = tmp_path / "crowd.toml"
    file.write_text(text, encoding="utf-8")
    return Crowd.read(file)


def test_what_it_says(tmp_path: Path) -> None:
    crowd = read(TEXT + WORKERS.replace("160MB", "48MiB").replace("3", "2"), tmp_path)
    first = WorkerGroup(3, 160_000_000 - RUNTIME_BYTES, 0.5, 5e6)
    second = WorkerGroup(2, (48 << 20) - RUNTIME_BYTES, 0.5, 5e6)
    assert crowd == Crowd((first, second), 5)
    assert (crowd.num_workers, crowd.memory_bytes) == (5, 160_000_000 - RUNTIME_BYTES)
    assert crowd.holders((48 << 20) - RUNTIME_BYTES) == (first, second)
    assert crowd.holders((48 << 20) + 1) == (first,)
    assert crowd.holders(160_000_001) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch = 5\nworkers = []", "crowd.workers has 0 entries"),
        ("batch = 5", "crowd.workers is missing"),
        (WORKERS, "crowd.batch is missing"),
        (TEXT.replace("5\n", "0\n", 1), "crowd.batch must be a count of at least 1"),
        (TEXT.replace("= 5\n", "= 1000000000000\n", 1), "crowd.batch is 1000000000000, allowed is 10000000000"),
        (TEXT + "energy = 1\n", r"crowd.workers\[0\] has unknown keys \['energy'\]"),
        ("name = 1\n" + TEXT, r"crowd has unknown keys \['name'\]"),
        (TEXT.replace("160MB", "much"), r"crowd.workers\[0\].memory: it must be a size such as 48MB"),
        (TEXT.replace('"160MB"', "160"), r"': crowd.workers\[0\].memory must be a string"),
        (TEXT.replace("160MB", "20MB"), r"crowd.workers\[0\].memory is 20.0 MB; the runtime alone takes 20.0 MB"),
        (TEXT.replace("count = 3", "count = 0"), "count must be a count of at least 1"),
        (TEXT.replace("count = 3", "count = 100001"), "crowd.workers are 100001, allowed are 100000"),
        (TEXT.replace("0.5", "0"), "speed must be from 1e-06 to 1e.06, it is 0"),
        (TEXT.replace("0.5", "nan"), "speed must be a finite number"),
        (TEXT.replace("40", "1e9"), "link_mbit_s must be from"),
        ("batch = ", "is not TOML"),
        ("#" * (MAX_FILE_BYTES + 1), "is larger than 65536 bytes"),
    ],
)
def test_what_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as error:
        read(text, tmp_path)
    assert str(error.value).startswith("--crowd '")
    assert "\n" not in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        Crowd.read(tmp_path / "none.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        Crowd.read(tmp_path / "binary")
