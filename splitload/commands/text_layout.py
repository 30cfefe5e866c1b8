"""Lays text out for people: prose wrapped at words, and tables that fit the width of a terminal and lose nothing."""

from __future__ import annotations

from collections.abc import Sequence

GAP = "  "
NARROWEST = 12  # characters that a column of text keeps, where it has to be wrapped


def wrap(text: str, width: int | None) -> str:
    """Return text with its lines broken between words, so that each fits `width` where words do; None: any width."""
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        lines += _broken(line, width, words=True) if cells(line) > width else [line]
    return "\n".join(lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Return a table; numbers are aligned to the right and never broken, text is wrapped where it must be.

    Where the columns do not fit side by side, they stand in several tables below each other, each of which begins with
    the first column.

    Args:
        columns: The heads; a head may have several lines.
        rows: The cells, as many in each row as there are heads.
        width: What it may take, in characters; None: as much as it likes.
    """
    numeric = [all(_is_number(row[number]) for row in rows if row[number]) for number in range(len(columns))]
    widths = [
        max(cells(line) for cell in (head, *(row[number] for row in rows)) for line in cell.split("\n"))
        for number, head in enumerate(columns)
    ]
    if width is not None:
        wrapped = [number for number in range(len(columns)) if not numeric[number] and widths[number] > NARROWEST]
        while wrapped and _total(widths) > width:
            widest = max(wrapped, key=widths.__getitem__)
            widths[widest] -= 1
            wrapped = [number for number in wrapped if widths[number] > NARROWEST]
    lines: list[str] = []
    for group in _groups(widths, width):
        lines += [""] * bool(lines)
        lines += _row([columns[number] for number in group], [widths[number] for number in group], group, numeric)
        lines.append("─" * _total([widths[number] for number in group]))
        for row in rows:
            lines += _row([row[number] for number in group], [widths[number] for number in group], group, numeric)
    return "\n".join(lines)


def cells(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for a wide character, none for an accent on another."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        2 if unicodedata.east_asian_width(sign) in "WF" else 0 if unicodedata.combining(sign) else 1 for sign in text
    )


def _is_number(cell: str) -> bool:
    return cell.replace(".", "").replace("-", "").isdecimal()


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _groups(widths: Sequence[int], width: int | None) -> list[list[int]]:
    """Return the columns of each table: the first, and as many others as fit beside it, at least one."""
    groups = [[0]]
    for number in range(1, len(widths)):
        beside = [widths[each] for each in (*groups[-1], number)]
        if width is not None and len(groups[-1]) > 1 and _total(beside) > width:
            groups.append([0])
        groups[-1].append(number)
    return groups


def _row(row: Sequence[str], widths: Sequence[int], group: Sequence[int], numeric: Sequence[bool]) -> list[str]:
    """Return the lines of one row."""
    parts = [
        [piece for line in cell.split("\n") for piece in _broken(line, width)]
        for cell, width in zip(row, widths, strict=True)
    ]
    lines = []
    for place in range(max(map(len, parts))):
        line = []
        for number, part, width in zip(group, parts, widths, strict=True):
            text = part[place] if place < len(part) else ""
            space = " " * (width - cells(text))
            line.append(space + text if numeric[number] else text + space)
        lines.append(GAP.join(line).rstrip())
    return lines


def _broken(line: str, width: int, *, words: bool = False) -> list[str]:
    """Return a line in pieces of `width`; a longer word is broken too, unless only `words` are to be parted."""
    if cells(line) <= width:
        return [line]
    import textwrap

    return textwrap.wrap(line, width, break_long_words=not words, break_on_hyphens=False) or [""]
