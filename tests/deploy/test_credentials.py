"""Tokens and certificates: made once, kept from others, whole or not at all, and pinned whatever a clock says."""

from __future__ import annotations

import os
import re
import socket
import ssl
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from splitload.base.errors import CertificateError, DeviceError, MissingPackageError, OutputError, UsageError
from splitload.deploy import credentials as module
from splitload.deploy.credentials import Code, close_folder, credentials, read_code
from splitload.devices.connection import _pinned
from splitload.devices.pairing import Address

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes of files")


def test_a_device_that_starts_anew_is_the_same_one_until_a_new_code_is_asked_for(tmp_path: Path) -> None:
    first = credentials(tmp_path / "serve", tls=True)
    assert credentials(tmp_path / "serve", tls=True) == first
    assert credentials(tmp_path / "serve", tls=False).code == Code(first.code.token, None)
    anew = credentials(tmp_path / "serve", tls=True, anew=True)
    assert anew.code.token != first.code.token
    assert anew.code.fingerprint != first.code.fingerprint
    assert {each.name for each in (tmp_path / "serve").iterdir()} == {"token", "certificate.pem", "key.pem"}


def test_a_code_is_read_as_it_is_shown_or_typed(tmp_path: Path) -> None:
    for code in (credentials(tmp_path, tls=False).code, credentials(tmp_path, tls=True).code):
        for text in (code.text(), code.text().upper(), code.text().replace("-", ""), f" {code.text()} "):
            assert read_code(text) == code
        assert re.fullmatch(r"([a-z2-7]{4}-)+[a-z2-7]{1,4}", code.text())


@pytest.mark.parametrize("text", ["", "a", "0" * 26, "a" * 27, "a" * 1000, "é" * 26, "a b c", "../token"])
def test_what_is_no_code_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="no code of a device; copy what"):
        read_code(text)


@posix
def test_others_cannot_read_them(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        credentials(tmp_path / "serve", tls=True)
    finally:
        os.umask(before)
    assert (tmp_path / "serve").stat().st_mode & 0o777 == 0o700
    assert all((tmp_path / "serve" / name).stat().st_mode & 0o077 == 0 for name in ("token", "key.pem"))
    (tmp_path / "serve").chmod(0o755)
    with pytest.raises(CertificateError, match="is open to other users; close it: chmod 700"):
        credentials(tmp_path / "serve", tls=False)


def test_a_place_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot keep credentials in"):
        close_folder(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "short", "a" * 52, "\xff" * 26])
def test_a_damaged_token_is_one_line_with_its_cure(tmp_path: Path, text: str) -> None:
    first = credentials(tmp_path / "serve", tls=False)
    (tmp_path / "serve" / "token").write_text(text, encoding="latin-1")
    with pytest.raises(CertificateError, match="is damaged; --new-code makes a new one"):
        credentials(tmp_path / "serve", tls=False)
    assert credentials(tmp_path / "serve", tls=False, anew=True).code != first.code


def test_a_certificate_and_a_key_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    credentials(tmp_path / "a", tls=True)
    credentials(tmp_path / "b", tls=True)
    (tmp_path / "a" / "key.pem").replace(tmp_path / "b" / "key.pem")
    with pytest.raises(CertificateError, match="cannot be used"):
        credentials(tmp_path / "b", tls=True)
    credentials(tmp_path / "a", tls=True)  # without its key, both are made anew


def test_without_openssl_the_package_makes_it_and_without_both_the_cure_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    made = credentials(tmp_path / "a", tls=True)
    assert made.key is not None
    assert made.key.stat().st_mode & 0o077 == 0
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingPackageError, match="serve on loopback with --http"):
        credentials(tmp_path / "b", tls=True)


def shake_hands(folder: Path, code: Code) -> bytes:
    """Return what a desk gets of a device over TLS, the certificate pinned."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        for _ in range(2):
            with suppress(OSError):
                plain, _ = listening.accept()
                with plain, context.wrap_socket(plain, server_side=True) as secure:
                    secure.sendall(b"hello")
                    secure.recv(1)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    host, port = listening.getsockname()
    try:
        trusted = _pinned(Address(f"https://{host}:{port}", code))
        with socket.create_connection((host, port)) as plain, trusted.wrap_socket(plain) as secure:
            return secure.recv(5)
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(20)


def test_a_certificate_is_pinned(tmp_path: Path) -> None:
    known = credentials(tmp_path / "known", tls=True)
    assert shake_hands(tmp_path / "known", known.code) == b"hello"
    credentials(tmp_path / "other", tls=True)
    with pytest.raises(DeviceError, match="is not the device of this code"):
        shake_hands(tmp_path / "other", known.code)


def test_a_service_without_tls_is_told_from_one_that_does_not_answer(tmp_path: Path) -> None:
    known = credentials(tmp_path / "known", tls=True)

    def answer(listening: socket.socket) -> None:
        plain, _ = listening.accept()
        with plain:
            plain.recv(4096)
            plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        with pytest.raises(DeviceError, match="speaks no TLS"):
            _pinned(Address(f"https://127.0.0.1:{listening.getsockname()[1]}", known.code))
        thread.join()


@pytest.mark.parametrize("year", [1970, 2090])
def test_a_device_whose_clock_is_wrong_is_known_by_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    class Clock(module.datetime):  # type: ignore[misc, valid-type, name-defined]
        @classmethod
        def now(cls, tz: object = None) -> Clock:
            return cls(year, 1, 2, tzinfo=module.UTC)

    monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    made = credentials(tmp_path / "board", tls=True)
    assert shake_hands(tmp_path / "board", made.code) == b"hello"
