"""Phones by a fake adb: what it is asked, and what a user reads where it fails. No phone was tried."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from splitload.base.errors import DeviceError, UsageError
from splitload.deploy.credentials import Code
from splitload.devices.adb import forwarded
from splitload.devices.pairing import address_of, paired, without_codes

FAKE = """#!{python}
import pathlib, sys
place = pathlib.Path(__file__).parent
with (place / "asked").open("a") as file:
    print(*sys.argv[1:], file=file)
_, serial, *words = sys.argv[1:]
if serial == "gone":
    sys.exit("error: device 'gone' not found")
listed = place / "listed"
if words == ["forward", "--list"]:
    print(listed.read_text() if listed.exists() else "")
else:
    listed.write_text("other tcp:1 tcp:8750\\n" + serial + " tcp:40123 " + words[2])
    print(40123)
"""
CODE = Code("a" * 26, None).text()

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the fake adb is a script")


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fake adb, which notes what it was asked in "asked"."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "adb").write_text(FAKE.format(python=sys.executable))
    (folder / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_a_port_is_forwarded_once(adb: Path) -> None:
    assert forwarded("adb:R58N") == ("R58N", "http://127.0.0.1:40123")
    assert forwarded(f"adb:R58N#{CODE}") == ("R58N", f"http://127.0.0.1:40123/#{CODE}")
    asked = (adb / "asked").read_text().splitlines()
    assert asked == ["-s R58N forward --list", "-s R58N forward tcp:0 tcp:8750", "-s R58N forward --list"]


def test_a_phone_is_known_by_its_serial_number(adb: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not known here yet"):
        address_of("adb:R58N", tmp_path)
    assert paired(f"adb:R58N#{CODE}", tmp_path) == "adb:R58N"
    assert address_of("adb:R58N", tmp_path).code.text() == CODE
    assert without_codes(["--device", f"adb:R58N#{CODE}", "a#b"]) == ["--device", "adb:R58N", "a#b"]


@pytest.mark.parametrize(
    ("word", "kind", "message"),
    [
        ("adb:", UsageError, "'' is no serial number of a phone"),
        ("adb:-d", UsageError, "'-d' is no serial number"),
        ("adb:a b", UsageError, "'a b' is no serial number"),
        ("adb:gone", DeviceError, "adb does not reach 'gone': error: device 'gone' not found; see 'adb devices'"),
    ],
)
def test_what_is_no_phone(adb: Path, word: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        forwarded(word)


def test_without_adb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="needs the program adb, which is not installed"):
        forwarded("adb:R58N")


def test_the_script_for_termux_says_what_is_missing(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "deploy" / "termux.sh"
    shell = shutil.which("sh")
    assert shell is not None
    for words, message in (((), "give the folder"), ((str(tmp_path),), "holds no checkout of splitload")):
        done = subprocess.run([shell, str(script), *words], capture_output=True, text=True, timeout=20)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
