"""What every ObjectStore must do. ``make`` opens a store on the same place each time, also beside one that is open:
what one process leaves, another finds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from itertools import pairwise

from p2pregistry.errors import LocalError, NotFound
from p2pregistry.objects.base import Object, ObjectStore
from p2pregistry.serve.http import BlobSlice, Stream

Make = Callable[[], AbstractAsyncContextManager[ObjectStore]]

_MIB = 1 << 20


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes of which no two places look alike."""
    block = b"".join(((i * 2654435761 + seed) & 0xFFFFFFFF).to_bytes(4, "big") for i in range(16384))
    marked = (block[:-8] + i.to_bytes(8, "big") for i in range(size // len(block) + 1))
    return b"".join(marked)[:size]


async def read_object(store: ObjectStore, name: str, size: int) -> bytes:
    """All bytes of an object."""
    opened = await store.open(name, size)
    try:
        return await read_all(opened)
    finally:
        opened.close()


async def read_all(opened: Object) -> bytes:
    """All bytes of what is open, which stays open."""
    data = b""
    while len(data) < opened.size:
        more = await opened.read_at(len(data), 4 * _MIB)
        assert more
        data += more
    return data


async def sent(body: BlobSlice | Stream) -> bytes:
    """What a listener would send."""
    if isinstance(body, BlobSlice):
        try:
            data = b""
            while len(data) < body.length:
                data += await body.blob.read_at(body.offset + len(data), body.length - len(data))
            return data
        finally:
            body.blob.close()
    data = b""
    async for part in body.chunks:
        assert isinstance(part, bytes)
        data += part
    assert body.length == len(data)
    return data


async def not_found(call: Callable[[], Awaitable[object]]) -> str | None:
    """The code of the NotFound that it raises; None if it raises none."""
    try:
        await call()
    except NotFound as err:
        return err.code
    return None


async def is_gone(store: ObjectStore, name: str) -> bool:
    """Whether every way to it says that the object is not there."""
    asked = [await not_found(lambda: store.size(name)), await not_found(lambda: read_object(store, name, 1))]
    return asked == ["BLOB_UNKNOWN", "BLOB_UNKNOWN"]


async def check_object_store(make: Make) -> None:
    """Run every check, each on what the ones before it left. Raises AssertionError."""
    for check in (
        check_names,
        check_a_draft_becomes_an_object,
        check_an_empty_draft,
        check_a_draft_goes_on_elsewhere,
        check_bytes_beyond_are_dropped,
        check_a_large_draft_in_small_and_large_parts,
        check_taking_over,
        check_discard,
        check_put_and_ranges,
        check_delete,
        check_lists,
        check_health,
    ):
        await check(make)


async def check_names(make: Make) -> None:
    """Names that could leave the store's place are refused by every method that takes one."""
    async with make() as store:
        for name in ("", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "A", "a\0b", "ü", "x" * 201):
            for call in (
                lambda name=name: store.draft(name, 0),
                lambda name=name: store.put(name, b""),
                lambda name=name: store.open(name, 0),
                lambda name=name: store.size(name),
                lambda name=name: store.body(name, 1, 0, 1),
                lambda name=name: store.delete(name),
            ):
                try:
                    await call()
                except ValueError:
                    continue
                raise AssertionError(f"{name!r} was taken")


async def check_a_draft_becomes_an_object(make: Make) -> None:
    """It is invisible until it is published, and whole from then on."""
    data = pattern(300_000)
    async with make() as store, make() as other:
        draft = await store.draft("u/aa/one", 0)
        assert draft.size == 0
        await draft.append(data[:1000])
        await draft.append(memoryview(data)[1000:200_000])
        await draft.append(bytearray(data[200_000:]))
        assert draft.size == len(data)
        assert await is_gone(other, "u/aa/one")
        await draft.flush()
        assert await draft.read_at(900, 200) == data[900:1100]
        assert await draft.read_at(len(data) - 10, 100) == data[-10:]
        await draft.publish()
        assert await other.size("u/aa/one") == len(data)
        assert await read_object(other, "u/aa/one", len(data)) == data


async def check_an_empty_draft(make: Make) -> None:
    """A blob without bytes is a blob."""
    async with make() as store:
        draft = await store.draft("u/aa/empty", 0)
        await draft.publish()
        assert await store.size("u/aa/empty") == 0
        (await store.open("u/aa/empty", 0)).close()


async def check_a_draft_goes_on_elsewhere(make: Make) -> None:
    """What was flushed can be read and continued by another process."""
    data = pattern(100_000, 1)
    async with make() as store:
        draft = await store.draft("u/bb/two", 0)
        await draft.append(data[:60_000])
        await draft.flush()
        await draft.aclose()
        await draft.aclose()
    async with make() as store:
        draft = await store.draft("u/bb/two", 60_000)
        assert draft.size == 60_000
        assert await draft.read_at(59_990, 100) == data[59_990:60_000]
        await draft.append(data[60_000:])
        await draft.publish()
        assert await read_object(store, "u/bb/two", len(data)) == data


async def check_bytes_beyond_are_dropped(make: Make) -> None:
    """What was flushed but never recorded does not count; fewer bytes than were recorded are an error."""
    data = pattern(50_000, 2)
    async with make() as store:
        draft = await store.draft("u/cc/three", 0)
        await draft.append(data[:20_000])
        await draft.flush()
        await draft.append(b"x" * 7)
        await draft.flush()
        await draft.aclose()
        assert await not_found(lambda: store.draft("u/cc/three", 20_008)) == "BLOB_UPLOAD_UNKNOWN"
        draft = await store.draft("u/cc/three", 19_000)
        assert draft.size == 19_000
        await draft.append(data[19_000:])
        await draft.publish()
        assert await read_object(store, "u/cc/three", len(data)) == data
        draft = await store.draft("u/cc/again", 0)
        await draft.append(b"old")
        await draft.flush()
        await draft.aclose()
        draft = await store.draft("u/cc/again", 0)
        await draft.append(b"new bytes")
        await draft.publish()
        assert await read_object(store, "u/cc/again", 9) == b"new bytes"


async def check_a_large_draft_in_small_and_large_parts(make: Make) -> None:
    """Flushes at odd places, small and large, in the middle of what a store writes at once."""
    data = pattern(40 * _MIB + 12_345, 3)
    cuts = [0, 5, 1000, 6 * _MIB, 6 * _MIB + 1, 23 * _MIB, 39 * _MIB, len(data)]
    async with make() as store:
        draft = await store.draft("u/dd/large", 0)
        for first, last in pairwise(cuts):
            for offset in range(first, last, _MIB):
                await draft.append(memoryview(data)[offset : min(last, offset + _MIB)])
            await draft.flush()
            if first == 6 * _MIB:
                await draft.aclose()
                draft = await store.draft("u/dd/large", last)
        await draft.publish()
        assert await store.size("u/dd/large") == len(data)
        assert await read_object(store, "u/dd/large", len(data)) == data
        assert not [stored async for stored in store.drafts() if stored.name == "u/dd/large"]


async def check_taking_over(make: Make) -> None:
    """A process that was thought dead and writes on does no harm to what another one made of its upload."""
    data = pattern(30_000, 4)
    async with make() as slow, make() as quick:
        stale = await slow.draft("u/ee/four", 0)
        await stale.append(data[:10_000])
        await stale.flush()
        draft = await quick.draft("u/ee/four", 10_000)
        await stale.append(b"z" * 5000)
        with suppress(LocalError):
            await stale.flush()
        await draft.append(data[10_000:])
        await draft.publish()
        with suppress(LocalError):
            await stale.publish()
        await stale.aclose()
        assert await read_object(quick, "u/ee/four", len(data)) == data


async def check_discard(make: Make) -> None:
    """Nothing is left, and saying it twice is no error."""
    async with make() as store:
        draft = await store.draft("u/ff/five", 0)
        await draft.append(b"abc")
        await draft.flush()
        await draft.discard()
        await draft.discard()
        await draft.aclose()
        assert not [stored async for stored in store.drafts() if stored.name == "u/ff/five"]
        draft = await store.draft("u/ff/five", 0)
        await draft.discard()
        assert await is_gone(store, "u/ff/five")


async def check_put_and_ranges(make: Make) -> None:
    """A small object at once; any part of it; and what a client is answered."""
    data = pattern(70_000, 5)
    async with make() as store, make() as other:
        await store.put("u/11/put", data)
        opened = await other.open("u/11/put", len(data))
        try:
            assert opened.size == len(data)
            for offset, length in ((0, 1), (69_999, 1), (1000, 65_536), (0, 70_000), (69_000, 5000)):
                assert await opened.read_at(offset, length) == data[offset : offset + length]
        finally:
            opened.close()
            opened.close()
        for offset, length in ((0, len(data)), (10, 20), (69_999, 1)):
            assert await sent(await store.body("u/11/put", len(data), offset, length)) == data[offset : offset + length]
        link = store.link("u/11/put", "layer", 60.0)
        assert link is None or link.startswith(("http://", "https://"))


async def check_delete(make: Make) -> None:
    """It is gone for everybody; again, it is no error."""
    async with make() as store, make() as other:
        await store.put("u/22/gone", b"bytes")
        await other.delete("u/22/gone")
        await other.delete("u/22/gone")
        assert await is_gone(store, "u/22/gone")
        assert await not_found(lambda: store.body("u/22/gone", 5, 0, 5)) == "BLOB_UNKNOWN"


async def check_lists(make: Make) -> None:
    """Objects and drafts are told apart, with their sizes and times."""
    async with make() as store:
        await store.put("sha256/ab/abcdef", b"four")
        draft = await store.draft("u/33/open", 0)
        await draft.append(b"12345")
        await draft.flush()
        objects = {stored.name: stored async for stored in store.objects()}
        drafts = {stored.name: stored async for stored in store.drafts()}
        assert objects["sha256/ab/abcdef"].size == 4
        assert drafts["u/33/open"].size == 5
        assert "u/33/open" not in objects
        assert "sha256/ab/abcdef" not in drafts
        assert objects["sha256/ab/abcdef"].modified > 1_600_000_000
        assert drafts["u/33/open"].modified > 1_600_000_000
        await draft.discard()


async def check_health(make: Make) -> None:
    """A store that works says so."""
    async with make() as store:
        await store.check()
        room = await store.room()
        assert room is None or room > 0
