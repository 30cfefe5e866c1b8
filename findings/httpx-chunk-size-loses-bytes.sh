#!/usr/bin/env bash
# httpx drops what it has received when a connection breaks, if chunks of a certain size were asked for.
#
# Versions:  httpx 0.28.1, Python 3.11, Linux x86-64.
# Input:     an answer of 3,000 bytes, of which the server sends 1,000 and closes the connection; read by
#            iter_raw() and iter_bytes(), without and with chunk_size=4096.
# Expected:  chunk_size says how large pieces are at most: the 1,000 bytes come, and then the error.
# Seen:      without chunk_size they come, and then httpx.RemoteProtocolError; with it the error alone. Pieces have exactly
#            that size until the answer ends, and the piece that is not full yet is lost where it does not end.
# So:        who resumes a download by what has come reads without chunk_size; otherwise a link that breaks before each full
#            piece never gets any further.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check httpx==0.28.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import socket
import sys
import threading

import httpx

listening = socket.create_server(("127.0.0.1", 0))


def serve():
    while True:
        connection, _ = listening.accept()
        with connection:
            while b"\r\n\r\n" not in connection.recv(65536):
                pass
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + bytes(1000))


threading.Thread(target=serve, daemon=True).start()
url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
seen = {}
for method in ("iter_raw", "iter_bytes"):
    for size in (None, 4096):
        received, error = 0, "none"
        with httpx.Client(trust_env=False) as client, client.stream("GET", url) as answer:
            try:
                for piece in getattr(answer, method)(chunk_size=size):
                    received += len(piece)
            except httpx.HTTPError as broken:
                error = type(broken).__name__
        seen[method, size] = received, error
        print(f"{method}(chunk_size={size}): {received} bytes, then {error}")
as_described = all(
    found == (0 if size else 1000, "RemoteProtocolError") for (_, size), found in seen.items()
)
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON
