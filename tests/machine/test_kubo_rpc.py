"""Our client of Kubo's RPC, against the stand-in for it, over a real socket."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest
import trio

from p2pregistry.content.car import CarReader, header, section
from p2pregistry.content.unixfs import in_order
from p2pregistry.digest import CID_RAW_PREFIX, cid_text
from p2pregistry.errors import (
    BadContent,
    NotFound,
    RegistryError,
    RemoteBusy,
    SettingsError,
    StorageFull,
    Unreachable,
)
from p2pregistry.ipfs.kubo import Exists, KuboError, kubo_config, open_kubo
from p2pregistry.serve.http import Response, Stream
from p2pregistry.testing.kubo import MIB, StubKubo, refused, stub_kubo
from p2pregistry.testing.objects import pattern


def raw(data: bytes) -> bytes:
    return CID_RAW_PREFIX + hashlib.sha256(data).digest()


async def car_of(data: bytes, *, without: int | None = None) -> AsyncIterator[bytes]:
    pieces = [data[at : at + MIB] for at in range(0, max(1, len(data)), MIB)]
    order = list(in_order(b"".join(hashlib.sha256(piece).digest() for piece in pieces), len(data)))
    yield header(order[0][0])
    for cid, block in order:
        if block != without:
            yield section(cid, pieces[block] if isinstance(block, int) else block)


async def test_blocks() -> None:
    async with stub_kubo() as (url, stub), open_kubo(kubo_config(url)) as kubo:
        assert await kubo.version() == "0.35.0-stub"
        cid = await kubo.block_put(b"a block")
        assert cid == raw(b"a block")
        assert await kubo.block_get(cid, offline=True) == b"a block"
        assert await kubo.block_stat(cid) == 7
        assert (await kubo.repo_stat()).size == 7
        stub.network[raw(b"far")] = b"far"
        with pytest.raises(NotFound):
            await kubo.block_get(raw(b"far"), offline=True)
        with pytest.raises(Unreachable):
            await kubo.block_get(raw(b"nowhere"), timeout=0.5)
        assert await kubo.block_get(raw(b"far"), timeout=0.5) == b"far"
        stub.blocks[cid] = b"another"
        with pytest.raises(BadContent):
            await kubo.block_get(cid)


async def test_a_car_goes_in_and_out() -> None:
    data = pattern(2 * MIB + 5)
    async with stub_kubo() as (url, stub), open_kubo(kubo_config(url)) as kubo:
        (root,) = await kubo.dag_import(car_of(data))
        assert root.error == ""
        (cid,) = stub.pins
        assert root.cid == cid_text(cid)
        assert stub.content(cid) == data
        assert await kubo.pin_ls(cid) == await kubo.pin_ls(cid, "recursive") == "recursive"
        assert await kubo.pin_ls(cid, "direct") is None
        reader = CarReader()
        async with kubo.dag_export(cid) as chunks:
            blocks = [pair async for chunk in chunks for pair in reader.feed(chunk)]
        reader.close()
        assert len(blocks) == 4
        async with kubo.dag_export(cid) as chunks:
            await anext(chunks)  # and no more is wanted
        await kubo.pin_rm(cid)
        await kubo.pin_rm(cid)
        assert await kubo.pin_ls(cid) is None
        assert stub.gc() == 4
        (root,) = await kubo.dag_import(car_of(data, without=1))
        assert "could not find" in root.error
        assert not stub.pins


async def test_pins_of_what_is_elsewhere() -> None:
    async with stub_kubo() as (url, stub), open_kubo(kubo_config(url)) as kubo:
        root = stub.add(pattern(MIB + 1), network=True)
        await kubo.pin_add(root, timeout=5)
        assert stub.gc() == 0
        with pytest.raises(Unreachable):
            await kubo.pin_add(raw(b"nowhere"), timeout=0.5)


async def test_files() -> None:
    async with stub_kubo() as (url, stub), open_kubo(kubo_config(url)) as kubo:
        await kubo.files_write("/a/b/file", b"0123456789")
        stat = await kubo.files_stat("/a/b/file")
        assert (stat.cid, stat.size, stat.directory) == (cid_text(raw(b"0123456789")), 10, False)
        assert await kubo.files_read("/a/b/file", 2, 3) == b"234"
        async with kubo.files_stream("/a/b/file", 8, 100) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == b"89"
        await kubo.files_mkdir("/a/c")
        await kubo.files_mkdir("/a/c")
        cid = await kubo.block_put(b"in a name")
        await kubo.files_cp(f"/ipfs/{cid_text(cid)}", "/a/c/new")
        with pytest.raises(Exists):
            await kubo.files_cp(f"/ipfs/{cid_text(cid)}", "/a/c/new")
        await kubo.files_mv("/a/c/new", "/a/b/file")
        assert await kubo.files_read("/a/b/file", 0, 9) == b"in a name"
        assert [(entry.name, entry.directory) for entry in await kubo.files_ls("/a")] == [("b", True), ("c", True)]
        assert await kubo.files_ls("/a/c") == []
        await kubo.files_rm("/a/b")
        await kubo.files_rm("/a/b")
        with pytest.raises(NotFound):
            await kubo.files_stat("/a/b/file")
        stub.gc()
        with pytest.raises(NotFound):
            await kubo.files_cp(f"/ipfs/{cid_text(cid)}", "/a/c/again")


async def test_a_secret_is_sent_and_not_shown() -> None:
    stub = StubKubo(authorization="Bearer of-good-news")
    async with stub_kubo(stub) as (url, _):
        config = kubo_config(url, secret="bearer:of-good-news")
        assert "good-news" not in repr(config)
        async with open_kubo(config) as kubo:
            await kubo.version()
        async with open_kubo(kubo_config(url, secret="of-bad-news")) as kubo:
            with pytest.raises(KuboError, match=r"API\.Authorizations") as caught:
                await kubo.version()
            assert "bad-news" not in caught.value.message
    assert kubo_config(url, secret="basic:user:word").authorization == "Basic dXNlcjp3b3Jk"
    with pytest.raises(SettingsError) as refusal:
        kubo_config(url, secret="two\nlines")
    assert "lines" not in refusal.value.message


@pytest.mark.parametrize(
    "url", ["", "localhost:5001", "http://user@host", "http://host?x", "ftp://host", "http://h/a b"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(SettingsError, match="url:"):
        kubo_config(url)


FAILURES = [
    (refused("write /data/ipfs/blocks: no space left on device"), StorageFull),
    (refused("merkledag: not found"), NotFound),
    (refused("context deadline exceeded"), Unreachable),
    (refused("something else"), KuboError),
    (Response(429), RemoteBusy),
    (Response(404, body=b"404 page not found"), KuboError),
    (Response(302, [("Location", "http://127.0.0.1:1/")]), KuboError),
    (Response(200, body=b"{"), BadContent),
    (Response(200, body=b"[" * 100_000), BadContent),
    (Response(200, body=b"x" * (5 * MIB)), BadContent),
]


@pytest.mark.parametrize("index", range(len(FAILURES)))
async def test_failures_are_ours(index: int) -> None:
    answer, kind = FAILURES[index]
    async with stub_kubo() as (url, stub), open_kubo(kubo_config(url)) as kubo:
        stub.scripted["version"] = [answer]
        with pytest.raises(kind):
            await kubo.version()
        assert await kubo.version()


async def test_an_answer_that_breaks_off_is_none() -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"half of"
        raise trio.BrokenResourceError

    async with stub_kubo() as (url, stub), open_kubo(kubo_config(url)) as kubo:
        stub.scripted["block/get"] = [Response(200, body=Stream(breaks(), None))]
        with pytest.raises(RegistryError):
            await kubo.block_get(raw(b"half of it"))
    async with open_kubo(kubo_config(url)) as gone:
        with pytest.raises(Unreachable):
            await gone.version()


async def test_a_car_that_cannot_be_read_to_its_end_ends_the_import() -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield header(raw(b""))
        raise NotFound("BLOB_UNKNOWN", "gone")

    async with stub_kubo() as (url, stub), open_kubo(kubo_config(url)) as kubo:
        with pytest.raises(NotFound, match="gone"):
            await kubo.dag_import(breaks())
        assert not stub.blocks
        assert await kubo.version()


async def test_blocks_that_are_too_large_for_the_daemon() -> None:
    async with stub_kubo(StubKubo(max_block=MIB)) as (url, _), open_kubo(kubo_config(url)) as kubo:
        assert await kubo.block_put(bytes(MIB))
        with pytest.raises(KuboError, match="over 1MiB"):
            await kubo.block_put(bytes(MIB + 1))
