"""Services of devices in threads of a test, over real HTTP, whose work is whatever the test says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from splitload.base.errors import UsageError
from splitload.deploy.deadlines import PromptProtocol
from splitload.deploy.orders import Orders
from splitload.deploy.serve import Service
from splitload.deploy.stage_cache import StageCache

TOKEN = "a" * 26
DEVICE = {"name": "board", "cpu": "toy64", "cpu_model": "Toy", "onnxruntime": "1.32.0", "threads": 2}


class FakeWork:
    """Answers each job with what a function returns; takes every job but those of kind "bad"."""

    def __init__(self, answer: Callable[..., dict[str, Any]]) -> None:
        self._answer = answer

    def check(self, job: Any) -> None:
        if job.get("kind") == "bad":
            raise UsageError("it is bad")

    def do(self, job: Any, folder: Path, cold: bool, tell: Any, stop: threading.Event) -> dict[str, Any]:
        return self._answer(job, folder, tell, stop)


@contextmanager
def serving(
    folder: Path,
    answer: Callable[..., dict[str, Any]] = lambda job, *_: {"of": job},
    *,
    cap_bytes: int = 1 << 30,
    most_at_once: int = 100,
) -> Iterator[str]:
    """Yield the URL of a service that runs."""
    files = StageCache(folder / "files", cap_bytes)
    make = partial(Orders, files, folder / "jobs", FakeWork(answer))
    service = Service(lambda: {**DEVICE, "cache_used_bytes": files.used_bytes()}, files, make, TOKEN)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        service.application, log_level="critical", http=PromptProtocol, ws="none", limit_concurrency=most_at_once,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        with suppress(OSError):
            listening.close()
    assert not thread.is_alive()


def client(url: str, token: str = TOKEN) -> httpx.Client:
    """Return a client of a service."""
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=20)
