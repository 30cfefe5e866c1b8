"""Certificates: closed to others, never written over something else, and checked before they are used."""

from __future__ import annotations

import datetime as clock
import os
import shutil
import stat
from pathlib import Path

import pytest

from splitload.base.errors import CertificateError, MissingPackageError, OutputError, UsageError
from splitload.crowd import certificates
from splitload.crowd.certificates import ROLES, check_certificates, make_certificates, security_from

pytest.importorskip("cryptography")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_certificates(tmp_path / "made")
    return tmp_path / "made"


def days_later(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """Have certificates be made another day than today."""

    class Shifted(clock.datetime):
        @classmethod
        def now(cls, tz: clock.tzinfo | None = None) -> Shifted:
            return super().now(tz) + clock.timedelta(days=days)

    monkeypatch.setattr(certificates, "datetime", Shifted)


def test_nobody_else_can_open_what_is_made(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        expires = make_certificates(tmp_path / "made", days=3)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert names == {"ca.pem"} | {
        f"{role}{end}" for role in ROLES for end in (".pem", "-key.pem")
    }  # no authority's key
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").iterdir()} == {0o600}
    assert {check_certificates(tmp_path / "made", role) for role in ROLES} == {expires}
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_is_there_is_never_overwritten(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    link = folder.with_name("link")
    link.symlink_to(folder)
    dangling = folder.with_name("dangling")
    dangling.symlink_to(folder.with_name("nowhere"))
    for taken in (folder, link, dangling):
        with pytest.raises(OutputError, match="is there already"):
            make_certificates(taken)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not folder.with_name("nowhere").exists()


def test_what_cannot_be_made_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        make_certificates(tmp_path / "missing" / "made")
    for days in (0, 3651):
        with pytest.raises(UsageError, match="1 to 3650 days"):
            make_certificates(tmp_path / "made", days=days)
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    with pytest.raises(MissingPackageError, match="pip install"):
        make_certificates(tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_machine_needs_what_is_of_its_role_alone(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("ca.pem", "worker.pem", "worker-key.pem"):
            path.unlink()
    check_certificates(folder, "worker")
    with pytest.raises(CertificateError, match=r"client\.pem' is missing"):
        check_certificates(folder, "client")


@pytest.mark.parametrize(
    ("name", "mode", "cure"),
    [
        ("worker-key.pem", 0o640, "chmod 0600"),
        ("worker-key.pem", 0o604, "chmod 0600"),
        ("ca.pem", 0o664, "chmod 0644"),
        ("worker.pem", 0o646, "chmod 0644"),
        (".", 0o770, "chmod 0750"),
    ],
)
def test_what_others_can_open_is_refused(folder: Path, name: str, mode: int, cure: str) -> None:
    (folder / name).chmod(mode)
    with pytest.raises(CertificateError, match=cure):
        check_certificates(folder, "worker")


def test_what_is_another_users_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(folder / "ca.pem", 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(CertificateError, match="belongs to another user"):
        check_certificates(folder, "worker")


@pytest.mark.parametrize(
    ("name", "put", "why"),
    [
        ("worker-key.pem", "client-key.pem", "cannot be used .*MISMATCH"),
        ("worker.pem", b"no certificate", "cannot be used"),
        ("worker.pem", b"", "cannot be used"),
        ("worker-key.pem", b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "cannot be used"),
        ("ca.pem", b"\0" * 70_000, "70000 bytes"),
        ("ca.pem", "worker.pem", "not signed by 'ca.pem'"),
        ("worker-key.pem", None, "a link"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, name: str, put: str | bytes | None, why: str) -> None:
    path = folder / name
    if put is None:
        path.rename(folder / "elsewhere.pem")
        path.symlink_to(folder / "elsewhere.pem")
    else:
        path.write_bytes(put if isinstance(put, bytes) else (folder / put).read_bytes())
    with pytest.raises(CertificateError, match=why):
        check_certificates(folder, "worker")


def test_a_certificate_of_another_authority_is_refused(folder: Path) -> None:
    make_certificates(folder.with_name("other"))
    shutil.copyfile(folder.with_name("other") / "ca.pem", folder / "ca.pem")
    with pytest.raises(CertificateError, match="not signed by"):
        check_certificates(folder, "worker")


@pytest.mark.parametrize(("days", "why"), [(-3, "has expired"), (3, "not valid yet")])
def test_a_certificate_of_another_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, why: str
) -> None:
    days_later(monkeypatch, days)
    make_certificates(tmp_path / "made", days=1)
    with pytest.raises(CertificateError, match=why):
        check_certificates(tmp_path / "made", "client")


def test_a_folder_that_is_none_is_refused(folder: Path) -> None:
    folder.with_name("link").symlink_to(folder)
    for name, why in (("missing", "No such file"), ("link", "a link"), ("made/ca.pem", "no folder")):
        with pytest.raises(CertificateError, match=why):
            check_certificates(folder.parent / name, "worker")


def test_dask_is_told_to_ask_both_sides(folder: Path) -> None:
    pytest.importorskip("distributed")
    security = security_from(str(folder), "scheduler", "worker")
    assert security.require_encryption is True
    for role in ("scheduler", "worker"):
        for context in (
            security.get_listen_args(role)["ssl_context"],
            security.get_connection_args(role)["ssl_context"],
        ):
            assert context.verify_mode.name == "CERT_REQUIRED"
            assert context.minimum_version.name == "TLSv1_3"
    assert security.get_connection_args("client")["ssl_context"] is None
    with pytest.raises(CertificateError):
        security_from(folder.with_name("missing"), "client")
