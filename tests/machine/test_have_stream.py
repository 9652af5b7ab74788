"""Nodes that share while they fetch, over real sockets: pieces as they come, news once each, and ends noticed."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.errors import NotYet, RemoteBusy, Unreachable
from p2pregistry.have_news import HaveNews, Watch
from p2pregistry.messages import unpack
from p2pregistry.serve.http import Request
from p2pregistry.serve.listen import Limits
from p2pregistry.serve.peer_api import MAX_STREAMS, Slots
from p2pregistry.sources.peer import PeerSource
from p2pregistry.testing.http import PATIENCE, raw_client, request, running
from p2pregistry.testing.node_stack import node_stack, origin
from p2pregistry.testing.sharing import Sharer, sharing
from p2pregistry.testing.sources import read

DATA = random.Random(3).randbytes(12 * PIECE_SIZE + 99)
INFO = Metainfo.of_bytes(DATA)
OTHER = Digest.of(b"another")
ME = Watch("B" * 40, "http://10.0.0.7:5001", "rack", (INFO.digest, OTHER))


@asynccontextmanager
async def peer(
    folder: Path, *, limits: Limits | None = None, slots: Slots | None = None, grace: float = 0.0
) -> AsyncIterator[tuple[Sharer, PeerSource]]:
    async with sharing(folder, slots=slots) as sharer, running(sharer.api, limits=limits, grace=grace) as url:
        source = PeerSource("a peer", url, zone="rack")
        try:
            yield sharer, source
        finally:
            source.close()
            sharer.haves.close()


async def some(news: AsyncIterator[HaveNews]) -> HaveNews:
    with trio.fail_after(PATIENCE):
        return await anext(news)


async def piece(source: PeerSource, index: int) -> bytes:
    with trio.fail_after(PATIENCE):
        return await read(source, INFO.digest, index * PIECE_SIZE, INFO.length(index))


async def test_a_piece_is_told_once_and_served_at_once_while_the_rest_is_on_its_way(tmp_path: Path) -> None:
    async with peer(tmp_path) as (sharer, source), source.watch(ME) as news:
        growing = await sharer.begin(DATA, [4])  # a claim names it only now
        first = await some(news)
        assert [(place, unpack(bitmap, INFO.count)[4]) for place, bitmap in first.have] == [(0, 1)]
        assert await piece(source, 4) == DATA[4 * PIECE_SIZE : 5 * PIECE_SIZE]
        assert not await growing.spool.write(7, memoryview(bytes(PIECE_SIZE))), "it came damaged"
        with pytest.raises(NotYet):
            await piece(source, 7)
        order = [index for index in range(INFO.count) if index != 4]
        random.Random(4).shuffle(order)
        told: list[int] = []
        for index in order:
            await growing.put(index)
            while index not in told:
                line = await some(news)
                assert not line.have
                told += [each for _, indexes in line.add for each in indexes]
            assert await piece(source, index) == DATA[index * PIECE_SIZE : index * PIECE_SIZE + INFO.length(index)]
        assert told == order, "each once, none before it is here"
        await growing.finish()
        assert await some(news) == HaveNews(full=[0])
        with trio.fail_after(PATIENCE):
            assert await read(source, INFO.digest, 0, INFO.size) == DATA
        assert [watch.want for watch in sharer.watched] == [()]


async def test_a_transfer_under_way_goes_on_while_the_blob_gets_its_name(tmp_path: Path) -> None:
    async with peer(tmp_path) as (sharer, source):
        growing = await sharer.begin(DATA, range(INFO.count))
        async with source.fetch(INFO.digest, 0, INFO.size) as incoming:
            data = memoryview(bytearray(INFO.size))
            at = await incoming.read_into(data[:100])
            await growing.finish()
            while at < len(data):
                at += await incoming.read_into(data[at:])
        assert data == DATA


async def test_watchers_of_one_digest_are_told_of_each_other(tmp_path: Path) -> None:
    other = Watch("C" * 40, "http://10.0.0.8:5001", "", (OTHER,))
    async with peer(tmp_path) as (sharer, source):
        await sharer.claim(Metainfo.of_bytes(b"another"))
        await check_introduced(sharer, source, other)


async def check_introduced(sharer: Sharer, source: PeerSource, other: Watch) -> None:
    async with source.watch(ME) as mine:
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with source.watch(other) as theirs:
            (seen,) = (await some(theirs)).peers
            assert (seen.peer_id, seen.url, seen.zone, seen.want) == (ME.peer_id, ME.url, "rack", [0])
            (seen,) = (await some(mine)).peers
            assert (seen.peer_id, seen.url, seen.want) == (other.peer_id, other.url, [1])
        # nothing here names the first digest: so nobody is taken to have to do with it
        assert [watch.want for watch in sharer.watched] == [(OTHER,), (OTHER,)]


async def left(sharer: Sharer, count: int) -> None:
    with trio.fail_after(PATIENCE):
        while sharer.haves.watchers != count:
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_watcher_that_went_away_is_forgotten_without_being_told_anything(tmp_path: Path) -> None:
    async with peer(tmp_path, limits=Limits(watch_after=0.05)) as (sharer, source):
        async with source.watch(ME):
            await left(sharer, 1)
        await left(sharer, 0)
        assert sharer.haves.watching(INFO.digest) == set()


@pytest.mark.parametrize("how", ["the have-maps close", "the listener stops"])
async def test_at_the_end_streams_end_at_once(tmp_path: Path, how: str) -> None:
    """And hold nobody up for the time that other answers may take."""
    outcome: list[str] = []
    async with sharing(tmp_path) as sharer, trio.open_nursery() as nursery:
        await sharer.begin(DATA, [1])
        told = trio.Event()

        async def listen(source: PeerSource) -> None:
            async with source.watch(ME) as news:
                async for _ in news:
                    told.set()

        async def until_it_ends(source: PeerSource) -> None:
            try:
                await listen(source)
            except Unreachable as err:
                outcome.append(err.message)

        with trio.fail_after(PATIENCE):
            async with running(sharer.api, grace=1000.0) as url:
                source = PeerSource("a peer", url)
                nursery.start_soon(until_it_ends, source)
                await told.wait()
                if how == "the have-maps close":
                    sharer.haves.close()
            await left(sharer, 0)
        source.close()
        sharer.haves.close()
    assert len(outcome) == 1


async def test_one_too_many_is_told_to_come_later(tmp_path: Path) -> None:
    async with peer(tmp_path) as (sharer, source):
        for number in range(MAX_STREAMS):
            sharer.haves.watch(Watch(f"D{number}", "http://a", "", (OTHER,)))
        with pytest.raises(RemoteBusy) as busy:
            async with source.watch(ME):
                pass
        assert busy.value.retry_after == 10.0


async def test_a_client_that_left_the_queue_takes_no_turn(tmp_path: Path) -> None:
    slots = Slots(1, 8)
    async with peer(tmp_path, slots=slots, limits=Limits(watch_after=1000.0)) as (sharer, source):
        await sharer.begin(DATA, range(INFO.count))
        await slots.take()  # a transfer that takes long
        head = f"GET /p2p/v1/blobs/{INFO.digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        for _ in range(3):
            async with await raw_client(source.client.url) as raw:
                await raw.send(head)
                await trio.testing.wait_all_tasks_blocked(0.05)
        got: list[bytes] = []

        async def ask() -> None:
            got.append(await piece(source, 2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            slots.give()
        assert got == [DATA[2 * PIECE_SIZE : 3 * PIECE_SIZE]]


# ------------------------------------------------------------------------------------------------- with a real flight

IMAGE = random.Random(6).randbytes(20 * PIECE_SIZE + 5)
LAYER = Metainfo.of_bytes(IMAGE)
LATE = 10 * PIECE_SIZE


async def test_a_node_in_the_middle_of_a_pull_shares_what_it_has_and_no_more(tmp_path: Path) -> None:
    """Its tracker hands the second half out only when the test says so."""
    rest = trio.Event()

    def gate(req: Request) -> trio.Event | None:
        last = (req.header("range") or "bytes=0-").rpartition("-")[2]  # one request may ask for several pieces
        return rest if f"/blobs/{LAYER.digest}" in req.target and int(last or 0) > LATE else None

    watch = Watch(ME.peer_id, ME.url, "", (LAYER.digest,))
    async with origin(tmp_path / "tracker") as tracker:
        await tracker.registry.push_image("a/b", "1", IMAGE)
        tracker.gate = gate
        async with node_stack(tmp_path / "node", tracker=tracker.url, network=None) as node:
            source = PeerSource("the node", node.peer_url)
            assert (await request(node.url, "GET", "/v2/a/b/manifests/1")).status == 200
            async with trio.open_nursery() as nursery, source.watch(watch) as news:
                nursery.start_soon(request, node.url, "GET", f"/v2/a/b/blobs/{LAYER.digest}")
                told = await _until(news, 6)
                for index in told:
                    length = LAYER.length(index)
                    assert await _bytes(source, index, length) == IMAGE[index * PIECE_SIZE :][:length]
                for index in set(range(LAYER.count)) - set(told):
                    if index * PIECE_SIZE >= LATE:
                        with pytest.raises(NotYet):
                            await _bytes(source, index, LAYER.length(index))
                assert not any(index * PIECE_SIZE >= LATE for index in told)
                rest.set()
                told += await _until(news, LAYER.count)
                assert len(set(told)) == len(told), "each piece once, and the last ones by the word that it is complete"
            source.close()


async def _bytes(source: PeerSource, index: int, length: int) -> bytes:
    with trio.fail_after(PATIENCE):
        return await read(source, LAYER.digest, index * PIECE_SIZE, length)


async def _until(news: AsyncIterator[HaveNews], count: int) -> list[int]:
    """What is told until so many pieces were, or the blob is complete."""
    told: list[int] = []
    while len(told) < count:
        line = await some(news)
        for _, bitmap in line.have:
            told += [index for index, flag in enumerate(unpack(bitmap, LAYER.count)) if flag]
        for _, indexes in line.add:
            told += indexes
        if line.full:
            break
    return told
