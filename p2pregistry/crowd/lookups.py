"""Look-ups through the router, behind a short memory.

Serving a manifest shows interest in its layers, and the look-ups start then; the request for a layer, some milliseconds
later, joins the one under way or finds it done.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from p2pregistry.digest import Digest
from p2pregistry.routing.base import Peer, Router

#: Seconds for which what a look-up found is used again.
FRESH = 10.0
#: Look-ups that run at once on account of interest alone.
AHEAD = 8


class _Look:
    """One look-up: whether it found anybody, when it ended."""

    def __init__(self) -> None:
        self.found = False
        self.done = trio.Event()
        self.ended = 0.0


class LookUps:
    """``found(digest, peer)`` is called for each holder as it turns up."""

    def __init__(
        self, nursery: trio.Nursery, router: Router, found: Callable[[Digest, Peer], None], *, limit: int
    ) -> None:
        self._nursery, self._router, self._found, self._limit = nursery, router, found, limit
        self._looks: dict[Digest, _Look] = {}
        self._ahead = trio.CapacityLimiter(AHEAD)

    async def find(self, digest: Digest) -> None:
        """Return when a look-up has ended: one under way, one that found somebody just now, or a new one."""
        await self._begin(digest).done.wait()

    def ahead(self, digest: Digest) -> None:
        """Somebody will soon want it: begin to look."""
        self._begin(digest, self._ahead)

    def _begin(self, digest: Digest, limiter: trio.CapacityLimiter | None = None) -> _Look:
        now = trio.current_time()
        look = self._looks.get(digest)
        if look is not None and (not look.done.is_set() or (look.found and now - look.ended < FRESH)):
            return look
        for old in [d for d, known in self._looks.items() if known.done.is_set() and now - known.ended > FRESH]:
            del self._looks[old]
        look = self._looks[digest] = _Look()
        self._nursery.start_soon(self._look, digest, look, limiter)
        return look

    async def _look(self, digest: Digest, look: _Look, limiter: trio.CapacityLimiter | None) -> None:
        def found(peer: Peer) -> None:
            look.found = True
            self._found(digest, peer)

        try:
            if limiter is None:
                await self._router.find(digest, found, limit=self._limit)
            else:
                async with limiter:
                    await self._router.find(digest, found, limit=self._limit)
        finally:
            look.ended = trio.current_time()
            look.done.set()
