"""Which piece the tracker sends next to a crowd.

Pure: no I/O, no clock (``now`` is seconds on any steady clock), randomness is handed in. One object for one blob.
"""

from __future__ import annotations

from p2pregistry.pull.pieces import Randrange

#: Seconds after a sending in which a piece is taken to be on its way through the swarm.
SPREAD = 5.0


class Seeding:
    """How often each piece of one blob was sent, and when last."""

    def __init__(self, count: int, *, randrange: Randrange) -> None:
        self._randrange = randrange
        self._sent = [0] * count
        self._last = [float("-inf")] * count

    def choose(self, wanted: bytes, now: float) -> tuple[int | None, float]:
        """The piece to send next, or None and how many seconds the node is to wait. ``wanted`` has one byte for each
        piece, 1 = wanted. The piece counts as sent from now on."""
        best: list[int] = []
        least = -1
        soonest = float("inf")
        for index in range(min(len(wanted), len(self._sent))):
            if not wanted[index]:
                continue
            ready = self._last[index] + SPREAD
            if ready > now:
                soonest = min(soonest, ready)
            elif least < 0 or self._sent[index] < least:
                best, least = [index], self._sent[index]
            elif self._sent[index] == least:
                best.append(index)
        if not best:
            return None, (soonest - now if soonest != float("inf") else SPREAD)
        index = best[self._randrange(len(best))]
        self._sent[index] += 1
        self._last[index] = now
        return index, 0.0

    def returned(self, index: int) -> None:
        """The sending of this piece broke off: it did not count."""
        self._sent[index] = max(0, self._sent[index] - 1)
        self._last[index] = float("-inf")
