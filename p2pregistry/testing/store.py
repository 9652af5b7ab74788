"""What every BlobStore must do. ``make`` opens a store on the same place each time: what one left, the next finds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound
from p2pregistry.store.base import Blob, BlobStore

Make = Callable[[], AbstractAsyncContextManager[BlobStore]]


async def put(store: BlobStore, data: bytes, *, key: str = "put", digest: Digest | None = None) -> Digest:
    """Commit ``data`` as a blob; its digest."""
    digest = digest or Digest.of(data)
    staged = await store.stage(key)
    await staged.write_at(0, data)
    await staged.commit(digest)
    return digest


async def read_all(blob: Blob) -> bytes:
    """All bytes of an open blob, which is closed."""
    try:
        return await blob.read_at(0, blob.size)
    finally:
        blob.close()


async def listed(store: BlobStore) -> dict[Digest, int]:
    """Every blob and its size."""
    return {digest: size async for digest, size in store.blobs()}


async def refuses(store: BlobStore, digest: Digest) -> bool:
    """Whether both ``open`` and ``size`` say that the blob is not here."""
    for ask in (store.open, store.size):
        try:
            found = await ask(digest)
        except NotFound as err:
            if err.code != "BLOB_UNKNOWN":
                return False
        else:
            if not isinstance(found, int):
                found.close()
            return False
    return True


async def check_blob_store(make: Make) -> None:
    """Run every check, each on what the ones before it left. Raises AssertionError."""
    for check in (
        check_commit,
        check_put,
        check_staging,
        check_verified_writes,
        check_delete_while_open,
        check_second_commit,
        check_keys,
        check_survival,
    ):
        await check(make)


async def check_commit(make: Make) -> None:
    """A blob is invisible until the commit, then whole; of either algorithm, and empty ones too."""
    async with make() as store:
        for data, algorithm in ((b"some bytes", "sha256"), (b"", "sha256"), (bytes(300_000), "sha512")):
            digest = Digest.of(data, algorithm)
            assert await refuses(store, digest)
            staged = await store.stage("upload-1")
            await staged.write_at(0, data)
            assert await refuses(store, digest)
            await staged.commit(digest)
            assert await store.staged() == []
            assert await store.size(digest) == len(data)
            assert (await listed(store))[digest] == len(data)
            blob = await store.open(digest)
            assert (blob.digest, blob.size) == (digest, len(data))
            assert await blob.read_at(3, 4) == data[3:7]
            assert await blob.read_at(len(data), 5) == b""
            assert await blob.read_at(0, len(data) + 5) == data
            blob.close()
            blob.close()


async def check_put(make: Make) -> None:
    """Bytes become a blob in one go; again is no error; nothing staged is left."""
    async with make() as store:
        for data in (b"x", b"small" * 1000):
            digest = Digest.of(data)
            await store.put(digest, data)
            await store.put(digest, data)
            assert await read_all(await store.open(digest)) == data
            assert await store.size(digest) == len(data)
        assert await store.staged() == []
    async with make() as store:
        assert await store.size(Digest.of(b"x")) == 1


async def check_staging(make: Make) -> None:
    """Writes in any order, holes of zeros, an end where the furthest write ended, and no bytes after a discard."""
    async with make() as store:
        staged = await store.stage("holes")
        await staged.write_at(10, memoryview(b"tail"))
        await staged.write_at(0, bytearray(b"head"))
        await staged.write_at(2, b"")
        assert await staged.read_at(0, 100) == b"head" + bytes(6) + b"tail"
        assert await store.staged() == ["holes"]
        await staged.discard()
        await staged.discard()
        assert await store.staged() == []
        again = await store.stage("holes")
        assert await again.read_at(0, 100) == b""
        await again.discard()


async def check_verified_writes(make: Make) -> None:
    """Bytes with another hash are not written."""
    async with make() as store:
        staged = await store.stage("verified")
        assert not await staged.write_verified(0, b"evil", hashlib.sha256(b"good").digest())
        assert await staged.read_at(0, 10) == b""
        assert await staged.write_verified(0, memoryview(b"good"), hashlib.sha256(b"good").digest())
        assert await staged.read_at(0, 10) == b"good"
        await staged.discard()


async def check_delete_while_open(make: Make) -> None:
    """Open readers keep reading; deleting twice is no error."""
    async with make() as store:
        digest = await put(store, b"soon gone")
        blob = await store.open(digest)
        await store.delete(digest)
        await store.delete(digest)
        assert await refuses(store, digest)
        assert digest not in await listed(store)
        assert await read_all(blob) == b"soon gone"


async def check_second_commit(make: Make) -> None:
    """Committing a blob that is there discards the second copy."""
    async with make() as store:
        first = await put(store, b"twice", key="a")
        second = await put(store, b"twice", key="b")
        assert first == second
        assert await store.staged() == []
        assert await read_all(await store.open(first)) == b"twice"
        await store.delete(first)


async def check_keys(make: Make) -> None:
    """Odd keys are refused, long ones taken, and one key is open once."""
    async with make() as store:
        for key in ("", ".", "..", ".hidden", "a/b", "../a", "a\0b", "ü", "a" * 151, "a\n"):
            try:
                await store.stage(key)
            except ValueError:
                continue
            raise AssertionError(f"the key {key!r} was taken")
        staged = await store.stage("A.b_c-9" + "x" * 143)
        try:
            await store.stage(staged.key)
        except LocalError:
            pass
        else:
            raise AssertionError("the same bytes were opened twice")
        staged.close()
        staged.close()
        again = await store.stage(staged.key)
        await again.discard()


async def check_survival(make: Make) -> None:
    """Blobs and staged bytes are found again by the next store on the same place."""
    async with make() as store:
        digest = await put(store, b"kept")
        staged = await store.stage("half")
        await staged.write_at(5, b"done")
        staged.close()
    async with make() as store:
        assert await read_all(await store.open(digest)) == b"kept"
        assert await store.staged() == ["half"]
        again = await store.stage("half")
        assert await again.read_at(5, 9) == b"done"
        await again.discard()
