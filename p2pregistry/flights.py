"""All flights of a node: which are under way, which wait their turn, which are paused.

Flights live in the nursery of this service, not in that of a request: a client that leaves cancels nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import trio

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.errors import RegistryError, Unreachable
from p2pregistry.flight import Flight
from p2pregistry.haves import Haves
from p2pregistry.piece_table import TablesAhead
from p2pregistry.pull.commands import Limits
from p2pregistry.pull.pieces import Randrange
from p2pregistry.rank import Rank
from p2pregistry.rate import Pace
from p2pregistry.small import SmallFlight
from p2pregistry.sources.base import Source
from p2pregistry.store.base import BlobStore
from p2pregistry.surroundings import Buffers, Finder, Shelf, Tables

#: Paused flights whose partial files stay open for others to fetch from.
MOST_PAUSED = 32


class Flights:
    """All flights of a node.

    ``active`` of them fetch at a time, the others wait their turn; ``rest``: what a reader of a part did not ask for
    follows too; ``linger``: seconds a flight goes on without readers before it pauses; ``announce_wait``: seconds a
    flight waits at most for the tracker to say who else has the blob, before it asks the tracker for bytes.
    """

    def __init__(
        self,
        store: BlobStore,
        shelf: Shelf,
        tables: Tables,
        finder: Finder,
        *,
        randrange: Randrange,
        haves: Haves,
        limits: Limits | None = None,
        active: int = 16,
        rest: bool = True,
        announce_wait: float = 0.02,
        linger: float = 60.0,
        pace: Callable[[Source], Pace | None] = lambda _source: None,
        fetched: Callable[[str, int], None] = lambda _kind, _count: None,
        ahead_pace: Pace | None = None,
        finished: Callable[[BlobRef], None] = lambda _ref: None,
        note: Callable[[RegistryError], None] = lambda _err: None,
    ) -> None:
        self.store, self.shelf, self.tables, self.finder, self.haves = store, shelf, tables, finder, haves
        self.randrange, self.announce_wait = randrange, announce_wait
        self.linger, self.rest, self.pace = linger, rest, pace
        self.limits = limits or Limits()
        self.fetched, self.finished, self.note, self.ahead_pace = fetched, finished, note, ahead_pace
        self.buffers = Buffers()
        self.ahead = TablesAhead(finder, tables, note)
        self._flights: dict[Digest, Flight | SmallFlight] = {}
        self._nursery: trio.Nursery | None = None
        self._free = active
        self._waiting: deque[trio.Event] = deque()
        self._settled = trio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The nursery in which flights live. On leaving they are cancelled; partial files stay."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    def join(self, ref: BlobRef) -> Flight | SmallFlight:
        """The flight of this blob, started if there is none. Call where the blob is known not to be in the store."""
        flight = self._flights.get(ref.digest)
        if flight is None or flight.done:
            return self._begin(ref, ahead=False)
        if flight.rank.rise():  # it goes on at once, turn or no turn: much of it may be here
            self._free -= 1
            self._divide()
        return flight

    def fetch_ahead(self, ref: BlobRef) -> Flight | SmallFlight:
        """The same for a blob that no client has asked for. It takes nobody's turn and makes way for all others; who
        calls this bounds how many there are."""
        flight = self._flights.get(ref.digest)
        if flight is None or flight.done:
            return self._begin(ref, ahead=True)
        flight.keep()
        return flight

    def release(self, flight: Flight | SmallFlight) -> None:
        """The blob is not wanted ahead any more: unless a client has asked for it, its flight ends."""
        flight.rank.ahead = False
        if flight.rank.low:
            flight.end()

    async def quiet(self) -> None:
        """Return as soon as no client waits for a flight."""
        while self.clients:
            await self._settled.wait()

    def _begin(self, ref: BlobRef, *, ahead: bool) -> Flight | SmallFlight:
        if self._nursery is None:
            raise Unreachable("the node is shutting down")
        flight = self._flights[ref.digest] = self._new(ref, Rank(self, ahead=ahead))
        self._nursery.start_soon(self._run, flight, ahead)
        return flight

    def prepare(self, refs: Iterable[BlobRef]) -> None:
        """Somebody will soon want these: get their piece tables."""
        if self._nursery is not None:
            self.ahead.begin(self._nursery, (ref for ref in refs if ref.digest not in self._flights))

    def _new(self, ref: BlobRef, rank: Rank) -> Flight | SmallFlight:
        if 0 < ref.size <= PIECE_SIZE and ref.digest.algorithm == "sha256":
            return SmallFlight(self, ref, rank, lambda: Flight(self, ref, rank))
        return Flight(self, ref, rank)

    def active(self, digest: Digest) -> bool:
        """Whether a flight of this digest is under way."""
        return digest in self._flights

    def __len__(self) -> int:
        return sum(not flight.paused for flight in self._flights.values())

    @property
    def clients(self) -> int:
        """Flights under way that clients have asked for."""
        return sum(not (flight.paused or flight.rank.low) for flight in self._flights.values())

    async def _run(self, flight: Flight | SmallFlight, ahead: bool) -> None:
        if not ahead:
            await self._turn()
        self._divide()
        try:
            await flight.run()
        finally:
            if not (flight.paused or flight.rank.low):
                self._give_turn()
            if self._flights.get(flight.ref.digest) is flight:
                del self._flights[flight.ref.digest]
            self._divide()

    async def _turn(self) -> None:
        """Wait in line until one more flight may fetch."""
        if self._free > 0:
            self._free -= 1
            return
        turn = trio.Event()
        self._waiting.append(turn)
        await turn.wait()  # cancelled only with all flights

    def _give_turn(self) -> None:
        self._free += 1
        while self._waiting and self._free > 0:
            self._free -= 1
            self._waiting.popleft().set()

    def paused(self, flight: Flight) -> None:
        """A flight fetches no more for now; beyond MOST_PAUSED of them the one paused longest ends."""
        self._give_turn()
        # the order of the dict is that of pausing
        self._flights[flight.ref.digest] = self._flights.pop(flight.ref.digest)
        paused = [other for other in self._flights.values() if other.paused]
        for other in paused[: max(0, len(paused) - MOST_PAUSED)]:
            other.end()
        self._divide()

    def resumed(self) -> None:
        """A paused flight has a reader again: it goes on at once, turn or no turn."""
        self._free -= 1
        self._divide()

    @property
    def share(self) -> int:
        """Bytes that one flight may have in flight, bytes."""
        return max(self.limits.piece, self.limits.in_flight // max(1, self.clients))

    @property
    def low_share(self) -> int:
        """The same for one that no client waits for: little, because what is on its way is in the way of a client that
        comes; the least where there is a rate, so that no source is left unread for long."""
        low = len(self) - self.clients
        return (
            self.limits.piece if self.ahead_pace else max(self.limits.piece, self.limits.in_flight // 4 // max(1, low))
        )

    def _divide(self) -> None:
        clients, share, low_share = self.clients, self.share, self.low_share
        for flight in self._flights.values():
            low = flight.rank.low
            flight.hold(low and clients > 0)
            flight.share(low_share if low else share)
        if clients == 0:
            self._settled.set()
            self._settled = trio.Event()
