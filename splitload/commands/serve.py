"""`splitload serve`: let a desk measure on this device, over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from splitload.base.errors import MissingPackageError, StageError, UsageError
from splitload.base.hosts import is_loopback
from splitload.base.packages import has, need
from splitload.base.sizes import megabytes
from splitload.commands.argument_types import machine_name, takes_cache_size, takes_port
from splitload.commands.console import Console
from splitload.deploy.credentials import Credentials, close_folder, credentials
from splitload.deploy.openapi import PORT

CACHE_BYTES = 4 * 10**9
STORAGE_BYTES = 32 << 20  # that are read to measure storage
_ANY = ("0.0.0.0", "::")  # noqa: S104 - what a user may ask for


def serve(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Serve until a Ctrl-C or SIGTERM; return what `--json` prints.

    Raises:
        SplitloadError: If it may not, or cannot.
    """
    need("'splitload serve'", "starlette", "uvicorn")
    name = machine_name(options.name, "device")
    _check_host(options.host)
    loopback = is_loopback(options.host)
    if options.http and not loopback:
        raise UsageError(
            f"--http shows the token and all models to the network of {options.host}: leave it out, and TLS is used, "
            "or listen on 127.0.0.1"
        )
    if options.announce:
        _check_announced(loopback)
    folder = cache / "serve"
    close_folder(folder)
    folder = folder.resolve()  # as the processes of its jobs are told of it, by which those that are left are found
    from splitload.deploy.description import fixed_description, present_description, runtime_version
    from splitload.deploy.orders import Orders
    from splitload.deploy.serve import Service
    from splitload.deploy.stage_cache import StageCache
    from splitload.measure.served import Measured, end_left_jobs

    if runtime_version() is None:
        raise MissingPackageError("there is no onnxruntime here to measure with. Install it: pip install onnxruntime")
    files = StageCache(folder / "files", options.cache_size)  # one service at a time has the folder from here on
    known = credentials(folder, tls=not options.http, anew=options.new_code)
    end_left_jobs(folder / "jobs")
    listening = _listen(options.host, options.port)
    with console.status("measuring how quickly storage is read"):
        fixed = fixed_description(name, _storage(folder, console))
    service = Service(
        lambda: {**fixed, **present_description(files.used_bytes(), options.cache_size)},
        files,
        partial(Orders, files, folder / "jobs", Measured()),
        known.code.token,
    )
    _show(console, options, listening, known, name)
    with _announced(console, options, listening, name):
        _run(service, listening, known)
    return {"name": name, "served": True}


def add_options(serve: argparse.ArgumentParser) -> None:
    """Add the options of `splitload serve`."""
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen (default: %(default)s, this machine alone)",
    )
    takes_port(serve, PORT, "0 for any that is free (default: %(default)s)")
    serve.add_argument("--name", metavar="NAME", help="what the device is called (default: its host name)")
    serve.add_argument(
        "--http", action="store_true", help="without TLS, on loopback alone: behind ssh -L or adb forward"
    )
    takes_cache_size(serve, CACHE_BYTES, "most that files of models may take on the disk")
    serve.add_argument(
        "--new-code", action="store_true", help="make a new token and certificate: desks need the new address then"
    )
    serve.add_argument("--announce", action="store_true", help="let 'splitload devices --discover' find it (mDNS)")


def _run(service: Any, listening: socket.socket, known: Credentials) -> None:
    import uvicorn

    from splitload.deploy.deadlines import PromptProtocol

    config = uvicorn.Config(
        service.application,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=200,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        ssl_certfile=None if known.certificate is None else str(known.certificate),
        ssl_keyfile=None if known.key is None else str(known.key),
        http=PromptProtocol,
        ws="none",
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn ends in good order, then raises it
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(
    console: Console, options: argparse.Namespace, listening: socket.socket, known: Credentials, name: str
) -> None:
    """Show where the device is reached, as text and, on a terminal, as a QR code."""
    scheme, (host, port) = "http" if options.http else "https", listening.getsockname()[:2]
    if host in _ANY:
        host = _own_address()
    shown = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{shown}:{port}/#{known.code.text()}"
    if has("segno") and sys.stderr.isatty():
        import io

        import segno

        drawn = io.StringIO()
        segno.make(url, error="l").terminal(out=drawn, compact=True)
        console.as_it_is(drawn.getvalue())
    console.note(f"'{name}' measures for whoever has this address:")
    console.as_it_is(f"  --device '{url}'")
    console.note(f"files of models take at most {megabytes(options.cache_size)}; Ctrl-C ends it")


@contextlib.contextmanager
def _announced(console: Console, options: argparse.Namespace, listening: socket.socket, name: str) -> Iterator[None]:
    """Announce the device on the local network meanwhile, where that is asked for."""
    if not options.announce:
        yield
        return
    from splitload.devices.discovery import announced

    host, port = listening.getsockname()[:2]
    with announced(name, _own_address() if host in _ANY else host, port):
        yield


def _check_announced(loopback: bool) -> None:
    """Raise if a device cannot be announced."""
    if loopback:
        raise UsageError("--announce is for other machines, and it listens on loopback alone: give --host 0.0.0.0")
    need("--announce", "zeroconf")


def _storage(folder: Path, console: Console) -> float | None:
    """Return how many bytes a second are read from the device's storage; None where it cannot be told."""
    from splitload.measure.storage import reader

    try:
        with reader(folder, STORAGE_BYTES) as read_s:
            return STORAGE_BYTES / read_s(STORAGE_BYTES)
    except (StageError, OSError, AttributeError) as error:
        console.note(f"how quickly storage is read is not known: {error}")
        return None


def _listen(host: str, number: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UsageError: If it cannot listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, number))
        made.listen()
    except (OSError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen at {host}, port {number}: {reason}; --host and --port take others") from error
    return made


def _own_address() -> str:
    """Return the address that other machines are likely to reach this one at; no packet is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # for documentation: nobody has it
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _check_host(host: str) -> None:
    """Raise if it is a name that is looked up: today's answer may be another one tomorrow."""
    if host == "localhost":
        return
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise UsageError(f"--host takes an address such as 127.0.0.1 or 0.0.0.0, not '{host:.80}'") from error
