"""Whether a scheduler answers: with the right certificates it does, and everything else is told in one line."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from crowd_processes import started

from splitload.base.errors import CertificateError, ClusterError, UsageError
from splitload.crowd import reach
from splitload.crowd.address import Address, read_address
from splitload.crowd.certificates import certificate_name, key_name, make_certificates, tls_context
from splitload.crowd.reach import admitted, check_admission, check_answer

pytest.importorskip("cryptography")
pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours") / "certificates"
    make_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs") / "certificates"
    make_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def scheduler(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A scheduler that asks for certificates."""
    words = ("scheduler", "--certificates", ours, "--host", "127.0.0.1", "--port", "0")
    with started(tmp_path_factory.mktemp("cache"), *words) as (_, address):
        yield read_address(address)


@contextlib.contextmanager
def listening(answer: bytes | None = None, context: ssl.SSLContext | None = None) -> Iterator[Address]:
    """Yield an address where something listens that says nothing, or one thing, and is no scheduler."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with contextlib.suppress(OSError), connection:
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                if answer is not None:
                    connection.sendall(answer)
                connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Address("tls" if context else "tcp", *server.getsockname())
        thread.join()


def test_who_has_a_certificate_is_let_in(scheduler: Address, ours: Path) -> None:
    import distributed

    check_admission(scheduler, "worker", ours)
    security = admitted(scheduler, "client", ours)
    with distributed.Client(str(scheduler), security=security, set_as_default=False) as client:
        assert client.scheduler_info()["workers"] == {}


def test_another_authoritys_certificate_is_refused_by_both_sides(scheduler: Address, ours: Path, theirs: Path) -> None:
    with pytest.raises(ClusterError, match="is not to be trusted"):
        check_admission(scheduler, "client", theirs)
    context = tls_context(theirs, "client")
    context.verify_mode = ssl.CERT_NONE  # one who does not care whom he talks to
    with pytest.raises(ClusterError, match="refuses this certificate"):
        check_answer(scheduler, context)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(ours / "ca.pem")  # one who has no certificate at all
    with pytest.raises(ClusterError, match="refuses this certificate"):
        check_answer(scheduler, context)


def test_without_tls_nothing_is_answered(scheduler: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_STAGE_S", 0.1)
    plain = Address("tcp", scheduler.host, scheduler.port)
    with pytest.raises(ClusterError, match="give tls:// for tcp://"):
        check_answer(plain, None, timeout_s=0.1)


def test_a_clients_certificate_is_none_to_listen_with(ours: Path) -> None:
    """Who steals one cannot have others connect to him."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours / certificate_name("client"), ours / key_name("client"))
    with listening(b"x", context) as address, pytest.raises(ClusterError, match=r"not to be trusted .*purpose"):
        check_admission(address, "worker", ours)


def test_a_scheduler_elsewhere_is_not_even_asked_without_certificates(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "create_connection", lambda *where, **_: asked.append(where))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where))
    with pytest.raises(UsageError, match="is refused"):
        check_admission(Address("tcp", "scheduler.example", 1), "client", None)
    (ours / "client-key.pem").chmod(0o644)
    try:
        with pytest.raises(CertificateError, match="chmod"):
            check_admission(Address("tls", "scheduler.example", 1), "client", ours)
    finally:
        (ours / "client-key.pem").chmod(0o600)
    assert asked == []


def test_what_is_no_scheduler_is_told_in_seconds(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_STAGE_S", 0.1)
    context = tls_context(ours, "client")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(
        ClusterError, match=r"no scheduler listens at .*refused.*'splitload crowd scheduler' starts one"
    ):
        check_answer(Address("tcp", "127.0.0.1", port), None, timeout_s=0.3)
    with pytest.raises(ClusterError, match=r"the name 'scheduler\.invalid' leads nowhere"):
        check_answer(Address("tcp", "scheduler.invalid", port), None)
    with listening() as address, pytest.raises(ClusterError, match="does not answer as a scheduler"):
        check_answer(address, None, timeout_s=0.1)
    with listening() as address, pytest.raises(ClusterError, match="does not answer as a scheduler with TLS"):
        check_answer(address, context, timeout_s=0.1)
    with listening(b"HTTP/1.1 400 Bad Request\r\n") as address, pytest.raises(ClusterError, match="speaks no TLS"):
        check_answer(address, context, timeout_s=1.0)
