"""Objects in an IPFS daemon: Kubo, by its RPC.

An object is a file in the daemon's files (MFS) and lies there in our own layout, so its root is the root CID that the
tracker signs: who publishes an image that is stored here only has to pin it, and any IPFS node finds its blocks.
``kubo_parts`` says how everything lies, and why garbage collection takes none of it.

The daemon must be one that nobody else can command, and its repository as durable as a disk of ours would be. Bytes
that it gives are not hashed here: the tracker's scrubbing finds what went bad, as with any other store.

Importing this takes a quarter of a second (httpx): import it only where it is configured.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import trio

from p2pregistry.errors import LocalError, NotFound, RemoteError, SettingsError
from p2pregistry.ipfs.kubo import FileEntry, KuboConfig, open_kubo
from p2pregistry.objects.base import Stored, check_object_name
from p2pregistry.objects.kubo_draft import KuboDraft
from p2pregistry.objects.kubo_parts import BYTES, chain, hashes_of, made, object_directory, parse_part, tree
from p2pregistry.objects.kubo_place import Place, again, local
from p2pregistry.serve.http import Stream

__all__ = ["KuboObjects", "check_directory", "open_kubo_objects"]

#: How often a body that breaks off is taken up again without a byte in between.
_RESUMES: Final = 3


class KuboObject:
    """See Object."""

    def __init__(self, place: Place, name: str, size: int) -> None:
        self._place, self._path, self._size = place, place.object(name), size
        self._closed = False

    @property
    def size(self) -> int:
        return self._size

    def fileno(self) -> int | None:
        """None."""
        return None

    async def read_at(self, offset: int, length: int) -> bytes:
        """See Object."""
        if self._closed:
            raise RuntimeError("used after it was closed")
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        try:
            return await self._place.read(self._path, offset, length)
        except NotFound as err:
            raise _unknown() from err

    def close(self) -> None:
        """Idempotent."""
        self._closed = True


class KuboBody:
    """Bytes of an object as they come: an async iterator. If they break off they are asked for again from there."""

    def __init__(self, place: Place, name: str, offset: int, length: int) -> None:
        self._place, self._path = place, place.object(name)
        self._at, self._left = offset, length
        self._first: bytes | None = None
        self._stack = AsyncExitStack()
        self._chunks: AsyncIterator[bytes] | None = None

    async def start(self) -> None:
        """Wait for the first bytes. Raises NotFound, LocalError; it is closed then."""
        try:
            self._first = await self._next()
        except BaseException:
            await self.aclose()
            raise

    def __aiter__(self) -> KuboBody:
        return self

    async def __anext__(self) -> bytes:
        """Raises LocalError."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if not self._left:
            await self.aclose()
            raise StopAsyncIteration
        return await self._next()

    async def _next(self) -> bytes:
        failure: RemoteError | None = None
        for _ in range(_RESUMES + 1):
            try:
                if self._chunks is None:
                    opening = self._place.kubo.files_stream(self._path, self._at, self._left)
                    self._chunks = await self._stack.enter_async_context(opening)
                chunk = await anext(self._chunks, b"")
            except RemoteError as err:
                failure = err
            else:
                if len(chunk) > self._left:
                    raise LocalError("the IPFS daemon sends more bytes than it was asked for")
                if chunk:
                    self._at += len(chunk)
                    self._left -= len(chunk)
                    return chunk
            await self.aclose()
        raise LocalError("the IPFS daemon stopped in the middle of an object") from failure

    async def aclose(self) -> None:
        """Idempotent."""
        self._chunks = None
        await self._stack.aclose()


