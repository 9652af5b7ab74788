"""Every source keeps the same contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.ipfs.gateway_client import GatewayClient
from p2pregistry.ipfs.kubo import kubo_config
from p2pregistry.ipfs.kubo_blocks import KuboBlocks
from p2pregistry.serve.peer_api import PeerApi, Slots
from p2pregistry.sources.base import Source
from p2pregistry.sources.ipfs import Common, IpfsSource, Known, Mode
from p2pregistry.sources.memory import MemorySource
from p2pregistry.sources.peer import PeerSource
from p2pregistry.sources.tracker import TrackerSource
from p2pregistry.store.index import open_index
from p2pregistry.store.memory import MemoryStore
from p2pregistry.store.records import StoredManifest
from p2pregistry.testing.gateway import gateway_of
from p2pregistry.testing.http import running
from p2pregistry.testing.ipfs_gateway import StubGateway, stub_gateway
from p2pregistry.testing.kubo import StubKubo, stub_kubo
from p2pregistry.testing.sharing import PUBLIC, sharing
from p2pregistry.testing.sources import Come, check_sharing, check_source
from p2pregistry.testing.tracker_api import registry
from p2pregistry.visible import Visible


@asynccontextmanager
async def in_memory(blobs: Mapping[Digest, bytes]) -> AsyncIterator[Source]:
    yield MemorySource("a", dict(blobs))


async def test_the_memory_source() -> None:
    await check_source(in_memory)


@asynccontextmanager
async def partly_in_memory(data: bytes, have: Collection[int]) -> AsyncIterator[tuple[MemorySource, Come]]:
    info = Metainfo.of_bytes(data)
    source = MemorySource("a", {info.digest: data}, missing={info.digest: set(range(info.count)) - set(have)})

    async def come(index: int) -> None:
        source.come(info.digest, index)

    yield source, come


async def test_the_memory_source_with_part_of_a_blob() -> None:
    await check_sharing(partly_in_memory)


async def test_a_peer_with_part_of_a_blob(tmp_path: Path) -> None:
    @asynccontextmanager
    async def make(data: bytes, have: Collection[int]) -> AsyncIterator[tuple[PeerSource, Come]]:
        async with sharing(tmp_path) as sharer, running(sharer.api, grace=0.0) as url:
            growing = await sharer.begin(data, have)
            source = PeerSource("a peer", url)
            try:
                yield source, growing.put
            finally:
                source.close()
                sharer.haves.close()
                growing.spool.close()

    await check_sharing(make)


@asynccontextmanager
async def serving(folder: Path, blobs: Mapping[Digest, bytes]) -> AsyncIterator[str]:
    """The URL of a real peer API on a real socket that has these blobs."""
    store = MemoryStore()
    async with open_index(folder / "index.lmdb") as index:
        for digest, data in blobs.items():
            staged = await store.stage(digest.hex)
            await staged.write_at(0, data)
            await staged.commit(digest)
            info = Metainfo.of_bytes(data)
            await index.put_metainfo(info)
            manifest = StoredManifest(Digest.of(digest.raw), "application/x", b"")
            await index.put_manifest("a/b", manifest, "claim", [info.ref])
            await index.put_repository("a/b", PUBLIC)
        async with running(PeerApi(index, store, Slots(2, 100), Visible(index), served=lambda _count: None)) as url:
            yield url


async def test_a_peer(tmp_path: Path) -> None:
    @asynccontextmanager
    async def make(blobs: Mapping[Digest, bytes]) -> AsyncIterator[Source]:
        async with serving(tmp_path, blobs) as url:
            source = PeerSource("a peer", url)
            yield source
            source.close()

    await check_source(make)


async def test_the_tracker_as_a_source(tmp_path: Path) -> None:
    @asynccontextmanager
    async def make(blobs: Mapping[Digest, bytes]) -> AsyncIterator[Source]:
        async with serving(tmp_path, blobs) as url:
            source = TrackerSource(url)
            yield source
            source.close()

    await check_source(make)


def known_to_be(blobs: Mapping[Digest, bytes], *, tables: bool) -> Common:
    """What a node knows of these blobs, and of one that nobody has."""
    infos = [Metainfo.of_bytes(data) for data in (*blobs.values(), b"nobody has this" * 100_000)]
    return Common({info.digest: Known(info.ref, info if tables else None) for info in infos}.get)


@pytest.mark.parametrize("tables", [True, False], ids=["with tables", "without"])
@pytest.mark.parametrize("mode", ["auto", "raw", "car"])
@pytest.mark.parametrize(
    "ways", [{}, {"dups": False}, {"ranges": False}], ids=["plain", "each block once", "no ranges"]
)
async def test_a_gateway(mode: Mode, ways: dict[str, Any], tables: bool) -> None:
    @asynccontextmanager
    async def make(blobs: Mapping[Digest, bytes]) -> AsyncIterator[Source]:
        stub = StubGateway(**ways)
        stub.add(*blobs.values())
        async with stub_gateway(stub) as (url, _):
            source = IpfsSource(GatewayClient(url), known_to_be(blobs, tables=tables), mode=mode)
            yield source
            assert source.health.state == "ok"
            assert any(what == "car" for what, _cid, _range in stub.asked) == (mode != "raw")
            await source.aclose()

    await check_source(make)


@pytest.mark.parametrize("mode", ["auto", "raw", "car"])
async def test_a_tracker_of_ours_as_a_gateway(tmp_path: Path, mode: Mode) -> None:
    @asynccontextmanager
    async def make(blobs: Mapping[Digest, bytes]) -> AsyncIterator[Source]:
        async with registry(tmp_path) as made:
            await made.push_image("acme/api", "1", *blobs.values())
            async with running(gateway_of(made, Slots(16, 256), [])) as url:
                source = IpfsSource(GatewayClient(url), known_to_be(blobs, tables=True), mode=mode)
                await source.probe()
                yield source
                assert source.health.state == "ok"
                await source.aclose()

    await check_source(make)


@pytest.mark.parametrize("mode", ["auto", "raw", "car"])
async def test_a_kubo(mode: Mode) -> None:
    @asynccontextmanager
    async def make(blobs: Mapping[Digest, bytes]) -> AsyncIterator[Source]:
        stub = StubKubo()
        for data in blobs.values():
            stub.add(data)
        async with stub_kubo(stub) as (url, _):
            source = IpfsSource(KuboBlocks(kubo_config(url)), known_to_be(blobs, tables=True), mode=mode)
            yield source
            assert source.health.state == "ok"
            assert bool(stub.calls["dag/export"]) == (mode != "raw")
            await source.aclose()

    await check_source(make)
