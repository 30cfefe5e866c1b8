"""Addresses of devices and what is known of them: read, kept for their owner, and never shown."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from splitload.base.errors import OutputError, UsageError
from splitload.deploy.credentials import Code
from splitload.devices.pairing import is_served, paired, prove, read_address, without_codes

PLAIN, PINNED = Code("a" * 26, None), Code("a" * 26, "0f" * 16)


def test_a_device_is_known_from_then_on_without_its_code(tmp_path: Path) -> None:
    first = read_address(f"https://board.local:8750/#{PINNED.text()}", tmp_path)
    assert (first.code, first.place) == (PINNED, "board.local:8750")
    assert read_address("https://board.local:8750", tmp_path) == first
    assert read_address("https://BOARD.local:8750/", tmp_path) == first
    with pytest.raises(UsageError, match="is not known here yet; give the address"):
        read_address("https://board.local:8751", tmp_path)
    with pytest.raises(UsageError, match="is not known here yet"):  # a code is not handed to whoever speaks plainly
        read_address("http://board.local:8750", tmp_path)
    assert read_address(f"http://[::1]:8750#{PLAIN.text()}", tmp_path).url == "http://[::1]:8750"


@pytest.mark.parametrize(
    "word",
    [
        "https://",
        "https://host",
        "https://host:0",
        "https://host:99999",
        "https://host:x",
        "https://user@host:1",
        "https://host:1/path",
        "https://host:1?x=1",
        "https://[::1",
        "https://[nonsense]:1",
        "https://ho\u2100st:1",
    ],
)
def test_what_is_no_address_is_one_line(word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no address of a served device: it is https://HOST:PORT") as caught:
        read_address(f"{word}#{PINNED.text()}", tmp_path)
    assert PINNED.text() not in str(caught.value)


def test_a_code_of_the_other_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="served by http"):
        read_address(f"https://host:1#{PLAIN.text()}", tmp_path)
    with pytest.raises(UsageError, match="served by https"):
        read_address(f"http://host:1#{PINNED.text()}", tmp_path)
    with pytest.raises(UsageError, match="no code of a device"):
        read_address("http://host:1#nonsense", tmp_path)


def test_what_is_kept_is_its_owners_and_damage_is_one_line(tmp_path: Path) -> None:
    read_address(f"http://host:1#{PLAIN.text()}", tmp_path)
    (file,) = (tmp_path / "devices").iterdir()
    if sys.platform != "win32":
        assert file.stat().st_mode & 0o077 == 0
        assert file.parent.stat().st_mode & 0o077 == 0
    for damage in (b"", b"{", b"[]", b"\xff", b'{"scheme": "http", "code": "x"}'):
        file.write_bytes(damage)
        with pytest.raises(UsageError, match="cannot be read any more; give the address"):
            read_address("http://host:1", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot keep the device's code"):
        read_address(f"http://host:1#{PLAIN.text()}", tmp_path / "file")


def test_codes_are_no_part_of_what_is_told(tmp_path: Path) -> None:
    word = f"https://host:1/#{PINNED.text()}"
    assert (paired(word, tmp_path), paired("host", tmp_path)) == ("https://host:1", "host")
    assert without_codes(["--device", word, f"--device={word}", "m#1.onnx"]) == [
        "--device", "https://host:1/", "--device=https://host:1/", "m#1.onnx",
    ]  # fmt: skip
    assert [is_served(each) for each in ("host", "s20", "http://x:1", "https://x:1", "adb:1", "a.toml")] == [
        False, False, True, True, True, False,
    ]  # fmt: skip


def test_a_code_takes_the_place_of_one_that_works_once_it_does(tmp_path: Path) -> None:
    place = "http://127.0.0.1:8750"
    good, wrong = (Code(letter * 26, None) for letter in "ae")
    prove(read_address(f"{place}/#{good.text()}", tmp_path), is_right=True)
    for _ in range(2):  # mistyped twice
        prove(read_address(f"{place}/#{wrong.text()}", tmp_path), is_right=False)
        assert read_address(place, tmp_path).code == good
    address = read_address(f"{place}/#{wrong.text()}", tmp_path)
    assert read_address(place, tmp_path) == address
    prove(address, is_right=True)
    prove(address, is_right=False)
    assert read_address(place, tmp_path).code == wrong
