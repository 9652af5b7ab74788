"""Blobs in memory: for tests and for programs that keep nothing. ``limit`` makes it a disk that can be full."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound, StorageFull
from p2pregistry.store.base import Hasher

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,149}")


class MemoryBlob:
    """See Blob."""

    def __init__(self, digest: Digest, data: bytes) -> None:
        self._digest = digest
        self._data: bytes = data
        self._closed = False

    @property
    def digest(self) -> Digest:
        return self._digest

    @property
    def size(self) -> int:
        return len(self._data)

    def fileno(self) -> int | None:
        return None

    async def read_at(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise RuntimeError("used after it was closed")
        return self._data[offset : offset + length]

    def close(self) -> None:
        self._closed = True


class MemoryStaged:
    """See Staged and Sparse."""

    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._data = store.partial.setdefault(key, bytearray())
        self._closed = False

    @property
    def key(self) -> str:
        return self._key

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("used after it was closed")

    async def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        size = memoryview(data).nbytes
        grown = max(0, offset + size - len(self._data)) if size else 0
        if self._store.limit is not None and self._store.used() + grown > self._store.limit:
            raise StorageFull("cannot write to memory: the limit is reached")
        self._data.extend(bytes(grown))
        self._data[offset : offset + size] = data
        written = self._store.written.setdefault(self._key, [])
        if size:
            written.append((offset, offset + size))

    async def write_verified(self, offset: int, data: bytes | bytearray | memoryview, sha256: bytes) -> bool:
        if hashlib.sha256(data).digest() != sha256:
            await trio.lowlevel.checkpoint()
            return False
        await self.write_at(offset, data)
        return True

    async def read_at(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self._check()
        return bytes(self._data[offset : offset + length])

    async def hash_at(self, offset: int, length: int, hasher: Hasher) -> None:
        hasher.update(await self.read_at(offset, length))

    def fileno(self) -> int | None:
        self._check()
        return None

    async def extents(self) -> list[tuple[int, int]]:
        await trio.lowlevel.checkpoint()
        merged: list[tuple[int, int]] = []
        for start, end in sorted(self._store.written.get(self._key, ())):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    async def commit(self, digest: Digest) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        self._store.complete.setdefault(digest, bytes(self._data))
        self._store.forget(self._key)
        self.close()

    async def discard(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._closed:
            self._store.forget(self._key)
            self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.in_use.discard(self._key)


class MemoryStore:
    """See BlobStore. ``limit`` is in bytes, complete and staged together."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.complete: dict[Digest, bytes] = {}
        self.partial: dict[str, bytearray] = {}
        self.written: dict[str, list[tuple[int, int]]] = {}
        self.in_use: set[str] = set()

    def used(self) -> int:
        """Bytes, complete and staged."""
        return sum(map(len, self.complete.values())) + sum(map(len, self.partial.values()))

    def forget(self, key: str) -> None:
        """Drop staged bytes."""
        self.partial.pop(key, None)
        self.written.pop(key, None)

    async def stage(self, key: str) -> MemoryStaged:
        await trio.lowlevel.checkpoint()
        if not _KEY.fullmatch(key):
            raise ValueError("a key of staged bytes is 1 to 150 of A-Z a-z 0-9 . _ - and does not begin with a dot")
        if key in self.in_use:
            raise LocalError("these staged bytes are in use")
        self.in_use.add(key)
        return MemoryStaged(self, key)

    async def put(self, digest: Digest, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self.limit is not None and self.used() + len(data) > self.limit:
            raise StorageFull("the store is full")
        self.complete[digest] = data

    async def staged(self) -> list[str]:
        await trio.lowlevel.checkpoint()
        return sorted(self.partial)

    def _bytes(self, digest: Digest) -> bytes:
        try:
            return self.complete[digest]
        except KeyError as err:
            raise NotFound("BLOB_UNKNOWN", "the blob is not here", detail={"digest": str(digest)}) from err

    async def open(self, digest: Digest) -> MemoryBlob:
        await trio.lowlevel.checkpoint()
        return MemoryBlob(digest, self._bytes(digest))

    async def size(self, digest: Digest) -> int:
        await trio.lowlevel.checkpoint()
        return len(self._bytes(digest))

    async def delete(self, digest: Digest) -> None:
        await trio.lowlevel.checkpoint()
        self.complete.pop(digest, None)

    async def blobs(self) -> AsyncIterator[tuple[Digest, int]]:
        await trio.lowlevel.checkpoint()
        for digest, data in sorted(self.complete.items()):
            yield digest, len(data)

    async def free_bytes(self) -> int:
        """Bytes that still fit under the limit."""
        await trio.lowlevel.checkpoint()
        return (1 << 60) if self.limit is None else max(0, self.limit - self.used())
