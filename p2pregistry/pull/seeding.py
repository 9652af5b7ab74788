"""Which piece the tracker sends next to a crowd.

Pure: no I/O, no clock (``now`` is seconds on any steady clock), randomness is handed in. One object for one blob.

Each piece goes out about once; the crowd spreads it from there. What a node asks for tells what the crowd has: a piece
that it does not want is one that it has, or is getting, or knows a neighbour to have. So a piece that went out rests as
long as anybody's asking shows it to be in the crowd; when nobody's has for a while, it was lost with the node that got
it, and goes out again. The first of the pieces that nobody was sent go first, so that a crowd of readers can
follow the growing start of the blob: in which order pieces get into a crowd is nothing to how fast they spread.
"""

from __future__ import annotations

from collections import deque

from p2pregistry.pull.bits import Counts, Randrange, nth, pack

#: Seconds without a sign of a piece that was sent after which it is taken for lost.
LOST = 5.0
#: And no less than this many times what lies between two sendings: where all is slow, so is the spreading.
LOST_SENDINGS = 16.0
#: Signs are remembered in slices of this many seconds.
_SLICE = 0.5
#: The piece is drawn among so many of the first that may be sent: askers that ask at once are sent different ones.
_SPAN = 8
#: Seconds without a question after which the crowd is taken to be gone, and all that is known of it.
FORGET = 60.0


class Seeding:
    """How often each piece of one blob was sent, and which the crowd was lately seen to have."""

    __slots__ = ("_all", "_asked", "_counts", "_gap", "_last", "_randrange", "_sent", "_signs", "count")

    def __init__(self, count: int, *, randrange: Randrange) -> None:
        self.count = count
        self._randrange = randrange
        self._all = (1 << count) - 1
        self._asked = self._last = float("-inf")
        self._gap = 0.0
        self._forget()

    def _forget(self) -> None:
        self._sent = 0
        self._counts = Counts()
        self._signs: deque[tuple[float, int]] = deque()

    def choose(self, wanted: bytes, now: float) -> tuple[int | None, float]:
        """The piece to send next, or None and how many seconds the node is to wait. ``wanted`` has one byte for each
        piece, not zero = wanted. The piece counts as sent from now on."""
        wants = pack(wanted) & self._all
        if now - self._asked > FORGET:
            self._forget()
        self._asked = now
        patience = max(LOST, LOST_SENDINGS * self._gap)
        while self._signs and self._signs[0][0] < now - patience:
            self._signs.popleft()
        seen = 0
        for _, bits in self._signs:
            seen |= bits
        self._sign(self._all & ~wants, now)
        unsent = wants & ~self._sent
        choice = unsent & ~seen or unsent or self._counts.least(wants & ~seen)
        if not choice:
            return None, patience * (0.2 + self._randrange(100) / 500.0)
        index = nth(choice, self._randrange(min(_SPAN, choice.bit_count())))
        self._send(index, now)
        return index, 0.0

    def returned(self, index: int) -> None:
        """The sending of this piece broke off: it did not count."""
        bit = 1 << index
        if self._counts[index]:
            self._counts.subtract(bit)
        if not self._counts[index]:
            self._sent &= ~bit
        self._signs = deque((at, bits & ~bit) for at, bits in self._signs)

    def _send(self, index: int, now: float) -> None:
        bit = 1 << index
        self._sent |= bit
        self._counts.add(bit)
        self._sign(bit, now)
        if now - self._last < LOST:
            self._gap = 0.9 * self._gap + 0.1 * (now - self._last)
        self._last = now

    def _sign(self, bits: int, now: float) -> None:
        """These are in the crowd."""
        if self._signs and now - self._signs[-1][0] < _SLICE:
            at, before = self._signs[-1]
            self._signs[-1] = (at, before | bits)
        else:
            self._signs.append((now, bits))
