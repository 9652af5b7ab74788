"""Bytes of a file on their way from IPFS, out of single blocks or a CAR."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from p2pregistry.content.dag import BadDag, CarWalk, TooMuch, Walk
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import CID_RAW_PREFIX
from p2pregistry.errors import NotFound, RegistryError, RemoteError, Unreachable
from p2pregistry.ipfs.gateway_client import Body, NoCar
from p2pregistry.sources.base import Incoming

#: Blocks of one request that are asked for at a time.
WINDOW: Final = 4


class Giver(Protocol):
    """The gateway: ``IpfsSource``."""

    name: str

    async def read(self, body: Body) -> bytes: ...
    async def block(self, cid: bytes, took: Callable[[bytes], None]) -> bytes: ...
    def judged(self) -> AbstractContextManager[None]: ...
    def without_cars(self, why: str) -> None: ...


class Fetched(Incoming, Protocol):
    """A range that is being fetched."""

    async def begin(self) -> None:
        """Wait for the first bytes."""


class FromBlocks:
    """A range out of blocks that are fetched a few at a time."""

    def __init__(self, source: Giver, nursery: trio.Nursery, walk: Walk) -> None:
        self._source, self._nursery, self._walk = source, nursery, walk
        self._gets: dict[int, _Get] = {}
        self._out: deque[memoryview] = deque()
        self._handed = 0  # bytes of the first block that went out before it was whole
        self._news = trio.Event()

    async def begin(self) -> None:
        """See Fetched."""
        while not self._out and not self._walk.done:
            await self._advance()

    async def read_into(self, buffer: memoryview) -> int:
        """See Incoming."""
        await trio.lowlevel.checkpoint()
        while not self._out:
            if self._walk.done:
                raise Unreachable("the blob has fewer bytes than were wanted")
            await self._advance()
        return _pour(self._out, buffer)

    async def _advance(self) -> None:
        """One step: ask for blocks, take one that is whole, give out what has come, or wait."""
        for want in self._walk.wanted(WINDOW):
            if id(want) not in self._gets:
                get = self._gets[id(want)] = _Get(want.cid)
                self._nursery.start_soon(self._get, get)
        first = self._walk.first()
        ready = self._walk.ready()  # of nodes that were known before
        if ready or first is None:
            self._out += [memoryview(part) for part in ready]
            return
        get = self._gets[id(first)]
        if get.failure is not None:
            raise get.failure
        if get.block is not None:
            del self._gets[id(first)]
            self._walk.take(first, get.block)
            for part in self._walk.ready():
                view = memoryview(part)[self._handed :]
                self._handed = 0
                if len(view):
                    self._out.append(view)
            return
        begin, end = self._walk.inside(first)
        begin, end = begin + self._handed, min(end, first.size - 1, len(get.data))
        if first.cid[:4] == CID_RAW_PREFIX and begin < end:
            self._out.append(memoryview(bytes(get.data[begin:end])))
            self._handed += end - begin
            return
        news = self._news
        await news.wait()

    async def _get(self, get: _Get) -> None:
        raw = get.cid[:4] == CID_RAW_PREFIX

        def took(chunk: bytes) -> None:
            if raw:
                get.data += chunk
                self._tell()

        try:
            get.block = await self._source.block(get.cid, took)
        except (RemoteError, NotFound) as err:
            get.failure = err
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


@dataclass(slots=True)
class _Get:
    """A block on its way."""

    cid: bytes
    data: bytearray = field(default_factory=bytearray)
    block: bytes | None = None
    failure: RegistryError | None = None


class FromCar:
    """A range out of a CAR."""

    def __init__(self, source: Giver, body: Body, walk: CarWalk) -> None:
        self._source, self._body, self._walk = source, body, walk
        self._out: deque[memoryview] = deque()

    async def begin(self) -> None:
        """See Fetched."""
        while not self._out and not self._walk.done:
            await self._advance()

    async def read_into(self, buffer: memoryview) -> int:
        """See Incoming."""
        await trio.lowlevel.checkpoint()
        while not self._out:
            if self._walk.done:
                raise Unreachable("the blob has fewer bytes than were wanted")
            await self._advance()
        return _pour(self._out, buffer)

    async def _advance(self) -> None:
        chunk = await self._source.read(self._body)
        with self._source.judged():
            if not chunk:
                raise Unreachable(f"{self._source.name} sent a CAR that is cut short")
            try:
                self._out += [memoryview(part) for part in self._walk.feed(chunk) if part]
            except TooMuch as err:
                self._source.without_cars(err.message)
                raise NoCar(f"{self._source.name} heeds no ranges") from err
        if self._walk.done:  # if that was all the connection can be used again
            with trio.move_on_after(0.2), suppress(RemoteError):
                await self._body.next()


class Judged:
    """Errors in the middle of a range are looked at as at its beginning."""

    def __init__(self, incoming: Incoming, whose: Callable[[], AbstractContextManager[None]]) -> None:
        self._incoming, self._whose = incoming, whose

    async def read_into(self, buffer: memoryview) -> int:
        """See Incoming."""
        try:
            with self._whose():
                return await self._incoming.read_into(buffer)
        except BadDag as err:  # nobody is to be banned for it
            raise Unreachable(err.message) from err


class Checked:
    """Bytes from under a hint: the last of each piece goes out only if the piece is the one that was signed."""

    def __init__(self, incoming: Incoming, info: Metainfo, start: int, wrong: Callable[[str], None]) -> None:
        self._incoming, self._info, self._at, self._wrong = incoming, info, start, wrong
        self._hash = hashlib.sha256()
        self._from_start = start % PIECE_SIZE == 0

    async def read_into(self, buffer: memoryview) -> int:
        """See Incoming. Raises Unreachable where the hint leads to something else."""
        index = self._at // PIECE_SIZE
        end = index * PIECE_SIZE + self._info.length(index)
        count = await self._incoming.read_into(buffer[: max(1, end - 1 - self._at)])
        self._hash.update(buffer[:count])
        self._at += count
        if self._at == end:
            if self._from_start and self._hash.digest() != self._info.hash(index):
                self._wrong("its bytes are others")
                raise Unreachable("a hint leads to something else than the blob")
            self._hash, self._from_start = hashlib.sha256(), True
        return count


def _pour(out: deque[memoryview], buffer: memoryview) -> int:
    part = out[0]
    count = min(len(part), len(buffer))
    buffer[:count] = part[:count]
    if count == len(part):
        out.popleft()
    else:
        out[0] = part[count:]
    return count


@asynccontextmanager
async def own_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks end with the block, and that wraps no groups around what the block raises."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as err:  # noqa: BLE001 - raised below
            failure = err
        finally:
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
