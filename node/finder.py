"""Where a flight's sources come from: the router, behind a short memory.

Serving a manifest shows interest in its layers, and the look-ups start then; the request for a layer, some milliseconds
later, joins the one under way or finds it done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import Unreachable
from p2pregistry.observe import logger
from p2pregistry.routing.base import Peer, Router
from p2pregistry.sources.base import Source
from p2pregistry.sources.peer import PeerSource
from p2pregistry.sources.tracker import TrackerSource

#: Seconds for which what a look-up found is used again.
FRESH = 10.0
#: Seconds for which a peer that sent wrong bytes is not asked.
BAN = 600.0
#: Look-ups that run at once on account of interest alone.
AHEAD = 8
_log = logger(__name__)


class _Look:
    """One look-up: what it found so far, who is told of more, when it ended."""

    def __init__(self) -> None:
        self.found: list[Peer] = []
        self.told: list[Callable[[Source], None]] = []
        self.done = trio.Event()
        self.ended = 0.0


class PeerFinder:
    """The ``Finder`` of a node's flights. Run ``serve`` in a nursery."""

    def __init__(self, router: Router, tracker: TrackerSource | None, *, limit: int) -> None:
        self._router, self._tracker, self._limit = router, tracker, limit
        self._looks: dict[Digest, _Look] = {}
        self._banned: dict[str, float] = {}
        self._sources: dict[str, PeerSource] = {}
        self._nursery: trio.Nursery | None = None
        self._ahead = trio.CapacityLimiter(AHEAD)

    @property
    def tracker(self) -> Source | None:
        return None if self._tracker is None or self._tracker.down else self._tracker

    async def serve(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the look-ups; on the way out, close the connections to peers."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for source in self._sources.values():
                source.close()

    async def find(self, digest: Digest, found: Callable[[Source], None]) -> None:
        look = self._begin(digest)
        for peer in list(look.found):
            self._tell(peer, found)
        look.told.append(found)
        try:
            await look.done.wait()
        finally:
            look.told.remove(found)

    def ahead(self, digests: Iterable[Digest]) -> None:
        """Somebody will soon want these: begin to look."""
        for digest in digests:
            self._begin(digest, limiter=self._ahead)

    def ban(self, source: str, why: str) -> None:
        _log.warning("a peer is banned", peer=source, why=why, seconds=BAN)
        self._banned[source] = trio.current_time() + BAN

    def _begin(self, digest: Digest, limiter: trio.CapacityLimiter | None = None) -> _Look:
        now = trio.current_time()
        look = self._looks.get(digest)
        if look is not None and (not look.done.is_set() or (look.found and now - look.ended < FRESH)):
            return look
        for old in [d for d, known in self._looks.items() if known.done.is_set() and now - known.ended > FRESH]:
            del self._looks[old]
        look = self._looks[digest] = _Look()
        if self._nursery is None:
            look.done.set()
        else:
            self._nursery.start_soon(self._look, digest, look, limiter)
        return look

    async def _look(self, digest: Digest, look: _Look, limiter: trio.CapacityLimiter | None) -> None:
        def found(peer: Peer) -> None:
            look.found.append(peer)
            for told in list(look.told):
                self._tell(peer, told)

        try:
            if limiter is None:
                await self._router.find(digest, found, limit=self._limit)
            else:
                async with limiter:
                    await self._router.find(digest, found, limit=self._limit)
        finally:
            look.ended = trio.current_time()
            look.done.set()

    def _tell(self, peer: Peer, found: Callable[[Source], None]) -> None:
        until = self._banned.get(peer.peer_id)
        if until is not None:
            if trio.current_time() < until:
                return
            del self._banned[peer.peer_id]
        source = self._sources.get(peer.peer_id)
        if source is None or source.client.url != peer.url.rstrip("/"):
            if source is not None:
                source.close()
            try:
                source = self._sources[peer.peer_id] = PeerSource(peer.peer_id, peer.url)
            except Unreachable as err:
                _log.info("a peer has no address that can be used", peer=peer.peer_id, why=err.message)
                return
        found(source)
