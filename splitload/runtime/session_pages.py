"""The pages of files that one session has mapped: where they lie, and how they are given back while it lives.

Addresses alone do not tell whose memory is there. Another session may have mapped the same file and go sooner, and what
takes its place would be emptied: memory that is no file's is lost then.
"""

from __future__ import annotations

import weakref

from splitload.runtime import mapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from splitload.runtime.mapped import Span


class SessionPages:
    """What a session has mapped of its files; nothing before one is opened.

    Attributes:
        spans: Where it is, in the order of addresses.

    Args:
        paths: The files, that of its graph first.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.spans: Sequence[Span] = ()
        self._paths = paths
        self._files: frozenset[tuple[int, str]] = frozenset()
        self._names: Sequence[str | None] = ()  # of the files, as the system says that they are mapped at `spans`
        self._session: Callable[[], Any] = lambda: None

    def open(self, open_session: Callable[[], Any]) -> Any:
        """Open the session, find what it has mapped, and return it."""
        self._files = mapped.identities(self._paths)
        others = set(mapped.spans(self._files))  # another session's, which may be closed sooner
        session = open_session()
        now = mapped.spans(self._files)
        self.spans = [span for span in now if span not in others] or now  # where another's was that has gone meanwhile
        self._names = mapped.files_at(self.spans)
        self._session = weakref.ref(session)
        return session

    def split(self, start: int) -> tuple[list[Span], list[Span]]:
        """Return what lies before a byte of the graph's file, and from its page on."""
        start = start // mapped.PAGE_BYTES * mapped.PAGE_BYTES
        before = [(begin, min(begin + start, end)) for begin, end in self.spans]
        return before, [(begin + start, end) for begin, end in self.spans if begin + start < end]

    def give_back(self, where: Sequence[Span]) -> None:
        """Give back pages, unless the session is gone, or they are no longer where they were.

        Args:
            where: Parts of `spans`.
        """
        session = self._session()  # while it lives, nothing else is mapped there
        if session is not None:
            mapped.drop(mapped.kept(where, self.spans, self._names, self._files))
