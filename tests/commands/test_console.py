"""What commands show."""

from __future__ import annotations

import pytest

from splitload.commands.console import Console


def test_what_a_bundle_says_gives_the_terminal_no_commands(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=False)
    console.print("made on \x1b[31mred\x07\nmachine")
    console.table("\x1b]0;title\x07", ("stage",), [("\x9b1m",)])
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)
    assert "made on \\x1b[31mred\\x07\nmachine" in shown
