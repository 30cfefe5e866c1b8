"""`splitload crowd worker`, `scheduler` and `certificates`: what stands ready on the machines of a crowd."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from splitload.base.errors import UsageError
from splitload.base.sizes import megabytes, read_bytes
from splitload.base.words import at_least_one
from splitload.commands.argument_types import machine_name, reading, takes_cache_size, takes_port
from splitload.commands.console import Console
from splitload.crowd.address import Address, check_trust, read_address
from splitload.crowd.certificates import DAYS, check_certificates, make_certificates
from splitload.crowd.reach import check_admission
from splitload.crowd.servers import WorkerSettings, run_scheduler, run_worker
from splitload.crowd.settings import DEFAULT_CACHE_BYTES, ONE_HOST
from splitload.plan.crowd import RUNTIME_BYTES

SCHEDULER_PORT = 8786  # Dask's
_WITH_ALL = "scheduler-close"  # Dask's word
_SOON = timedelta(days=30)


def worker(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Run a worker until SIGTERM, or until its scheduler ends it; return what `--json` prints.

    Raises:
        SplitloadError: If it may not, or cannot, join the crowd, or the scheduler is gone.
    """
    certificates = _folder(options.certificates)
    if options.memory is not None and options.memory <= RUNTIME_BYTES:
        least = megabytes(RUNTIME_BYTES)
        raise UsageError(f"--memory is {megabytes(options.memory)}; the runtime alone takes {least}, and stages on top")
    name = machine_name(options.name, "worker")
    address = read_address(options.scheduler)
    check_admission(address, "worker", certificates, insecure=options.insecure)
    note_expiry(console, certificates, "worker")
    settings = WorkerSettings(
        name=name,
        memory_bytes=options.memory,
        cache_folder=cache / "crowd" / name,
        cache_bytes=options.cache_size,
        port=options.port,
        certificates=certificates,
    )

    def started(made: Any) -> None:
        limit = megabytes(made.memory_manager.memory_limit)
        own = megabytes(RUNTIME_BYTES)
        here = f"the worker '{name}' of {address} listens at {made.address}"
        console.note(f"{here}, with {limit} of memory, {own} of it the runtime's")

    reason = _interruptible(lambda: run_worker(address, settings, started), f"the worker '{name}' ended")
    why = (
        "" if reason is None else " with its scheduler" if reason == _WITH_ALL else f", as the scheduler says: {reason}"
    )
    console.note(f"the worker '{name}' ended{why}")
    return {"name": name, "scheduler": str(address), "ended_for": reason or "SIGTERM"}


def scheduler(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run a scheduler until SIGTERM, or until a client shuts it down; return what `--json` prints.

    Raises:
        SplitloadError: If it may not, or cannot, listen.
    """
    certificates = _folder(options.certificates)
    default = "0.0.0.0" if certificates else ONE_HOST  # noqa: S104 - where all are asked for a certificate
    host = (options.host or default).removeprefix("[").removesuffix("]")
    scheme = "tls" if certificates else "tcp"
    check_trust(Address(scheme, host, options.port), certificates, insecure=options.insecure)
    note_expiry(console, certificates, "scheduler")
    addresses: list[str] = []

    def started(made: Any) -> None:
        addresses.append(made.address)
        more = " --certificates DIR" if certificates else " --insecure" if options.insecure else ""
        joins = f"splitload crowd worker {made.address}{more}"
        console.note(f"the scheduler listens at {made.address}; '{joins}' joins it")

    reason = _interruptible(lambda: run_scheduler(host, options.port, certificates, started), "the scheduler ended")
    console.note(f"the scheduler ended{f': {reason}' if reason else ''}")
    return {"scheduler": addresses[0], "ended_for": reason or "SIGTERM"}


def certificates(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Make the certificates of a crowd; return what `--json` prints.

    Raises:
        SplitloadError: If something is in the way, or cannot be written.
    """
    folder = Path(options.folder)
    expires = make_certificates(folder, days=options.days)
    console.print(
        f"{folder}: certificates for scheduler, clients and workers, valid until {expires:%Y-%m-%d}. Copy to each "
        "machine what its role needs: ca.pem, ROLE.pem and ROLE-key.pem. Who has any of the keys can run code on the "
        "whole crowd"
    )
    return {"certificates": options.folder, "expires": expires.isoformat()}


def worker_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of `splitload crowd worker`."""
    sub.add_argument(
        "scheduler", metavar="ADDRESS", help="tls://HOST:PORT of the scheduler, or tcp://HOST:PORT on this machine"
    )
    _takes_trust(sub)
    sub.add_argument("--name", metavar="NAME", help="what it is called in the crowd (default: this machine's name)")
    sub.add_argument(
        "--memory",
        type=reading(read_bytes),
        metavar="SIZE",
        help="memory that stages may take, such as 160MB (default: all of the machine's, or of the control group's)",
    )
    takes_cache_size(sub, DEFAULT_CACHE_BYTES, "how much of the disk the stages it keeps may take")
    takes_port(sub, 0, "where other workers reach it, for firewalls (default: any that is free)")


def scheduler_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of `splitload crowd scheduler`."""
    _takes_trust(sub)
    sub.add_argument(
        "--host",
        metavar="HOST",
        help="address of the interface it listens on (default: every interface with certificates, 127.0.0.1 without)",
    )
    takes_port(sub, SCHEDULER_PORT, "where it listens; 0 for any that is free (default: %(default)s)")


def certificate_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of `splitload crowd certificates`."""
    sub.add_argument("folder", metavar="DIR", help="the new folder; what is there already is never overwritten")
    sub.add_argument(
        "--days",
        type=reading(at_least_one),
        default=DAYS,
        metavar="N",
        help="how long they are valid (default: %(default)s)",
    )


def _takes_trust(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--certificates", metavar="DIR", help="the folder that 'splitload crowd certificates' made, or what was copied"
    )
    sub.add_argument(
        "--insecure",
        action="store_true",
        help="do without certificates beyond this machine: whoever reaches the crowd can run code on all of it",
    )


def _folder(word: str | None) -> Path | None:
    return None if word is None else Path(word)


def note_expiry(console: Console, certificates: Path | None, role: str) -> None:
    """Note that certificates of a role, if there are any, expire within a month."""
    if certificates is not None:
        expires = check_certificates(certificates, role)
        if expires - datetime.now(UTC) < _SOON:
            console.note(f"the certificates in '{certificates}' expire on {expires:%Y-%m-%d}; make new ones before")


def _interruptible(run: Callable[[], str | None], ended: str) -> str | None:
    """Run a server; say at a Ctrl-C that it ended."""
    try:
        return run()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted; {ended}") from error
