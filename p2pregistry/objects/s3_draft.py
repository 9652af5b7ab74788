"""A draft in S3: bytes appended as temporary objects, which any process can read back. ``s3_parts`` says how they lie.

Nothing is kept but what has not been flushed: a draft that is let go, or whose process dies, is what the bucket has.
"""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from p2pregistry.errors import LocalError, NotFound
from p2pregistry.objects.s3_client import S3Client, S3Error, together
from p2pregistry.objects.s3_parts import Part, chain, cut, identity, next_generation, parse_part
from p2pregistry.objects.s3_publish import Publisher
from p2pregistry.observe import logger

#: Parts that are written, and temporary objects that are removed, at a time.
_WRITES: Final = 2
_DELETES: Final = 8
#: Bytes fetched at a time: who reads a draft reads all of it, from its beginning.
_AHEAD: Final = 4 << 20

_log = logger(__name__)


class S3Draft:
    """See Draft. Holds ``2 * part_size`` bytes in memory at most, and what was read last."""

    def __init__(
        self,
        client: S3Client,
        publisher: Publisher,
        name: str,
        parts: Sequence[Part],
        generation: int,
        token: str,
        *,
        made: int | None = None,
    ) -> None:
        self._client, self._publisher = client, publisher
        self._key = object_key(client, name)
        self._folder = folder(client, name)
        self._parts = list(parts)
        self._generation, self._token = generation, token
        self._made = made  # the size of the object, if it was published already
        self._resumed = bool(parts)
        self._late = bytearray()
        self._read: tuple[int, bytes] = (0, b"")
        self._unusable = ""

    @property
    def size(self) -> int:
        return self._flushed + len(self._late)

    @property
    def _flushed(self) -> int:
        if self._made is not None:
            return self._made
        return self._parts[-1].end if self._parts else 0

    def _check(self) -> None:
        if self._unusable:
            raise LocalError(self._unusable)

    async def append(self, data: bytes | bytearray | memoryview) -> None:
        """See Draft."""
        self._check()
        if self._made is not None:
            raise LocalError("an upload is an object already")
        most = 2 * self._client.config.part_size
        with memoryview(data) as view:
            at = 0
            while at < len(view):
                piece = view[at : at + most - len(self._late)]
                self._late += piece
                at += len(piece)
                if len(self._late) == most:
                    await self.flush()

    async def flush(self) -> None:
        """See Draft."""
        self._check()
        if not self._late:
            return
        # until it has succeeded: after a failure or a cancel nobody knows which parts are there
        self._unusable = "an upload was interrupted while it was written; open it again"
        data, self._late = self._late, bytearray()
        parts: list[Part] = []
        calls = []
        with memoryview(data) as view:
            offset = self._flushed
            for length in cut(len(data), self._client.config.part_size):
                part = Part(self._generation, offset, length, self._token)
                parts.append(part)
                at = offset - self._flushed
                calls.append(partial(self._client.put, self._folder + part.name, view[at : at + length]))
                offset += length
            await together(calls, _WRITES)
        self._parts += parts
        self._unusable = ""

    async def read_at(self, offset: int, length: int) -> bytes:
        """See Draft."""
        self._check()
        end = min(offset + length, self._flushed)
        data = bytearray()
        while (at := offset + len(data)) < end:
            start, read = self._read
            if not start <= at < start + len(read):
                start, read = self._read = (at, await self._fetch(at, max(_AHEAD, end - at)))
            data += read[at - start : end - start]
        return bytes(data)

    async def _fetch(self, offset: int, most: int) -> bytes:
        """Bytes from ``offset``, up to ``most`` or the end of a part."""
        if self._made is not None:
            return (await self._client.get(self._key, offset, min(most, self._made - offset)))[0]
        part = self._parts[bisect_right(self._parts, offset, key=lambda part: part.offset) - 1]
        length = min(most, part.end - offset)
        return (await self._client.get(self._folder + part.name, offset - part.offset, length))[0]

    async def publish(self) -> None:
        """See Draft."""
        self._check()
        if self._made is None and not self._parts:
            whole = Part(self._generation, 0, len(self._late), self._token)
            await self._publisher.put(self._key, self._late, identity([whole]))
        else:
            await self.flush()
            listed = await list_parts(self._client, self._folder)
            if any(part.generation > self._generation for part in listed):
                raise LocalError("another process has taken the upload over")
            if self._made is None:
                await self._publisher.join(self._key, self._folder, self._parts, resumed=self._resumed)
            await self._forget(listed)
        self._close()

    async def _forget(self, parts: Iterable[Part]) -> None:
        try:
            await remove(self._client, self._folder, parts)
        except LocalError as err:
            _log.warning("temporary objects of an upload are left behind", error=err.message)

    async def discard(self) -> None:
        """See Draft."""
        if self._unusable == _CLOSED:
            return
        self._close()
        try:
            listed = await list_parts(self._client, self._folder)
        except LocalError as err:
            _log.warning("temporary objects of an upload are left behind", error=err.message)
            return
        # what a later one has written is not ours
        await self._forget(part for part in listed if part.generation <= self._generation)
        await self._publisher.clean(self._key)

    async def aclose(self) -> None:
        """See Draft."""
        self._close()

    def _close(self) -> None:
        self._unusable = _CLOSED
        self._late = bytearray()
        self._read = (0, b"")


_CLOSED: Final = "an upload is used after it was closed"


def object_key(client: S3Client, name: str) -> str:
    """Where the object of this name is."""
    return f"{client.config.prefix}objects/{name}"


def folder(client: S3Client, name: str) -> str:
    """Where the parts of a draft are."""
    return f"{client.config.prefix}uploads/{name}/"


async def list_parts(client: S3Client, folder: str) -> list[Part]:
    """The parts there are. Raises S3Error."""
    found = [parse_part(entry.key.removeprefix(folder)) async for entry in client.entries(folder, deep=False)]
    return [part for part in found if part is not None]


async def remove(client: S3Client, folder: str, parts: Iterable[Part]) -> None:
    """Raises S3Error."""
    await together([partial(client.delete, folder + part.name) for part in parts], _DELETES)


async def open_draft(client: S3Client, publisher: Publisher, name: str, size: int, now: float) -> S3Draft:
    """See ObjectStore.draft. ``now``: seconds since 1970."""
    place = folder(client, name)
    listed = await list_parts(client, place)
    generation, token = next_generation(listed, now), secrets.token_hex(4)
    found = chain(listed)
    kept = [part for part in found if part.end <= size]
    over = next((part for part in found if part.offset < size < part.end), None)
    made = None
    if over is None and (kept[-1].end if kept else 0) != size:
        # published, and the process died while it removed the parts?
        if await object_size(client, name) != size:
            raise NotFound("BLOB_UPLOAD_UNKNOWN", "bytes of this upload are not here any more")
        made = size
    if over is not None:
        data, _ = await client.get(place + over.name, 0, size - over.offset)
        part = Part(generation, over.offset, len(data), token)
        await client.put(place + part.name, data)
        kept.append(part)
    if made is None:
        await remove(client, place, (part for part in listed if part not in kept))
    return S3Draft(client, publisher, name, kept, generation, token, made=made)


async def object_size(client: S3Client, name: str) -> int | None:
    """Bytes of an object; None if it is not there. Raises S3Error."""
    try:
        answer = await client.head(object_key(client, name))
    except S3Error as err:
        if err.missing:
            return None
        raise
    stated = answer.headers.get("content-length", "")
    if not (stated.isascii() and stated.isdigit()):
        raise S3Error("the object store does not say how many bytes an object has")
    return int(stated)
