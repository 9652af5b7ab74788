"""A node's index of blocks, and what its gateway gives."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pregistry.content.gateway_request import RAW
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.subdag import BlockOf, Place, inner_place
from p2pregistry.content.unixfs import PIECE_SIZE, WIDTH
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX, Digest, cid_text
from p2pregistry.serve.held_blocks import HeldBlocks
from p2pregistry.serve.ipfs_gateway import IpfsGateway
from p2pregistry.serve.peer_api import Slots
from p2pregistry.store.blocks import BlockIndex
from p2pregistry.store.index import Index, open_index
from p2pregistry.store.records import RepositoryRecord, StoredManifest
from p2pregistry.testing.gateway import file_of, read_car
from p2pregistry.testing.handlers import Answer, call
from p2pregistry.testing.sharing import Sharer, sharing
from p2pregistry.trust.records import Stamp
from p2pregistry.visible import Visible
from tracker.catalog.ipfs_blocks_check import large, leaf, node

LAYER = random.Random(4).randbytes(2 * PIECE_SIZE + 5)
INFO = Metainfo.of_bytes(LAYER)


async def put(index: Index, *infos: Metainfo) -> None:
    """These are here."""
    for info in infos:
        await index.put_metainfo(info)
        await index.put_blob(info.digest, info.size, 0.0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait, by the real clock: threads write."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        await trio.lowlevel.checkpoint()


async def test_blobs_are_found_by_their_blocks_while_they_are_here(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    early, late = large("early", 3 * PIECE_SIZE), large("late", (WIDTH + 2) * PIECE_SIZE)
    gone = Metainfo.of(Digest.of(b"gone"), 4 * PIECE_SIZE, early.hashes + Digest.of(b"more").raw)
    async with open_index(tmp_path / "index") as index:
        await put(index, early, gone)
        blocks = BlockIndex(index)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocks.serve)
            await until(lambda: len(list(blocks.find(leaf(early, 1)))) == 2)
            assert {found.ref for found in blocks.find(leaf(early, 1))} == {early.ref, gone.ref}
            assert list(blocks.find(early.root)) == [BlockOf(early.ref, Place(1, 0))]
            await put(index, late)
            blocks.changed(late.digest)
            await until(lambda: list(blocks.find(late.root)) != [])
            for number in range(3):
                found = list(blocks.find(node(late, number)))
                assert found == [BlockOf(late.ref, inner_place(late.count, number))]
            assert list(blocks.find(leaf(late, WIDTH + 1))) == [BlockOf(late.ref, Place(0, WIDTH + 1))]
            for prefix, sha256 in ((CID_RAW_PREFIX, late.hash(1)), (CID_DAG_PB_PREFIX, late.root[4:])):
                assert list(blocks.find(prefix + sha256[:8] + bytes(24))) == []
            blocks.leaving(gone.digest)
            await index.drop_blob(gone.digest)
            assert list(blocks.find(leaf(early, 1))) == [BlockOf(early.ref, Place(0, 1))]
            mock_clock.jump(2)
            await until(lambda: len(index.scan("blocks", b"\x01" + early.hash(1)[:8])) == 1)
            nursery.cancel_scope.cancel()
        await index.drop_blob(late.digest)  # while there is no gateway
        again = BlockIndex(index)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.serve)
            await until(lambda: len(index.scan("blocks", b"")) == 1 + 4)  # of ``early``: three pieces and a root
            nursery.cancel_scope.cancel()


async def held(sharer: Sharer, data: bytes) -> None:
    """The blob is here, and a claim of a public repository names it."""
    info = Metainfo.of_bytes(data)
    await sharer.claim(info)
    await sharer.store.put(info.digest, data)
    await sharer.index.put_blob(info.digest, info.size, 0.0)


async def test_the_gateway_of_a_node(tmp_path: Path) -> None:
    async with sharing(tmp_path) as sharer, trio.open_nursery() as nursery:
        index, visible = sharer.index, Visible(sharer.index)
        small, manifest = b"small", b'{"of": "a manifest"}'
        for data in (LAYER, small):
            await held(sharer, data)
        stored = StoredManifest(Digest.of(manifest), "application/x", manifest)
        await index.put_manifest("a/b", stored, "another claim", [INFO.ref])
        blocks = BlockIndex(index)
        nursery.start_soon(blocks.serve)
        gateway = IpfsGateway(HeldBlocks(blocks, index, visible, sharer.store), Slots(4, 4), served=lambda _: None)
        await until(lambda: list(blocks.find(INFO.root)) != [])

        async def raw(cid: bytes) -> Answer:
            return await call(gateway, "GET", f"/ipfs/{cid_text(cid)}?format=raw", headers=[("Accept", RAW)])

        wanted = {CID_RAW_PREFIX + INFO.hash(i): LAYER[i * PIECE_SIZE : (i + 1) * PIECE_SIZE] for i in range(3)}
        wanted |= {INFO.root: INFO.dag().blocks[0], Digest.of(small).cid(): small, Digest.of(manifest).cid(): manifest}
        for cid, block in wanted.items():
            answer = await raw(cid)
            assert (answer.status, answer.body) == (200, block)
            assert hashlib.sha256(answer.body).digest() == cid[4:]
        car = await call(gateway, "GET", f"/ipfs/{cid_text(INFO.root)}?format=car&car-dups=y")
        assert file_of(INFO.root, read_car(car.body), dups=True) == LAYER

        # what has become private, or is only on its way, is not there
        growing = await sharer.begin(LAYER[::-1], [0])
        unknown = await raw(Digest.of(b"of nothing").cid())
        assert (await raw(CID_RAW_PREFIX + growing.info.hash(0))).body == unknown.body
        growing.spool.close()
        await index.put_repository("a/b", RepositoryRecord(True, Stamp(1, 2), "a record"))
        for cid in wanted:
            answer = await raw(cid)
            assert (answer.status, answer.body, answer.lines) == (404, unknown.body, unknown.lines)
        nursery.cancel_scope.cancel()


async def test_blobs_that_are_private_keep_no_public_one_from_being_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = bytes(PIECE_SIZE)  # as in many layers
    info = Metainfo.of_bytes(shared + b"of the public one")
    others = [Metainfo.of_bytes(shared + str(number).encode()) for number in range(60)]
    private = [other for other in others if other.digest.hex < info.digest.hex][:25] + others[-3:]
    async with open_index(tmp_path / "index") as index, trio.open_nursery() as nursery:
        await put(index, info, *private)
        blocks = BlockIndex(index)
        nursery.start_soon(blocks.serve)
        await until(lambda: all(list(blocks.find(other.root)) for other in (info, *private)))

        class Some:
            def may_have(self, _caller: object, digest: Digest) -> bool:
                return digest == info.digest

            def claims(self, _caller: object, _digest: Digest) -> list[object]:
                return []

        read: list[Digest] = []
        metainfo = index.metainfo
        monkeypatch.setattr(index, "metainfo", lambda digest: read.append(digest) or metainfo(digest))
        shelf = HeldBlocks(blocks, index, Some(), None)  # type: ignore[arg-type]
        found = await shelf.find(leaf(info, 0))
        assert found == BlockOf(info.ref, Place(0, 0))
        assert await shelf.find(private[0].root) is None
        assert set(read) == {info.digest}, "the time of an answer does not tell what is private here"
        nursery.cancel_scope.cancel()


async def test_a_small_blob_whose_digest_is_of_another_kind_is_found_by_its_block(tmp_path: Path) -> None:
    data = b"small"
    info = Metainfo.of(Digest.of(data, "sha512"), len(data), Digest.of(data).raw)
    async with open_index(tmp_path / "index") as index, trio.open_nursery() as nursery:
        await put(index, info)
        blocks = BlockIndex(index)
        nursery.start_soon(blocks.serve)
        with trio.fail_after(5):
            await until(lambda: list(blocks.find(Digest.of(data).cid())) == [BlockOf(info.ref, Place(0, 0))])
        nursery.cancel_scope.cancel()
