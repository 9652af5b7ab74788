"""What a node serves to other nodes, and in which order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pregistry.content.car import read_table
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.serve.peer_api import PeerApi, Slots
from p2pregistry.sources.peer import read_manifest
from p2pregistry.store.index import open_index
from p2pregistry.store.memory import MemoryStore
from p2pregistry.store.records import StoredManifest
from p2pregistry.testing.handlers import call

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
        yield PeerApi(index, store, slots or Slots(2, 8), served=lambda _count: None)


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
