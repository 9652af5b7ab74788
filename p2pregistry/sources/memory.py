"""A source in memory whose faults are scripted: for tests of whatever fetches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from p2pregistry.content.car import read_table, write_table
from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE, piece_count
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, NotYet, RemoteBusy, Unreachable
from p2pregistry.have_news import HaveNews, Watch
from p2pregistry.messages import pack
from p2pregistry.sources.base import Incoming


@dataclass(slots=True)
class Faults:
    """What goes wrong. Bytes and seconds; None: it does not."""

    refuse: bool = False
    busy: float | None = None
    cut_after: int | None = None  # bytes of each request
    hang_after: int | None = None
    corrupt: frozenset[int] = frozenset()  # offsets of bytes in the blob that arrive flipped
    delay: float = 0.0  # before each request
    rate: float | None = None  # bytes a second
    lie: bool = False  # tells that it has every piece, also those that are missing


@dataclass(slots=True)
class MemorySource:
    """Serves ``blobs`` (by digest), but for the pieces that are ``missing`` until they ``come``; counts what it was
    asked for."""

    name: str
    blobs: dict[Digest, bytes]
    kind: str = "peer"
    faults: Faults = field(default_factory=Faults)
    requests: list[tuple[int, int]] = field(default_factory=list)
    sent: int = 0
    missing: dict[Digest, set[int]] = field(default_factory=dict)
    _watchers: list[_Watching] = field(default_factory=list)

    def come(self, digest: Digest, *indexes: int) -> None:
        """These pieces are here now."""
        self.missing[digest].difference_update(indexes)
        for watching in self._watchers:
            watching.tell()

    @asynccontextmanager
    async def watch(self, watch: Watch) -> AsyncIterator[AsyncIterator[HaveNews]]:
        """See PeerSource."""
        await trio.lowlevel.checkpoint()
        if self.faults.refuse:
            raise Unreachable(f"{self.name} refuses")
        watching = _Watching(self, watch)
        self._watchers.append(watching)
        try:
            yield watching
        finally:
            self._watchers.remove(watching)

    def state(self, digest: Digest) -> bytes | None:
        """One byte per piece; None for a blob that is not here."""
        if digest not in self.blobs:
            return None
        missing = set[int]() if self.faults.lie else self.missing.get(digest, set())
        return bytes(index not in missing for index in range(piece_count(len(self.blobs[digest]))))

    async def table(self, ref: BlobRef) -> dict[bytes, bytes]:
        await trio.lowlevel.checkpoint()
        if self.faults.refuse or ref.digest not in self.blobs:
            raise NotFound("BLOB_UNKNOWN", "not here")
        info = Metainfo.of_bytes(self.blobs[ref.digest])
        return read_table(write_table(info.root, info.dag().blocks))

    @asynccontextmanager
    async def fetch(self, digest: Digest, offset: int, length: int) -> AsyncIterator[Incoming]:
        self.requests.append((offset, length))
        await trio.sleep(self.faults.delay)
        if self.faults.refuse:
            raise Unreachable(f"{self.name} refuses")
        if self.faults.busy is not None:
            raise RemoteBusy(f"{self.name} is busy", self.faults.busy)
        if digest not in self.blobs:
            raise NotFound("BLOB_UNKNOWN", "not here")
        pieces = range(offset // PIECE_SIZE, max(offset, offset + length - 1) // PIECE_SIZE + 1)
        if not self.missing.get(digest, set()).isdisjoint(pieces):
            raise NotYet(f"{self.name} has not got these pieces")
        yield _Incoming(self, self.blobs[digest], offset, length)


class _Watching:
    """One who is told: the state first, then pieces as they come."""

    def __init__(self, source: MemorySource, watch: Watch) -> None:
        self._source, self._want = source, watch.want
        self._told: dict[int, bytes] = {}
        self._changed = trio.Event()
        self._changed.set()

    def tell(self) -> None:
        self._changed.set()

    def __aiter__(self) -> _Watching:
        return self

    async def __anext__(self) -> HaveNews:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            news = self._news()
            if news != HaveNews():
                return news

    def _news(self) -> HaveNews:
        news = HaveNews([], [], [], [], [])
        for place, digest in enumerate(self._want):
            told, flags = self._told.get(place), self._source.state(digest)
            if flags is None or flags == told:
                continue
            self._told[place] = flags
            if told is not None:
                news.add.append((place, [index for index, (a, b) in enumerate(zip(told, flags, strict=True)) if b > a]))
            elif all(flags):
                news.full.append(place)
            else:
                news.have.append((place, pack(flags)))
        return news


@dataclass(slots=True)
class _Incoming:
    source: MemorySource
    data: bytes
    at: int
    left: int
    given: int = 0

    async def read_into(self, buffer: memoryview) -> int:
        faults = self.source.faults
        count = min(len(buffer), self.left, 256 << 10)
        if faults.cut_after is not None and self.given >= faults.cut_after:
            raise Unreachable(f"{self.source.name} cut the connection")
        if faults.hang_after is not None and self.given >= faults.hang_after:
            await trio.sleep_forever()
        await trio.sleep(count / faults.rate if faults.rate else 0)
        buffer[:count] = self.data[self.at : self.at + count]
        for offset in faults.corrupt:
            if self.at <= offset < self.at + count:
                buffer[offset - self.at] ^= 0xFF
        self.at += count
        self.left -= count
        self.given += count
        self.source.sent += count
        return count
