"""What every ``Source`` must do. Run it on each implementation."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, NotYet
from p2pregistry.have_news import HaveNews, Watch
from p2pregistry.messages import unpack
from p2pregistry.sources.base import Source

#: Opens a source that has exactly these blobs.
MakeSource = Callable[[Mapping[Digest, bytes]], AbstractAsyncContextManager[Source]]


class Sharing(Source, Protocol):
    """A source that may have part of a blob."""

    def watch(self, watch: Watch) -> AbstractAsyncContextManager[AsyncIterator[HaveNews]]:
        """See PeerSource."""


#: A piece of the blob has come to the source.
Come = Callable[[int], Awaitable[None]]
#: Opens a source that has only these pieces of a blob.
MakeSharing = Callable[[bytes, Collection[int]], AbstractAsyncContextManager[tuple[Sharing, Come]]]

_MIB = 1 << 20
_BIG = random.Random(11).randbytes(3 * _MIB + 77)  # noqa: S311 - test data
_SMALL = b"a config"
_TIMEOUT = 20.0


async def read(source: Source, digest: Digest, offset: int, length: int, step: int = 100_000) -> bytes:
    """A range, received into one buffer in steps of at most ``step`` bytes."""
    data = bytearray(length)
    view = memoryview(data)
    at = 0
    async with source.fetch(digest, offset, length) as incoming:
        while at < length:
            count = await incoming.read_into(view[at : at + step])
            assert 0 < count <= step, "a read gives at least one byte and no more than there is room for"
            at += count
    return bytes(data)


async def check_source(make: MakeSource) -> None:
    """Raises AssertionError where the source breaks its contract."""
    big, small = Metainfo.of_bytes(_BIG), Metainfo.of_bytes(_SMALL)
    async with make({big.digest: _BIG, small.digest: _SMALL}) as source:
        assert source.name
        assert source.kind in ("peer", "tracker", "ipfs", "upstream")
        with trio.fail_after(_TIMEOUT):
            await _check_ranges(source, big.digest, small.digest)
            await _check_table(source, big)
            await _check_absent(source)
            await _check_leaving(source, big.digest)


async def _check_ranges(source: Source, big: Digest, small: Digest) -> None:
    assert await read(source, small, 0, len(_SMALL)) == _SMALL
    for offset, length in ((0, len(_BIG)), (0, 1), (len(_BIG) - 1, 1), (_MIB, _MIB), (3 * _MIB, 77), (5, 2 * _MIB)):
        assert await read(source, big, offset, length) == _BIG[offset : offset + length], (offset, length)
    results: list[bool] = []

    async def one(offset: int) -> None:
        results.append(await read(source, big, offset, 500_000) == _BIG[offset : offset + 500_000])

    async with trio.open_nursery() as nursery:
        for offset in range(0, 2_500_000, 250_000):
            nursery.start_soon(one, offset)
    assert results == [True] * 10, "requests side by side"


async def _check_table(source: Source, info: Metainfo) -> None:
    assert Metainfo.of_table(info.ref, await source.table(info.ref)) == info


async def _check_absent(source: Source) -> None:
    absent = Metainfo.of_bytes(b"nobody has this" * 100_000)
    try:
        await read(source, absent.digest, 0, 10)
    except NotFound:
        pass
    else:
        raise AssertionError("a blob that is not there is NotFound")
    try:
        await source.table(absent.ref)
    except NotFound:
        pass
    else:
        raise AssertionError("the table of a blob that is not there is NotFound")


async def _check_leaving(source: Source, digest: Digest) -> None:
    for _ in range(3):
        async with source.fetch(digest, 0, len(_BIG)) as incoming:
            await incoming.read_into(memoryview(bytearray(10)))
    with trio.move_on_after(0.0):
        await read(source, digest, 0, len(_BIG))
    assert await read(source, digest, 7, 1000) == _BIG[7:1007], "a request that was left does not spoil the next"


async def check_sharing(make: MakeSharing) -> None:
    """What a source must do that may have part of a blob. Raises AssertionError where it breaks its contract."""
    info = Metainfo.of_bytes(_BIG)
    watch = Watch("A" * 40, "http://10.0.0.1:5001", "", (Metainfo.of_bytes(_SMALL).digest, info.digest))
    async with make(_BIG, {1}) as (source, come):
        with trio.fail_after(_TIMEOUT):
            assert await read(source, info.digest, _MIB, _MIB) == _BIG[_MIB : 2 * _MIB]
            for index in (0, 2, 3):
                await _check_not_yet(source, info, index)
            async with source.watch(watch) as news:
                first = await anext(news)
                assert [(place, unpack(bitmap, 4)) for place, bitmap in first.have] == [(1, b"\0\1\0\0")]
                assert [*first.add, *first.full, *first.gone] == [], "nothing is said of a blob that is not here"
                told = [await _come(come, news, index) for index in (3, 0)]
                assert told == [[3], [0]]
            assert await read(source, info.digest, 3 * _MIB, 77) == _BIG[3 * _MIB :]
            await _check_not_yet(source, info, 2)
            async with source.watch(watch) as news:
                ((_, bitmap),) = (await anext(news)).have
                assert unpack(bitmap, 4) == b"\1\1\0\1"


async def _come(come: Come, news: AsyncIterator[HaveNews], index: int) -> list[int]:
    await come(index)
    line = await anext(news)
    assert [*line.have, *line.full, *line.gone] == []
    ((place, indexes),) = line.add
    assert place == 1
    return indexes


async def _check_not_yet(source: Source, info: Metainfo, index: int) -> None:
    try:
        await read(source, info.digest, index * PIECE_SIZE, info.length(index))
    except NotYet:
        return
    raise AssertionError("a piece that is not there yet is NotYet")
