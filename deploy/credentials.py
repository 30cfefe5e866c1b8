"""What a device and a desk know each other by: a token, and the fingerprint of the device's certificate, as one code.

Both are made once and kept beside the device's cache, so that a device that starts anew is the same one. The code says
the token and the first half of the SHA-256 of the certificate: 128 bits each, in base32.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from splitload.base.atomic import create_private, write_private
from splitload.base.errors import CertificateError, MissingPackageError, OutputError, SplitloadError, UsageError
from splitload.base.record import Record
from splitload.base.scratch import scratch_folder

TOKEN_BYTES = FINGERPRINT_BYTES = 16
DAYS = 3650  # a pinned certificate is not renewed by anybody
_TOKEN, _CERTIFICATE, _KEY = "token", "certificate.pem", "key.pem"
_GROUP = 4


class Code(Record):
    """What a desk has to know of a device.

    Attributes:
        token: What it shows to the device, in base32.
        fingerprint: How the SHA-256 of the device's certificate begins, in hexadecimal; None without TLS.
    """

    token: str
    fingerprint: str | None

    def text(self) -> str:
        """Return it as people read and type it."""
        raw = base64.b32decode(self.token.upper() + "=" * (-len(self.token) % 8))
        word = base64.b32encode(raw + bytes.fromhex(self.fingerprint or "")).decode().rstrip("=").lower()
        return "-".join(word[place : place + _GROUP] for place in range(0, len(word), _GROUP))


def read_code(text: str) -> Code:
    """Return the code that a text says.

    Raises:
        UsageError: If it says none.
    """
    word = text.replace("-", "").strip().upper()
    try:
        raw = base64.b32decode(word + "=" * (-len(word) % 8))
    except ValueError:
        raw = b""
    if len(raw) not in (TOKEN_BYTES, TOKEN_BYTES + FINGERPRINT_BYTES):
        raise UsageError(f"'{text:.80}' is no code of a device; copy what 'splitload serve' shows after the #")
    return Code(_token(raw[:TOKEN_BYTES]), raw[TOKEN_BYTES:].hex() or None)


class Credentials(Record):
    """What a device shows, and asks for.

    Attributes:
        code: What a desk has to know.
        certificate: Its certificate, a file; None without TLS.
        key: The private key of that.
    """

    code: Code
    certificate: Path | None
    key: Path | None


def credentials(folder: Path, *, tls: bool, anew: bool = False) -> Credentials:
    """Return the credentials in a folder, which are made the first time; the folder is its owner's alone.

    Args:
        folder: Where they are kept.
        tls: Whether a certificate is needed.
        anew: Whether others are made in their place: no desk knows the device then.

    Raises:
        OutputError: If they cannot be written.
        CertificateError: If what is there can be read by others, or cannot be used.
        MissingPackageError: If nothing here can make a certificate.
    """
    close_folder(folder)
    try:
        if anew:
            for name in (_TOKEN, _CERTIFICATE, _KEY):
                (folder / name).unlink(missing_ok=True)
        if not (folder / _TOKEN).exists():
            write_private(folder / _TOKEN, _token(secrets.token_bytes(TOKEN_BYTES)).encode())
        if tls and not ((folder / _CERTIFICATE).exists() and (folder / _KEY).exists()):
            _make_certificate(folder)
        token = (folder / _TOKEN).read_text(encoding="ascii").strip()
        if read_code(token).fingerprint is not None:
            raise UsageError("it is longer than a token")
    except (UsageError, UnicodeDecodeError) as error:
        raise CertificateError(f"the token in '{folder}' is damaged; --new-code makes a new one") from error
    except OSError as error:
        if isinstance(error, SplitloadError):
            raise
        raise _not_kept(folder, error) from error
    if not tls:
        return Credentials(Code(token, None), None, None)
    try:
        der = ssl.PEM_cert_to_DER_cert((folder / _CERTIFICATE).read_text(encoding="ascii"))
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder / _CERTIFICATE, folder / _KEY, password="")
    except (ValueError, OSError) as error:
        cure = "remove it, and a new one is made, which desks have to be told of"
        raise CertificateError(f"the certificate in '{folder}' cannot be used ({error}); {cure}") from error
    return Credentials(Code(token, fingerprint_of(der)), folder / _CERTIFICATE, folder / _KEY)


def fingerprint_of(der: bytes) -> str:
    """Return how the SHA-256 of a certificate begins, in hexadecimal."""
    return hashlib.sha256(der).digest()[:FINGERPRINT_BYTES].hex()


def _token(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()


def close_folder(folder: Path) -> None:
    """Make a folder that is its owner's alone, if it is not there.

    Raises:
        OutputError: If it cannot be made.
        CertificateError: If it is another user's, or open to others.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise _not_kept(folder, error) from error
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        raise CertificateError(f"'{folder}' belongs to another user, who could read the token in it; remove it")
    if os.name == "posix" and status.st_mode & 0o077:
        raise CertificateError(f"'{folder}' is open to other users; close it: chmod 700 '{folder}'")


def _not_kept(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot keep credentials in '{folder}': {error.strerror or error}")


def _make_certificate(folder: Path) -> None:
    """Make a key and a certificate signed by itself: by openssl where that is there, else by cryptography."""
    with scratch_folder(folder, ".certificate-") as made:
        if (program := shutil.which("openssl")) is not None:
            _by_openssl(program, made)
        else:
            _by_cryptography(made)
        (made / _KEY).chmod(0o600)
        for name in (_KEY, _CERTIFICATE):
            (made / name).replace(folder / name)


def _by_openssl(program: str, folder: Path) -> None:
    command = [
        program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256",
        "-days", str(DAYS), "-subj", "/CN=splitload", "-keyout", str(folder / _KEY), "-out", str(folder / _CERTIFICATE),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, umask=0o077)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise CertificateError(f"openssl cannot make a certificate: {lines[-1][:200]}")


def _by_cryptography(folder: Path) -> None:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError as error:
        raise MissingPackageError(
            "TLS needs a certificate, and there is neither the program openssl nor the package 'cryptography' to make "
            "one: install either, or serve on loopback with --http and reach it through ssh -L or adb forward"
        ) from error
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "splitload")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    create_private(folder / _KEY, secret)
    (folder / _CERTIFICATE).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
