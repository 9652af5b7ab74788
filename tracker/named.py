"""Who may be told of which digests, remembered: a node asks once a piece, a crowd in the same second.

A digest counts for a caller if the claim of some manifest names it, in a repository that the caller may pull. What is
private to others is the same as what nobody has heard of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound
from p2pregistry.trust.records import Caller
from tracker.catalog.base import Naming

#: How many digests are remembered, and for how many seconds.
_SIZE: Final = 16384
_AGE: Final = 30.0
#: That a digest is not named, or not publicly, is remembered more shortly: its manifest may be on its way.
_NOT_AGE: Final = 3.0
_UNNAMED: Final = Naming(False)


class Catalog(Protocol):
    """What is needed of it."""

    async def naming(self, digests: Sequence[Digest]) -> dict[Digest, Naming]:
        """Of those digests that some manifest's claim names."""


class _Known(NamedTuple):
    naming: Naming
    until: float


_NEVER: Final = _Known(_UNNAMED, 0.0)


class Named:
    """Over a catalog. Use from one trio run."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: OrderedDict[Digest, _Known] = OrderedDict()
        #: Set when the question that is under way has been answered, or has failed.
        self._asking: trio.Event | None = None

    def unknown(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those of which nothing is known, or nothing that is young enough."""
        now = trio.current_time()
        return [digest for digest in digests if self._known.get(digest, _NEVER).until <= now]

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
            answered = self._asking = trio.Event()
            try:
                self._learnt(asked, await self._catalog.naming(asked))
            finally:
                self._asking = None
                answered.set()
            return

    def _learnt(self, asked: Iterable[Digest], found: dict[Digest, Naming]) -> None:
        now = trio.current_time()
        for digest in asked:
            self._known[digest] = _Known(found.get(digest, _UNNAMED), now + (_AGE if digest in found else _NOT_AGE))
            self._known.move_to_end(digest)
        while len(self._known) > _SIZE:
            self._known.popitem(last=False)

    async def check(self, digest: Digest, caller: Caller) -> None:
        """Raises NotFound (BLOB_UNKNOWN) unless the caller may be told of it, LocalError."""
        if self._known.get(digest, _NEVER).until > trio.current_time() and self.known(digest, caller):
            return
        self._known.pop(digest, None)  # a manifest that names it may have come a moment ago
        await self.learn([digest])
        if not self.known(digest, caller):
            raise NotFound("BLOB_UNKNOWN", "there is no such blob here")
