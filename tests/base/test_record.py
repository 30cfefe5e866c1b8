"""`Record` behaves as the named tuple that type checkers take it for."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest

from splitload.base.record import Record


class Fast(Record):
    a: int
    b: str
    c: tuple[int, ...] = ()


class Standard(NamedTuple):
    a: int
    b: str
    c: tuple[int, ...] = ()


@pytest.mark.parametrize("kind", [Fast, Standard])
class TestBoth:
    def test_values_by_place_and_by_name(self, kind: type[Standard]) -> None:
        made = kind(1, b="x")
        assert (made.a, made.b, made.c) == (1, "x", ()) == tuple(made) == made
        assert kind(1, "x", (2,)) == kind(c=(2,), b="x", a=1) != made
        assert hash(made) == hash(kind(1, "x"))

    def test_repr_names_the_fields(self, kind: type[Standard]) -> None:
        assert repr(kind(1, "x")) == f"{kind.__name__}(a=1, b='x', c=())"

    def test_fields_replace_and_asdict(self, kind: type[Standard]) -> None:
        made = kind(1, "x")
        assert kind._fields == ("a", "b", "c")
        assert made._asdict() == {"a": 1, "b": "x", "c": ()}
        assert made._replace(c=(3,)) == kind(1, "x", (3,))
        assert made.c == ()

    def test_copies(self, kind: type[Standard]) -> None:
        made = kind(1, "x", (2,))
        for again in (copy.copy(made), copy.deepcopy(made)):
            assert again == made
            assert type(again) is kind

    def test_does_not_change(self, kind: type[Standard]) -> None:
        for name in ("a", "d"):
            with pytest.raises(AttributeError):
                setattr(kind(1, "x"), name, 2)

    @pytest.mark.parametrize(
        ("values", "named"),
        [((1,), {}), ((1, "x", (), 4), {}), ((1, "x"), {"a": 2}), ((1, "x"), {"d": 2}), ((), {"b": "x"})],
    )
    def test_too_few_too_many_twice_unknown(
        self, kind: type[Standard], values: tuple[object, ...], named: dict[str, object]
    ) -> None:
        with pytest.raises(TypeError):
            kind(*values, **named)  # type: ignore[arg-type]
