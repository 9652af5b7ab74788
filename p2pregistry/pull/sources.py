"""What a plan knows of its sources: what each has, how fast it is, and which of them are in use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pregistry.pull.commands import Request

#: What of the past remains in a rate when the next piece comes.
_KEEP = 0.75
#: An active source is replaced by one that is faster by this factor.
_BETTER = 1.25


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


@dataclass(slots=True)
class Out:
    """A request that is out."""

    request: Request
    source: Source
    started: float
    heard: float
    expected: float
    left: list[int]
    late: bool = False


@dataclass(slots=True)
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
    resume: float = 0.0
    #: when anything was heard of it
    alive: float = 0.0
    active: bool = False

    def of(self, bits: int) -> int:
        """What it has of these pieces."""
        return bits if self.have is None else bits & self.have

    def has(self, index: int) -> bool:
        return self.have is None or bool(self.have >> index & 1)


class Pool:
    """The sources of a flight: the tracker, the peers in use, and spare ones."""

    __slots__ = ("_most", "active", "all", "complete", "far", "partial", "tracker")

    def __init__(self, most: int) -> None:
        self._most = most
        self.all: dict[str, Source] = {}
        self.active: list[Source] = []
        self.tracker: Source | None = None
        self.complete: list[Source] = []
        self.partial = 0
        #: how many peers are in another zone
        self.far = 0

    def add(self, source: Source) -> None:
        self.all[source.name] = source
        if source.kind == "tracker":
            self.tracker = source
            source.active = True
            return
        if source.have is None:
            self.complete.append(source)
        else:
            self.partial += 1
        self.far += not source.near
        if len(self.active) < self._most:
            self._use(source)
        elif source.near:
            # a neighbour takes the place of one that is far
            for other in self.active:
                if not other.near:
                    self._swap(other, source)
                    break

    def remove(self, name: str) -> Source | None:
        source = self.all.pop(name, None)
        if source is None:
            return None
        if source is self.tracker:
            self.tracker = None
            return source
        if source.have is None:
            self.complete.remove(source)
        else:
            self.partial -= 1
        self.far -= not source.near
        if source.active:
            source.active = False
            self.active.remove(source)
            spare = max((s for s in self.peers() if not s.active), key=_order, default=None)
            if spare is not None:
                self._use(spare)
        return source

    def completed(self, source: Source) -> None:
        """A peer that lacked something has everything."""
        source.have = None
        self.partial -= 1
        self.complete.append(source)

    def lacks(self, source: Source, bits: int, everything: int) -> None:
        """A peer has not got these pieces after all."""
        if source.have is None:
            source.have = everything
            self.complete.remove(source)
            self.partial += 1
        source.have &= ~bits

    def peers(self) -> Iterable[Source]:
        return (source for source in self.all.values() if source is not self.tracker)

    def holder(self, now: float) -> bool:
        """Whether a peer that has everything can be asked."""
        return any(source.resume <= now for source in self.complete)

    def hire(self, bits: int, now: float) -> Source | None:
        """A spare source that has some of these pieces takes the place of one that has none of them."""
        if len(self.all) - (self.tracker is not None) <= len(self.active):
            return None
        spare = self._best_spare(bits, now)
        if spare is None:
            return None
        for source in self.active:
            if not source.out and (source.resume > now or not source.of(bits)):
                self._swap(source, spare)
                return spare
        return None

    def review(self, bits: int, now: float) -> None:
        """Let the worst source in use make room for a spare one: one nobody tried yet, else one that was faster.
        ``bits``: what is missing."""
        if len(self.all) - (self.tracker is not None) <= len(self.active) or not self.active:
            return
        spare = self._best_spare(bits, now)
        if spare is None:
            return
        worst = min(self.active, key=lambda s: (s.resume <= now and s.of(bits) != 0, s.near, s.rate or float("inf")))
        useless = worst.resume > now or not worst.of(bits)
        slower = worst.rate > 0.0 and (spare.rate == 0.0 or spare.rate > _BETTER * worst.rate)
        if useless or (slower and spare.near >= worst.near):
            self._swap(worst, spare)
        self.active.sort(key=lambda s: (not s.near, -s.rate))

    def _best_spare(self, bits: int, now: float) -> Source | None:
        best: Source | None = None
        for source in self.all.values():
            if source.active or source.resume > now or not source.of(bits):
                continue
            if best is None or _order(source) > _order(best):
                best = source
        return best

    def _use(self, source: Source) -> None:
        source.active = True
        self.active.append(source)

    def _swap(self, out: Source, in_: Source) -> None:
        out.active, in_.active = False, True
        self.active[self.active.index(out)] = in_


def _order(source: Source) -> tuple[bool, bool, float]:
    return source.near, source.rate == 0.0, source.rate
