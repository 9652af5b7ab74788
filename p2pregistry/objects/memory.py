"""Objects in memory: for tests and simulations. A restart takes what was not flushed, as on a disk.

``step`` is called with what is about to happen before each change; raising there is a crash at that moment. What the
next process finds is another ``MemoryObjects`` on the same ``held``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import trio

from p2pregistry.errors import LocalError, NotFound, StorageFull
from p2pregistry.objects.base import Stored, check_object_name
from p2pregistry.serve.http import BlobSlice


@dataclass(slots=True)
class Held:
    """What outlives a process: flushed bytes of drafts, objects, and when (seconds since 1970) either was written."""

    drafts: dict[str, bytearray] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    modified: dict[str, float] = field(default_factory=dict)


class MemoryObject:
    """See Object."""

    def __init__(self, store: MemoryObjects, data: bytes) -> None:
        self._store = store
        self._data = data
        self._closed = False

    @property
    def size(self) -> int:
        return len(self._data)

    def fileno(self) -> int | None:
        """None."""
        return None

    async def read_at(self, offset: int, length: int) -> bytes:
        """See Object."""
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise RuntimeError("used after it was closed")
        self._store.reads += 1
        return self._data[offset : offset + length]

    def close(self) -> None:
        """Idempotent."""
        self._closed = True


class MemoryDraft:
    """See Draft."""

    def __init__(self, store: MemoryObjects, name: str, held: bytearray) -> None:
        self._store = store
        self._name = name
        self._held = held
        self._late = bytearray()

    @property
    def size(self) -> int:
        return len(self._held) + len(self._late)

    async def append(self, data: bytes | bytearray | memoryview) -> None:
        """See Draft."""
        await self._store.change("append")
        if self._store.fails is not None:
            raise self._store.fails
        if self._store.free is not None and self._store.free < len(data):
            raise StorageFull("no room")
        self._late += data

    async def flush(self) -> None:
        """See Draft."""
        await self._store.change("flush")
        self._held += self._late
        self._late.clear()
        self._store.held.modified[self._name] = self._store.now()

    async def read_at(self, offset: int, length: int) -> bytes:
        """See Draft."""
        await trio.lowlevel.checkpoint()
        self._store.reads += 1
        return bytes(self._held[offset : offset + length])

    async def publish(self) -> None:
        """See Draft."""
        await self.flush()
        await self._store.change("publish")
        held = self._store.held
        if held.drafts.get(self._name) is not self._held:
            raise LocalError("another process has taken the upload over")
        held.objects[self._name] = bytes(held.drafts.pop(self._name))

    async def discard(self) -> None:
        """See Draft."""
        await self._store.change("discard")
        self._late.clear()
        if self._store.held.drafts.get(self._name) is self._held:
            del self._store.held.drafts[self._name]

    async def aclose(self) -> None:
        """See Draft."""
        await trio.lowlevel.checkpoint()


class MemoryObjects:
    """``ObjectStore``. ``free``: bytes of room, None for no bound. ``fails``: what writing raises. ``reads`` are
    counted."""

    def __init__(
        self,
        held: Held | None = None,
        *,
        step: Callable[[str], None] = lambda _what: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.held = held or Held()
        self.step = step
        self.now = now
        self.free: int | None = None
        self.fails: LocalError | None = None
        self.reads = 0

    async def change(self, what: str) -> None:
        """A checkpoint, then ``step`` (internal to this module)."""
        await trio.lowlevel.checkpoint()
        self.step(what)

    async def draft(self, name: str, size: int) -> MemoryDraft:
        """See ObjectStore."""
        check_object_name(name)
        await self.change("draft")
        there = self.held.drafts.get(name, bytearray())
        if len(there) < size:
            raise NotFound("BLOB_UPLOAD_UNKNOWN", "bytes of this upload are not here any more")
        # bytes of its own: whatever another process still writes to it goes nowhere
        ours = self.held.drafts[name] = there[:size]
        self.held.modified[name] = self.now()
        return MemoryDraft(self, name, ours)

    async def put(self, name: str, data: bytes) -> None:
        """See ObjectStore."""
        check_object_name(name)
        await self.change("put")
        self.held.objects[name] = data
        self.held.modified[name] = self.now()

    async def open(self, name: str, size: int) -> MemoryObject:
        """See ObjectStore."""
        there = await self.size(name)
        if there != size:
            raise LocalError(f"an object has {there} bytes in place of {size}")
        return MemoryObject(self, self.held.objects[name])

    async def size(self, name: str) -> int:
        """See ObjectStore."""
        check_object_name(name)
        await trio.lowlevel.checkpoint()
        if name not in self.held.objects:
            raise NotFound("BLOB_UNKNOWN", "the bytes of this blob are not here")
        return len(self.held.objects[name])

    async def body(self, name: str, size: int, offset: int, length: int) -> BlobSlice:
        """See ObjectStore."""
        return BlobSlice(await self.open(name, size), offset, length)

    def link(self, name: str, filename: str, lifetime: float) -> str | None:  # noqa: ARG002 - the seam's
        """None."""
        return None

    async def delete(self, name: str) -> None:
        """See ObjectStore."""
        check_object_name(name)
        await self.change("delete")
        self.held.objects.pop(name, None)

    async def objects(self) -> AsyncIterator[Stored]:
        """See ObjectStore."""
        for name, data in sorted(self.held.objects.items()):
            await trio.lowlevel.checkpoint()
            yield Stored(name, len(data), self.held.modified.get(name, 0.0))

    async def drafts(self) -> AsyncIterator[Stored]:
        """See ObjectStore."""
        for name, data in sorted(self.held.drafts.items()):
            await trio.lowlevel.checkpoint()
            if data:
                yield Stored(name, len(data), self.held.modified.get(name, 0.0))

    async def room(self) -> int | None:
        """See ObjectStore."""
        await trio.lowlevel.checkpoint()
        return self.free

    async def check(self) -> None:
        """See ObjectStore."""
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails
