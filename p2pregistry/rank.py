"""Whether a flight is for a client or ahead of any, and how many bytes came from where.

What is fetched ahead makes way: it has a rate of its own, and asks for nothing while clients wait for something else
(``flights``). Once a client wants it, it is a flight like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import trio

from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.rate import Pace
from p2pregistry.sources.base import Source
from p2pregistry.surroundings import Buffers

#: Bytes read at once where they are paced: at the least rate there may be, a second's worth. A source that is not
#: heard of for longer than some seconds would be taken to be silent.
STEP: Final = 64 << 10


class Till(Protocol):
    """What flights have in common that costs something: ``flights.Flights``."""

    buffers: Buffers
    fetched: Callable[[str, int], None]
    pace: Callable[[Source], Pace | None]
    ahead_pace: Pace | None


class Rank:
    """``ahead``: it goes on without readers; ``low``: and no client has asked for it yet. An Account of its own."""

    def __init__(self, till: Till, *, ahead: bool = False) -> None:
        self.ahead = self.low = ahead
        self.got: dict[str, int] = {}
        self.buffers = till.buffers
        self._till = till
        self._held_up: set[trio.CancelScope] = set()

    def rise(self) -> bool:
        """A client wants it: no rate for what is fetched ahead holds it up any more. False: so it was already."""
        if not self.low:
            return False
        self.low = False
        for scope in self._held_up:
            scope.cancel()
        return True

    @property
    def step(self) -> int:
        """Bytes to read at once, at most."""
        return STEP if self.low and self._till.ahead_pace is not None else PIECE_SIZE

    def fetched(self, kind: str, count: int) -> None:
        """So many bytes have come from a source of this kind."""
        self.got[kind] = self.got.get(kind, 0) + count
        self._till.fetched(kind, count)

    def pace(self, source: Source) -> Pace | None:
        """What to await after bytes from this source."""
        common, slow = self._till.pace(source), self._till.ahead_pace
        if not self.low or slow is None:
            return common

        async def both(count: int) -> None:
            if self.low:
                with trio.CancelScope() as scope:
                    self._held_up.add(scope)
                    try:
                        await slow(count)
                    finally:
                        self._held_up.discard(scope)
            if common is not None:
                await common(count)

        return both
