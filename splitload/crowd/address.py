"""Addresses of schedulers: which are on this host alone, and what the others need before anything is sent to them.

Dask's processes exchange pickles, so whoever can connect to one can run code on it. On this host's loopback interface
that is whoever has an account here; anywhere else it takes a certificate.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from urllib.parse import urlsplit

from splitload.base.errors import UsageError
from splitload.base.hosts import is_loopback

_FORM = "a scheduler's address is tls://HOST:PORT, or tcp://HOST:PORT on this host"
_CURE = "'splitload crowd certificates DIR' makes certificates"


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a scheduler listens.

    Attributes:
        scheme: "tls" or "tcp".
        host: A name or an IP address, without brackets.
        port: From 1 to 65535.
    """

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """Return the address as it is given to Dask."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it can be reached from this host alone."""
        return is_loopback(self.host)


def read_address(text: str) -> Address:
    """Read the address of a scheduler; nothing is looked up in the network.

    Raises:
        UsageError: If it is none.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:  # of a port that is no number, or of brackets
        raise UsageError(f"'{text}' is no address ({error}): {_FORM}") from error
    if parts.scheme not in ("tcp", "tls"):
        raise UsageError(f"'{text}' begins with neither tls:// nor tcp://: {_FORM}")
    if not host or not port or text != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        raise UsageError(f"'{text}' is no host and port, which 'splitload crowd scheduler' prints: {_FORM}")
    return Address(parts.scheme, host, port)


def check_trust(address: Address, certificates: Path | None, *, insecure: bool = False) -> None:
    """Make sure that what connects to an address, or listens there, is asked for a certificate, unless it need not be.

    Args:
        address: The scheduler's.
        certificates: Folder of certificates, if there is one.
        insecure: Whether the user trusts every machine that can reach the crowd.

    Raises:
        UsageError: If whoever reaches the scheduler could run code, or if what is asked for contradicts itself.
    """
    if certificates is not None and insecure:
        raise UsageError("give --certificates or --insecure, not both")
    if address.scheme == "tls":
        if insecure:
            raise UsageError(f"--insecure is for tcp://, and {address} is not")
        if certificates is None:
            raise UsageError(f"{address} needs --certificates DIR; {_CURE}")
    elif certificates is not None:
        raise UsageError(f"{address} would leave the certificates unused; give tls://{str(address)[6:]}")
    elif not address.is_loopback and not insecure:
        raise UsageError(
            f"{address} is refused: whoever can reach a crowd without certificates can run code on all of it. Give "
            f"tls:// and --certificates DIR ({_CURE}), or --insecure where every machine in the network is trusted"
        )
