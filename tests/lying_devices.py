"""Devices that answer whatever a test says, over real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from splitload.deploy.credentials import Code
from splitload.devices.connection import Connection
from splitload.devices.pairing import Address

Answer = tuple[int, Iterable[bytes]]


@contextmanager
def answering(answer: Callable[[str, str, bytes], Answer], **headers: str) -> Iterator[str]:
    """Yield the URL of a device; `answer` takes method, path with query (and, after a space, a range), and body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.close_connection = True  # unless it ends well; the client may have heard enough
            with suppress(OSError):
                asked = self.headers.get("Range")
                status, chunks = answer(self.command, f"{self.path} {asked}" if asked else self.path, body)
                self.send_response(status)
                self.send_header("Transfer-Encoding", "chunked")
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                for chunk in chunks:
                    self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")
                self.close_connection = False

        do_GET = do_PUT = do_POST = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(20)


@contextmanager
def connected(url: str, token: str = "a" * 26, patience_s: float = 5.0) -> Iterator[Connection]:
    """Yield a connection to a device."""
    made = Connection(Address(url, Code(token, None)), patience_s=patience_s)
    try:
        yield made
    finally:
        made.close()
