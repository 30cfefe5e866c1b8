"""Answers of functions that are kept: what `functools` has for it takes longer to import than most of them to ask."""

from __future__ import annotations

__all__ = ["kept"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from functools import cache as kept
    from typing import Any
else:

    class kept:
        """A function that is asked once for the same arguments, which are few; a decorator.

        Args:
            function: Takes arguments by place that can be keys of a dictionary.
        """

        MOST = 256  # then all are forgotten

        def __init__(self, function: Callable[..., Any]) -> None:
            self.__doc__ = function.__doc__
            self.__wrapped__ = function
            self._answers: dict[tuple[Hashable, ...], Any] = {}

        def __call__(self, *arguments: Hashable) -> Any:
            """Return the answer for some arguments."""
            try:
                return self._answers[arguments]
            except KeyError:
                if len(self._answers) >= self.MOST:
                    self._answers.clear()
            answer = self._answers[arguments] = self.__wrapped__(*arguments)
            return answer

        def cache_clear(self) -> None:
            """Forget all answers."""
            self._answers.clear()
