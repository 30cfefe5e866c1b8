#!/usr/bin/env bash
# httpx declares the whole length of a file that was sought into, and sends the rest of it.
#
# Versions:  httpx 0.28.1, Python 3.11, Linux x86-64.
# Input:     a file of 3,000 bytes, sought to byte 1,000, as the content of a PUT: the way to resume an upload.
# Expected:  Content-Length: 2000, as the 2,000 bytes from there on are sent.
# Seen:      Content-Length: 3000 is declared, 2,000 bytes are sent, and the request ends in an error of h11's own, which is
#            no httpx.HTTPError. With a generator and a Content-Length of one's own it works.
# So:        an upload that goes on in the middle of a file gives the length itself, with content that is no file; and who
#            catches what may go wrong with a request catches more than httpx.HTTPError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check httpx==0.28.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx

seen = []


class Handler(BaseHTTPRequestHandler):
    def do_PUT(self):
        declared = int(self.headers["Content-Length"])
        seen.append((declared, len(self.rfile.read(declared))))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
url = f"http://127.0.0.1:{server.server_address[1]}/"
path = Path("weights.bin")
path.write_bytes(bytes(3000))


def put(headers, content_of):
    with path.open("rb") as file, httpx.Client(trust_env=False, timeout=10) as client:
        file.seek(1000)
        try:
            return str(client.put(url, content=content_of(file), headers=headers).status_code)
        except Exception as error:
            package = type(error).__module__.partition(".")[0]
            return f"{package}.{type(error).__name__}, httpx.HTTPError: {isinstance(error, httpx.HTTPError)}"


outcomes = [put({}, lambda file: file), put({"Content-Length": "2000"}, lambda file: iter(lambda: file.read(512), b""))]
print("the file itself:", outcomes[0], "declared and received:", seen[0])
print("a generator and the length:", outcomes[1], "declared and received:", seen[1])
as_described = outcomes == ["h11.LocalProtocolError, httpx.HTTPError: False", "200"] and seen == [(3000, 2000), (2000, 2000)]
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON
