"""Certificates of one crowd: made once at the desk, copied to its machines, checked before they are used.

A certificate authority signs one certificate for each role, and its own key is thrown away before anything is written:
nobody can sign a further certificate, and a folder is renewed as a whole. Dask asks who connects for a certificate of
this authority and looks at nothing else in it, so that the authority must not sign for anything but this crowd.
"""

from __future__ import annotations

import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from splitload.base.atomic import create_private
from splitload.base.errors import CertificateError, MissingPackageError, OutputError, UsageError
from splitload.base.packages import install
from splitload.base.scratch import scratch_folder

ROLES = ("scheduler", "client", "worker")
AUTHORITY = "ca.pem"
DAYS = 365
MAX_DAYS = 3650
_MAX_BYTES = 1 << 16  # a certificate has about 700
_CLOCK_S = 86400  # how far behind the clock of a board may be that has none while it is off
_CURE = "copy it from where 'splitload crowd certificates' made it"


def certificate_name(role: str) -> str:
    """Return the name of a role's certificate in its folder."""
    return f"{role}.pem"


def key_name(role: str) -> str:
    """Return the name of a role's private key in its folder."""
    return f"{role}-key.pem"


def make_certificates(folder: Path, *, days: int = DAYS) -> datetime:
    """Make a folder with an authority's certificate, and a certificate and a private key for each role.

    The folder is there with everything in it, or not at all. The keys are not encrypted: the folder can be opened by
    its owner alone, and each key can be read by its owner alone.

    Args:
        folder: The new folder; what is there already, a link included, stays and is an error.
        days: How long they are valid, from 1 to `MAX_DAYS`.

    Returns:
        When they expire, in UTC.

    Raises:
        UsageError: If `days` is out of range.
        MissingPackageError: If the package cryptography is missing.
        OutputError: If something is there, or the folder cannot be written.
    """
    if not 1 <= days <= MAX_DAYS:
        raise UsageError(f"certificates are valid for 1 to {MAX_DAYS} days, not {days}")
    if os.path.lexists(folder):
        raise OutputError(f"'{folder}' is there already and stays as it is; name a folder that is not")
    files, expires = _signed(days)
    try:
        with scratch_folder(folder.parent, f".{folder.name}.") as made:
            for name, data in files.items():
                create_private(made / name, data)
            made.rename(folder)  # a folder that holds something, and a link, are no place to rename to
    except OSError as error:
        raise OutputError(f"cannot write '{folder}': {error.strerror or error}") from error
    return expires


def check_certificates(folder: Path, role: str) -> datetime:
    """Make sure that a folder holds what a role needs, that nobody else can read its key, and that all fit together.

    Returns:
        When the role's certificate expires, in UTC.

    Raises:
        CertificateError: If not; the message says what to do.
    """
    _check_folder(folder)
    for name in (AUTHORITY, certificate_name(role), key_name(role)):
        _check_file(folder / name, secret=name == key_name(role))
    try:
        valid_until = _greeted(folder, role)
    except ssl.SSLCertVerificationError as error:
        raise CertificateError(_not_valid(folder, role, error)) from error
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        raise CertificateError(
            f"'{folder / certificate_name(role)}' and its key cannot be used ({reason}); {_CURE}"
        ) from error
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(valid_until), UTC)


def tls_context(folder: Path, role: str) -> ssl.SSLContext:
    """Return what a process with this role connects by, as Dask makes it, without an import of Dask.

    Raises:
        CertificateError: If certificates are missing, out of date, or open to others.
    """
    check_certificates(folder, role)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the authority signs for this crowd alone, whose machines have any names
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(folder / AUTHORITY)
    context.load_cert_chain(folder / certificate_name(role), folder / key_name(role), password="")
    return context


def security_from(folder: str | Path, *roles: str) -> Any:
    """Return the `distributed.Security` of processes with these roles: TLS 1.3, and a certificate from both sides.

    Args:
        folder: The folder of the certificates; those of other roles need not be in it.
        roles: Of `ROLES`; a process that starts others needs theirs too.

    Raises:
        CertificateError: If certificates are missing, out of date, or open to others.
    """
    folder = Path(folder)
    for role in roles:
        check_certificates(folder, role)
    import distributed

    files = {f"tls_{role}_cert": str(folder / certificate_name(role)) for role in roles}
    files |= {f"tls_{role}_key": str(folder / key_name(role)) for role in roles}
    return distributed.Security(
        require_encryption=True,
        tls_ca_file=str(folder / AUTHORITY),
        tls_min_version=ssl.TLSVersion.TLSv1_3,
        **files,
    )


def _signed(days: int) -> tuple[dict[str, bytes], datetime]:
    """Return the files of a new folder by name, and when the certificates in them expire."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError as error:
        raise MissingPackageError(
            f"certificates need the package 'cryptography'. Install it: {install('crowd')}"
        ) from error

    now = datetime.now(UTC).replace(microsecond=0)
    expires = now + timedelta(days=days)

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"splitload crowd {name}")])

    def unsigned(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(named("authority"), named(name), key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=_CLOCK_S))
            .not_valid_after(expires)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )

    def may(*, sign_certificates: bool) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=not sign_certificates,
            key_cert_sign=sign_certificates,
            crl_sign=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )

    def pem(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(serialization.Encoding.PEM)

    authority = ec.generate_private_key(ec.SECP256R1())
    root = (
        unsigned("authority", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(may(sign_certificates=True), critical=True)
        .sign(authority, hashes.SHA256())
    )
    files = {AUTHORITY: pem(root)}
    for role in ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role != "client":  # which is never connected to, and so cannot pose as what is
            purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = (
            unsigned(role, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(may(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .sign(authority, hashes.SHA256())
        )
        files[certificate_name(role)] = pem(certificate)
        files[key_name(role)] = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    return files, expires


def _check_folder(folder: Path) -> None:
    try:
        status = folder.lstat()
    except OSError as error:
        raise CertificateError(f"cannot read the certificates in '{folder}': {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise CertificateError(f"'{folder}' is no folder, or a link to one; name the folder of the certificates itself")
    _check_owner(folder, status, others_may=0o755)


def _check_file(path: Path, *, secret: bool) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError as error:
        raise CertificateError(f"'{path}' is missing; {_CURE}") from error
    except OSError as error:
        raise CertificateError(f"cannot read '{path}': {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CertificateError(f"'{path}' is no file, or a link to one; {_CURE}")
    if status.st_size > _MAX_BYTES:
        raise CertificateError(f"'{path}' has {status.st_size} bytes, and is no certificate or key; {_CURE}")
    _check_owner(path, status, others_may=0o600 if secret else 0o644)


def _check_owner(path: Path, status: os.stat_result, *, others_may: int) -> None:
    """Refuse what others can read or write beyond `others_may`: who writes `ca.pem` says who may connect."""
    if status.st_uid not in (os.geteuid(), 0):
        raise CertificateError(f"'{path}' belongs to another user, who decides what is in it; make it yours with chown")
    if status.st_mode & 0o777 & ~others_may & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise CertificateError(
            f"'{path}' is open to other users (mode {mode:04o}); close it: chmod {mode & others_may:04o} '{path}'"
        )


def _greeted(folder: Path, role: str) -> str:
    """Return when a certificate expires, once it has been shown to one that asks for it, within this process.

    That is all that needs to be known of it: that it is signed by the authority, fits its key, and is valid today.

    Raises:
        ssl.SSLError: If it was refused.
        OSError: If a file cannot be read.
    """
    asks, shows = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    shows.check_hostname, shows.verify_mode = False, ssl.CERT_NONE  # the other one is this process
    for context in (asks, shows):  # the empty password keeps OpenSSL from asking the terminal for one
        context.load_cert_chain(folder / certificate_name(role), folder / key_name(role), password="")
    asks.load_verify_locations(folder / AUTHORITY)
    asks.verify_mode = ssl.CERT_REQUIRED
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    halves = shows.wrap_bio(back, there), asks.wrap_bio(there, back, server_side=True)
    for _ in range(2):  # TLS 1.3 needs two messages from each
        for half in halves:
            try:
                half.do_handshake()
            except ssl.SSLWantReadError:
                continue
    certificate = halves[1].getpeercert()
    if certificate is None:
        raise ssl.SSLError("no certificate was shown")
    return str(certificate["notAfter"])


def _not_valid(folder: Path, role: str, error: ssl.SSLCertVerificationError) -> str:
    path = folder / certificate_name(role)
    if error.verify_code == 10:
        return f"'{path}' has expired; make a new folder with 'splitload crowd certificates', and copy it everywhere"
    if error.verify_code == 9:
        return f"'{path}' is not valid yet: the clock of this machine is {datetime.now():%Y-%m-%d}; set it"
    return f"'{path}' is not signed by '{AUTHORITY}' beside it ({error.verify_message}); {_CURE}"
