"""Bytes on their way in: however they are cut, hashes, pieces and file are those of the whole."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import AsyncIterator, Sequence

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.errors import RequestError, StorageFull
from p2pregistry.testing.handlers import ScriptedBody
from tracker.ingest import Ingest, blocks_of

DATA = random.Random(7).randbytes(3 * PIECE_SIZE + 12_345)


class Paper:
    """Staged bytes that keep what is written; full after ``room`` bytes."""

    key = "upload-x"

    def __init__(self, room: int = 1 << 40) -> None:
        self.data = bytearray()
        self.room = room

    async def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        assert offset == len(self.data)
        if offset + len(data) > self.room:
            raise StorageFull("no room")
        self.data += data

    async def write_verified(self, offset: int, data: bytes | bytearray | memoryview, sha256: bytes) -> bool:
        raise NotImplementedError

    async def read_at(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    async def commit(self, digest: object) -> None:
        raise NotImplementedError

    async def discard(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({min(x, len(data)) for x in at}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def edges(size: int) -> st.SearchStrategy[list[int]]:
    near = st.sampled_from([PIECE_SIZE * i + d for i in range(4) for d in (-1, 0, 1)])
    return st.lists(near | st.integers(0, size), max_size=8).map(lambda found: [max(0, x) for x in found])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, len(DATA)) | st.sampled_from([0, PIECE_SIZE, 2 * PIECE_SIZE]), data=st.data())
async def test_any_cut_into_requests_and_chunks_gives_the_same_metainfo(size: int, data: st.DataObject) -> None:
    whole = DATA[:size]
    ingest = Ingest(trio.CapacityLimiter(2))
    paper = Paper()
    for request in cut(whole, data.draw(edges(size))):
        await ingest.take(paper, ScriptedBody(cut(request, data.draw(edges(len(request))))))
    expected = Metainfo.of_bytes(whole)
    assert ingest.digest() == expected.digest
    assert ingest.metainfo(expected.digest) == expected
    assert bytes(paper.data) == whole


@settings(max_examples=60, deadline=None)
@given(offset=st.integers(0, 3 * PIECE_SIZE), size=st.integers(0, 2 * PIECE_SIZE + 9), data=st.data())
async def test_blocks_are_the_bytes_and_never_cross_a_piece(offset: int, size: int, data: st.DataObject) -> None:
    pieces = cut(DATA[:size], data.draw(edges(size)))
    at, got = offset, b""
    async for block in blocks_of(ScriptedBody(pieces), offset):
        assert block
        assert at // PIECE_SIZE == (at + len(block) - 1) // PIECE_SIZE
        at += len(block)
        got += block
    assert got == DATA[:size]


@pytest.mark.parametrize("size", [0, 10, PIECE_SIZE, 2 * PIECE_SIZE + 1])
async def test_what_came_before_a_cut_is_taken(size: int) -> None:
    ingest = Ingest(trio.CapacityLimiter(2))
    paper = Paper()
    with pytest.raises(RequestError):
        await ingest.take(paper, ScriptedBody([DATA[:size]] if size else [], cut=True))
    assert (ingest.offset, bytes(paper.data)) == (size, DATA[:size])
    await ingest.take(paper, ScriptedBody([DATA[size:]]))
    assert ingest.digest() == Metainfo.of_bytes(DATA).digest
    assert not ingest.broken


@pytest.mark.parametrize("room", [0, 1000, PIECE_SIZE, 2 * PIECE_SIZE + 5])
async def test_a_full_disk_ends_it_even_while_the_client_is_silent(room: int) -> None:
    ingest = Ingest(trio.CapacityLimiter(2))

    async def endless() -> AsyncIterator[bytes]:
        yield DATA
        await trio.sleep_forever()

    chunks = endless()
    with trio.fail_after(20), pytest.raises(StorageFull):
        await ingest.take(Paper(room), chunks)
    assert ingest.broken
    await chunks.aclose()  # type: ignore[attr-defined]


async def test_a_cancelled_request_leaves_hash_and_file_at_the_same_byte() -> None:
    ingest = Ingest(trio.CapacityLimiter(2))
    paper = Paper()
    given_out = trio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield DATA[: 2 * PIECE_SIZE + 77]
        given_out.set()
        await trio.sleep_forever()

    chunks = stalling()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ingest.take, paper, chunks)
        await given_out.wait()
        nursery.cancel_scope.cancel()
    await chunks.aclose()  # type: ignore[attr-defined]
    assert 2 * PIECE_SIZE <= ingest.offset == len(paper.data)
    assert ingest.digest().raw == hashlib.sha256(DATA[: ingest.offset]).digest()


async def test_memory_does_not_grow_with_the_blob() -> None:
    """No more blocks wait than the queue holds: the sender is stopped while the disk is slow."""
    ingest = Ingest(trio.CapacityLimiter(2))
    gate = trio.Semaphore(0)
    sent = 0

    class Slow(Paper):
        async def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            await gate.acquire()

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1
            yield bytes(PIECE_SIZE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ingest.take, Slow(), counted())
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert sent <= 8
        for _ in range(64):
            gate.release()
    assert ingest.offset == 64 * PIECE_SIZE
