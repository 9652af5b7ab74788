"""One reader of a flight: its range, in order, as the pieces come."""

from __future__ import annotations

import os
from typing import Protocol

from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.spool import Spool
from p2pregistry.store.base import FilePart

#: Pieces handed over at once, where so many are here.
RUN = 4


class Followed(Protocol):
    """What a reading needs of its flight."""

    spool: Spool | None

    def enter(self) -> int:
        """Count a reader; its number."""

    def move(self, reader: int, index: int, end: int) -> None:
        """The reader wants this piece next, and those after it up to ``end`` (not included)."""

    def leave(self, reader: int) -> None:
        """The reader is gone."""


class Reading:
    """One reader's bytes, as they come. An async iterator; ``aclose`` when done with it."""

    def __init__(self, flight: Followed, offset: int, length: int) -> None:
        self._flight = flight
        self._at, self._end = offset, offset + length
        self._id: int | None = flight.enter()

    async def first(self) -> None:
        """Wait for the first piece."""
        await self._piece()

    async def _piece(self) -> tuple[Spool, int]:
        spool = self._flight.spool
        assert spool is not None
        assert self._id is not None
        index = min(self._at // PIECE_SIZE, spool.info.count - 1)
        self._flight.move(self._id, index, max(index + 1, -(-self._end // PIECE_SIZE)))
        await spool.wait(index)
        return spool, index

    def __aiter__(self) -> Reading:
        return self

    async def __anext__(self) -> bytes:
        if self._at >= self._end:
            raise StopAsyncIteration
        spool, index = await self._piece()
        data = await spool.read_at(self._at, min(self._end, (index + 1) * PIECE_SIZE) - self._at)
        self._at += len(data)
        return data

    def parts(self) -> Parts:
        """The same bytes, as parts of a file where they are in one. Close what is returned instead of this."""
        return Parts(self)

    async def next_part(self, parts: Parts) -> FilePart | bytes:
        """The next bytes for ``parts``."""
        if self._at >= self._end:
            raise StopAsyncIteration
        spool, index = await self._piece()
        fd = await parts.descriptor(spool)
        if fd is None:
            return await self.__anext__()
        at = self._at
        self._at = min(self._end, (index + spool.here_from(index, RUN)) * PIECE_SIZE)
        return FilePart(fd, at, self._at - at)

    def close(self) -> None:
        if self._id is not None:
            self._flight.leave(self._id)
            self._id = None

    async def aclose(self) -> None:
        self.close()


class Parts:
    """See ``Reading.parts``. A part is good until the next one is asked for.

    It holds a descriptor of its own, which shows the same bytes before and after the file gets its final name: a slow
    client does not hold that up.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._fd: int | None = None

    async def descriptor(self, spool: Spool) -> int | None:
        """Ours, made at the first call; None where bytes are in no file. Raises if they have been discarded."""
        await spool.store()
        if self._fd is None:
            self._fd = await spool.duplicate()
        return self._fd

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> FilePart | bytes:
        return await self._reading.next_part(self)

    async def aclose(self) -> None:
        self._reading.close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
