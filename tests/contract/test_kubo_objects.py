"""Objects in an IPFS daemon do what every object store must do, and what only there can go wrong; against the stand-in
for Kubo's RPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.errors import LocalError, NotFound, SettingsError, StorageFull
from p2pregistry.ipfs.kubo import kubo_config
from p2pregistry.objects import kubo_place
from p2pregistry.objects.base import ObjectStore
from p2pregistry.objects.kubo import KuboObjects, check_directory, open_kubo_objects
from p2pregistry.serve.http import Response, Stream
from p2pregistry.testing.kubo import MIB, StubKubo, refused, stub_kubo
from p2pregistry.testing.objects import check_object_store, pattern, read_object, sent

NAME = "u/aa/one"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubo_place, "_PAUSE", 0.001)


@asynccontextmanager
async def store_at(url: str) -> AsyncIterator[KuboObjects]:
    async with open_kubo_objects(kubo_config(url), "/p2pregistry/test") as store:
        yield store


async def test_contract() -> None:
    async with stub_kubo() as (url, stub):

        @asynccontextmanager
        async def make() -> AsyncIterator[ObjectStore]:
            async with store_at(url) as store:
                yield store

        await check_object_store(make)
        assert not stub.pins
        left = stub.at("/p2pregistry/test/uploads")
        assert isinstance(left, dict)
        # of what the check has left unpublished, and nothing of what it published
        assert set(left) == {"u"}
        assert not [name for name in ("aa", "bb", "dd", "ee", "ff") if left["u"].get(name)]  # type: ignore[union-attr]


async def test_an_object_has_the_root_that_is_signed() -> None:
    data = pattern(33 * MIB + 7)
    async with stub_kubo() as (url, stub), store_at(url) as store:
        draft = await store.draft(NAME, 0)
        for at in range(0, len(data), MIB + 1):
            await draft.append(memoryview(data)[at : at + MIB + 1])
            if at % 5 == 0:
                await draft.flush()
        await draft.publish()
        await store.put("u/bb/two", data[: MIB + 1])
        for name, content in ((NAME, data), ("u/bb/two", data[: MIB + 1])):
            assert stub.at(f"/p2pregistry/test/objects/{name}/.bytes") == Metainfo.of_bytes(content).root
        stub.gc()
        # 34 leaves and the root, one leaf and the root of the other, two directories, the empty file
        assert len(stub.blocks) == 40


async def test_garbage_collection_at_any_moment_takes_nothing() -> None:
    data = pattern(3 * MIB + 5)
    async with stub_kubo() as (url, stub), store_at(url) as store:

        async def collect(command: str) -> None:
            with suppress(Exception):
                stub.gc()

        stub.before = collect
        draft = await store.draft(NAME, 0)
        await draft.append(data[: 2 * MIB + 5])
        await draft.flush()
        await draft.aclose()
        draft = await store.draft(NAME, 2 * MIB + 5)
        await draft.append(data[2 * MIB + 5 :])
        await draft.flush()
        await draft.publish()
        await store.put("u/bb/two", data)
        for name in (NAME, "u/bb/two"):
            assert await read_object(store, name, len(data)) == data
        assert not stub.pins
        for name in (NAME, "u/bb/two"):
            await store.delete(name)
        stub.gc()
        assert not stub.blocks


async def test_a_pin_that_somebody_else_made_stays() -> None:
    data = pattern(2 * MIB)
    async with stub_kubo() as (url, stub), store_at(url) as store:
        root = stub.add(data)
        stub.pins[root] = "recursive"
        await store.put(NAME, data)
        await store.delete(NAME)
        stub.gc()
        assert stub.content(root) == data


@pytest.mark.parametrize("moment", range(30))
async def test_a_process_that_dies_at_any_request_leaves_what_was_flushed(moment: int) -> None:
    """And whoever goes on with the upload ends with the object."""
    data = pattern(2 * MIB + 9)
    seen = 0

    class Gone(BaseException):
        pass

    async with stub_kubo() as (url, stub):

        async def die(command: str) -> None:
            nonlocal seen
            seen += 1
            if seen > moment:
                raise Gone

        flushed = 0
        async with store_at(url) as store:
            call = store.place.kubo._call

            async def dying(command: str, *args: Any, **other: Any) -> bytes:
                await die(command)
                return await call(command, *args, **other)

            store.place.kubo._call = dying  # type: ignore[method-assign]
            with suppress(Gone):
                draft = await store.draft(NAME, 0)
                await draft.append(data[: MIB + 3])
                await draft.flush()
                flushed = draft.size
                await draft.append(data[MIB + 3 :])
                await draft.publish()
                flushed = len(data)
        async with store_at(url) as store:
            draft = await store.draft(NAME, flushed)
            stub.gc()
            assert await draft.read_at(0, 3 * MIB) == data[:flushed]
            if flushed < len(data):
                await draft.append(data[flushed:])
            await draft.publish()
            assert await read_object(store, NAME, len(data)) == data
            assert not [stored async for stored in store.drafts()]
            await store.delete(NAME)
            stub.gc()
            # a part that was pinned when its process died, and was not named yet, is all that can be left
            assert sum(map(len, stub.blocks.values())) <= (len(data) + 1000 if stub.pins else 0)
            assert len(stub.pins) <= 1
    assert moment < seen or flushed == len(data), seen


@pytest.mark.parametrize("moment", range(16))
async def test_a_client_that_goes_away_at_any_request_leaves_no_pin(moment: int) -> None:
    data = pattern(2 * MIB + 9)
    async with stub_kubo() as (url, stub), store_at(url) as store:
        call, seen = store.place.kubo._call, 0
        with trio.CancelScope() as scope:

            async def cut(command: str, *args: Any, **other: Any) -> bytes:
                nonlocal seen
                answer = await call(command, *args, **other)
                seen += 1
                if seen == moment + 1:
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                return answer

            store.place.kubo._call = cut  # type: ignore[method-assign]
            draft = await store.draft(NAME, 0)
            await draft.append(data)
            await draft.flush()
            await draft.publish()
        assert scope.cancelled_caught == (moment < seen)
        await (await store.draft(NAME, 0)).discard()
        assert not stub.pins


async def test_a_daemon_that_was_away_for_a_moment() -> None:
    async with stub_kubo() as (url, stub), store_at(url) as store:
        for command in ("dag/import", "files/cp", "pin/rm"):
            stub.scripted[command] = [Response(429), refused("context deadline exceeded")]
        await store.put(NAME, b"bytes")
        stub.scripted["files/read"] = [Response(429)] * 3
        assert await read_object(store, NAME, 5) == b"bytes"


async def test_failures_are_those_of_a_store() -> None:
    async with stub_kubo() as (url, stub), store_at(url) as store:
        stub.scripted["dag/import"] = [refused("no space left on device")]
        with pytest.raises(StorageFull):
            await store.put(NAME, b"bytes")
        stub.scripted["dag/import"] = [Response(200)] * 4  # it says nothing of the root
        with pytest.raises(LocalError, match="not stored"):
            await store.put(NAME, b"bytes")
        await store.put(NAME, b"bytes")
        with pytest.raises(LocalError, match="another object"):
            await store.put(NAME, b"other bytes")
        with pytest.raises(LocalError, match="fewer bytes"):
            await read_object(store, NAME, 6)
        stub.scripted["files/stat"] = [refused("what?")]
        with pytest.raises(LocalError, match="what"):
            await store.check()
    async with store_at(url) as store:
        with pytest.raises(LocalError, match="reached"):
            await store.check()


async def test_a_body_that_breaks_off_is_taken_up_again() -> None:
    data = pattern(MIB)

    async def half() -> AsyncIterator[bytes]:
        yield data[: MIB // 2]

    async with stub_kubo() as (url, stub), store_at(url) as store:
        await store.put(NAME, data)
        stub.scripted["files/read"] = [Response(200, body=Stream(half(), None))]
        assert await sent(await store.body(NAME, MIB, 0, MIB)) == data
        stub.scripted["files/read"] = [Response(200, body=b"")] * 4
        with pytest.raises(LocalError, match="in the middle"):
            await store.body(NAME, MIB, 0, MIB)
        stub.scripted["files/read"] = [Response(200, body=b"too much")]
        with pytest.raises(LocalError, match="more bytes"):
            await store.body(NAME, MIB, 0, 3)
        body = await store.body(NAME, MIB, 0, MIB)
        assert isinstance(body, Stream)
        await body.chunks.aclose()  # type: ignore[union-attr]


async def test_times_are_in_names() -> None:
    async with (
        stub_kubo() as (url, _),
        open_kubo_objects(kubo_config(url), "/p", now=lambda: 1_700_000_000.25) as store,
    ):
        await store.put(NAME, b"bytes")
        draft = await store.draft("u/bb/two", 0)
        await draft.append(b"more")
        await draft.flush()
        assert [stored.modified async for stored in store.objects()] == [1_700_000_000.25]
        assert [stored.modified async for stored in store.drafts()] == [1_700_000_000.25]
        with pytest.raises(NotFound):
            await store.draft("u/bb/two", 5)


async def test_room_is_what_the_repository_may_still_grow() -> None:
    stub = StubKubo()
    async with stub_kubo(stub) as (url, _), store_at(url) as store:
        stub.storage_max = 1000
        await store.put(NAME, bytes(100))
        assert 0 < (await store.room() or 0) < 900
        stub.storage_max = (1 << 64) - 1
        assert await store.room() is None


@pytest.mark.parametrize("directory", ["", "p", "/", "/ipfs/x", "/../x", "/A"])
def test_what_is_no_directory(directory: str) -> None:
    with pytest.raises(SettingsError):
        check_directory(directory)
