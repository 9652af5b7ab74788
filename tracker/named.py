"""Who may be told of which digests, remembered: a node asks once a piece, a crowd in the same second.

A digest counts for a caller if the claim of some manifest names it, in a repository that the caller may pull. What is
private to others is the same as what nobody has heard of. What is remembered is doubted as soon as some repository has
become private or is no more (``follow``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound
from p2pregistry.observe import logger
from p2pregistry.trust.records import Caller
from tracker.catalog.base import Naming
from tracker.db import Connection, Db

#: How many digests are remembered, and for how many seconds.
_SIZE: Final = 16384
_AGE: Final = 30.0
#: That a digest is not named, or not publicly, is remembered more shortly: its manifest may be on its way.
_NOT_AGE: Final = 3.0
_UNNAMED: Final = Naming(False)
#: Seconds between two looks whether something has happened to a repository.
FOLLOW: Final = 1.0
_CHANGED: Final = """
select s.epoch, s.number, exists (select from changes c where c.number > %s and c.kind = 'repository')
from change_state s
"""

_log = logger(__name__)


class Catalog(Protocol):
    """What is needed of it."""

    async def naming(self, digests: Sequence[Digest]) -> dict[Digest, Naming]:
        """Of those digests that some manifest's claim names."""


class _Known(NamedTuple):
    naming: Naming
    until: float
    doubts: int = 0  # how often all was doubted before it was asked


_NEVER: Final = _Known(_UNNAMED, 0.0)


class Named:
    """Over a catalog. Use from one trio run."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: OrderedDict[Digest, _Known] = OrderedDict()
        self._doubts = 0
        #: Set when the question that is under way has been answered, or has failed.
        self._asking: trio.Event | None = None

    def unknown(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those of which nothing is known, or nothing that is young enough."""
        now = trio.current_time()
        return [digest for digest in digests if not self._sure(digest, now)]

    def _sure(self, digest: Digest, now: float) -> bool:
        known = self._known.get(digest, _NEVER)
        return known.until > now and known.doubts == self._doubts

    def doubt(self) -> None:
        """Who may pull what has changed: ask anew of each digest."""
        self._doubts += 1

    def known(self, digest: Digest, caller: Caller) -> bool:
        """Whether the caller may be told of it, as of when the catalog was asked last; False where it never was."""
        naming = self._known.get(digest, _NEVER).naming
        return naming.public or any(caller.may_pull(repository, private=True) for repository in naming.private)

    async def learn(self, digests: Iterable[Digest]) -> None:
        """Ask the catalog about those that are unknown, in one question. Raises LocalError."""
        while asked := self.unknown(digests):
            if self._asking is not None:  # a crowd asks about the same ones: after this answer most are known
                await self._asking.wait()
                continue
            answered, doubts = trio.Event(), self._doubts  # what is doubted meanwhile is asked again
            self._asking = answered
            try:
                self._learnt(asked, await self._catalog.naming(asked), doubts)
            finally:
                self._asking = None
                answered.set()
            return

    def _learnt(self, asked: Iterable[Digest], found: dict[Digest, Naming], doubts: int) -> None:
        now = trio.current_time()
        for digest in asked:
            until = now + (_AGE if digest in found else _NOT_AGE)
            self._known[digest] = _Known(found.get(digest, _UNNAMED), until, doubts)
            self._known.move_to_end(digest)
        while len(self._known) > _SIZE:
            self._known.popitem(last=False)

    async def check(self, digest: Digest, caller: Caller) -> None:
        """Raises NotFound (BLOB_UNKNOWN) unless the caller may be told of it, LocalError."""
        if self._sure(digest, trio.current_time()) and self.known(digest, caller):
            return
        self._known.pop(digest, None)  # a manifest that names it may have come a moment ago
        await self.learn([digest])
        if not self.known(digest, caller):
            raise NotFound("BLOB_UNKNOWN", "there is no such blob here")


class Follower:
    """Doubts what ``named`` remembers whenever something has happened to a repository, whichever tracker did it."""

    def __init__(self, db: Db, named: Named) -> None:
        self._db, self._named = db, named
        self._seen: tuple[int, int] = (0, 0)

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.follow()
            except LocalError as err:
                _log.warning("changes of repositories cannot be read now", error=err.message)
            await trio.sleep(FOLLOW)

    async def follow(self) -> None:
        """Look once. Raises LocalError."""
        epoch, number, changed = await self._db.query(_changed, self._seen[1])
        # a database that was restored goes on with lower numbers, or in another epoch
        if changed or (epoch, number) < self._seen or epoch != self._seen[0]:
            self._named.doubt()
        self._seen = (epoch, number)


def _changed(connection: Connection, since: int) -> tuple[int, int, bool]:
    """Epoch and number of the latest change, and whether one after ``since`` is about a repository."""
    row = connection.execute(_CHANGED, (since,)).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]), bool(row[2])
