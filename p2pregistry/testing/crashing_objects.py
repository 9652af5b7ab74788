"""Objects in memory of which a crash takes what was not flushed, and any step of which may be the last before it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound, StorageFull
from p2pregistry.objects.base import Stored
from p2pregistry.serve.http import BlobSlice, Stream


class Crash(BaseException):
    """The process is gone: nothing may handle this."""


class CrashingObjects:
    """``ObjectStore``. ``step`` is called, with what is about to happen, before each change and after the last; it may
    raise Crash. ``restart`` is what the next process finds."""

    def __init__(self, step: Callable[[str], None] = lambda _what: None) -> None:
        self.step = step
        self.free: int | None = None
        self.fails: LocalError | None = None
        self.durable: dict[str, bytearray] = {}
        self.published: dict[str, bytes] = {}
        self.modified: dict[str, float] = {}
        self.reads = 0

    async def draft(self, name: str, size: int) -> _Draft:
        await trio.lowlevel.checkpoint()
        self.step("draft")
        held = self.durable.setdefault(name, bytearray())
        if len(held) < size:
            raise NotFound("BLOB_UPLOAD_UNKNOWN", "the upload is not here")
        del held[size:]
        return _Draft(self, name)

    async def put(self, name: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.published[name] = data

    async def open(self, name: str, size: int) -> _Object:
        if await self.size(name) != size:
            raise LocalError("the object has another size")
        return _Object(self, self.published[name])

    async def size(self, name: str) -> int:
        await trio.lowlevel.checkpoint()
        if name not in self.published:
            raise NotFound("BLOB_UNKNOWN", "no such object")
        return len(self.published[name])

    async def body(self, name: str, size: int, offset: int, length: int) -> BlobSlice | Stream:
        blob = await self.open(name, size)
        return BlobSlice(_Blob(self, blob.data), offset, length)

    def link(self, name: str, filename: str, lifetime: float) -> str | None:  # noqa: ARG002 - the seam's
        return None

    async def delete(self, name: str) -> None:
        await trio.lowlevel.checkpoint()
        self.step("delete")
        self.published.pop(name, None)

    async def objects(self) -> AsyncIterator[Stored]:
        for name, data in list(self.published.items()):
            await trio.lowlevel.checkpoint()
            yield Stored(name, len(data), time.time())

    async def drafts(self) -> AsyncIterator[Stored]:
        for name, data in list(self.durable.items()):
            await trio.lowlevel.checkpoint()
            yield Stored(name, len(data), self.modified.get(name, time.time()))

    async def room(self) -> int | None:
        await trio.lowlevel.checkpoint()
        return self.free

    async def check(self) -> None:
        await trio.lowlevel.checkpoint()


class _Object:
    def __init__(self, store: CrashingObjects, data: bytes) -> None:
        self._store = store
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def fileno(self) -> int | None:
        return None

    async def read_at(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self._store.reads += 1
        return self.data[offset : offset + length]

    def close(self) -> None:
        pass


class _Blob(_Object):
    @property
    def digest(self) -> Digest:
        return Digest.of(self.data)


class _Draft:
    def __init__(self, store: CrashingObjects, name: str) -> None:
        self._store = store
        self._name = name
        self._late = bytearray()

    @property
    def _held(self) -> bytearray:
        return self._store.durable.setdefault(self._name, bytearray())

    @property
    def size(self) -> int:
        return len(self._held) + len(self._late)

    async def append(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._store.step("append")
        if self._store.fails is not None:
            raise self._store.fails
        if self._store.free is not None and self._store.free < len(data):
            raise StorageFull("no room")
        self._late += data

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        self._store.step("flush")
        self._held.extend(self._late)
        self._late.clear()

    async def read_at(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self._store.reads += 1
        return bytes(self._held[offset : offset + length])

    async def publish(self) -> None:
        await self.flush()
        self._store.step("publish")
        self._store.published[self._name] = bytes(self._store.durable.pop(self._name))

    async def discard(self) -> None:
        await trio.lowlevel.checkpoint()
        self._store.step("discard")
        self._late.clear()
        self._store.durable.pop(self._name, None)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
