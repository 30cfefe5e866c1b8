"""Served devices on the local network, found and announced by mDNS (DNS-SD)."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

from splitload.base.errors import DeviceError
from splitload.base.packages import need

SERVICE = "_splitload._tcp.local."
LOOK_S = 3.0  # for answers
_MOST_CHARS = 63


class Found(NamedTuple):
    """A device that announces itself; nothing of it is trusted.

    Attributes:
        name: What it is called.
        url: Where it says that it is.
    """

    name: str
    url: str


def discover() -> list[Found]:
    """Return the devices that answer within `LOOK_S`.

    Raises:
        MissingPackageError: If zeroconf is not installed.
    """
    need("--discover", "zeroconf")
    from zeroconf import ServiceBrowser, ServiceListener, Zeroconf

    seen: set[str] = set()

    class Listener(ServiceListener):
        def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            seen.add(name)

        def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            seen.add(name)

        def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            seen.discard(name)

    found = []
    with contextlib.closing(Zeroconf()) as asked:
        browser = ServiceBrowser(asked, SERVICE, Listener())
        time.sleep(LOOK_S)
        browser.cancel()
        for name in sorted(seen):
            info = asked.get_service_info(SERVICE, name, timeout=1000)
            if info is not None and info.port is not None:
                shown = "".join(char for char in name.removesuffix(f".{SERVICE}") if char.isprintable())[:_MOST_CHARS]
                hosts = [f"[{each}]" if ":" in each else each for each in info.parsed_addresses()]
                found += [Found(shown, f"https://{host}:{info.port}") for host in hosts]
    return found


@contextlib.contextmanager
def announced(name: str, host: str, port: int) -> Iterator[None]:
    """Announce a device on the local network meanwhile.

    Args:
        name: What it is called.
        host: Its address.
        port: Where it listens.

    Raises:
        DeviceError: If it cannot be: another device has the name, or there is no network.
    """
    from zeroconf import Error, ServiceInfo, Zeroconf

    address = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    info = ServiceInfo(SERVICE, f"{name}.{SERVICE}", port, addresses=[address], server=f"{name}.local.")
    try:
        told = Zeroconf()
    except OSError as error:
        raise DeviceError(f"'{name}' cannot be announced: {error.strerror or error}") from error
    with contextlib.closing(told):
        try:
            told.register_service(info)
        except (Error, OSError) as error:
            raise DeviceError(f"'{name}' cannot be announced ({type(error).__name__}); give another --name") from error
        try:
            yield
        finally:
            told.unregister_service(info)
