"""Hosts by name or address: which of them is this machine alone."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether a host is this one's loopback interface; names other than "localhost" are not looked up.

    A name that leads to it today may lead elsewhere tomorrow, and so counts as any other host.
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
