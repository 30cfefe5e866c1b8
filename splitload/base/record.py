"""Named values that do not change: what `typing.NamedTuple` makes, defined in a sixth of its time."""

from __future__ import annotations

from _operator import itemgetter  # `operator` is a file to read

__all__ = ["Record"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
    from typing import NamedTuple as Record
else:

    class Record(tuple):
        """A tuple whose places have the names of the class's annotations, and perhaps defaults.

        The standard library compiles a constructor for each such class, 0.3 ms that everyone pays who imports
        splitload. It has `_fields`, `_field_defaults`, `_asdict()` and `_replace(…)` with the same meaning, and
        nothing else that begins with an underscore.
        """

        def __init_subclass__(cls) -> None:
            cls._fields = tuple(cls.__annotations__)
            cls._field_defaults = {name: vars(cls)[name] for name in cls._fields if name in vars(cls)}
            for place, name in enumerate(cls._fields):
                setattr(cls, name, property(itemgetter(place)))

        def __new__(cls, *values: Any, **named: Any) -> Record:
            """Return one, as of `values` in the order of the fields and of `named`."""
            placed = dict(zip(cls._fields, values, strict=False))
            given = cls._field_defaults | placed | named
            if len(values) > len(placed) or placed.keys() & named or given.keys() != set(cls._fields):
                raise TypeError(f"{cls.__name__} takes each of {cls._fields} once")
            return super().__new__(cls, [given[name] for name in cls._fields])

        def __setattr__(self, name: str, value: Any) -> None:
            raise AttributeError(f"{type(self).__name__}.{name} cannot be set")

        def __getnewargs__(self) -> tuple[Any, ...]:
            return tuple(self)

        def __repr__(self) -> str:
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changes: Any) -> Record:
            return type(self)(**(self._asdict() | changes))
