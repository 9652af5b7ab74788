"""The growing file of a flight, with any number of readers.

Only verified pieces are ever marked here, so whatever a reader is given is right. When the last piece has come the
bytes move from the staged file to the blob under its final name; readers in the middle of it do not notice: ``hold``
waits for what is under way and makes new reads wait until ``release``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.errors import RegistryError
from p2pregistry.store.base import Blob, Hasher, Staged


def again(failure: RegistryError) -> RegistryError:
    """A fresh exception for one more reader: a single object raised in several tasks would share its traceback."""
    fresh = type(failure).__new__(type(failure), *failure.args)  # copy() would call __init__ with args that are not its
    fresh.__dict__.update(failure.__dict__)
    fresh.__cause__ = failure
    return fresh


class Spool:
    """Pieces of one blob: which are here, who waits for one, and the bytes."""

    def __init__(self, info: Metainfo, staged: Staged, have: Iterable[int] = ()) -> None:
        self.info = info
        self._staged: Staged | None = staged
        self._blob: Blob | None = None
        self._here = bytearray(info.count)
        for index in have:
            self._here[index] = 1
        self._waiting: dict[int, trio.Event] = {}
        self._failure: RegistryError | None = None
        self._using = 0
        self._closing = False
        self._idle = trio.Event()
        self._switched: trio.Event | None = None

    def has(self, index: int) -> bool:
        return bool(self._here[index])

    @property
    def bytes_here(self) -> int:
        """Bytes of the pieces that are here."""
        return min(self.info.size, sum(self._here) * PIECE_SIZE)

    async def write(self, index: int, data: memoryview) -> bool:
        """Hash a piece and, if it is right, write and mark it. False if its hash is wrong."""
        if self._here[index] or self._staged is None:
            return True
        self._using += 1
        try:
            good = await self._staged.write_verified(index * PIECE_SIZE, data, self.info.hash(index))
        finally:
            self._unuse()
        if good:
            self._mark(index)
        return good

    def _mark(self, index: int) -> None:
        self._here[index] = 1
        event = self._waiting.pop(index, None)
        if event is not None:
            event.set()

    def fail(self, failure: RegistryError) -> None:
        """No more pieces will come: whoever waits for one is told why."""
        self._failure = failure
        while self._waiting:
            self._waiting.popitem()[1].set()

    async def wait(self, index: int) -> None:
        """Return once the piece is here. Raises the failure of the flight if it will not come."""
        while not self._here[index]:
            if self._failure is not None:
                raise again(self._failure)
            event = self._waiting.setdefault(index, trio.Event())
            await event.wait()

    def here_from(self, index: int, most: int) -> int:
        """How many pieces from ``index`` on are here, ``most`` at most."""
        end = self._here.find(0, index, index + most)
        return (min(index + most, self.info.count) if end < 0 else end) - index

    async def read_at(self, offset: int, length: int) -> bytes:
        """Bytes of pieces that are here."""
        store = await self.store()
        self._using += 1
        try:
            return await store.read_at(offset, length)
        finally:
            self._unuse()

    async def duplicate(self) -> int | None:
        """A descriptor of the file, the caller's to close, that reads what is here whatever becomes of the spool.

        None where there is no file, or no descriptor to be had.
        """
        fd = (await self.store()).fileno()
        try:
            return None if fd is None else os.dup(fd)
        except OSError:
            return None

    async def hash_at(self, index: int, count: int, hasher: Hasher) -> None:
        """Give ``hasher`` the bytes of pieces that are here, before the switch to the finished blob."""
        assert self._staged is not None
        offset = index * PIECE_SIZE
        self._using += 1
        try:
            length = min(self.info.size - offset, count * PIECE_SIZE)
            await self._staged.hash_at(offset, length, hasher)
        finally:
            self._unuse()

    async def store(self) -> Blob | Staged:
        """What the bytes are read from now. Raises the failure of the flight if they have been discarded."""
        while self._switched is not None:
            await self._switched.wait()
        store = self._blob or self._staged
        if store is None:
            raise again(self._failure) if self._failure is not None else RuntimeError("the spool is closed")
        return store

    def _unuse(self) -> None:
        self._using -= 1
        if self._using == 0:
            self._idle.set()
            self._close_if_asked()

    async def hold(self) -> Staged:
        """Hold new reads back and wait for what is under way; the staged bytes are then the caller's alone."""
        self._switched = trio.Event()
        while self._using:
            self._idle = trio.Event()
            await self._idle.wait()
        staged, self._staged = self._staged, None
        assert staged is not None
        return staged

    def release(self, blob: Blob | None) -> None:
        """Let reads go on, from ``blob``."""
        self._blob = blob
        if self._switched is not None:
            self._switched.set()
            self._switched = None

    def close(self) -> None:
        """Let go of the files, once no worker thread uses them."""
        self._closing = True
        self._close_if_asked()

    def _close_if_asked(self) -> None:
        if not self._closing or self._using:
            return
        if self._blob is not None:
            self._blob.close()
        if self._staged is not None:
            self._staged.close()
        self._blob = self._staged = None
