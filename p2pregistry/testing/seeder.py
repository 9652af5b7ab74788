"""A tracker in memory: a scripted source that also chooses pieces."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.pull.seeding import Seeding
from p2pregistry.sources.base import Incoming
from p2pregistry.sources.memory import MemorySource
from p2pregistry.surroundings import Chosen


@dataclass(slots=True)
class MemoryTracker(MemorySource):
    """``chosen`` are the pieces that it chose to send, in order."""

    kind: str = "tracker"
    chosen: list[int] = field(default_factory=list)
    seedings: dict[Digest, Seeding] = field(default_factory=dict)

    @asynccontextmanager
    async def next_piece(self, digest: Digest, wanted: bytes) -> AsyncIterator[Chosen]:
        draw = random.Random(len(self.chosen)).randrange  # noqa: S311 - the same in every run
        seeding = self.seedings.setdefault(digest, Seeding(len(wanted), randrange=draw))
        index, wait = seeding.choose(wanted, trio.current_time())
        if index is None:
            yield _Nothing(wait)
            return
        self.chosen.append(index)
        length = min(PIECE_SIZE, len(self.blobs[digest]) - index * PIECE_SIZE)
        async with self.fetch(digest, index * PIECE_SIZE, length) as incoming:
            yield _Piece(index, incoming)


@dataclass(slots=True)
class _Nothing:
    wait: float
    index: int | None = None

    async def read_into(self, buffer: memoryview) -> int:
        raise AssertionError(f"{len(buffer)} bytes were wanted where nothing was sent")


@dataclass(slots=True)
class _Piece:
    index: int | None
    incoming: Incoming
    wait: float = 0.0

    async def read_into(self, buffer: memoryview) -> int:
        return await self.incoming.read_into(buffer)
