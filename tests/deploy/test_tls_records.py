"""What is still to come of TLS records, on real ones: never more than what does come, and all of it but a few bytes."""

from __future__ import annotations

import ssl
from pathlib import Path

import numpy as np
import pytest

from splitload.deploy.credentials import credentials
from splitload.deploy.greeting import serving_context
from splitload.deploy.tls_records import RecordCount

SIZES = (1, 24, 1000, 16_384, 16_385, 70_001)


def on_the_wire(folder: Path, size: int) -> tuple[bytes, ssl.SSLObject, ssl.MemoryBIO]:
    """Return the records of so many bytes, and a client that can take them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    ways = [ssl.MemoryBIO() for _ in range(2)]
    client = context.wrap_bio(*ways)
    server = serving_context(credentials(folder / "own", tls=True)).wrap_bio(*ways[::-1], server_side=True)
    for each in (client, server, client, server):
        try:
            each.do_handshake()
        except ssl.SSLWantReadError:
            continue
    server.write(bytes(24))
    server.write(bytes(size))
    return ways[0].read(), client, ways[0]


@pytest.mark.parametrize("size", SIZES)
def test_no_more_is_waited_for_than_comes(size: int, tmp_path: Path) -> None:
    wire, client, way = on_the_wire(tmp_path, size)
    chance = np.random.default_rng(size)
    count, at, content = RecordCount(), 0, 0
    while content < 24 + size:
        missing = 24 + size - content
        least = count.least(missing)
        records = missing // 16_384 + 2  # in which it comes
        assert len(wire) - at - 22 * records <= least <= len(wire) - at
        taken = int(chance.integers(1, 1500))
        count.take(memoryview(wire)[at : at + taken])
        way.write(wire[at : at + taken])
        at += taken
        try:
            while True:
                content += len(client.read(size))
        except ssl.SSLWantReadError:
            continue
    assert at >= len(wire)
