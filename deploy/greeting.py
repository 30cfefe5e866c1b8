"""How a device and a server come to know each other: an address with a code, TLS, and a greeting.

The server shows a certificate that the device knows by its fingerprint, and the device a token: together the code that
`splitload collaborate serve` prints.
"""

from __future__ import annotations

import hmac
import socket
import ssl
from typing import Any

from splitload.base.errors import DeviceError, UsageError
from splitload.base.record import Record
from splitload.deploy.channel import CONNECT_S, HELLO, MOST_TEXT, REFUSED, WELCOME, Channel, prompt
from splitload.deploy.credentials import Code, Credentials, fingerprint_of, read_code

PORT = 8760
SCHEME = "tls://"


class Server(Record):
    """Where a server is.

    Attributes:
        host: Name or address.
        port: Where it listens.
        code: What it showed.
    """

    host: str
    port: int
    code: Code


def read_server(word: str) -> Server:
    """Return where a server is of which the address says it: "tls://HOST:PORT/#CODE".

    Raises:
        UsageError: If it is no such address.
    """
    cure = "give the whole address that 'splitload collaborate serve' shows, in quotes"
    place, _, text = word.removeprefix(SCHEME).partition("/#")
    host, _, port = place.rpartition(":")
    if not word.startswith(SCHEME) or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16 or not text:
        raise UsageError(f"'{word:.80}' is no address of a server; {cure}")
    code = read_code(text)
    if code.fingerprint is None:
        raise UsageError(f"the code in '{word:.80}' is cut short; {cure}")
    return Server(host.strip("[]"), int(port), code)


def connect(server: Server, **words: Any) -> Channel:
    """Connect to a server and have it take this device.

    Args:
        server: Where it is.
        words: What the device says of itself.

    Raises:
        DeviceError: If it is not there, is another one than the code is of, or refuses; the message says which.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # its certificate is compared below
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    place = f"{server.host}:{server.port}"
    sock: socket.socket | None = None
    try:
        sock = socket.create_connection((server.host, server.port), CONNECT_S)
        prompt(sock)
        channel = Channel(sock, context, server_side=False)
    except (OSError, DeviceError) as error:
        if sock is not None:
            sock.close()
        raise DeviceError(f"no server answers at {place}: {getattr(error, 'strerror', None) or error}") from error
    try:
        if not hmac.compare_digest(fingerprint_of(channel.certificate()), server.code.fingerprint or ""):
            raise DeviceError(f"what answers at {place} is not the server that the code is of; nothing was sent to it")
        channel.say(HELLO, token=server.code.token, **words)
        answer = channel.receive(CONNECT_S, MOST_TEXT)
        if answer.kind != WELCOME:
            reason = answer.words().get("reason") if answer.kind == REFUSED else None
            raise DeviceError(f"the server at {place} refuses: {str(reason or 'it does not say why')[:300]}")
    except TimeoutError as error:
        channel.close()
        raise DeviceError(f"the server at {place} does not answer") from error
    except BaseException:
        channel.close()
        raise
    return channel


def serving_context(credentials: Credentials) -> ssl.SSLContext:
    """Return the context of TLS of a server."""
    assert credentials.certificate is not None and credentials.key is not None  # noqa: S101 - made with TLS
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nobody resumes a session
    context.load_cert_chain(credentials.certificate, credentials.key)
    return context


def greeted(channel: Channel, token: str) -> dict[str, Any]:
    """Return what a device says of itself, once it has shown the token; who has not is refused.

    Raises:
        DeviceError: If it has not.
    """
    message = channel.receive(CONNECT_S, MOST_TEXT)
    words = message.words() if message.kind == HELLO else {}
    if not hmac.compare_digest(str(words.get("token", "")).encode(errors="replace"), token.encode()):
        channel.say(REFUSED, reason="the code is not the one that it shows")
        raise DeviceError("a device came with another code")
    return words
