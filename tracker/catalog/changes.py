"""The seam ``Changes``: what changed, numbered in the order of commits, and what is.

There is one row for each thing, with its latest change, so who was away reads the state and not its history. What is
gone stays as a *tombstone* until it is pruned; who knows less than the latest that was has to begin anew.

A reader who has all changes up to a number, and then everything after it, has missed nothing: numbers are given by one
counter as the last thing before each commit, so a number that is seen has all lower ones before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from p2pregistry.digest import Digest
from p2pregistry.trust.records import Caller, Stamp
from tracker.catalog.trail import By

Kind: TypeAlias = Literal["tag", "repository", "node", "keys"]
#: What becomes of a change for one reader; None: it is not told.
Shown: TypeAlias = Literal["tag", "repository", "gone"]

#: Tombstones that are removed in one transaction.
PRUNED_AT_ONCE: Final = 1000


class State(NamedTuple):
    """The last number that was given, and the last change of which the tombstone is no more."""

    epoch: int
    number: int
    pruned: int = 0

    @property
    def stamp(self) -> Stamp:
        """The last change."""
        return Stamp(self.epoch, self.number)

    def can_go_on(self, cursor: Stamp) -> bool:
        """Whether who knows everything up to there can be told of the rest. A cursor beyond the last number is of
        before the database was restored from a backup."""
        return cursor.epoch == self.epoch and self.pruned <= cursor.number <= self.number


@dataclass(frozen=True, slots=True)
class Change:
    """The latest change of one thing, and what it is now.

    ``name``: a tag, or a node's peer id. ``digest``: where the tag points (None: nowhere). ``gone``: of a node that it
    was revoked. ``private``: of the repository (None: there is none). ``since``: of a tag, the number of its
    repository's change. ``public_until``: of a repository, the change with which it stopped being public (0: it never
    did).
    """

    number: int
    kind: Kind
    repository: str = ""
    name: str = ""
    digest: Digest | None = None
    gone: bool = False
    private: bool | None = None
    since: int = 0
    public_until: int = 0

    @property
    def with_repository(self) -> bool:
        """Of a tag: that its repository has changed since, so that it is told with it, later."""
        return self.kind == "tag" and self.since > self.number

    def shown(self, caller: Caller, after: int) -> Shown | None:
        """What ``caller``, who knows everything up to ``after``, is told of this change of a tag or repository.

        Of what it never could see it is told nothing: that it was there is not for it to know.
        """
        seen = self.private is not None and caller.may_pull(self.repository, self.private)
        if self.kind == "tag":
            return "tag" if seen else None
        if seen:
            return "repository"
        could = self.public_until > after or caller.may_pull(self.repository, private=True)
        return "gone" if could else None


@dataclass(frozen=True, slots=True)
class Page:
    """Changes by number, and the state as it was when they were read. ``upto``: there are no others up to here."""

    state: State
    changes: tuple[Change, ...]
    upto: int


@dataclass(frozen=True, slots=True)
class Scope:
    """Repositories by name, and all whose names begin with one of the prefixes."""

    repositories: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    def admits(self, repository: str) -> bool:
        """Whether this one is among them."""
        return repository in self.repositories or repository.startswith(self.prefixes)


class Changes(Protocol):
    """Each method reads one moment. A failed database raises LocalError."""

    async def state(self) -> State:
        """Where the counter is."""

    async def since(self, after: int, limit: int, scope: Scope | None = None) -> Page:
        """Changes after this number, in order, ``limit`` at most. With a ``scope``, of tags and repositories only
        those in it."""

    async def tags(self, repositories: Sequence[str], after: tuple[str, str], limit: int) -> list[Change]:
        """The tags that these repositories have, as their latest changes, by repository and name; those after the
        (repository, tag) ``after``."""

    async def repositories(self, names: Sequence[str]) -> list[Change]:
        """Those that exist, by name."""

    async def repositories_from(self, prefix: str, after: str, limit: int) -> list[Change]:
        """Those that exist whose names begin with ``prefix`` and come after ``after``, by name."""

    async def prune(self, keep: float) -> int:
        """Remove tombstones older than ``keep`` seconds, PRUNED_AT_ONCE at most; how many."""

    async def new_epoch(self, by: By) -> State:
        """Begin the next epoch: of a database that was restored from a backup, whose numbers are given again."""
