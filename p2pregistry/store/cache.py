"""What a node keeps and what it lets go of.

``choose_evictions`` decides, ``Cache`` acts. Two limits: the blobs together stay under ``max_bytes``, and the file
system keeps ``min_free`` bytes for others. What goes is what was used longest ago, never a blob that is being served,
is pinned, or is just being committed.

Room is taken before a flight begins, so that its bytes are counted while they are still on their way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, StorageFull
from p2pregistry.store.base import Blob, BlobStore
from p2pregistry.store.index import Index

#: Seconds for which a measure of the free space is used again, and the bytes there must be beyond the limits for that:
#: more than is written in that time.
FREE_AGE = 1.0
PLENTY = 8 << 30


def choose_evictions(
    entries: Iterable[tuple[Digest, int, float]],
    total: int,
    max_bytes: int | None,
    free_bytes: int,
    min_free: int | None,
    busy: AbstractSet[Digest],
) -> list[Digest]:
    """Which blobs to remove, in order: the fewest least recently used ones that bring both limits back.

    ``entries`` are (digest, size, last use); ``total`` is what all of them and the bytes on their way amount to,
    ``free_bytes`` what will be free on the file system once those have come (it may be negative). None is no limit.
    Blobs in ``busy`` stay; if the limits cannot be met without them, all others are named.
    """
    over = max(0 if max_bytes is None else total - max_bytes, 0 if min_free is None else min_free - free_bytes)
    chosen: list[Digest] = []
    if over <= 0:
        return chosen
    for digest, size, _ in sorted(entries, key=lambda entry: (entry[2], entry[0])):
        if over <= 0:
            break
        if digest not in busy and size > 0:
            chosen.append(digest)
            over -= size
    return chosen


class Disk(BlobStore, Protocol):
    """A BlobStore that knows how full its disk is."""

    async def free_bytes(self) -> int: ...


class _Served:
    """A blob that counts as in use until it is closed."""

    def __init__(self, blob: Blob, release: Callable[[], None]) -> None:
        self._blob = blob
        self._release: Callable[[], None] | None = release

    @property
    def digest(self) -> Digest:
        return self._blob.digest

    @property
    def size(self) -> int:
        return self._blob.size

    def fileno(self) -> int | None:
        return self._blob.fileno()

    async def read_at(self, offset: int, length: int) -> bytes:
        return await self._blob.read_at(offset, length)

    def close(self) -> None:
        self._blob.close()
        if self._release is not None:
            self._release()
            self._release = None


class Cache:
    """The blobs of a node within its limits.

    ``on_drop`` is called before the bytes of a blob go, so that nobody is told of it any more; it must not block.
    ``clock`` gives unix seconds. Limits are in bytes; None is no limit.
    """

    def __init__(
        self,
        store: Disk,
        index: Index,
        max_bytes: int | None,
        min_free: int | None,
        on_drop: Callable[[Digest], None],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._index = index
        self._max_bytes = max_bytes
        self._min_free = min_free
        self._on_drop = on_drop
        self._clock = clock
        self._users: Counter[Digest] = Counter()
        self._coming: dict[Digest, int] = {}
        self._evicting = trio.Lock()
        self._measured = (0, -FREE_AGE)

    @property
    def coming(self) -> int:
        """Bytes that flights have taken room for."""
        return sum(self._coming.values())

    def busy(self) -> set[Digest]:
        """Blobs that are served or pinned."""
        return set(self._users)

    @contextmanager
    def pin(self, digest: Digest) -> Iterator[None]:
        """Keep the blob, present or yet to come, while the context lasts."""
        self._users[digest] += 1
        try:
            yield
        finally:
            self._release(digest)

    def _release(self, digest: Digest) -> None:
        self._users[digest] -= 1
        if self._users[digest] <= 0:
            del self._users[digest]

    async def open(self, digest: Digest) -> Blob:
        """The blob, marked as used and kept until it is closed. Raises NotFound (BLOB_UNKNOWN) or LocalError."""
        if self._index.blob(digest) is None:  # what is not recorded is not here, or not yet: no need to ask the disk
            raise NotFound("BLOB_UNKNOWN", "the blob is not here", detail={"digest": str(digest)})
        with self.pin(digest):
            blob = await self._store.open(digest)
            self._users[digest] += 1
        self._index.touch(digest, self._clock())
        return _Served(blob, lambda: self._release(digest))

    @asynccontextmanager
    async def room(self, digest: Digest, size: int) -> AsyncIterator[None]:
        """Around a flight: make room for the ``size`` bytes of ``digest``, and hold the room and the blob meanwhile.

        Raises StorageFull if what may go is not enough. ``added`` within turns the room into a blob.
        """
        with self.pin(digest):
            self._coming[digest] = size
            try:
                if await self._evict() > 0:
                    raise StorageFull("the cache is full of content in use")
                yield
            finally:
                self._coming.pop(digest, None)

    async def added(self, digest: Digest, size: int) -> None:
        """The blob has been committed: record it, and let others go if that is over the limit."""
        with self.pin(digest):
            await self._index.put_blob(digest, size, self._clock())
            self._coming.pop(digest, None)
            await self._evict()

    async def trim(self) -> None:
        """Bring the cache back under its limits as far as that goes: at start, and when the disk fills from outside."""
        await self._evict()

    async def drop(self, digest: Digest) -> bool:
        """Remove the blob unless it is in use; whether it was removed."""
        async with self._evicting:
            return await self._drop(digest)

    async def _drop(self, digest: Digest) -> bool:
        if digest in self._users:
            return False
        self._on_drop(digest)
        with trio.CancelScope(shield=True):  # short, and half of it would leave a file that nobody counts
            # the record first: a crash in between leaves a file without one, which recovery takes in again
            await self._index.drop_blob(digest)
            if digest in self._users:  # somebody opened it while the record went: it stays
                await self._index.put_blob(digest, await self._store.size(digest), self._clock())
                return False
            await self._store.delete(digest)
        return True

    async def _free(self) -> int:
        """Bytes free on the file system. Where there was plenty a moment ago it is not asked for each small blob."""
        assert self._min_free is not None
        now = trio.current_time()
        free, at = self._measured
        if now - at < FREE_AGE and free - self.coming > 2 * self._min_free + PLENTY:
            return free
        free = await self._store.free_bytes()
        self._measured = (free, now)
        return free

    async def _evict(self) -> int:
        """Remove what has to go; bytes that are still too many (0: the limits hold)."""
        async with self._evicting:
            while True:
                total = self._index.total() + self.coming
                free = await self._free() - self.coming if self._min_free is not None else 0
                over = max(
                    0 if self._max_bytes is None else total - self._max_bytes,
                    0 if self._min_free is None else self._min_free - free,
                    0,
                )
                if over == 0:
                    return 0
                chosen = choose_evictions(self._index.held(), total, self._max_bytes, free, self._min_free, self.busy())
                dropped = [await self._drop(digest) for digest in chosen]
                if not any(dropped):
                    return over
