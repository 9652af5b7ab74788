"""What a plan knows of its sources: what each has, how fast it is, and which of them are in use."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

from p2pregistry.pull.commands import Request

#: What of the past remains in a rate when the next piece comes.
_KEEP = 0.75
#: What a source was measured at counts for twice as much when it has not been used for so many seconds, and so on.
_FADE = 4.0


@dataclass(slots=True)
class Meter:
    """A rate from what arrived and the time that something was under way. Sums that fade, not a mean of rates: pieces
    that arrive in bunches would make that far too high."""

    amount: float = 0.0
    time: float = 0.0
    since: float = 0.0

    def add(self, length: int, began: float, now: float) -> None:
        """``length`` bytes that were asked for at ``began`` are here."""
        self.amount = _KEEP * self.amount + length
        self.time = _KEEP * self.time + max(now - max(self.since, began), 1e-5)
        self.since = now

    @property
    def rate(self) -> float:
        """Bytes a second; 0 while nothing is known."""
        return self.amount / self.time if self.time else 0.0


@dataclass(slots=True, eq=False)
class Out:
    """A request that is out."""

    request: Request
    source: Source
    started: float
    heard: float
    expected: float
    left: list[int]
    late: bool = False


@dataclass(slots=True, eq=False)
class Source:
    name: str
    kind: str
    near: bool
    have: int | None  # None: everything
    meter: Meter = field(default_factory=Meter)
    rate: float = 0.0
    out: dict[int, Out] = field(default_factory=dict)
    pieces_out: int = 0
    strikes: int = 0
    lies: int = 0
    #: the last strike was for silence: it may be there yet
    silent: bool = False
    resume: float = 0.0
    #: when anything was heard of it
    alive: float = 0.0
    #: when it was asked last
    used: float = 0.0
    #: a random number: among equals each flight prefers others
    noise: int = 0

    def score(self, now: float) -> float:
        return self.rate * (1.0 + (now - self.used) / _FADE) if self.rate else float("inf")

    def of(self, bits: int) -> int:
        """What it has of these pieces."""
        return bits if self.have is None else bits & self.have

    def has(self, index: int) -> bool:
        return self.have is None or bool(self.have >> index & 1)


class Pool:
    """The sources of a flight: the tracker, and the peers, of which only so many are in use at a time. Which ones, is
    decided anew with each request: the fastest first, where fast means that a piece came soon after it was asked for,
    so that a peer with a long queue is left to others. What is known of one that is not used fades, so that it is tried
    again now and then; one that was never tried goes first.

    Gateways of IPFS are asked as peers in another zone are, after those. But that one of them may have everything is
    only hoped: they are no holders, and what the tracker is to a flight does not depend on them."""

    __slots__ = ("_most", "all", "complete", "far", "gateways", "in_use", "partial", "peers", "tracker")

    def __init__(self, most: int) -> None:
        self._most = most
        self.all: dict[str, Source] = {}
        self.peers: dict[str, Source] = {}
        self.gateways: dict[str, Source] = {}
        self.tracker: Source | None = None
        self.complete: list[Source] = []
        self.partial = 0
        #: how many peers are in another zone
        self.far = 0
        #: how many peers and gateways have requests out
        self.in_use = 0

    def add(self, source: Source) -> None:
        self.all[source.name] = source
        if source.kind == "tracker":
            self.tracker = source
            return
        if source.kind == "ipfs":
            self.gateways[source.name] = source
            return
        self.peers[source.name] = source
        if source.have is None:
            self.complete.append(source)
        else:
            self.partial += 1
        self.far += not source.near

    def remove(self, source: Source) -> None:
        """It has nothing out."""
        del self.all[source.name]
        if source is self.tracker:
            self.tracker = None
            return
        if source.kind == "ipfs":
            del self.gateways[source.name]
            return
        del self.peers[source.name]
        if source.have is None:
            self.complete.remove(source)
        else:
            self.partial -= 1
        self.far -= not source.near

    def completed(self, source: Source) -> None:
        """A peer that lacked something has everything."""
        source.have = None
        if source.kind != "ipfs":
            self.partial -= 1
            self.complete.append(source)

    def lacks(self, source: Source, bits: int, everything: int) -> None:
        """A peer has not got these pieces after all."""
        if source.have is None:
            source.have = everything
            if source.kind != "ipfs":
                self.complete.remove(source)
                self.partial += 1
        source.have &= ~bits

    def holder(self, now: float) -> bool:
        """Whether a peer that has everything can be asked."""
        return any(source.resume <= now for source in self.complete)

    @property
    def full(self) -> bool:
        """Whether as many peers are in use as may be."""
        return self.in_use >= self._most

    def usable(self, source: Source, now: float) -> bool:
        """Whether a peer may be asked: it is not set back, and in use or there is room for one more."""
        return source.resume <= now and (bool(source.out) or self.in_use < self._most)

    def useful(self, bits: int, now: float) -> list[Source]:
        """The peers that may be asked and have some of these pieces, the best first; then such gateways."""
        room = self.in_use < self._most
        found = [
            ((not source.near) + (source.kind == "ipfs"), -source.score(now), source.noise, source.name, source)
            for source in chain(self.peers.values(), self.gateways.values())
            if source.resume <= now and (room or source.out) and (source.have is None or source.have & bits)
        ]
        found.sort()
        return [source for *_, source in found]
