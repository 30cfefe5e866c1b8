"""Whether a scheduler answers, and takes this process's certificate, in seconds: Dask itself would try for longer.

A Dask process speaks first, once it has let somebody in. One byte of that is waited for, and nothing is sent.
"""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path
from typing import Any

from splitload.base.errors import ClusterError
from splitload.crowd.address import Address, check_trust
from splitload.crowd.certificates import security_from, tls_context

CONNECT_S = 5.0  # a scheduler that is being started at the same time is there by then
_PAUSE_S = 0.1
_STAGE_S = 2.0  # the least that one attempt gets for greeting, when connecting took the time


def check_admission(address: Address, role: str, certificates: Path | None, *, insecure: bool = False) -> None:
    """Make sure that a scheduler is to be trusted, answers, and lets this role in; nothing of Dask is imported.

    Args:
        address: The scheduler's.
        role: "client" or "worker".
        certificates: Folder of certificates, for tls://.
        insecure: Whether a scheduler elsewhere may be asked without certificates.

    Raises:
        UsageError: If the address is not to be trusted so, before anything is sent.
        CertificateError: If the certificates cannot be used.
        ClusterError: If no scheduler answers, or it does not take the certificate.
    """
    check_trust(address, certificates, insecure=insecure)
    check_answer(address, None if certificates is None else tls_context(certificates, role))


def admitted(address: Address, role: str, certificates: Path | None, *, insecure: bool = False) -> Any:
    """Return what Dask connects to a scheduler by, once that has answered, see `check_admission`.

    Returns:
        A `distributed.Security`, or None where no certificates are used.

    Raises:
        SplitloadError: As `check_admission` raises it.
    """
    check_admission(address, role, certificates, insecure=insecure)
    return None if certificates is None else security_from(certificates, role)


def check_answer(address: Address, context: ssl.SSLContext | None, *, timeout_s: float | None = None) -> None:
    """Make sure that a Dask process listens at an address and lets this one in.

    Args:
        address: Where it should listen.
        context: What TLS is spoken by; None for plain TCP.
        timeout_s: Seconds to try, `CONNECT_S` by default; looking up a name takes what the system gives it.

    Raises:
        ClusterError: If not.
    """
    deadline_s = time.monotonic() + (CONNECT_S if timeout_s is None else timeout_s)
    with _connected(address, deadline_s) as connection:
        connection.settimeout(max(deadline_s - time.monotonic(), _STAGE_S))
        try:
            if context is None:
                answered = connection.recv(1)
            else:
                with context.wrap_socket(connection) as encrypted:
                    answered = encrypted.recv(1)  # in TLS 1.3 a certificate is refused after the greeting
        except ssl.SSLError as error:
            raise ClusterError(_refused(address, error)) from error
        except OSError as error:  # a timeout is one
            raise ClusterError(_silent(address, context)) from error
    if not answered:
        raise ClusterError(_silent(address, context))


def _connected(address: Address, deadline_s: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection(
                (address.host, address.port), timeout=max(deadline_s - time.monotonic(), _PAUSE_S)
            )
        except socket.gaierror as error:
            raise ClusterError(f"the name '{address.host}' leads nowhere: {error.strerror}") from error
        except OSError as error:
            if time.monotonic() + _PAUSE_S > deadline_s:
                reason = error.strerror or error
                raise ClusterError(
                    f"no scheduler listens at {address} ({reason}); 'splitload crowd scheduler' starts one"
                ) from error
        time.sleep(_PAUSE_S)


def _silent(address: Address, context: ssl.SSLContext | None) -> str:
    if context is None:
        return (
            f"what listens at {address} does not answer as a scheduler; if it is one with TLS, give tls:// for tcp://"
        )
    return f"what listens at {address} does not answer as a scheduler with TLS; if it has none, give tcp:// for tls://"


def _refused(address: Address, error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {address} is not to be trusted ({error.verify_message}): both sides need certificates "
            "that 'splitload crowd certificates' made in one go"
        )
    if error.reason is not None and "ALERT" in error.reason:
        return (
            f"{address} refuses this certificate ({error.reason}): both sides need certificates that 'splitload crowd "
            "certificates' made in one go"
        )
    return f"what listens at {address} speaks no TLS ({error.reason or error})"
