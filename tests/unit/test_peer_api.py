"""What a node serves to other nodes, and in which order."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2pregistry.content.car import read_table
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.have_news import Watch
from p2pregistry.haves import Haves
from p2pregistry.serve.have_stream import HaveStream
from p2pregistry.serve.http import BlobSlice, Request, Response, Stream
from p2pregistry.serve.peer_api import MAX_STREAMS, PeerApi, Slots
from p2pregistry.sources.peer import read_manifest
from p2pregistry.store.base import Blob, BlobStore
from p2pregistry.store.index import open_index
from p2pregistry.store.memory import MemoryStore
from p2pregistry.store.records import StoredManifest
from p2pregistry.testing.handlers import Answer, ScriptedBody, call
from p2pregistry.testing.http import request, running
from p2pregistry.testing.sharing import PUBLIC, Growing, sharing
from p2pregistry.visible import Visible

LAYER = bytes(range(256)) * 8_193  # three pieces
INFO = Metainfo.of_bytes(LAYER)
MANIFEST = StoredManifest(Digest.of(b"{}"), "application/vnd.oci.image.manifest.v1+json", b"{}")


@asynccontextmanager
async def peer(folder: Path, *, claimed: bool = True, slots: Slots | None = None) -> AsyncIterator[PeerApi]:
    store = MemoryStore()
    staged = await store.stage("layer")
    await staged.write_at(0, LAYER)
    await staged.commit(INFO.digest)
    async with open_index(folder / "index.lmdb") as index:
        if claimed:
            await index.put_metainfo(INFO)
            await index.put_manifest("a/b", MANIFEST, "a claim", [INFO.ref])
            await index.put_repository("a/b", PUBLIC)
        yield PeerApi(index, store, slots or Slots(2, 8), Visible(index), served=lambda _count: None)


async def test_bytes_table_and_manifest(tmp_path: Path) -> None:
    async with peer(tmp_path) as api:
        target = f"/p2p/v1/blobs/{INFO.digest}"
        assert (await call(api, "GET", target)).body == LAYER
        part = await call(api, "GET", target, headers=[("Range", "bytes=5-9")])
        assert (part.status, part.body, part.headers["content-range"]) == (206, LAYER[5:10], f"bytes 5-9/{len(LAYER)}")
        assert (await call(api, "GET", target, headers=[("Range", f"bytes={len(LAYER)}-")])).status == 416
        head = await call(api, "HEAD", target)
        assert (head.status, head.headers["content-length"]) == (200, str(len(LAYER)))
        table = await call(api, "GET", f"{target}/table")
        assert Metainfo.of_table(INFO.ref, read_table(table.body)) == INFO
        found = read_manifest((await call(api, "GET", f"/p2p/v1/manifests/{MANIFEST.digest}")).body, MANIFEST.digest)
        assert (found.body, found.media_type, found.claims) == (b"{}", MANIFEST.media_type, ("a claim",))


async def test_bytes_that_no_claim_names_belong_to_nobody(tmp_path: Path) -> None:
    async with peer(tmp_path, claimed=False) as api:
        assert (await call(api, "GET", f"/p2p/v1/blobs/{INFO.digest}")).status == 404
        assert (await call(api, "GET", f"/p2p/v1/blobs/{INFO.digest}/table")).status == 404
        assert (await call(api, "GET", f"/p2p/v1/manifests/{MANIFEST.digest}")).status == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/p2p/v1/announce", 405),
        ("GET", "/p2p/v1/have", 405),
        ("PUT", "/p2p/v1/have", 405),
        ("POST", "/p2p/v1/have/", 405),
        ("GET", "/p2p/v1/have/x", 404),
        ("PUT", f"/p2p/v1/blobs/{INFO.digest}", 405),
        ("GET", "/p2p/v1/blobs/sha256:abc", 400),
        ("GET", "/p2p/v1/blobs/latest", 400),
        ("GET", f"/p2p/v1/blobs/{INFO.digest}/pieces", 404),
        ("GET", f"/p2p/v2/blobs/{INFO.digest}", 404),
        ("GET", "/", 404),
        ("GET", "/v2/", 404),
    ],
)
async def test_bad_requests(tmp_path: Path, method: str, path: str, status: int) -> None:
    async with peer(tmp_path) as api:
        answer = await call(api, method, path)
        assert answer.status == status
        assert answer.code


async def test_transfers_wait_their_turn_in_the_order_they_came() -> None:
    slots = Slots(1, 10)
    turns: list[int] = []

    async def transfer(number: int) -> None:
        await slots.take()
        turns.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(transfer, number)
            await trio.testing.wait_all_tasks_blocked()
        assert turns == [0]
        for _ in range(4):
            slots.give()
            await trio.testing.wait_all_tasks_blocked()
    assert turns == [0, 1, 2, 3, 4]


async def test_beyond_the_queue_they_are_told_429_and_a_caller_that_leaves_gives_up_its_place() -> None:
    slots = Slots(1, 1)
    await slots.take()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slots.take)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RequestError) as refused:
            await slots.take()
        assert refused.value.status == 429
        nursery.cancel_scope.cancel()
    slots.give()
    with trio.fail_after(1):
        await slots.take()


async def test_a_turn_that_comes_to_a_client_that_is_gone_goes_to_the_next_at_once() -> None:
    slots = Slots(1, 10)
    outcomes: list[tuple[int, int]] = []
    gone = {1, 2, 4}

    async def transfer(number: int) -> None:
        try:
            await slots.take(lambda: number in gone)
            outcomes.append((number, 200))
        except RequestError as err:
            outcomes.append((number, err.status))

    await transfer(0)
    async with trio.open_nursery() as nursery:
        for number in range(1, 5):
            nursery.start_soon(transfer, number)
            await trio.testing.wait_all_tasks_blocked()
        slots.give()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(outcomes) == [(0, 200), (1, 408), (2, 408), (3, 200)]
        slots.give()
        await trio.testing.wait_all_tasks_blocked()
        assert (4, 408) in outcomes
    await transfer(5)  # the turn that nobody took is free again
    assert outcomes[-1] == (5, 200)


async def test_a_transfer_goes_at_the_pace_of_the_zone_it_is_for(tmp_path: Path) -> None:
    zones: list[str] = []
    paced: list[int] = []

    async def pace(count: int) -> None:
        paced.append(count)

    def of_zone(zone: str) -> Callable[[int], Awaitable[None]] | None:
        zones.append(zone)
        return None if zone == "near" else pace

    async with sharing(tmp_path) as sharer:
        await sharer.begin(LAYER, [0])
        api = PeerApi(
            sharer.index,
            sharer.store,
            Slots(2, 2),
            Visible(sharer.index),
            served=lambda _count: None,
            haves=sharer.haves,
            pace=of_zone,
        )
        target = f"/p2p/v1/blobs/{INFO.digest}"
        async with running(api) as url:
            for zone in ("near", "far", "x" * 1000):
                answer = await request(url, "GET", target, (("Range", "bytes=0-999"), ("P2P-Zone", zone)))
                assert answer.body == LAYER[:1000]
            assert (await request(url, "GET", target, (("Range", "bytes=0-9"),))).status == 206
        sharer.haves.close()
    assert zones == ["near", "far", "x" * 64, ""]
    assert sum(paced) == 2 * 1000 + 10


# --------------------------------------------------------------------------------------------------- unfinished blobs


def ranged(first: int, last: int) -> list[tuple[str, str]]:
    return [("Range", f"bytes={first}-{last}")]


@pytest.mark.parametrize("in_files", [True, False])
async def test_pieces_of_an_unfinished_blob_are_served_as_soon_as_they_are_verified(
    tmp_path: Path, in_files: bool
) -> None:
    async with sharing(tmp_path, in_files=in_files) as sharer:
        growing = await sharer.begin(LAYER, [2])
        target = f"/p2p/v1/blobs/{INFO.digest}"

        async def get(first: int, last: int) -> Answer:
            return await call(sharer.api, "GET", target, headers=ranged(first, last))

        assert (await get(2 * PIECE_SIZE, len(LAYER) - 1)).body == LAYER[2 * PIECE_SIZE :]
        for first, last in ((0, 0), (0, 10**9), (PIECE_SIZE, 2 * PIECE_SIZE), (2 * PIECE_SIZE - 1, 2 * PIECE_SIZE)):
            refused = await get(first, last)
            assert (refused.status, refused.code) == (416, "PIECE_UNKNOWN")
        assert (await get(len(LAYER), len(LAYER))).code == "SIZE_INVALID"
        assert (await call(sharer.api, "HEAD", target)).status == 416
        wrong = bytes(PIECE_SIZE)
        assert not await growing.spool.write(1, memoryview(wrong))
        assert (await get(PIECE_SIZE, PIECE_SIZE)).status == 416, "what does not verify is not here"
        await growing.put(1)
        part = await get(PIECE_SIZE + 5, 2 * PIECE_SIZE + 5)
        assert (part.status, part.body) == (206, LAYER[PIECE_SIZE + 5 : 2 * PIECE_SIZE + 6])
        await growing.put(0)
        assert (await call(sharer.api, "GET", target)).body == LAYER
        await growing.finish()
        assert (await call(sharer.api, "GET", target)).body == LAYER
        sharer.haves.close()


async def test_an_unfinished_blob_that_no_claim_names_is_not_here(tmp_path: Path) -> None:
    async with sharing(tmp_path) as sharer:
        growing = await sharer.begin(LAYER, [0], claimed=False)
        target = f"/p2p/v1/blobs/{INFO.digest}"
        assert (await call(sharer.api, "GET", target, headers=ranged(0, 5))).status == 404
        await sharer.claim(INFO)
        assert (await call(sharer.api, "GET", target, headers=ranged(0, 5))).body == LAYER[:6]
        sharer.haves.drop(INFO.digest)
        assert (await call(sharer.api, "GET", target, headers=ranged(0, 5))).status == 404
        growing.spool.close()


class Moving:
    """A store in which something happens while it looks for a blob."""

    def __init__(self, store: BlobStore, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self.store, self.meanwhile = store, meanwhile

    async def open(self, digest: Digest) -> Blob:
        """The answer is from before ``meanwhile``."""
        try:
            return await self.store.open(digest)
        finally:
            await self.meanwhile()


async def test_a_blob_that_begins_or_ends_while_it_is_looked_for_is_found(tmp_path: Path) -> None:
    async with sharing(tmp_path) as sharer:
        await sharer.claim(INFO)
        grown: list[Growing] = []

        async def on() -> None:
            if not grown:
                grown.append(await sharer.begin(LAYER, range(INFO.count)))
            elif grown[0].spool.has(0) and sharer.haves.partial(INFO.digest) is not None:
                await grown[0].finish()

        api = PeerApi(
            sharer.index,
            Moving(sharer.store, on),
            Slots(1, 1),
            Visible(sharer.index),
            served=lambda _count: None,
            haves=sharer.haves,
        )
        target = f"/p2p/v1/blobs/{INFO.digest}"
        assert (await call(api, "GET", target)).body == LAYER  # it began
        assert sharer.haves.partial(INFO.digest) is not None
        await grown[0].finish()
        assert (await call(api, "GET", target)).body == LAYER


async def test_an_answer_under_way_reads_on_whatever_becomes_of_the_flight(tmp_path: Path) -> None:
    async with sharing(tmp_path) as sharer:
        growing = await sharer.begin(LAYER, [0, 1])
        target = f"/p2p/v1/blobs/{INFO.digest}"
        whole = Request("GET", target, [("range", f"bytes=0-{PIECE_SIZE}")], ScriptedBody([]))
        finished, discarded = await sharer.api(whole), await sharer.api(whole)
        await growing.put(2)
        await growing.finish()
        assert await body_of(finished) == LAYER[: PIECE_SIZE + 1]
        other = bytes(reversed(LAYER))
        growing = await sharer.begin(other, [0])
        part = Request("GET", f"/p2p/v1/blobs/{growing.info.digest}", [("range", "bytes=0-9")], ScriptedBody([]))
        failed = await sharer.api(part)
        await (await growing.spool.hold()).discard()
        sharer.haves.drop(growing.info.digest)
        assert await body_of(failed) == other[:10]
        assert await body_of(discarded) == LAYER[: PIECE_SIZE + 1]


async def body_of(response: Response) -> bytes:
    assert isinstance(response.body, BlobSlice)
    part = response.body
    assert part.blob.fileno() is not None
    try:
        return await part.blob.read_at(part.offset, part.length)
    finally:
        part.blob.close()
        assert part.sent is not None
        part.sent(part.length)


# --------------------------------------------------------------------------------------------------------- have-news

PEER = {"peer_id": "A" * 40, "url": "http://10.0.0.1:5001", "zone": "r1", "want": [str(INFO.digest)]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"peer_id": ""}, "peer_id"),
        ({"peer_id": "a\nb" * 20}, "peer_id"),
        ({"peer_id": 1}, "peer_id"),
        ({"url": "ftp://a"}, "url"),
        ({"url": "http://a/b?c"}, "url"),
        ({"url": "http://a:0"}, "url"),
        ({"url": "http://a:99999"}, "url"),
        ({"zone": "x" * 65}, "zone"),
        ({"zone": "a b"}, "zone"),
        ({"want": []}, "want"),
        ({"want": None}, "want"),
        ({"want": ["sha256:x"]}, "want[0]"),
        ({"want": [str(INFO.digest), 5]}, "want[1]"),
        ({"want": [str(INFO.digest)] * 2}, "want"),
        ({"want": [str(Digest.of(bytes([n]))) for n in range(250)] * 2}, "want"),
    ],
)
async def test_a_watch_that_makes_no_sense_is_refused_by_the_name_of_its_field(
    tmp_path: Path, change: dict[str, object], field: str
) -> None:
    async with sharing(tmp_path) as sharer:
        answer = await call(sharer.api, "POST", "/p2p/v1/have", json.dumps(PEER | change).encode())
        assert (answer.status, answer.code) == (400, "ANNOUNCE_INVALID")
        assert answer.json()["errors"][0]["detail"] == {"field": field}
        assert answer.json()["errors"][0]["message"].startswith(f"{field}: ")
        assert (sharer.haves.watchers, sharer.watched) == (0, [])


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b"x" * 100_000], ids=range(6))
async def test_what_is_no_watch(tmp_path: Path, body: bytes) -> None:
    async with sharing(tmp_path) as sharer:
        answer = await call(sharer.api, "POST", "/p2p/v1/have", body)
        assert answer.status in (400, 413)
        assert answer.code


async def test_a_bounded_number_of_nodes_is_told(tmp_path: Path) -> None:
    async with sharing(tmp_path) as sharer:

        async def ask() -> Response:
            return await sharer.api(Request("POST", "/p2p/v1/have", [], ScriptedBody([json.dumps(PEER).encode()])))

        told = [await ask() for _ in range(MAX_STREAMS)]
        with pytest.raises(RequestError) as refused:
            await ask()
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) > 0
        assert len(sharer.watched) == MAX_STREAMS
        for response in told:
            assert isinstance(response.body, Stream)
            await response.body.chunks.aclose()  # type: ignore[union-attr]
        assert sharer.haves.watchers == 0
        await ask()


async def test_lines_of_news_come_at_a_pace_and_with_a_heartbeat(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    haves = Haves()
    haves.begin(INFO.digest, 16, [0])
    lines = HaveStream(haves.watch(Watch("A" * 40, "http://a", "", (INFO.digest,))))
    start = trio.current_time()
    said: list[tuple[float, dict[str, Any]]] = []

    async def listen() -> None:
        async for line in lines:
            assert line.endswith(b"\n")
            said.append((round(trio.current_time() - start, 3), json.loads(line)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        for index in range(1, 11):
            await trio.sleep(0.01)
            haves.add(INFO.digest, index)
        await trio.sleep(25)
        haves.add(INFO.digest, 15)
        await trio.sleep(1)
        haves.close()
    pieces = [(when, line["add"]) for when, line in said if "add" in line]
    assert said[0] == (0.0, {"have": [[0, "gAA="]]})
    assert pieces[-1] == (25.1, [[0, [15]]])
    assert [index for _, add in pieces for _, indexes in add for index in indexes] == [*range(1, 11), 15]
    assert len(pieces) <= 4
    times = [when for when, _ in said]
    assert all(0.049 <= later - before <= 10.001 for before, later in itertools.pairwise(times))
    assert [line for _, line in said].count({}) == 2
