"""A source in memory whose faults are scripted: for tests of whatever fetches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from p2pregistry.content.car import read_table, write_table
from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RemoteBusy, Unreachable
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


@dataclass(slots=True)
class MemorySource:
    """Serves ``blobs`` (by digest), counts what it was asked for."""

    name: str
    blobs: dict[Digest, bytes]
    kind: str = "peer"
    faults: Faults = field(default_factory=Faults)
    requests: list[tuple[int, int]] = field(default_factory=list)
    sent: int = 0

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
        yield _Incoming(self, self.blobs[digest], offset, length)


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
