"""Rate limits: so many bytes a second out of this node or into it, and across zones.

``Bucket`` decides and knows no clock; ``Limiter`` makes tasks wait for it, in the order they came; ``Rates`` holds the
four limits of a node. Where nothing is limited there is no limiter, and nothing to call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

#: Bytes that may go at once after a pause, at least: two of the parts that the listener sends, so that what is lost by
#: waking up late is made up for.
MIN_BURST: Final = 512 << 10
#: Seconds' worth of bytes that may go at once after a pause, where that is more.
BURST_TIME: Final = 0.1
#: Seconds; a shorter wait could be lost in the clock's rounding and be asked for again and again.
_MIN_WAIT: Final = 1e-6

Pace = Callable[[int], Awaitable[None]]
"""Awaited with a number of bytes before they are sent, or after they have been received."""


class Bucket:
    """A token bucket of ``rate`` bytes a second, full at the beginning.

    A count larger than ``burst`` bytes may go once the bucket is full, which leaves it in debt: counts are never split
    and the rate holds all the same.
    """

    def __init__(self, rate: float, *, burst: float | None = None, now: float) -> None:
        if rate <= 0:
            raise ValueError(f"a rate of {rate} bytes a second")
        self.rate = rate
        self.burst = max(rate * BURST_TIME, MIN_BURST) if burst is None else burst
        self._level = self.burst
        self._at = now

    def take(self, count: int, now: float) -> float:
        """Seconds to wait until ``count`` bytes may go; 0.0: they may, and are taken."""
        self._refill(now)
        short = min(count, self.burst) - self._level
        if short > 0.5:  # less than a byte is rounding
            return max(short / self.rate, _MIN_WAIT)
        self._level -= count
        return 0.0

    def give(self, count: int, now: float) -> None:
        """``count`` bytes that were taken did not go."""
        self._refill(now)
        self._level = min(self.burst, self._level + count)

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self.burst, self._level + (now - self._at) * self.rate)
            self._at = now


class Limiter:
    """Makes tasks wait for a bucket, first come, first served. A waiter that is cancelled takes nothing."""

    def __init__(self, rate: float, *, burst: float | None = None) -> None:
        self._bucket: Bucket | None = None  # made at the first use, when there is a clock
        self._rate, self._burst = rate, burst
        self._turn = trio.StrictFIFOLock()

    async def take(self, count: int) -> None:
        """Return when ``count`` bytes may go."""
        if count <= 0:
            return
        async with self._turn:  # only the first in the queue looks at the bucket
            bucket = self._bucket
            if bucket is None:
                bucket = self._bucket = Bucket(self._rate, burst=self._burst, now=trio.current_time())
            while True:
                wait = bucket.take(count, trio.current_time())
                if not wait:
                    return
                await trio.sleep(wait)

    def give(self, count: int) -> None:
        """Bytes that ``take`` let go did not go after all."""
        if self._bucket is not None and count > 0:
            self._bucket.give(count, trio.current_time())


class _Both:
    """The limit for transfers across zones, and the node's own."""

    def __init__(self, crossing: Limiter, node: Limiter) -> None:
        self._crossing, self._node = crossing, node

    async def take(self, count: int) -> None:
        # the narrower way first: who waits there is in nobody's way in the wider one
        await self._crossing.take(count)
        try:
            await self._node.take(count)
        except BaseException:
            self._crossing.give(count)
            raise


class Rates:
    """The limits of one node, bytes a second; None: no limit.

    ``zone`` is the node's own. A transfer crosses zones if the other side's is another; one that names none is taken
    to be elsewhere, so that saying nothing is no way around a limit. A node without a zone crosses none.
    """

    def __init__(
        self,
        *,
        egress: int | None = None,
        ingress: int | None = None,
        egress_other_zones: int | None = None,
        ingress_other_zones: int | None = None,
        zone: str = "",
    ) -> None:
        self._zone = zone
        self._egress = _pair(egress, egress_other_zones)
        self._ingress = _pair(ingress, ingress_other_zones)

    def egress(self, zone: str | None) -> Pace | None:
        """What to await before bytes go to somebody in ``zone``, whose request said ``P2P-Zone``; None: nothing."""
        return self._egress[self._crosses(zone)]

    def ingress(self, zone: str | None) -> Pace | None:
        """What to await after bytes came from somebody in ``zone``; None: nothing.

        TCP holds the sender back while they are not read, so waiting afterwards is as good as before.
        """
        return self._ingress[self._crosses(zone)]

    def _crosses(self, zone: str | None) -> bool:
        return bool(self._zone) and (zone or "") != self._zone


def _pair(node: int | None, crossing: int | None) -> tuple[Pace | None, Pace | None]:
    """What to await within a zone and across zones."""
    own = None if node is None else Limiter(node)
    other = None if crossing is None else Limiter(crossing)
    inside = None if own is None else own.take
    if own is None or other is None:
        return inside, inside if other is None else other.take
    return inside, _Both(other, own).take
