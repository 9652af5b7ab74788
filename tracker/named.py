"""Which digests the claim of some manifest names, remembered: a node asks once a piece, a crowd in the same second."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound
from tracker.catalog.base import Catalog

#: How many digests are remembered, and for how many seconds.
_SIZE: Final = 16384
_AGE: Final = 30.0
#: That a digest is not named is remembered more shortly: its manifest may be on its way.
_NOT_AGE: Final = 3.0


class Named:
    """Over a catalog. Use from one trio run."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: OrderedDict[Digest, tuple[bool, float]] = OrderedDict()

    def unknown(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those of which nothing is known, or nothing that is young enough."""
        now = trio.current_time()
        return [digest for digest in digests if self._known.get(digest, (False, 0.0))[1] <= now]

    def known(self, digest: Digest) -> bool:
        """Whether it was named when the catalog was asked last; False where it never was."""
        return self._known.get(digest, (False, 0.0))[0]

    async def learn(self, digests: Iterable[Digest]) -> None:
        """Ask the catalog about those that are unknown, in one question. Raises LocalError."""
        asked = self.unknown(digests)
        if not asked:
            return
        named = await self._catalog.named(asked)
        now = trio.current_time()
        for digest in asked:
            is_named = digest in named
            self._known[digest] = (is_named, now + (_AGE if is_named else _NOT_AGE))
            self._known.move_to_end(digest)
        while len(self._known) > _SIZE:
            self._known.popitem(last=False)

    async def check(self, digest: Digest) -> None:
        """Raises NotFound (BLOB_UNKNOWN) unless a claim names it, LocalError."""
        named, until = self._known.get(digest, (False, 0.0))
        if named and until > trio.current_time():
            return
        self._known.pop(digest, None)  # a manifest that names it may have come a moment ago
        await self.learn([digest])
        if not self.known(digest):
            raise NotFound("BLOB_UNKNOWN", "there is no such blob here")
