"""Links on virtual time: transfers share what they cross, as streams of bytes without packets."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """Events in the order of their time. Seconds from 0. ``exact``: how transfers share links."""

    def __init__(self, *, exact: bool = False) -> None:
        self.exact = exact
        self.transfers: dict[Transfer, None] = {}
        self.now = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = 0

    def after(self, delay: float, do: Callable[..., None], *args: object) -> None:
        self._number += 1
        heapq.heappush(self._heap, (self.now + delay, self._number, do, args))

    def run(self, go_on: Callable[[], bool], until: float) -> None:
        """Until nothing is left, ``go_on`` says no, or the time is ``until``."""
        heap = self._heap
        while heap and go_on():
            at, _, do, args = heapq.heappop(heap)
            if at > until:
                return
            self.now = at
            self.events += 1
            do(*args)


class Link:
    """One direction of a line, bytes a second; ``used`` is what its transfers take now."""

    __slots__ = ("carried", "rate", "used")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.used = 0.0
        self.carried: list[Transfer] = []

    def room(self, transfer: Transfer) -> float:
        """What this transfer may have: what the others leave, and no less than an equal share."""
        return max(self.rate / len(self.carried), self.rate - self.used + transfer.rate)


class Transfer:
    """Bytes on their way over some links; ``done`` is called when the last has left."""

    __slots__ = ("_clock", "_done", "_due", "_since", "_wake", "links", "rate", "rest")

    def __init__(self, clock: Clock, links: tuple[Link, ...], size: int, done: Callable[[], None]) -> None:
        self.links, self.rest, self.rate = links, float(size), 0.0
        self._clock, self._done, self._since = clock, done, clock.now
        self._due = self._wake = float("inf")
        for link in links:
            link.carried.append(self)
        if clock.exact:
            clock.transfers[self] = None
            share(clock)
        else:
            self._settle((self,))

    def stop(self) -> None:
        """It is over, or given up: others get its share."""
        if not self.links:
            return
        for link in self.links:
            link.carried.remove(self)
            link.used -= self.rate
        links, self.links = self.links, ()
        self._due = float("inf")
        if self._clock.exact:
            del self._clock.transfers[self]
            share(self._clock)
            return
        beside = [other for link in links for other in link.carried]
        for other in beside:
            other.fit()
        for other in beside:
            other.fit()

    def _settle(self, first: tuple[Transfer, ...]) -> None:
        beside = [other for link in self.links for other in link.carried if other is not self]
        for other in (*first, *beside, *first, *beside):
            other.fit()

    def fit(self) -> None:
        """Take the rate that the links have room for."""
        self.take(min(link.room(self) for link in self.links))

    def take(self, rate: float) -> None:
        """From now on it has this rate."""
        if abs(rate - self.rate) <= 1e-6 * rate:
            return
        now = self._clock.now
        self.rest -= (now - self._since) * self.rate
        self._since = now
        for link in self.links:
            link.used += rate - self.rate
        self.rate = rate
        self._due = now + max(0.0, self.rest) / rate
        if self._due < self._wake:
            self._wake = self._due
            self._clock.after(self._due - now, self._look, self._due)

    def _look(self, at: float) -> None:
        if at != self._wake or not self.links:
            return
        now = self._clock.now
        if self._due > now + 1e-9:
            self._wake = self._due
            self._clock.after(self._due - now, self._look, self._due)
            return
        self.stop()
        self._done()


def share(clock: Clock) -> None:
    """The exact way: max-min fair shares of all links, found anew. The fullest link is shared equally among what it
    carries, its transfers leave the game, and so on."""
    left = {link: link.rate for transfer in clock.transfers for link in transfer.links}
    carried = {link: set(link.carried) for link in left}
    while left:
        link = min(left, key=lambda link: left[link] / len(carried[link]))
        rate = left[link] / len(carried[link])
        for transfer in [one for one in link.carried if one in carried[link]]:
            transfer.take(rate)
            for other in transfer.links:
                carried[other].discard(transfer)
                left[other] = max(0.0, left[other] - rate)
        left = {link: rest for link, rest in left.items() if carried[link]}
