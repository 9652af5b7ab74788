"""Objects in S3 or what speaks its language: AWS, Ceph, MinIO, R2, SeaweedFS, Storj.

    <prefix>objects/<name>        objects
    <prefix>uploads/<name>/P...   parts of drafts, see ``s3_parts``
    <prefix>probe                 written to find out what the server can do

Importing this takes half a second (httpx, botocore): import it only where it is configured.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import httpx

from p2pregistry.errors import LocalError, NotFound
from p2pregistry.ipfs.http import cut_short
from p2pregistry.objects.base import Stored, check_object_name
from p2pregistry.objects.s3_client import S3Client, S3Error, broken, open_client, total_of
from p2pregistry.objects.s3_config import LINK_MOST, S3Config, s3_config
from p2pregistry.objects.s3_draft import S3Draft, object_key, object_size, open_draft
from p2pregistry.objects.s3_parts import Part, chain, parse_part
from p2pregistry.objects.s3_publish import Publisher
from p2pregistry.serve.http import Stream

__all__ = ["S3Config", "S3Objects", "open_s3", "s3_config"]

#: How often a body that breaks off is taken up again without a byte in between.
_RESUMES = 3


class S3Object:
    """See Object."""

    def __init__(self, client: S3Client, key: str, size: int) -> None:
        self._client, self._key, self._size = client, key, size
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
            data, total = await self._client.get(self._key, offset, length)
        except S3Error as err:
            raise _translated(err) from err
        _check_size(total, self._size)
        return data

    def close(self) -> None:
        """Idempotent."""
        self._closed = True


class S3Body:
    """Bytes of an object as they come: an async iterator. If they break off they are asked for again from there."""

    def __init__(self, client: S3Client, key: str, size: int, offset: int, length: int) -> None:
        self._client, self._key, self._size = client, key, size
        self._at, self._left = offset, length
        self._first: bytes | None = None
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def start(self) -> None:
        """Wait for the first bytes. Raises S3Error; it is closed then."""
        try:
            self._first = await self._next()
        except BaseException:
            await self.aclose()
            raise

    def __aiter__(self) -> S3Body:
        return self

    async def __anext__(self) -> bytes:
        """Raises S3Error."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if not self._left:
            await self.aclose()
            raise StopAsyncIteration
        return await self._next()

    async def _next(self) -> bytes:
        for left in reversed(range(_RESUMES + 1)):
            if self._chunks is None:
                await self._open()
            assert self._chunks is not None
            try:
                chunk = await anext(self._chunks, b"")
            except httpx.HTTPError as err:
                failure = broken(err)
                failure.__cause__ = err
            else:
                if chunk:
                    return self._taken(chunk)
                failure = S3Error("the object store stopped in the middle of an object")
            await self.aclose()
            if not left:
                raise failure
        raise AssertionError("not reached")

    async def _open(self) -> None:
        self._response = await self._client.stream(self._key, self._at, self._left)
        total = total_of(self._response.status_code, self._response.headers, self._at, self._left)
        _check_size(total, self._size)
        self._chunks = self._response.aiter_raw()

    def _taken(self, chunk: bytes) -> bytes:
        if len(chunk) > self._left:
            raise S3Error("the object store sends more bytes than it said")
        self._at += len(chunk)
        self._left -= len(chunk)
        return chunk

    async def aclose(self) -> None:
        """Idempotent."""
        response, self._response = self._response, None
        chunks, self._chunks = self._chunks, None
        if chunks is not None:
            if not self._left:
                await _end(chunks)  # the connection can be used again
            else:
                await cut_short(chunks)
        if response is not None:
            await response.aclose()


