"""Of what a node wants to be told: the repositories that were asked for last, and an operator's patterns."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from p2pregistry.feed_messages import MOST_PATTERNS, MOST_REPOSITORIES, NOTHING, ChangesRequest, Interest
from p2pregistry.trust.records import Stamp


class Wanted:
    """``limit`` repositories at most, those that were asked for last, and what ``patterns`` gives, which may change.

    ``known``: repositories to begin with, the one that was asked for last at the end.
    """

    def __init__(
        self, patterns: Callable[[], Iterable[str]] = tuple, *, limit: int = 1000, known: Iterable[str] = ()
    ) -> None:
        self._give = patterns
        self._limit = min(limit, MOST_REPOSITORIES)
        # a dict that keeps an order: the repository that was asked for last is its last
        self._repositories: dict[str, None] = dict.fromkeys(known)
        self._trim()

    def use(self, repository: str) -> bool:
        """It was asked for. Whether it was not in the interest before."""
        new = repository not in self._repositories
        if not new:
            del self._repositories[repository]
        self._repositories[repository] = None
        self._trim()
        return new and repository in self._repositories

    def _trim(self) -> None:
        while len(self._repositories) > self._limit:
            del self._repositories[next(iter(self._repositories))]

    @property
    def _patterns(self) -> frozenset[str]:
        return frozenset(list(dict.fromkeys(self._give()))[:MOST_PATTERNS])

    @property
    def repositories(self) -> list[str]:
        """In the order in which they were asked for."""
        return list(self._repositories)

    def interest(self) -> Interest:
        """All of it, as it is now."""
        return Interest(frozenset(self._repositories), self._patterns)

    def lacks(self, interest: Interest) -> bool:
        """Whether something is wanted that this interest does not have."""
        return not (interest.patterns >= self._patterns and self._repositories.keys() <= interest.repositories)


def ask(wanted: Interest, covered: Interest, cursor: Stamp) -> ChangesRequest:
    """What to ask the tracker for. ``covered``: of that everything up to the ``cursor`` is known."""
    if cursor == NOTHING:
        return ChangesRequest(NOTHING, wanted)
    new = Interest(wanted.repositories - covered.repositories, wanted.patterns - covered.patterns)
    return ChangesRequest(cursor, wanted, new)
