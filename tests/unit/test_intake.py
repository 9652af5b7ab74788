"""Bytes on their way in: however they are cut, hashes, pieces and draft are those of the whole."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import AsyncIterator, Sequence

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.errors import RequestError, StorageFull
from p2pregistry.objects.base import Draft
from p2pregistry.objects.memory import MemoryDraft, MemoryObjects
from p2pregistry.testing.handlers import ScriptedBody
from tracker.intake import BLOCKS, QUEUE, Hashes, Intake, blocks_of

DATA = random.Random(7).randbytes(3 * PIECE_SIZE + 12_345)


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({min(x, len(data)) for x in at}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def edges(size: int) -> st.SearchStrategy[list[int]]:
    near = st.sampled_from([PIECE_SIZE * i + d for i in range(4) for d in (-1, 0, 1)])
    return st.lists(near | st.integers(0, size), max_size=8).map(lambda found: [max(0, x) for x in found])


def intake(draft: Draft, room: int = BLOCKS) -> tuple[Intake, Hashes]:
    hashes = Hashes("sha256", trio.CapacityLimiter(2))
    return Intake(draft, hashes, trio.Semaphore(room), None), hashes


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, len(DATA)) | st.sampled_from([0, PIECE_SIZE, 2 * PIECE_SIZE]), data=st.data())
async def test_any_cut_into_requests_and_chunks_gives_the_same_metainfo(size: int, data: st.DataObject) -> None:
    whole = DATA[:size]
    store = MemoryObjects()
    draft = await store.draft("u/x", 0)
    hashes = Hashes("sha256", trio.CapacityLimiter(2))
    for request in cut(whole, data.draw(edges(size))):
        one = Intake(draft, hashes, trio.Semaphore(BLOCKS), None)
        await one.take(ScriptedBody(cut(request, data.draw(edges(len(request))))))
    expected = Metainfo.of_bytes(whole)
    assert hashes.digest() == expected.digest
    assert hashes.metainfo(expected.digest) == expected
    await draft.publish()
    assert store.held.objects["u/x"] == whole


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
    draft = await MemoryObjects().draft("u/x", 0)
    one, hashes = intake(draft)
    with pytest.raises(RequestError):
        await one.take(ScriptedBody([DATA[:size]] if size else [], cut=True))
    assert one.sound
    assert (hashes.offset, draft.size) == (size, size)
    await Intake(draft, hashes, trio.Semaphore(BLOCKS), None).take(ScriptedBody([DATA[size:]]))
    assert hashes.digest() == Metainfo.of_bytes(DATA).digest


async def test_a_full_disk_ends_it_even_while_the_client_is_silent() -> None:
    store = MemoryObjects()
    store.free = 1000
    one, _ = intake(await store.draft("u/x", 0))

    async def endless() -> AsyncIterator[bytes]:
        yield DATA
        await trio.sleep_forever()

    chunks = endless()
    with trio.fail_after(20), pytest.raises(StorageFull):
        await one.take(chunks)
    assert not one.sound
    await chunks.aclose()  # type: ignore[attr-defined]


async def test_a_cancelled_request_leaves_hash_and_draft_at_the_same_byte() -> None:
    draft = await MemoryObjects().draft("u/x", 0)
    one, hashes = intake(draft)
    given_out = trio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield DATA[: 2 * PIECE_SIZE + 77]
        given_out.set()
        await trio.sleep_forever()

    chunks = stalling()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.take, chunks)
        await given_out.wait()
        nursery.cancel_scope.cancel()
    await chunks.aclose()  # type: ignore[attr-defined]
    assert one.sound
    assert 2 * PIECE_SIZE <= hashes.offset == draft.size
    assert hashes.digest().raw == hashlib.sha256(DATA[: hashes.offset]).digest()


@pytest.mark.parametrize("budget", [3, BLOCKS])
async def test_memory_does_not_grow_with_the_blob(budget: int) -> None:
    """No more blocks wait than this upload, and all of the process together, may have: a slow disk stops the sender."""
    gate = trio.Semaphore(0)
    sent = 0

    class Slow(MemoryDraft):
        async def append(self, data: bytes | bytearray | memoryview) -> None:
            await gate.acquire()

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1
            yield bytes(PIECE_SIZE)

    one, hashes = intake(Slow(MemoryObjects(), "u/x", bytearray()), budget)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.take, counted())
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert sent <= min(budget, QUEUE) + 2
        for _ in range(64):
            gate.release()
    assert hashes.offset == 64 * PIECE_SIZE
