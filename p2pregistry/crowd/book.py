"""What is known of other nodes and of the blobs this node fetches. No I/O, no clock: ``now`` is handed in.

A *topic* is a blob that a flight follows, or that somebody here will soon want. For each topic the book keeps which
pieces each peer has, so that a flight that begins late knows all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from p2pregistry.digest import Digest
from p2pregistry.pull.pieces import Randrange
from p2pregistry.routing.base import Peer

#: Peers that are remembered, and have-streams that are open, at most.
MOST_PEERS = 300
MOST_WATCHED = 12
#: Of those, to peers that have everything already: they say who else watches them.
MOST_HOLDERS = 4
#: Seconds that a blob stays a topic because of interest alone.
INTEREST = 60.0
#: The most pieces of a blob (4 TiB): what a have-map may name.
MOST_PIECES = 1 << 22
#: Seconds after a failure before a peer is watched again: doubled by each further one, up to the last.
BACK_OFF = 0.5
BACK_OFF_MOST = 30.0

#: A have-map: one byte for each piece; None: all of them.
Have = bytearray | None


@dataclass(slots=True)
class Topic:
    """One blob. ``have`` is by peer id; a peer that only wants it and has nothing yet is in ``wanting`` alone."""

    until: float
    shared: bool = True  # others are told that it is wanted
    here: bool = False  # complete: of no more interest, but what is known of its holders holds for its image's rest
    followers: int = 0
    have: dict[str, Have] = field(default_factory=dict)
    wanting: set[str] = field(default_factory=set)
    crowd: tuple[int, int] | None = None  # as the tracker says
    told: tuple[int, int] | None = None  # as the followers were told


@dataclass(slots=True)
class Known:
    """A peer, how often in a row it could not be watched, and when it may be tried again."""

    peer: Peer
    failures: int = 0
    resume: float = 0.0
    heard: float = 0.0


class Book:
    """See the module. ``me`` is this node's own peer id, ``randrange`` draws whom to watch."""

    def __init__(self, me: str, randrange: Randrange) -> None:
        self._me, self._randrange = me, randrange
        self.topics: dict[Digest, Topic] = {}
        self.peers: dict[str, Known] = {}

    # -- topics -------------------------------------------------------------------------------------------------

    def topic(self, digest: Digest, now: float, *, shared: bool = True) -> Topic:
        """The topic of this blob, made if need be, alive for some time."""
        topic = self.topics.get(digest)
        if topic is None:
            topic = self.topics[digest] = Topic(now + INTEREST, shared)
        topic.until = max(topic.until, now + INTEREST)
        return topic

    def holders(self, digest: Digest) -> list[str]:
        """Peers that are known to have all of it."""
        topic = self.topics.get(digest)
        return [] if topic is None else [peer_id for peer_id, have in topic.have.items() if have is None]

    def tidy(self, now: float) -> None:
        """Forget topics that nobody follows and nobody has asked for lately."""
        for digest in [d for d, t in self.topics.items() if not t.followers and t.until <= now]:
            del self.topics[digest]

    def wanted(self) -> list[Digest]:
        """The topics that others are told of, oldest first."""
        return [digest for digest, topic in self.topics.items() if topic.shared and not topic.here]

    # -- peers --------------------------------------------------------------------------------------------------

    def meet(self, peer: Peer, now: float) -> bool:
        """Somebody named this peer. False if it is this node itself, or there is no room for it."""
        if peer.peer_id == self._me:
            return False
        known = self.peers.get(peer.peer_id)
        if known is not None:
            if known.peer != peer:
                known.peer, known.failures, known.resume = peer, 0, 0.0
            known.heard = now
            return True
        if len(self.peers) >= MOST_PEERS:
            useful = self._useful()
            idle = [k for k in self.peers.values() if k.peer.peer_id not in useful]
            if not idle:
                return False
            self.forget(min(idle, key=lambda k: k.heard).peer.peer_id)
        self.peers[peer.peer_id] = Known(peer, heard=now)
        return True

    def forget(self, peer_id: str) -> list[Digest]:
        """It is gone: the topics of which it had something."""
        self.peers.pop(peer_id, None)
        return self.lost(peer_id)

    def lost(self, peer_id: str, *, parts_only: bool = False) -> list[Digest]:
        """Nothing can be had from it now: the topics of which it had something. ``parts_only``: what others say that it
        holds it may still hold; it is only not heard of what it fetches itself."""
        found = []
        for digest, topic in self.topics.items():
            topic.wanting.discard(peer_id)
            if peer_id in topic.have and not (parts_only and topic.have[peer_id] is None):
                del topic.have[peer_id]
                found.append(digest)
        return found

    def failed(self, peer_id: str, now: float) -> None:
        """It could not be watched."""
        known = self.peers.get(peer_id)
        if known is not None:
            known.failures += 1
            known.resume = now + min(BACK_OFF * 2 ** (known.failures - 1), BACK_OFF_MOST)

    def answered(self, peer_id: str, now: float) -> None:
        """It is there."""
        known = self.peers.get(peer_id)
        if known is not None:
            known.failures, known.resume, known.heard = 0, 0.0, now

    def to_watch(self, watched: Iterable[str], now: float, zone: str) -> list[Peer]:
        """Which peers to open have-streams to, besides those ``watched``: near ones first, random among equals."""
        watched = set(watched)
        useful = self._useful()
        holders = sum(useful.get(peer_id, False) for peer_id in watched)
        waiting = [
            (useful[k.peer.peer_id], k.peer.zone != zone, self._randrange(1 << 30), k.peer)
            for k in self.peers.values()
            if k.peer.peer_id in useful and k.peer.peer_id not in watched and k.resume <= now
        ]
        chosen: list[Peer] = []
        for only_holds, _far, _draw, peer in sorted(waiting, key=lambda entry: entry[:3]):
            if len(watched) + len(chosen) >= MOST_WATCHED:
                break
            if only_holds:
                if holders >= MOST_HOLDERS:
                    continue
                holders += 1
            chosen.append(peer)
        return chosen

    def watchable(self, peer_id: str) -> bool:
        """Whether a stream to this peer is still of use."""
        return peer_id in self._useful()

    def _useful(self) -> dict[str, bool]:
        """Peers that want or have something of a topic; True for those that already have all they are known for."""
        found: dict[str, bool] = {}
        for topic in self.topics.values():
            if topic.here:
                continue
            for peer_id in topic.wanting:
                found[peer_id] = False
            for peer_id, have in topic.have.items():
                found[peer_id] = found.get(peer_id, True) and have is None
        return found

    def concerns(self, digest: Digest, peer_id: str) -> bool:
        """Whether this peer is known to want the blob or to have some of it."""
        topic = self.topics.get(digest)
        return topic is not None and (peer_id in topic.wanting or peer_id in topic.have)

    # -- what they have -----------------------------------------------------------------------------------------

    def wants(self, digest: Digest, peer_id: str) -> None:
        """This peer wants the blob, and will have parts of it."""
        topic = self.topics.get(digest)
        if topic is not None and peer_id in self.peers and topic.have.get(peer_id, b"") is not None:
            topic.wanting.add(peer_id)

    def holds(self, digest: Digest, peer_id: str) -> bool:
        """This peer has all of it. Whether that is news."""
        topic = self.topics.get(digest)
        if topic is None or peer_id not in self.peers:
            return False
        topic.wanting.discard(peer_id)
        if peer_id in topic.have and topic.have[peer_id] is None:
            return False
        topic.have[peer_id] = None
        return True

    def has(self, digest: Digest, peer_id: str, pieces: bytearray) -> bool:
        """Its whole have-map. Whether it is news."""
        topic = self.topics.get(digest)
        if topic is None or peer_id not in self.peers:
            return False
        topic.wanting.add(peer_id)
        topic.have[peer_id] = pieces
        return True

    def adds(self, digest: Digest, peer_id: str, pieces: Sequence[int]) -> bool:
        """Pieces it has besides. Whether that is news."""
        topic = self.topics.get(digest)
        have = topic.have.get(peer_id, None) if topic is not None else None
        if topic is None or have is None or not pieces:
            return False
        most = max(pieces)
        if most >= len(have):
            have.extend(bytes(most + 1 - len(have)))
        for index in pieces:
            have[index] = 1
        return True

    def drops(self, digest: Digest, peer_id: str) -> bool:
        """It has let go of the blob. Whether it had any of it."""
        topic = self.topics.get(digest)
        if topic is None or peer_id not in topic.have:
            return False
        del topic.have[peer_id]
        topic.wanting.discard(peer_id)
        return True


def unpacked(bitmap: bytes) -> bytearray:
    """A packed bitmap (bit 7 of byte 0 is piece 0) with one byte for each piece."""
    if not bitmap:
        return bytearray()
    bits = f"{int.from_bytes(bitmap, 'big'):0{8 * len(bitmap)}b}"
    return bytearray(bits.encode("ascii").translate(_BITS))


_BITS = bytes.maketrans(b"01", b"\x00\x01")
