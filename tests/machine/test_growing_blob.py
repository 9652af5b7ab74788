"""A blob sent from the file it is still written to: right bytes whoever reads how slowly, and no descriptor left."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h11
import pytest
import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.errors import LocalError, Unreachable
from p2pregistry.reading import Parts, Reading, Readings
from p2pregistry.serve.http import Request, Response, Stream
from p2pregistry.spool import Spool
from p2pregistry.store.base import FilePart
from p2pregistry.store.files import open_files
from p2pregistry.testing.http import request, running

DATA = random.Random(11).randbytes(9 * PIECE_SIZE + 4321)
INFO = Metainfo.of_bytes(DATA)


class Followed:
    """A flight as far as a reading sees it."""

    def __init__(self, spool: Spool) -> None:
        self.spool: Spool | None = spool
        self.at: list[int] = []
        self.readers = 0

    async def ready(self) -> None:
        await trio.lowlevel.checkpoint()

    def enter(self) -> int:
        self.readers += 1
        return self.readers

    def move(self, reader: int, index: int, end: int) -> None:
        self.at.append(index)

    def leave(self, reader: int) -> None:
        self.readers -= 1


@asynccontextmanager
async def growing(root: Path) -> AsyncIterator[tuple[Spool, Followed]]:
    async with open_files(root) as store:
        spool = Spool(INFO, await store.stage("growing"))
        try:
            yield spool, Followed(spool)
        finally:
            spool.close()


async def put(spool: Spool, *indices: int) -> None:
    for index in indices:
        assert await spool.write(index, memoryview(DATA)[index * PIECE_SIZE : (index + 1) * PIECE_SIZE])


def take(part: FilePart | bytes) -> bytes:
    return part if isinstance(part, bytes) else os.pread(part.fd, part.length, part.offset)


async def rest(parts: Parts) -> bytes:
    return b"".join([take(part) async for part in parts])


@pytest.mark.parametrize(("start", "end"), [(0, len(DATA)), (5, 6), (PIECE_SIZE - 1, 7 * PIECE_SIZE + 1)])
async def test_parts_are_the_range(tmp_path: Path, start: int, end: int) -> None:
    async with growing(tmp_path) as (spool, followed):
        await put(spool, *range(INFO.count))
        parts = Reading(followed, start, end - start).parts()
        assert await rest(parts) == DATA[start:end]
        await parts.aclose()
    assert followed.readers == 0


async def test_a_part_ends_where_a_piece_is_missing(tmp_path: Path) -> None:
    async with growing(tmp_path) as (spool, followed):
        await put(spool, 0, 1, 3)
        parts = Reading(followed, 0, len(DATA)).parts()
        assert take(await anext(parts)) == DATA[: 2 * PIECE_SIZE]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, spool, 2)
            assert take(await anext(parts)) == DATA[2 * PIECE_SIZE : 4 * PIECE_SIZE]
        await parts.aclose()


async def test_several_ranges_are_wanted_at_once_and_read_in_any_order(tmp_path: Path) -> None:
    ranges = [(7 * PIECE_SIZE + 5, 10), (0, 3), (PIECE_SIZE, PIECE_SIZE + 1), (4 * PIECE_SIZE, 1)]
    async with growing(tmp_path) as (spool, followed):
        readings = Readings(followed, ranges)
        await put(spool, 7)
        await readings.first()
        assert followed.at == [0, 4, 7]  # where each run of pieces begins
        await put(spool, 0, 1, 2, 4)
        for offset, length in ranges:
            at = offset
            while at < offset + length:
                data = take(await readings.next_part(at, offset + length - at))
                assert data == DATA[at : at + len(data)]
                at += len(data)
        readings.close()
        readings.close()
    assert followed.readers == 0


async def test_a_slow_reader_does_not_hold_up_the_commit(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    async with open_files(tmp_path) as store:
        spool = Spool(INFO, await store.stage("growing"))
        followed = Followed(spool)
        await put(spool, *range(INFO.count))
        parts = Reading(followed, 0, len(DATA)).parts()
        first = await anext(parts)
        with trio.fail_after(20):
            staged = await spool.hold()  # the reader is in the middle of its first part
            await staged.commit(INFO.digest)
            spool.release(await store.open(INFO.digest))
        assert take(first) + await rest(parts) == DATA
        await parts.aclose()
        spool.close()
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_discarded_bytes_are_not_handed_on(tmp_path: Path) -> None:
    async with growing(tmp_path) as (spool, followed):
        await put(spool, *range(INFO.count))
        parts = Reading(followed, 0, len(DATA)).parts()
        await anext(parts)
        staged = await spool.hold()
        await staged.discard()
        spool.fail(Unreachable("the piece table is wrong"))
        spool.release(None)
        with pytest.raises(Unreachable):
            await anext(parts)
        await parts.aclose()


async def test_the_whole_is_hashed_in_runs(tmp_path: Path) -> None:
    async with growing(tmp_path) as (spool, _):
        await put(spool, 0, 1, 2, 4)
        assert [spool.here_from(0, 8), spool.here_from(0, 2), spool.here_from(3, 8), spool.here_from(4, 8)] == [
            3,
            2,
            0,
            1,
        ]
        await put(spool, *range(INFO.count))
        assert spool.here_from(INFO.count - 1, 8) == 1
        hasher = hashlib.sha256()
        await spool.hash_at(0, 8, hasher)
        await spool.hash_at(8, 8, hasher)
        assert hasher.digest() == INFO.digest.raw


async def test_over_the_listener(tmp_path: Path) -> None:
    async with growing(tmp_path) as (spool, followed):
        sent: list[int] = []

        async def handler(req: Request) -> Response:
            return Response(200, [], Stream(Reading(followed, 0, len(DATA)).parts(), len(DATA), sent.append))

        async with running(handler) as url, trio.open_nursery() as nursery:
            nursery.start_soon(put, spool, *reversed(range(INFO.count)))
            assert (await request(url, "GET", "/")).body == DATA
    assert sent == [len(DATA)]
    assert followed.readers == 0


async def test_a_file_that_ends_early_never_looks_whole(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"abc")

    class Short:
        def __init__(self) -> None:
            self.fd: int | None = os.open(path, os.O_RDONLY)

        def __aiter__(self) -> Short:
            return self

        async def __anext__(self) -> FilePart | bytes:
            if self.fd is None:
                raise LocalError("used after it was closed")
            return FilePart(self.fd, 0, 6)

        async def aclose(self) -> None:
            if self.fd is not None:
                os.close(self.fd)
                self.fd = None

    short = Short()

    async def handler(req: Request) -> Response:
        return Response(200, [], Stream(short, 6))

    async with running(handler) as url:
        with pytest.raises(h11.RemoteProtocolError):
            await request(url, "GET", "/")
    assert short.fd is None