class S3Objects:
    """``ObjectStore``. Made by ``open_s3``. ``now``: seconds since 1970."""

    def __init__(self, client: S3Client, *, now: Callable[[], float] = time.time) -> None:
        self.client = client
        self._publisher = Publisher(client)
        self._now = now

    def _key(self, name: str) -> str:
        check_object_name(name)
        return object_key(self.client, name)

    async def draft(self, name: str, size: int) -> S3Draft:
        """See ObjectStore."""
        check_object_name(name)
        return await open_draft(self.client, self._publisher, name, size, self._now())

    async def put(self, name: str, data: bytes) -> None:
        """See ObjectStore."""
        await self.client.put(self._key(name), data)

    async def open(self, name: str, size: int) -> S3Object:
        """See ObjectStore. Asks for nothing: the first read finds out."""
        return S3Object(self.client, self._key(name), size)

    async def size(self, name: str) -> int:
        """See ObjectStore."""
        check_object_name(name)
        size = await object_size(self.client, name)
        if size is None:
            raise _unknown()
        return size

    async def body(self, name: str, size: int, offset: int, length: int) -> Stream:
        """See ObjectStore."""
        body = S3Body(self.client, self._key(name), size, offset, length)
        if length == 0:
            _check_size(await self.size(name), size)
        else:
            try:
                await body.start()
            except S3Error as err:
                raise _translated(err) from err
        return Stream(body, length)

    def link(self, name: str, filename: str, lifetime: float) -> str | None:
        """See ObjectStore."""
        key = self._key(name)
        if not self.client.config.presign:
            return None
        quoted = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in filename)
        query = {
            "response-content-disposition": f'attachment; filename="{quoted}"',
            "response-content-type": "application/octet-stream",
        }
        return self.client.signer.link(key, min(max(lifetime, 1.0), LINK_MOST), query)

    async def delete(self, name: str) -> None:
        """See ObjectStore. Of a bucket with versions, the older versions stay."""
        await self.client.delete(self._key(name))

    async def objects(self) -> AsyncIterator[Stored]:
        """See ObjectStore."""
        top = f"{self.client.config.prefix}objects/"
        async for entry in self.client.entries(top):
            if (name := _name(entry.key, top)) is not None:
                yield Stored(name, entry.size, entry.modified)

    async def drafts(self) -> AsyncIterator[Stored]:
        """See ObjectStore. A multipart upload that was neither completed nor aborted counts too, with no bytes."""
        top = f"{self.client.config.prefix}uploads/"
        # a draft's parts come one after another: in the order of keys a name ends where capitals end
        name, parts, modified = "", list[Part](), 0.0
        async for entry in self.client.entries(top):
            folder, _, last = entry.key.rpartition("/")
            owner, part = _name(folder, top), parse_part(last)
            if owner is None or part is None:
                continue
            if owner != name:
                if parts:
                    yield _stored(name, parts, modified)
                name, parts, modified = owner, [], 0.0
            parts.append(part)
            modified = max(modified, entry.modified)
        if parts:
            yield _stored(name, parts, modified)
        top = f"{self.client.config.prefix}objects/"
        try:
            async for upload in self.client.unfinished(top):
                if (owner := _name(upload.key, top)) is not None:
                    yield Stored(owner, 0, upload.initiated)
        except S3Error as err:
            if not err.unsupported:  # it keeps none, or nobody can find them
                raise

    async def room(self) -> int | None:
        """None: S3 does not say."""
        return None

    async def check(self) -> None:
        """See ObjectStore. The first time it also writes; after that it only reads."""
        await self._publisher.probe()
        await self.client.get(f"{self.client.config.prefix}probe", 0, 1)


async def _end(chunks: AsyncIterator[bytes]) -> None:
    """Take the end of a body of which all bytes have been taken."""
    with suppress(httpx.HTTPError):
        async for _ in chunks:
            pass


def _unknown() -> NotFound:
    return NotFound("BLOB_UNKNOWN", "the bytes of this blob are not here")


def _translated(err: S3Error) -> NotFound | S3Error:
    return _unknown() if err.missing else err


def _check_size(there: int, size: int) -> None:
    if there != size:
        raise LocalError(f"an object has {there} bytes in place of {size}")


def _name(key: str, top: str) -> str | None:
    """The name behind a key below ``top``; None for a key that is not of our making."""
    name = key.removeprefix(top)
    try:
        check_object_name(name)
    except ValueError:
        return None
    return name


def _stored(name: str, parts: list[Part], modified: float) -> Stored:
    whole = sum(part.size for part in chain(parts))
    return Stored(name, whole or sum(part.size for part in parts), modified)


@asynccontextmanager
async def open_s3(config: S3Config) -> AsyncIterator[S3Objects]:
    """A store in a bucket. Nothing is asked of the server until it is needed; ``check`` says whether it is there.

    Raises LocalError if ``ca_file`` cannot be used.
    """
    async with open_client(config) as client:
        yield S3Objects(client)
