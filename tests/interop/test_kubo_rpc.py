"""Our client of Kubo's RPC against js-ipfs, which has the same RPC, and CAR files of ours that it takes in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from p2pregistry.content.car import CarReader, header, section
from p2pregistry.content.dag import CarWalk
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE, in_order
from p2pregistry.digest import Digest, cid_text
from p2pregistry.errors import NotFound, RegistryError
from p2pregistry.image.export import write_car
from p2pregistry.image.inventory import take
from p2pregistry.ipfs.kubo import Exists, Kubo, kubo_config, open_kubo
from p2pregistry.objects import kubo_place
from p2pregistry.objects.base import ObjectStore
from p2pregistry.objects.kubo import open_kubo_objects
from p2pregistry.testing.images import Layout, make_image
from p2pregistry.testing.js_ipfs import JsIpfs
from p2pregistry.testing.objects import check_object_store, pattern
from p2pregistry.testing.shelf import Shelf

pytestmark = pytest.mark.interop


@asynccontextmanager
async def kubo(daemon: JsIpfs) -> AsyncIterator[Kubo]:
    async with open_kubo(kubo_config(daemon.url)) as client:
        yield client


async def car_of(data: bytes) -> AsyncIterator[bytes]:
    info = Metainfo.of_bytes(data)
    yield header(info.root)
    for cid, block in in_order(info.hashes, len(data)):
        yield section(cid, data[block * PIECE_SIZE :][:PIECE_SIZE] if isinstance(block, int) else block)


async def test_blocks(daemon: JsIpfs) -> None:
    async with kubo(daemon) as client:
        assert await client.version()
        assert (await client.repo_stat()).size >= 0
        cid = await client.block_put(b"a block")
        assert cid == Digest.of(b"a block").cid()
        assert await client.block_get(cid) == b"a block"
        assert await client.block_stat(cid) == 7
        with pytest.raises(RegistryError):
            await client.block_get(Digest.of(b"not there").cid(), timeout=0.5)


@pytest.mark.parametrize("size", [0, 1, PIECE_SIZE, PIECE_SIZE + 1, 5 * PIECE_SIZE + 7])
async def test_our_car_goes_in_pinned_and_comes_out(daemon: JsIpfs, size: int) -> None:
    data = pattern(size)
    root = Metainfo.of_bytes(data).root
    async with kubo(daemon) as client:
        (imported,) = await client.dag_import(car_of(data))
        assert (imported.cid, imported.error) == (cid_text(root), "")
        assert await client.pin_ls(root) is not None
        walk, found = CarWalk(root, size, 0, size, ordered=False), bytearray()
        reader, blocks = CarReader(), 0
        async with client.dag_export(root) as chunks:
            async for chunk in chunks:
                blocks += len(list(reader.feed(chunk)))
                found += b"".join(walk.feed(chunk))
        reader.close()
        walk.close()
        assert bytes(found) == data
        assert blocks == len(list(in_order(Metainfo.of_bytes(data).hashes, size)))
        await client.pin_rm(root)
        await client.pin_rm(root)
        assert await client.pin_ls(root) is None
        await client.pin_add(root)
        assert await client.pin_ls(root) is not None


async def test_an_exported_image_goes_in_as_it_is(daemon: JsIpfs, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image = make_image(layout, layers=2, layer_bytes=2 * PIECE_SIZE + 5)
    shelf = Shelf(layout, image.digest)
    items = list(take(shelf, "latest", None).items)
    roots = write_car(shelf, items, tmp_path / "image.car")

    async def file() -> AsyncIterator[bytes]:
        yield (tmp_path / "image.car").read_bytes()

    async with kubo(daemon) as client:
        imported = await client.dag_import(file())
    assert {(one.cid, one.error) for one in imported} == {(cid_text(root), "") for root in roots}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        for item, root in zip(items, roots, strict=True):
            answer = await http.post(f"{daemon.url}/api/v0/cat?arg={cid_text(root)}")
            assert answer.content == layout.read(str(item.digest))


async def test_named_files(daemon: JsIpfs) -> None:
    data = pattern(2 * PIECE_SIZE + 5)
    root = Metainfo.of_bytes(data).root
    async with kubo(daemon) as client:
        await client.dag_import(car_of(data), pin=False)
        await client.files_mkdir("/a/b")
        await client.files_mkdir("/a/b")
        await client.files_cp(f"/ipfs/{cid_text(root)}", "/a/b/blob")
        stat = await client.files_stat("/a/b/blob")
        assert (stat.cid, stat.size) == (cid_text(root), len(data))
        assert await client.files_read("/a/b/blob", PIECE_SIZE - 2, 5) == data[PIECE_SIZE - 2 :][:5]
        with pytest.raises(Exists):
            await client.files_cp(f"/ipfs/{cid_text(root)}", "/a/b/blob")
        await client.files_write("/a/note", b"words")
        await client.files_write("/a/note", b"word")
        assert await client.files_read("/a/note", 0, 100) == b"word"
        await client.files_mv("/a/b/blob", "/a/moved")
        assert {entry.name for entry in await client.files_ls("/a")} == {"b", "moved", "note"}
        await client.files_rm("/a")
        await client.files_rm("/a")
        with pytest.raises(NotFound):
            await client.files_stat("/a")


async def test_objects_in_it_do_what_every_object_store_must(daemon: JsIpfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubo_place, "_PAUSE", 0.001)

    @asynccontextmanager
    async def make() -> AsyncIterator[ObjectStore]:
        async with open_kubo_objects(kubo_config(daemon.url), "/p2pregistry/contract") as store:
            yield store

    await check_object_store(make)