class KuboObjects:
    """``ObjectStore``. Made by ``open_kubo_objects``."""

    def __init__(self, place: Place) -> None:
        self.place = place

    async def draft(self, name: str, size: int) -> KuboDraft:
        """See ObjectStore."""
        check_object_name(name)
        with local():
            return await KuboDraft.open(self.place, name, size)

    async def put(self, name: str, data: bytes) -> None:
        """See ObjectStore."""
        check_object_name(name)
        hashes = await trio.to_thread.run_sync(hashes_of, data)
        file = tree(hashes, len(data))
        block = object_directory(file.root, self.place.now_ms())
        await self.place.put(self.place.object_directory(name), block, file, data)

    async def open(self, name: str, size: int) -> KuboObject:
        """See ObjectStore. Asks for nothing: the first read finds out."""
        check_object_name(name)
        return KuboObject(self.place, name, size)

    async def size(self, name: str) -> int:
        """See ObjectStore."""
        check_object_name(name)
        size = await self.place.size(name)
        if size is None:
            raise _unknown()
        return size

    async def body(self, name: str, size: int, offset: int, length: int) -> Stream:
        """See ObjectStore."""
        check_object_name(name)
        body = KuboBody(self.place, name, offset, length)
        if length == 0:
            there = await self.size(name)
            if there != size:
                raise LocalError(f"an object has {there} bytes in place of {size}")
        else:
            try:
                await body.start()
            except NotFound as err:
                raise _unknown() from err
        return Stream(body, length)

    def link(self, name: str, filename: str, lifetime: float) -> str | None:  # noqa: ARG002 - the seam's
        """None: the RPC is for nobody but us."""
        return None

    async def delete(self, name: str) -> None:
        """See ObjectStore. The daemon's garbage collection takes the bytes, unless something else pins them."""
        check_object_name(name)
        path = self.place.object_directory(name)
        await self.place.unpin(path)
        await again(lambda: self.place.kubo.files_rm(path))

    async def objects(self) -> AsyncIterator[Stored]:
        """See ObjectStore. One request for each object."""
        async for name, entries in self._walk(f"{self.place.top}/objects"):
            bytes_of = next((entry for entry in entries if entry.name == BYTES), None)
            if bytes_of is not None:
                yield Stored(name, bytes_of.size, made(entry.name for entry in entries))

    async def drafts(self) -> AsyncIterator[Stored]:
        """See ObjectStore."""
        async for name, entries in self._walk(f"{self.place.top}/uploads"):
            parts = [part for entry in entries if (part := parse_part(entry.name)) is not None]
            whole = chain(parts)
            if parts:
                size = whole[-1].end if whole else sum(part.size for part in parts)
                yield Stored(name, size, max(part.written for part in parts) / 1000)

    async def _walk(self, top: str) -> AsyncIterator[tuple[str, list[FileEntry]]]:
        """Every directory below ``top`` whose path is a name of ours, and what is in it."""
        left = [""]
        while left:
            here = left.pop()
            entries = await self.place.entries(f"{top}/{here}" if here else top)
            if here:
                yield here, entries
            for entry in entries:
                name = f"{here}/{entry.name}" if here else entry.name
                if entry.directory and _is_name(name):
                    left.append(name)

    async def room(self) -> int | None:
        """See ObjectStore: what is left of the daemon's ``Datastore.StorageMax``."""
        stat = await again(self.place.kubo.repo_stat)
        return None if stat.most is None else max(0, stat.most - stat.size)

    async def check(self) -> None:
        """See ObjectStore."""
        with local():
            try:
                await self.place.kubo.files_stat(self.place.top)
            except NotFound:
                await self.place.kubo.files_mkdir(self.place.top)


def _is_name(name: str) -> bool:
    try:
        check_object_name(name)
    except ValueError:
        return False
    return True


def _unknown() -> NotFound:
    return NotFound("BLOB_UNKNOWN", "the bytes of this blob are not here")


def check_directory(directory: str) -> None:
    """Raises SettingsError for what is no directory of the daemon's files."""
    if not directory.startswith("/") or not _is_name(directory.strip("/")) or directory.startswith("/ipfs"):
        raise SettingsError("directory: a path such as /p2pregistry, of a-z 0-9 . _ - /")


@asynccontextmanager
async def open_kubo_objects(
    config: KuboConfig, directory: str, *, now: Callable[[], float] = time.time
) -> AsyncIterator[KuboObjects]:
    """A store in a directory of the daemon's files, which several processes may share. Nothing is asked of the daemon
    until it is needed; ``check`` says whether it is there. Raises SettingsError, and LocalError if ``ca_file`` cannot
    be used."""
    check_directory(directory)
    async with open_kubo(config) as kubo:
        yield KuboObjects(Place(kubo, directory, now=now))
