"""Text for people in any width: words stay whole, tables lose nothing, wide characters count twice."""

from __future__ import annotations

import pytest

from splitload.commands.text_layout import NARROWEST, cells, table, wrap

BENCH = ("", "stock", "tuned", "ort-\nformat", "openvino", "splitload")
ROWS = [("TTFO ms", "77.0", "18.2", "20.1", "44.0", "20.2"), ("process ms", "240", "180", "181", "300", "182.5")]


def test_prose_is_broken_between_words() -> None:
    text = "the answer comes after 20 ms, with stock after 77\n'/a/very/long/path/that/is/one/word' is whole"
    lines = wrap(text, 20).split("\n")
    assert " ".join(lines) == text.replace("\n", " ")
    assert all(len(line) <= 20 for line in lines if " " in line)
    assert wrap(text, None) == text


def test_a_table_as_wide_as_it_likes() -> None:
    lines = table(("name", "ms"), [("a", "1.5"), ("longer", "12")], None).split("\n")
    assert lines == ["name     ms", "───────────", "a       1.5", "longer   12"]


@pytest.mark.parametrize("width", [21, 28, 40, 60, 80, 200])
def test_no_width_loses_a_column(width: int) -> None:
    shown = table(BENCH, ROWS, width)
    assert max(map(len, shown.split("\n"))) <= width
    parts = shown.split("\n\n")
    assert len(parts) == {21: 5, 28: 3, 40: 2}.get(width, 1)
    for number, row in enumerate(ROWS):
        of_row = [line for part in parts for line in part.split("\n") if line.startswith(row[0])]
        assert len(of_row) == len(parts), "the first column begins each part"
        assert " ".join(of_row).replace(row[0], "").split() == list(ROWS[number][1:])


def test_numbers_are_never_broken_and_text_is() -> None:
    rows = [("1", "block3/pointwise … block6/depthwise", "12345.67"), ("2", "fc", "0.1")]
    shown = table(("stage", "part of the model", "MB"), rows, 30)
    assert max(map(len, shown.split("\n"))) <= 30
    assert "12345.67" in shown
    assert "".join(shown.split()).count("depthwise") == 1


def test_text_keeps_some_width() -> None:
    lines = table(("name", "description"), [("a" * 30, "many words " * 5)], 10).split("\n")
    assert max(map(len, lines)) <= 2 * NARROWEST + 2


def test_wide_characters_and_accents() -> None:
    assert cells("输出") == 4
    assert cells("e\u0301") == 1
    lines = table(("name", "ms"), [("输出", "1"), ("abcd", "2")], None).split("\n")
    assert lines[2:] == ["输出   1", "abcd   2"]
