"""What follows from a run of events up to a mark. Everything in here has been verified.

A *step* says something of one thing, with the stamp of the change it tells of; a step older than what is known changes
nothing, so the same events may come twice, from two streams, or late. What a snapshot does not name is gone; that is
known only at its mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from p2pregistry.digest import Digest
from p2pregistry.feed_messages import NOTHING, ChangesRequest, Interest
from p2pregistry.trust.records import Stamp


@dataclass(frozen=True, slots=True)
class PutTag:
    """A tag points to ``digest``, None: nowhere; ``token``: the signed record."""

    repository: str
    tag: str
    digest: Digest | None
    stamp: Stamp
    token: str


@dataclass(frozen=True, slots=True)
class PutRepository:
    """A repository may be seen, as the signed record ``token`` says."""

    repository: str
    private: bool
    stamp: Stamp
    token: str


@dataclass(frozen=True, slots=True)
class Forget:
    """A repository may not be seen any more."""

    repository: str
    stamp: Stamp


Step: TypeAlias = PutTag | PutRepository | Forget


@dataclass(frozen=True, slots=True)
class Ending:
    """What a mark makes known. ``whole``: of this interest each repository has been told of that there is, those in
    ``named``. ``listed``: of these repositories each tag that ``interest`` covers."""

    stamp: Stamp
    interest: Interest
    whole: Interest = field(default_factory=Interest)
    named: frozenset[str] = frozenset()
    listed: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def hides(self, repository: str, stamp: Stamp) -> bool:
        """Whether a repository that was known by a record of this stamp is no more."""
        return stamp <= self.stamp and repository not in self.named and self.whole.touches(repository)

    def drops(self, repository: str, tag: str, stamp: Stamp) -> bool:
        """Whether a tag of a listed repository that was known by a record of this stamp is no more. One with a later
        stamp came from elsewhere meanwhile; its own event is still to come."""
        return stamp <= self.stamp and tag not in self.listed[repository] and self.interest.covers(repository, tag)


class Gathering:
    """The steps of one stream, from mark to mark. The state of what is ``fresh`` comes before the first one."""

    def __init__(self, request: ChangesRequest) -> None:
        self._interest = request.interest
        self._whole = request.interest if request.cursor == NOTHING else request.fresh
        self._steps: list[Step] = []
        self._named: set[str] = set()
        self._listed: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Step) -> None:
        """One more."""
        match step:
            case PutRepository(repository=repository):
                self._named.add(repository)
                self._listed[repository] = set()
            case Forget(repository=repository, stamp=stamp) if stamp.number > 0:
                self._named.add(repository)
                self._listed.pop(repository, None)
            case PutTag(repository=repository, tag=tag, digest=digest):
                listed = self._listed.get(repository)
                if listed is not None and digest is not None:
                    listed.add(tag)
            case _:
                return  # part of a snapshot, where it says no more than silence
        self._steps.append(step)

    def reset(self) -> None:
        """What came before is of no use; what follows is the whole state."""
        self._clear()
        self._whole = self._interest

    def take(self) -> list[Step]:
        """The steps up to here, before their mark. What the mark will make known is not lost by it."""
        steps, self._steps = self._steps, []
        return steps

    def mark(self, stamp: Stamp) -> Ending:
        """Everything up to ``stamp`` has been told. Take the steps before."""
        listed = {name: frozenset(tags) for name, tags in self._listed.items()}
        ending = Ending(stamp, self._interest, self._whole, frozenset(self._named), listed)
        self._clear()
        self._whole = Interest()
        return ending

    def _clear(self) -> None:
        self._steps = []
        self._named = set()
        self._listed = {}
