"""The flight of a blob of one piece: fetched whole into memory, handed to readers at once, written afterwards.

A large image has dozens of such blobs, and what a full flight costs - a plan, a staged file, its clock - is many times
what the bytes cost. Here one source is asked, the hash is taken, and that is all; where that fails a full flight, which
searches and waits and tries again, takes over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import trio

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.errors import BadContent, NotFound, RegistryError, RemoteError, Unreachable
from p2pregistry.flight import Flight, Service
from p2pregistry.rank import Rank
from p2pregistry.reading import Reading, Readings
from p2pregistry.sources.base import Source
from p2pregistry.spool import again

#: Bytes hashed without a worker thread: the way there and back takes longer.
INLINE = 256 << 10
#: Peers that are asked before the tracker is, and gateways of IPFS after it.
MOST_PEERS = 2


class SmallFlight:
    """One running download of a small blob; a Follower. ``full`` makes the flight that takes over."""

    paused = False

    def __init__(self, service: Service, ref: BlobRef, rank: Rank, full: Callable[[], Flight]) -> None:
        self.ref, self.rank = ref, rank
        self._service, self._full = service, full
        self._ready = trio.Event()
        self._data: bytes | None = None
        self._other: Flight | None = None
        self._failure: RegistryError | None = None
        self._peers: list[Source] = []
        self._gateways: list[Source] = []
        self._scope = trio.CancelScope()
        self.done = False
        self.ended = trio.Event()

    async def open(self, offset: int, length: int) -> Reading | Bytes:
        """See Flight."""
        await self._ready.wait()
        if self._data is not None:
            return Bytes(self._data, offset, length)
        if self._other is None:
            raise again(self._failure or Unreachable("the download was interrupted"))
        return await self._other.open(offset, length)

    async def open_ranges(self, ranges: Sequence[tuple[int, int]]) -> Readings | Bytes:
        """See Flight."""
        await self._ready.wait()
        if self._data is not None:
            return Bytes(self._data, 0, 0)
        if self._other is None:
            raise again(self._failure or Unreachable("the download was interrupted"))
        return await self._other.open_ranges(ranges)

    def share(self, _budget: int) -> None:
        """One piece is as little as there is."""

    @property
    def failure(self) -> RegistryError | None:
        """Why it has ended without the blob."""
        return self._failure if self._other is None else self._other.failure

    @property
    def here(self) -> int:
        """Bytes that are here."""
        return min(self.ref.size, sum(self.rank.got.values()))

    def hold(self, _held: bool) -> None:
        """One piece is soon here."""

    def keep(self) -> None:
        """It goes on in any case."""
        self.rank.ahead = True

    def end(self) -> None:
        """Give up one that nobody waits for; it is never paused."""
        self._scope.cancel()

    async def run(self) -> None:
        """From nothing to a committed blob. Errors go to the readers, not to the service."""
        try:
            with self._scope:
                await self._run()
            if self._scope.cancelled_caught:
                self._failure = Unreachable("the download was ended because nobody read it")
        except RegistryError as err:
            self._failure = err
            self._service.note(err)
        finally:
            self.done = True
            self._ready.set()
            self.ended.set()

    async def _run(self) -> None:
        service = self._service
        async with service.shelf.room(self.ref.digest, self.ref.size, ahead=self.rank.low):
            with service.finder.follow(self.ref, self):
                self._data = await self._fetch()
            if self._data is None:
                self._other = self._full()
                self._ready.set()
                await self._other.run()
                return
            self._ready.set()
            with trio.CancelScope(shield=True):  # readers have it: it is worth keeping
                await service.store.put(self.ref.digest, self._data)
                await service.shelf.added(self.ref.digest, self.ref.size, ahead=self.rank.low)
        service.finished(self.ref)

    async def _fetch(self) -> bytes | None:
        """The bytes, verified; None where no source that is known gave them."""
        finder = self._service.finder
        with trio.move_on_after(self._service.announce_wait):
            await finder.announced(self.ref.digest)
        peers = self._peers
        while len(peers) > MOST_PEERS:
            peers.pop(self._service.randrange(len(peers)))
        tracker = finder.tracker
        for source in [*peers, *([tracker] if tracker is not None else []), *self._gateways[:MOST_PEERS]]:
            with trio.move_on_after(self._service.limits.silence):
                try:
                    return await self._get(source)
                except BadContent as err:
                    finder.ban(source.name, err.message)
                except (RemoteError, NotFound) as err:
                    self._service.note(err)
        return None

    async def _get(self, source: Source) -> bytes:
        size, pace = self.ref.size, self.rank.pace(source)
        data = bytearray(size)
        view, at = memoryview(data), 0
        async with source.fetch(self.ref.digest, 0, size) as incoming:
            while at < size:
                count = await incoming.read_into(view[at : at + self.rank.step])
                at += count
                self.rank.fetched(source.kind, count)
                if pace is not None:
                    await pace(count)
        found = hashlib.sha256(data) if size <= INLINE else await trio.to_thread.run_sync(hashlib.sha256, data)
        if found.digest() != self.ref.digest.raw:
            raise BadContent("a small blob does not verify")
        return bytes(data)

    # -- Follower -----------------------------------------------------------------------------------------------

    def have(self, source: Source, pieces: bytes | None, near: bool) -> None:
        """See Follower."""
        if pieces is None and source.kind == "peer" and source not in self._peers:
            self._peers.insert(0 if near else len(self._peers), source)
        elif source.kind == "ipfs" and source not in self._gateways:
            self._gateways.append(source)

    def more(self, source: str, pieces: Sequence[int]) -> None:
        """See Follower."""

    def gone(self, source: str) -> None:
        """See Follower."""
        self._peers = [peer for peer in self._peers if peer.name != source]
        self._gateways = [gateway for gateway in self._gateways if gateway.name != source]

    def crowd(self, wanting: int, holding: int) -> None:
        """See Follower."""


class Bytes:
    """A reading of bytes that are here; see Reading and Readings."""

    def __init__(self, data: bytes, offset: int, length: int) -> None:
        self._data, self._at, self._end = data, offset, offset + length

    def __aiter__(self) -> Bytes:
        return self

    async def __anext__(self) -> bytes:
        if self._at >= self._end:
            raise StopAsyncIteration
        await trio.lowlevel.checkpoint()
        part, self._at = self._data[self._at : self._end], self._end
        return part

    def parts(self) -> Bytes:
        """The same."""
        return self

    async def next_part(self, offset: int, length: int) -> bytes:
        """Bytes of one of several ranges."""
        await trio.lowlevel.checkpoint()
        return self._data[offset : offset + length]

    def close(self) -> None:
        """Nothing is held."""

    async def aclose(self) -> None:
        """Nothing is held."""
