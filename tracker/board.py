"""Who wants and who holds what, and which of them a node is told of. Pure: time and chance are handed in.

A node that hears only of others that want a blob too, while somebody holds it, is badly served, and so is one that
hears only of holders and never of the crowd around it. So the peers of an answer are chosen in turns: for each digest
asked about one that holds it, then one that wants it, as long as there are any and the answer has room; whoever is
chosen for one digest counts for all others it has to do with.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from p2pregistry.messages import Crowd, PeerSeen

#: Of three peers told for the same reason one is from anywhere, where the asker's zone has enough of them: a zone that
#: heard of nobody outside would wait for pieces that only others have.
_ANYWHERE: Final = 3

#: ``randrange(start, stop)``, as ``random.Random`` has it.
RandRange = Callable[[int, int], int]


@dataclass(frozen=True, slots=True)
class Member:
    """A node as it announced itself. Digests are opaque keys here; none is in both sets. ``gateway``: the base URL of
    its gateway for IPFS clients; "": it has none."""

    peer_id: str
    url: str
    swarm: str
    zone: str = ""
    want: frozenset[bytes] = frozenset()
    hold: frozenset[bytes] = frozenset()
    gateway: str = ""

    @property
    def links(self) -> int:
        """How many digests it has to do with."""
        return len(self.want) + len(self.hold)


class _Bag:
    """Members in no order: added, removed and drawn in constant time."""

    __slots__ = ("_places", "items")

    def __init__(self) -> None:
        self.items: list[Member] = []
        self._places: dict[str, int] = {}

    def add(self, member: Member) -> None:
        self._places[member.peer_id] = len(self.items)
        self.items.append(member)

    def remove(self, peer_id: str) -> None:
        place = self._places.pop(peer_id)
        last = self.items.pop()
        if last.peer_id != peer_id:
            self.items[place] = last
            self._places[last.peer_id] = place

    def __contains__(self, peer_id: str) -> bool:
        return peer_id in self._places


class _Draw:
    """Members of a bag in random order, each once, without a copy of the bag; a shuffle that stops when it is left."""

    __slots__ = ("_items", "_moved", "_next", "_randrange")

    def __init__(self, bag: _Bag | None, randrange: RandRange) -> None:
        self._items = bag.items if bag is not None else []
        self._moved: dict[int, int] = {}
        self._next = 0
        self._randrange = randrange

    def next(self) -> Member | None:
        at, count = self._next, len(self._items)
        if at >= count:
            return None
        self._next = at + 1
        other = self._randrange(at, count)
        moved = self._moved
        chosen = moved.get(other, other)
        moved[other] = moved.get(at, at)
        return self._items[chosen]


class _Pool:
    """The members that want (or hold) one digest: all of them, and by zone."""

    __slots__ = ("everyone", "zones")

    def __init__(self) -> None:
        self.everyone = _Bag()
        self.zones: dict[str, _Bag] = {}

    def add(self, member: Member) -> None:
        self.everyone.add(member)
        if member.zone:
            self.zones.setdefault(member.zone, _Bag()).add(member)

    def remove(self, member: Member) -> None:
        self.everyone.remove(member.peer_id)
        if member.zone:
            bag = self.zones[member.zone]
            bag.remove(member.peer_id)
            if not bag.items:
                del self.zones[member.zone]


class _Need:
    """One reason to tell of peers: those that hold, or want, one digest."""

    __slots__ = ("_anywhere", "_drawn", "_near", "_pool", "covered", "spent")

    def __init__(self, pool: _Pool | None) -> None:
        self._pool = pool
        self._near: _Draw | None = None
        self._anywhere: _Draw | None = None
        self._drawn = 0
        #: How many of those chosen so far serve it.
        self.covered = 0
        self.spent = pool is None

    def next(self, zone: str, randrange: RandRange) -> Member | None:
        """Another candidate, perhaps one that was drawn before; None when there are no more."""
        if self._pool is None:
            return None
        if self._near is None or self._anywhere is None:  # most needs are covered by what was drawn for others
            self._near = _Draw(self._pool.zones.get(zone), randrange)
            self._anywhere = _Draw(self._pool.everyone, randrange)
        self._drawn += 1
        found = self._near.next() if self._drawn % _ANYWHERE else None
        if found is None:
            found = self._anywhere.next() or self._near.next()
        self.spent = found is None
        return found


@dataclass(slots=True)
class _Digest:
    """What is known of one digest in one swarm."""

    wanting: _Pool = field(default_factory=_Pool)
    holding: _Pool = field(default_factory=_Pool)
    gateways: _Bag | None = None  # those that hold it and have a gateway, if there is any


class Board:
    """All nodes that announced themselves and have not gone."""

    def __init__(self, *, randrange: RandRange) -> None:
        self._randrange = randrange
        self._members: dict[str, Member] = {}
        self._until: dict[str, float] = {}
        self._expiry: list[tuple[float, str]] = []
        self._digests: dict[tuple[str, bytes], _Digest] = {}
        #: Nodes that want something.
        self.wanting = 0
        #: Digests of all nodes together, each counted once for each node.
        self.links = 0

    def __len__(self) -> int:
        return len(self._members)

    def get(self, peer_id: str) -> Member | None:
        """A node as it announced itself last."""
        return self._members.get(peer_id)

    def put(self, member: Member, until: float) -> None:
        """A node announced itself; it is gone at ``until`` unless it does so again."""
        old = self._members.get(member.peer_id)
        if old != member:
            if old is not None:
                self._unlink(old)
            self._link(member)
        self._until[member.peer_id] = until
        heapq.heappush(self._expiry, (until, member.peer_id))

    def remove(self, peer_id: str) -> None:
        """A node is gone; one that is not known is no error."""
        old = self._members.get(peer_id)
        if old is not None:
            self._unlink(old)
            del self._until[peer_id]

    def expire(self, now: float) -> None:
        """Forget whoever has not announced itself in time."""
        while self._expiry and self._expiry[0][0] <= now:
            _, peer_id = heapq.heappop(self._expiry)
            if self._until.get(peer_id, now + 1) <= now:
                self.remove(peer_id)

    def _link(self, member: Member) -> None:
        self._members[member.peer_id] = member
        self.wanting += bool(member.want)
        self.links += member.links
        for key in member.want:
            self._digests.setdefault((member.swarm, key), _Digest()).wanting.add(member)
        for key in member.hold:
            found = self._digests.setdefault((member.swarm, key), _Digest())
            found.holding.add(member)
            if member.gateway:
                found.gateways = found.gateways or _Bag()
                found.gateways.add(member)

    def _unlink(self, member: Member) -> None:
        del self._members[member.peer_id]
        self.wanting -= bool(member.want)
        self.links -= member.links
        for keys, wanting in ((member.want, True), (member.hold, False)):
            for key in keys:
                found = self._digests[member.swarm, key]
                (found.wanting if wanting else found.holding).remove(member)
                if not wanting and member.gateway and found.gateways is not None:
                    found.gateways.remove(member.peer_id)
                if not found.wanting.everyone.items and not found.holding.everyone.items:
                    del self._digests[member.swarm, key]

    # -------------------------------------------------------------------------------------------------------- answers

    def crowd(self, swarm: str, key: bytes, asker: str) -> Crowd:
        """How many want and how many hold a digest, the asker not counted."""
        found = self._digests.get((swarm, key))
        if found is None:
            return Crowd()
        wanting, holding = found.wanting.everyone, found.holding.everyone
        return Crowd(len(wanting.items) - (asker in wanting), len(holding.items) - (asker in holding))

    def gateways(self, swarm: str, key: bytes, limit: int) -> list[Member]:
        """Up to ``limit`` nodes that hold a digest and have a gateway, by chance."""
        found = self._digests.get((swarm, key))
        draw = _Draw(None if found is None else found.gateways, self._randrange)
        chosen: list[Member] = []
        while len(chosen) < limit and (member := draw.next()) is not None:
            chosen.append(member)
        return chosen

    def peers(self, asker: str, swarm: str, zone: str, asked: Mapping[bytes, int], limit: int) -> list[PeerSeen]:
        """Up to ``limit`` nodes of the swarm that have to do with the digests ``asked`` about (key -> its position)."""
        holding: dict[int, _Need] = {}
        wanting: dict[int, _Need] = {}
        for key, position in asked.items():
            found = self._digests.get((swarm, key))
            holding[position] = _Need(None if found is None else found.holding)
            wanting[position] = _Need(None if found is None else found.wanting)
        needs = [need for position in holding for need in (holding[position], wanting[position])]
        chosen: dict[str, PeerSeen] = {}
        # in a crowd nearly all have the same digests: their positions are looked up once
        places: dict[tuple[frozenset[bytes], frozenset[bytes]], tuple[list[int], list[int]]] = {}
        turn = 0
        while len(chosen) < limit and not all(need.spent for need in needs):
            turn += 1
            for need in needs:
                if need.spent or need.covered >= turn:
                    continue
                member = need.next(zone, self._randrange)
                while member is not None and (member.peer_id == asker or member.peer_id in chosen):
                    member = need.next(zone, self._randrange)
                if member is None:
                    continue
                want, hold = places.get((member.want, member.hold)) or _places(member, asked, places)
                chosen[member.peer_id] = PeerSeen(member.peer_id, member.url, member.zone, want, hold)
                for position in hold:
                    holding[position].covered += 1
                for position in want:
                    wanting[position].covered += 1
                if len(chosen) >= limit:
                    break
        return list(chosen.values())


def _places(
    member: Member,
    asked: Mapping[bytes, int],
    known: dict[tuple[frozenset[bytes], frozenset[bytes]], tuple[list[int], list[int]]],
) -> tuple[list[int], list[int]]:
    """The positions of what a member wants and of what it holds; put down in ``known``."""
    want = [position for key, position in asked.items() if key in member.want]
    hold = [position for key, position in asked.items() if key in member.hold]
    known[member.want, member.hold] = want, hold
    return want, hold


@dataclass(frozen=True, slots=True)
class Pace:
    """How often nodes announce themselves: every ``wanting`` seconds while they want something, else every ``holding``;
    both longer when there are so many that this were more than ``rate`` announces a second in all."""

    wanting: float = 3.0
    holding: float = 30.0
    rate: float = 300.0
    #: Seconds until the next announce of a node that wants something new: by then the others of its crowd are known.
    soonest: float = 0.5
    #: Seconds of silence that any node may take.
    silence: float = 10.0

    def interval(self, wants: bool, wanting: int, holding: int) -> float:
        """Seconds until a node's next announce, with so many nodes of each kind."""
        stretch = max(1.0, (wanting / self.wanting + holding / self.holding) / self.rate)
        return stretch * (self.wanting if wants else self.holding)

    def soon(self, wanting: int) -> float:
        """Seconds until the next announce of a node that wants something new, of so many that want something."""
        return max(self.soonest, wanting / self.rate)

    def patience(self, interval: float) -> float:
        """Seconds without an announce after which a node with this interval is gone."""
        return max(self.silence, 3 * interval)
