"""A client of a crowd's scheduler elsewhere: trusted first, then connected, in seconds or with one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from splitload.base.errors import ClusterError
from splitload.crowd.address import read_address
from splitload.crowd.quiet import quiet
from splitload.crowd.reach import CONNECT_S, admitted
from splitload.crowd.settings import SETTINGS


@contextlib.contextmanager
def connected(text: str, certificates: Path | None, *, insecure: bool = False) -> Iterator[Any]:
    """Yield a `distributed.Client` of a scheduler.

    Args:
        text: Its address.
        certificates: Folder of certificates, for tls://.
        insecure: Whether one on another machine may be asked without certificates.

    Raises:
        UsageError: If the address is none, or not to be trusted so.
        ClusterError: If no scheduler answers.
        MissingPackageError: If dask.distributed is not installed.
    """
    import dask
    import distributed

    address = read_address(text)
    security = admitted(address, "client", certificates, insecure=insecure)
    with dask.config.set(SETTINGS), quiet():
        try:
            client = distributed.Client(str(address), security=security, timeout=CONNECT_S, set_as_default=False)
        except OSError as error:  # a timeout is one
            raise ClusterError(f"no scheduler answers at {address}: {' '.join(str(error).split())}") from error
        with client:
            yield client
