"""The user's cache folder is where they say, among their caches, or nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from splitload.base.cache import cache_folder, user_cache
from splitload.base.errors import UsageError


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPLITLOAD_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)


def test_the_users_word_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert cache_folder() == Path("/h/.cache/splitload")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/splitload")
    monkeypatch.setenv("SPLITLOAD_CACHE", "~/mine")
    assert cache_folder() == user_cache() == Path("/h/mine")


@pytest.mark.skipif(os.name != "posix", reason="users have entries on POSIX systems")
@pytest.mark.parametrize("chosen", ["", "~/mine"])
def test_a_user_without_a_home_has_none(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    import pwd

    def no_entry(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.setenv("SPLITLOAD_CACHE", chosen)
    assert cache_folder() is None
    with pytest.raises(UsageError, match="set SPLITLOAD_CACHE to a folder"):
        user_cache()
