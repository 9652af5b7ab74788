"""An unfinished blob as others may read it: see ``haves.Partial``."""

from __future__ import annotations

import os
from typing import Final

import trio

from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError
from p2pregistry.spool import Spool
from p2pregistry.store.base import Blob
from p2pregistry.store.files import FileBlob

#: Worker threads that may read unfinished blobs at a time, where sendfile cannot be used.
WORKERS: Final = 4


class SpoolPartial:
    """The verified pieces of a flight's spool. Made by ``share``.

    It has a descriptor of its own, so nothing waits while the file moves to its final name, and what is opened stays
    good whatever becomes of the flight. Only where the store has no files does it read through the spool.
    """

    def __init__(self, spool: Spool, fd: int | None) -> None:
        self._spool, self._fd = spool, fd
        self._limiter = trio.CapacityLimiter(WORKERS)

    @classmethod
    async def share(cls, spool: Spool) -> SpoolPartial:
        """``close`` it. Raises the failure of the flight where its bytes have been discarded."""
        return cls(spool, await spool.duplicate())

    @property
    def size(self) -> int:
        return self._spool.info.size

    def has(self, index: int) -> bool:
        """See Partial."""
        return self._spool.has(index)

    async def open(self) -> Blob:
        """See Partial."""
        if self._fd is None:
            await self._spool.store()
            return _Through(self._spool)
        try:
            return FileBlob(self._spool.info.digest, os.dup(self._fd), self.size, self._limiter)
        except OSError as err:
            raise LocalError(f"an unfinished blob cannot be opened: {err.strerror}") from err

    def close(self) -> None:
        """See Partial."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class _Through:
    """A Blob that is read through the spool, for as long as that is open."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    @property
    def digest(self) -> Digest:
        return self._spool.info.digest

    @property
    def size(self) -> int:
        return self._spool.info.size

    def fileno(self) -> int | None:
        return None

    async def read_at(self, offset: int, length: int) -> bytes:
        """See Blob."""
        return await self._spool.read_at(offset, length)

    def close(self) -> None:
        """Nothing is held."""
