"""The seam ``Announces``: who wants and who holds what, kept for a while, whichever tracker process is asked.

The answers come from a ``Board`` in this process's memory. An implementation keeps it in step with what the other
processes of the same tracker were told.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.messages import MAX_HOLD, MAX_PEERS, MAX_WANT, MIN_INTERVAL, Announce, Announced, Crowd
from p2pregistry.trust.records import ANYONE, Caller
from tracker.board import Board, Member, Pace, RandRange
from tracker.catalog.keys import digest_key
from tracker.named import Named

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge

#: Nodes that are remembered at once; a new one is turned away beyond that.
MAX_NODES: Final = 50_000
#: Digests that are remembered for each of them on average: some hundred bytes of memory each.
_LINKS: Final = 40
#: Each interval is up to this part shorter or longer, so that a crowd does not come again in the same moment.
_SPREAD: Final = 0.15


class Announces(Protocol):
    """What nodes announce, and who they are told of."""

    async def announce(self, announce: Announce, caller: Caller = ANYONE) -> Announced:
        """Take a node's announce in and answer it. The node is found by others from now on, until it leaves or is
        silent for three of its intervals.

        Digests that the caller may not pull count for nothing: nobody is told that it has to do with them, and it is
        told of nobody who has; so do those that no claim names. Of the answer: at most MAX_PEERS others, none of
        another swarm. Raises RequestError (TOOMANYREQUESTS) if there are too many nodes.
        """

    async def gateways(self, swarm: str, digest: Digest, limit: int) -> list[Member]:
        """Some of the nodes of a swarm that hold a digest and have a gateway. Whether anybody may be told of the digest
        the caller has found out."""


class Desk:
    """What all implementations share: the board, and the answers from it."""

    def __init__(self, named: Named, *, pace: Pace, randrange: RandRange, limit: int = MAX_NODES) -> None:
        self.named = named
        self.board = Board(randrange=randrange)
        self._pace = pace
        self._randrange = randrange
        self._limit = limit
        announces_total()

    def take(self, announce: Announce, caller: Caller) -> tuple[Member, float, float]:
        """Put a node on the board, with those of its digests that it may pull, or take it off. Gives it, for how many
        seconds it stays unless it announces itself again, and after how many it is to do so. Raises RequestError
        (TOOMANYREQUESTS)."""
        announces_total().inc()
        now = trio.current_time()
        board = self.board
        board.expire(now)
        hold = self._keys(announce.hold, caller)
        want = self._keys(announce.want, caller) - hold
        if announce.leaving:
            board.remove(announce.peer_id)
            nodes_known().set(len(board))
            return Member(announce.peer_id, announce.url, announce.swarm, announce.zone), 0.0, self._interval(False)
        member = Member(announce.peer_id, announce.url, announce.swarm, announce.zone, want, hold, announce.gateway)
        if not self._room(member):
            raise RequestError("TOOMANYREQUESTS", "too many nodes announce themselves", headers={"Retry-After": "30"})
        old = board.get(member.peer_id)
        # also a node that wants what is not known yet: it may be in a moment
        interval = self._interval(bool(announce.want))
        lasts = self._pace.patience(interval)
        board.put(member, now + lasts)
        nodes_known().set(len(board))
        if want and (old is None or not want <= old.want):
            interval = min(interval, self._pace.soon(board.wanting))
        return member, lasts, interval

    def _keys(self, digests: Iterable[Digest], caller: Caller) -> frozenset[bytes]:
        return frozenset(digest_key(digest) for digest in digests if self.named.known(digest, caller))

    def learn(self, member: Member, until: float) -> None:
        """What another process was told."""
        if self._room(member):
            self.board.put(member, until)
            nodes_known().set(len(self.board))

    def _room(self, member: Member) -> bool:
        old = self.board.get(member.peer_id)
        more = member.links - (0 if old is None else old.links)
        few = old is not None or len(self.board) < self._limit
        return few and (more <= 0 or self.board.links + more <= max(_LINKS * self._limit, MAX_WANT + MAX_HOLD))

    def expire(self) -> None:
        """Forget whoever is gone."""
        self.board.expire(trio.current_time())
        nodes_known().set(len(self.board))

    def _interval(self, wants: bool) -> float:
        board = self.board
        return self._pace.interval(wants, board.wanting, len(board) - board.wanting)

    def answer(self, announce: Announce, caller: Caller, interval: float) -> Announced:
        """What a node is told: from the board as it is now."""
        board = self.board
        board.expire(trio.current_time())
        told = ((i, digest) for i, digest in enumerate(announce.want) if self.named.known(digest, caller))
        asked = {digest_key(digest): i for i, digest in told}
        crowd = [Crowd()] * len(announce.want)
        for key, position in asked.items():
            crowd[position] = board.crowd(announce.swarm, key, announce.peer_id)
        peers = []
        if not announce.leaving:
            peers = board.peers(announce.peer_id, announce.swarm, announce.zone, asked, MAX_PEERS)
        return Announced(peers, crowd, round(max(MIN_INTERVAL, interval * self._chance()), 3))

    def gateways(self, swarm: str, digest: Digest, limit: int) -> list[Member]:
        """See ``Announces``: from the board as it is now."""
        self.board.expire(trio.current_time())
        return self.board.gateways(swarm, digest_key(digest), limit)

    def _chance(self) -> float:
        return 1 - _SPREAD + 2 * _SPREAD * self._randrange(0, 1000) / 1000


class MemoryAnnounces:
    """``Announces`` of one process: for tests, and for trackers that are alone."""

    def __init__(self, named: Named, *, pace: Pace, randrange: RandRange, limit: int = MAX_NODES) -> None:
        self.desk = Desk(named, pace=pace, randrange=randrange, limit=limit)

    async def announce(self, announce: Announce, caller: Caller = ANYONE) -> Announced:
        await self.desk.named.learn((*announce.want, *announce.hold))
        _, _, interval = self.desk.take(announce, caller)
        for _ in range(2):  # those that waited for the same answer of the catalog are on the board by then
            await trio.lowlevel.checkpoint()
        return self.desk.answer(announce, caller, interval)

    async def gateways(self, swarm: str, digest: Digest, limit: int) -> list[Member]:
        await trio.lowlevel.checkpoint()
        return self.desk.gateways(swarm, digest, limit)


@functools.cache
def announces_total() -> Counter:
    """``p2pregistry_announces_total``: announces taken in."""
    from prometheus_client import Counter

    nodes_known()
    return Counter("p2pregistry_announces", "Announces of nodes taken in.")


@functools.cache
def nodes_known() -> Gauge:
    """``p2pregistry_nodes_known``: nodes that have announced themselves, to this tracker process or to others."""
    from prometheus_client import Gauge

    return Gauge("p2pregistry_nodes_known", "Nodes that have announced themselves and have not gone.")
