"""Readers of a flight: a range in order, or several ranges in the order they are asked for, as the pieces come."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol, TypeVar

from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.spool import Spool
from p2pregistry.store.base import FilePart

#: Pieces handed over at once, where so many are here.
RUN = 4


class Followed(Protocol):
    """What a reading needs of its flight."""

    spool: Spool | None

    async def ready(self) -> None:
        """Wait until there is a spool. Raises the failure of a flight that ended before."""

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
        """Say what is wanted, and wait for the first piece."""
        assert self._id is not None
        at = self._at // PIECE_SIZE
        self._flight.move(self._id, at, max(at + 1, -(-self._end // PIECE_SIZE)))
        await self._flight.ready()
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


class Readings:
    """Several ranges of one flight. All their pieces are wanted from the start, whichever range is read first."""

    def __init__(self, flight: Followed, ranges: Sequence[tuple[int, int]]) -> None:
        self._flight = flight
        self._next = ranges[0][0]
        self._runs = piece_runs(ranges)
        self._starts = [start for start, _ in self._runs]
        self._ids = [flight.enter() for _ in self._runs]
        self._fd: int | None = None

    async def first(self) -> None:
        """Say what is wanted, and wait for the first piece."""
        for reader, (start, end) in zip(self._ids, self._runs, strict=True):
            self._flight.move(reader, start, end)
        await self._flight.ready()
        spool = self._flight.spool
        assert spool is not None
        await spool.wait(self._next // PIECE_SIZE)

    async def next_part(self, offset: int, length: int) -> FilePart | bytes:
        """Bytes from ``offset`` on, which lies in one of the ranges: 1 to ``length`` of them, good until the next."""
        spool = self._flight.spool
        assert spool is not None
        index = offset // PIECE_SIZE
        run = bisect_right(self._starts, index) - 1
        self._flight.move(self._ids[run], index, self._runs[run][1])
        await spool.wait(index)
        await spool.store()
        if self._fd is None:
            self._fd = await spool.duplicate()
        if self._fd is None:
            return await spool.read_at(offset, min(length, (index + 1) * PIECE_SIZE - offset))
        end = min(offset + length, (index + spool.here_from(index, RUN)) * PIECE_SIZE)
        return FilePart(self._fd, offset, end - offset)

    def close(self) -> None:
        """Let go of the flight. Idempotent."""
        while self._ids:
            self._flight.leave(self._ids.pop())
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def piece_runs(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pieces of these (offset, length) as ascending runs (first, after the last) that neither meet nor touch."""
    runs: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        first, end = offset // PIECE_SIZE, -(-(offset + length) // PIECE_SIZE)
        if runs and first <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], end))
        else:
            runs.append((first, end))
    return runs


_R = TypeVar("_R", Reading, Readings)


async def opened(reading: _R) -> _R:
    """The reading, once its first byte can be read; closed where that fails."""
    try:
        await reading.first()
    except BaseException:
        reading.close()
        raise
    return reading
