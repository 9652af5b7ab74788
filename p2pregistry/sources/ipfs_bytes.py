"""Bytes of a file on their way from IPFS, out of single blocks or a CAR."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from p2pregistry.content.dag import BadDag, CarWalk, TooMuch, Walk, Want
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
    async def stream(self, cid: bytes, took: Callable[[bytes], None]) -> None: ...
    def judged(self) -> AbstractContextManager[None]: ...
    def well(self) -> None: ...
    def without_cars(self, why: str) -> None: ...


class Fetched(Incoming, Protocol):
    """A range that is being fetched."""

    async def begin(self) -> None:
        """Wait for the first bytes."""


class _Walked(ABC):
    """A range that is fetched step by step, as a walk wants it."""

    def __init__(self, walk: Walk | CarWalk) -> None:
        self._way = walk
        self._out: deque[memoryview] = deque()

    @abstractmethod
    async def _advance(self) -> None:
        """One step: more bytes to give out, or nearer to it. Raises RemoteError, NotFound."""

    async def begin(self) -> None:
        """See Fetched."""
        while not self._out and not self._way.done:
            await self._advance()

    async def read_into(self, buffer: memoryview) -> int:
        """See Incoming."""
        await trio.lowlevel.checkpoint()
        while not self._out:
            if self._way.done:
                raise Unreachable("the blob has fewer bytes than were wanted")
            await self._advance()
        return _pour(self._out, buffer)


class FromBlocks(_Walked):
    """A range out of blocks that are fetched a few at a time."""

    def __init__(self, source: Giver, nursery: trio.Nursery, walk: Walk) -> None:
        super().__init__(walk)
        self._source, self._nursery, self._walk = source, nursery, walk
        self._gets: dict[int, _Get] = {}
        self._news = trio.Event()

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
        if first.cid[:4] == CID_RAW_PREFIX:
            if self._give_out(first, get):
                return
        elif get.done:
            del self._gets[id(first)]
            self._walk.take(first, b"".join(get.parts))
            return
        news = self._news
        await news.wait()

    def _give_out(self, want: Want, get: _Get) -> bool:
        """What has come of a leaf, but for the last byte that is wanted of it, and the last one of a piece, until it is
        known to be right. False if that is nothing."""
        begin, end = self._walk.inside(want)
        may = want.size if get.done else min(end, PIECE_SIZE - want.offset % PIECE_SIZE) - 1
        moved = False
        while get.parts and get.at < may:
            part = memoryview(get.parts.popleft())
            if len(part) > may - get.at:
                get.parts.appendleft(part[may - get.at :])
                part = part[: may - get.at]
            inside = part[max(0, begin - get.at) : max(0, end - get.at)]
            get.at += len(part)
            moved = True
            if len(inside):
                self._out.append(inside)
        if get.done and not moved:
            del self._gets[id(want)]
            self._walk.taken(want, get.size)
            return True
        return moved

    async def _get(self, get: _Get) -> None:
        def took(chunk: bytes) -> None:
            get.parts.append(chunk)
            get.size += len(chunk)
            self._tell()

        try:
            await self._source.stream(get.cid, took)
            get.done = True
        except (RemoteError, NotFound) as err:
            get.failure = err
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


@dataclass(slots=True)
class _Get:
    """A block on its way: what has come of it and was not given out yet, up to where it was, its bytes so far, and
    whether that is all, and right."""

    cid: bytes
    parts: deque[bytes | memoryview] = field(default_factory=deque)
    at: int = 0
    size: int = 0
    done: bool = False
    failure: RegistryError | None = None


class FromCar(_Walked):
    """A range out of a CAR."""

    def __init__(self, source: Giver, body: Body, walk: CarWalk) -> None:
        super().__init__(walk)
        self._source, self._body, self._walk = source, body, walk

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
            self._source.well()
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
