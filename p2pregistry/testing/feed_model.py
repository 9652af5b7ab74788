"""A node as far as the feed is concerned: what it knows after the events that it was sent. For tests and benches."""

from __future__ import annotations

from collections.abc import Iterable

from p2pregistry.digest import Digest
from p2pregistry.feed_messages import (
    NOTHING,
    ChangesRequest,
    Event,
    GoneEvent,
    Interest,
    MarkEvent,
    RepositoryEvent,
    ResetEvent,
    TagEvent,
)
from p2pregistry.trust.records import Stamp


class FeedModel:
    """Applies events by the rules of docs/protocol.md. ``notices``: the events about nodes and keys."""

    def __init__(self, interest: Interest) -> None:
        self.interest = interest
        self.fresh = Interest()
        self.cursor: Stamp = NOTHING
        self.private: dict[str, bool] = {}
        self.tags: dict[tuple[str, str], Digest] = {}
        self.notices: list[Event] = []
        self._doubtful: set[tuple[str, str]] = set()
        self._doubtful_repositories: set[str] = set()

    def widen(self, more: Interest) -> None:
        """Be interested in more from the next request on."""
        old = self.interest
        self.interest = Interest(old.repositories | more.repositories, old.patterns | more.patterns)
        self.fresh = more

    def request(self) -> ChangesRequest:
        """What to ask for now."""
        self._doubt(self.fresh)
        return ChangesRequest(self.cursor, self.interest, self.fresh)

    def apply(self, events: Iterable[Event]) -> None:
        """In order."""
        for event in events:
            self._apply(event)

    def _apply(self, event: Event) -> None:
        match event:
            case TagEvent():
                place = (event.repository, event.tag)
                assert self.interest.covers(*place), f"{place} is not wanted"
                assert event.repository in self.private, "the record of a repository comes before its tags"
                self._doubtful.discard(place)
                if event.digest is None:
                    self.tags.pop(place, None)
                else:
                    self.tags[place] = event.digest
            case RepositoryEvent():
                self.private[event.repository] = event.private
                self._doubtful_repositories.discard(event.repository)
                self._doubtful |= {place for place in self.tags if place[0] == event.repository}
            case GoneEvent():
                self._forget(event.repository)
            case ResetEvent():
                self._doubt(self.interest)
            case MarkEvent():
                assert event.stamp >= self.cursor
                self.cursor, self.fresh = event.stamp, Interest()
                for place in self._doubtful:
                    self.tags.pop(place, None)
                for name in self._doubtful_repositories:
                    self._forget(name)
                self._doubtful, self._doubtful_repositories = set(), set()
            case _:
                self.notices.append(event)

    def _doubt(self, part: Interest) -> None:
        """What is not said of this again before the next mark is no more."""
        self._doubtful |= {place for place in self.tags if part.covers(*place)}
        self._doubtful_repositories |= {name for name in self.private if part.touches(name)}

    def _forget(self, repository: str) -> None:
        self.private.pop(repository, None)
        self.tags = {place: digest for place, digest in self.tags.items() if place[0] != repository}
