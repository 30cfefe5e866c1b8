"""Which addresses are this host's alone, and what others need before anything is sent to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitload.base.errors import UsageError
from splitload.crowd.address import check_trust, read_address

HERE = (
    "tcp://127.0.0.1:1",
    "tcp://127.8.9.1:8786",
    "tcp://localhost:80",
    "tls://[::1]:65535",
    "tcp://[::ffff:127.0.0.1]:1",
)
ELSEWHERE = (
    "tcp://192.0.2.1:1",
    "tcp://pi:1",
    "tcp://[2001:db8::1]:1",
    "tcp://0.0.0.0:1",
    "tcp://127.1:1",
    "tcp://localhost.example:1",
)


@pytest.mark.parametrize("text", HERE + ELSEWHERE)
def test_it_is_known_which_addresses_are_of_this_host_alone(text: str) -> None:
    address = read_address(text)
    assert address.is_loopback == (text in HERE)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "pi", "pi:8786", "tcp:/pi:1", "tcp://", "tcp://pi", "tcp://pi:", "tcp://pi:0", "tcp://pi:65536",
        "tcp://pi:x", "tcp://:1", "tcp://pi:1/", "tcp://pi:1?x", "tcp://pi:1#x", "tcp://me@pi:1", "tcp://[::1:1",
        "tcp://p\ni:1", "http://pi:1", "inproc://1", "ws://pi:1", "ucx://pi:1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="a scheduler's address is tls://HOST:PORT"):
        read_address(text)


@pytest.mark.parametrize(
    ("text", "certificates", "insecure", "why"),
    [
        ("tcp://pi:1", False, False, "whoever can reach a crowd without certificates can run code"),
        ("tcp://pi:1", True, False, "give tls://pi:1"),
        ("tcp://127.0.0.1:1", True, False, "give tls://127.0.0.1:1"),
        ("tls://pi:1", False, False, "needs --certificates DIR"),
        ("tls://127.0.0.1:1", False, False, "needs --certificates DIR"),
        ("tls://pi:1", False, True, "--insecure is for tcp://"),
        ("tls://pi:1", True, True, "not both"),
        ("tcp://127.0.0.1:1", False, False, None),
        ("tcp://127.0.0.1:1", False, True, None),
        ("tcp://pi:1", False, True, None),
        ("tls://pi:1", True, False, None),
    ],
)
def test_no_certificate_is_needed_on_this_host_alone(
    text: str, certificates: bool, insecure: bool, why: str | None
) -> None:
    folder = Path("certificates") if certificates else None
    if why is None:
        check_trust(read_address(text), folder, insecure=insecure)
        return
    with pytest.raises(UsageError, match=why):
        check_trust(read_address(text), folder, insecure=insecure)
