"""What a node keeps and what it lets go of.

``choose_evictions`` decides, ``Cache`` acts. Two limits: the blobs together stay under ``max_bytes``, and the file
system keeps ``min_free`` bytes for others. What goes is what was used longest ago, never a blob that is being served,
is pinned, or is just being committed. Of the rest, what was fetched ahead and no client has asked for goes first.

What is fetched ahead has a third limit, ``max_ahead``, and only what was fetched ahead before ever makes room for it.

Room is taken before a flight begins, so that its bytes are counted while they are still on their way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator
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
_NO_ROOM_AHEAD = (
    "there is no room for what no client has asked for (prefetch.max_bytes, cache.max_bytes, cache.min_free)"
)


def choose_evictions(
    entries: Iterable[tuple[Digest, int, float]],
    total: int,
    max_bytes: int | None,
    free_bytes: int,
    min_free: int | None,
    busy: AbstractSet[Digest],
    first: Container[Digest] = (),
) -> list[Digest]:
    """Which blobs to remove, in order: the fewest least recently used ones that bring both limits back, those that are
    in ``first`` before all others.

    ``entries`` are (digest, size, last use); ``total`` is what all of them and the bytes on their way amount to,
    ``free_bytes`` what will be free on the file system once those have come (it may be negative). None is no limit.
    Blobs in ``busy`` stay; if the limits cannot be met without them, all others are named.
    """
    over = max(0 if max_bytes is None else total - max_bytes, 0 if min_free is None else min_free - free_bytes)
    chosen: list[Digest] = []
    if over <= 0:
        return chosen
    for digest, size, _ in sorted(entries, key=lambda entry: (entry[0] not in first, entry[2], entry[0])):
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
    ``clock`` gives unix seconds. Limits are in bytes; None is no limit. ``max_ahead``: for what was fetched ahead.
    ``kept``: what an operator wants to stay, see ``warm.pins``.
    """

    def __init__(
        self,
        store: Disk,
        index: Index,
        max_bytes: int | None,
        min_free: int | None,
        on_drop: Callable[[Digest], None],
        clock: Callable[[], float],
        max_ahead: int | None = None,
    ) -> None:
        self._max_ahead = max_ahead
        self.kept: AbstractSet[Digest] = frozenset()
        self._store = store
        self._index = index
        self._max_bytes = max_bytes
        self._min_free = min_free
        self._on_drop = on_drop
        self._clock = clock
        self._users: Counter[Digest] = Counter()
        self._coming: dict[Digest, int] = {}
        self._coming_ahead: set[Digest] = set()
        self._evicting = trio.Lock()
        self._measured = (0, -FREE_AGE)

    @property
    def coming(self) -> int:
        """Bytes that flights have taken room for."""
        return sum(self._coming.values())

    def busy(self) -> set[Digest]:
        """Blobs that are served or pinned, or that an operator wants to stay."""
        return {*self._users, *self.kept}

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
    async def room(self, digest: Digest, size: int, *, ahead: bool = False) -> AsyncIterator[None]:
        """Around a flight: make room for the ``size`` bytes of ``digest``, and hold the room and the blob meanwhile.

        ``ahead``: no client waits for it; what an operator wants to stay is not counted as fetched ahead. Raises
        StorageFull if what may go is not enough. ``added`` within turns the room into a blob.
        """
        with self.pin(digest):
            self._coming[digest] = size
            ahead = ahead and digest not in self.kept
            if ahead:
                self._coming_ahead.add(digest)
            try:
                if await self._evict(ahead=ahead) > 0:
                    raise StorageFull(_NO_ROOM_AHEAD if ahead else "the cache is full of content in use")
                yield
            finally:
                self._came(digest)

    def _came(self, digest: Digest) -> None:
        self._coming.pop(digest, None)
        self._coming_ahead.discard(digest)

    async def added(self, digest: Digest, size: int, *, ahead: bool = False) -> None:
        """The blob has been committed: record it, and let others go if that is over the limit."""
        with self.pin(digest):
            ahead = ahead and digest not in self.kept
            await self._index.put_blob(digest, size, self._clock(), ahead=ahead)
            self._came(digest)
            await self._evict()

    async def asked(self, digest: Digest) -> None:
        """A client has asked for the blob, which may have been fetched ahead."""
        self._coming_ahead.discard(digest)
        await self._index.asked(digest)

    @property
    def ahead(self) -> int:
        """Bytes that were fetched ahead and that no client has asked for yet, with those on their way."""
        coming = sum(self._coming.get(digest, 0) for digest in self._coming_ahead)
        return sum(size for digest, size in self._index.ahead().items() if digest not in self.kept) + coming

    async def trim(self, max_bytes: int | None = None) -> list[tuple[Digest, int]]:
        """Bring the cache back under its limits as far as that goes: at start, and when the disk fills from outside.

        ``max_bytes`` stands in for the limit that is set. Returns what went, with its size in bytes.
        """
        gone: list[tuple[Digest, int]] = []
        await self._evict(max_bytes=max_bytes, gone=gone)
        return gone

    async def surplus(self, max_bytes: int | None = None) -> list[tuple[Digest, int]]:
        """What ``trim`` would remove now, in order."""
        return self._surplus(await self._over(ahead=False, max_bytes=max_bytes), ahead=False)

    def _surplus(self, over: int, *, ahead: bool) -> list[tuple[Digest, int]]:
        """What goes where ``over`` bytes are too many. ``ahead``: of what was fetched ahead alone."""
        early, held = self._index.ahead(), self._index.held()
        sizes = {digest: size for digest, size, _ in held}
        entries = [entry for entry in held if entry[0] in early] if ahead else held
        return [(gone, sizes[gone]) for gone in choose_evictions(entries, over, 0, 0, None, self.busy(), early)]

    async def drop(self, digest: Digest) -> bool:
        """Remove the blob unless it is in use; whether it was removed."""
        async with self._evicting:
            return await self._drop(digest)

    async def _drop(self, digest: Digest) -> bool:
        if digest in self._users or digest in self.kept:
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

    async def _over(self, *, ahead: bool, max_bytes: int | None = None) -> int:
        """Bytes that are too many. ``ahead``: of what is fetched ahead too."""
        most = self._max_bytes if max_bytes is None else max_bytes
        over = 0 if most is None else max(0, self._index.total() + self.coming - most)
        if ahead and self._max_ahead is not None:
            over = max(over, self.ahead - self._max_ahead)
        if self._min_free is not None:
            over = max(over, self._min_free - (await self._free() - self.coming))
        return over

    async def _evict(
        self, *, ahead: bool = False, max_bytes: int | None = None, gone: list[tuple[Digest, int]] | None = None
    ) -> int:
        """Remove what has to go, and note it in ``gone``; bytes that are still too many (0: the limits hold).
        ``ahead``: only what was fetched ahead may go."""
        async with self._evicting:
            while True:
                over = await self._over(ahead=ahead, max_bytes=max_bytes)
                if over == 0:
                    return 0
                chosen = self._surplus(over, ahead=ahead)
                if ahead and sum(size for _, size in chosen) < over:
                    return over  # it cannot be: nothing goes in vain
                dropped = [entry for entry in chosen if await self._drop(entry[0])]
                if not dropped:
                    return over
                if gone is not None:
                    gone += dropped
