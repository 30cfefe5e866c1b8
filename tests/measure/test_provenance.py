"""Provenance: what a record says of its origin, and that it never names someone else's commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from splitload.measure import provenance


def test_keys() -> None:
    found = provenance.provenance(["splitload", "bench"])
    assert list(found) == ["command", "date", "git_commit", "git_dirty", "python", "packages", "machine"]
    assert found["command"] == "splitload bench"
    assert found["machine"]["threads"] >= 1


def test_installed_inside_another_checkout_names_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    found = provenance.provenance([])
    assert (found["git_commit"], found["git_dirty"]) == (None, None)


def test_records_are_no_change_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    code, record = tmp_path / "splitload" / "provenance.py", tmp_path / "results" / "study.json"
    for file in (code, record):
        file.parent.mkdir()
        file.touch()
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(provenance, "__file__", str(code))
    record.write_text("{}")
    assert provenance.provenance([])["git_dirty"] is False
    code.write_text("")
    assert provenance.provenance([])["git_dirty"] is False
    code.write_text("1")
    assert provenance.provenance([])["git_dirty"] is True
