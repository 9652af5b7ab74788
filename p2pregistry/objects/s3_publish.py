"""How a row of parts becomes an object of S3: at once, whole, once only, and repeatable.

The object carries the ``identity`` of the parts that it was made of. One that is there with the same identity was made
by us before a crash, or its answer was lost; one with another was made by another process. What is there is never
replaced: by a conditional request where the server knows them, which is tried out once, else by looking first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from p2pregistry.errors import LocalError
from p2pregistry.objects.s3_client import S3Client, S3Error, together
from p2pregistry.objects.s3_config import PART_LEAST
from p2pregistry.objects.s3_parts import Part, Segment, identity, plan, plan_equal, slices
from p2pregistry.observe import logger

#: Where an object keeps its identity.
IDENTITY: Final = "x-amz-meta-p2pregistry-draft"
#: Copies that the server is asked for at a time; parts that go through us go one by one, for the sake of memory.
_COPIES: Final = 4
#: Seconds that are spent on taking back a multipart upload.
_PARTING: Final = 10.0

_log = logger(__name__)


class Publisher:
    """Makes objects. Learns from the server's answers what it can do."""

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self._probe = trio.Lock()
        self._conditional: bool | None = None
        self._copies = True

    async def probe(self) -> bool:
        """Whether the server heeds ``If-None-Match``; the first time by writing twice. Raises S3Error, StorageFull."""
        async with self._probe:
            if self._conditional is None:
                key = f"{self._client.config.prefix}probe"
                self._conditional = await self._refuses(key) or await self._refuses(key)
            return self._conditional

    async def _refuses(self, key: str) -> bool:
        try:
            await self._client.put(key, b"p2pregistry", {"If-None-Match": "*"})
        except S3Error as err:
            if err.answered == 412:
                return True
            if not err.unsupported:
                raise
            await self._client.put(key, b"p2pregistry")  # it does not know conditions; but can it be written to?
        return False

    async def put(self, key: str, data: bytearray, name: str) -> None:
        """Make ``data`` the object at ``key`` with the identity ``name``. Raises LocalError, StorageFull."""
        headers = {IDENTITY: name}
        if await self.probe():
            headers["If-None-Match"] = "*"
        elif await self._is_there(key, name, len(data)):
            return
        try:
            await self._client.put(key, data, headers)
        except S3Error as err:
            if err.answered != 412 or not await self._is_there(key, name, len(data)):
                raise

    async def join(self, key: str, folder: str, parts: Sequence[Part], *, resumed: bool) -> None:
        """Make the parts, which are in ``folder``, the object at ``key``. ``resumed``: somebody may have tried before.
        Raises LocalError, StorageFull."""
        name = identity(parts)
        size = sum(part.size for part in parts)
        part_size = self._client.config.part_size
        if size <= 2 * part_size:
            await self.put(key, await self._gather(folder, Segment(tuple(slices(parts, 0, size)), copy=False)), name)
            return
        if await self._is_there(key, name, size):
            return
        equal = self._client.config.equal_parts
        segments = plan_equal(parts, part_size, PART_LEAST) if equal else plan(parts, PART_LEAST)
        upload = await self._client.create(key, {IDENTITY: name})
        try:
            etags = await self._fill(key, upload, folder, segments)
            await self._complete(key, upload, etags, name, size)
        except BaseException:
            await self._take_back(key, upload)
            raise
        if resumed:
            await self.clean(key)

    async def clean(self, key: str) -> None:
        """Abort the multipart uploads that processes which died have left; what fails is only logged."""
        try:
            left = [upload.number async for upload in self._client.unfinished(key) if upload.key == key]
            for upload in left:
                await self._client.abort(key, upload)
        except LocalError as err:
            _log.warning("an unfinished multipart upload is left behind", error=err.message)

    async def _fill(self, key: str, upload: str, folder: str, segments: Sequence[Segment]) -> list[str]:
        etags = [""] * len(segments)

        async def copy(number: int) -> None:
            piece = segments[number].slices[0]
            part = (piece.skip, piece.length) if piece.length < piece.part.size else None
            source = folder + piece.part.name
            try:
                etags[number] = await self._client.copy_part(key, upload, number + 1, source, part)
            except S3Error as err:
                if not err.unsupported:
                    raise
                self._copies = False

        async def carry(number: int) -> None:
            data = await self._gather(folder, segments[number])
            etags[number] = await self._client.put_part(key, upload, number + 1, data)

        if self._copies:
            copied = [number for number, segment in enumerate(segments) if segment.copy]
            await together([partial(copy, number) for number in copied], _COPIES)
        await together([partial(carry, number) for number, etag in enumerate(etags) if not etag], 1)
        return etags

    async def _gather(self, folder: str, segment: Segment) -> bytearray:
        data = bytearray()
        for piece in segment.slices:
            found, total = await self._client.get(folder + piece.part.name, piece.skip, piece.length)
            if total != piece.part.size:
                raise LocalError("a part of an upload has another size than it was written with")
            data += found
        return data

    async def _complete(self, key: str, upload: str, etags: Sequence[str], name: str, size: int) -> None:
        headers = {"If-None-Match": "*"} if await self.probe() else {}
        try:
            try:
                await self._client.complete(key, upload, etags, headers)
            except S3Error as err:
                if not (headers and err.unsupported):
                    raise
                await self._client.complete(key, upload, etags, {})
        except S3Error:
            # done by the first of several tries, perhaps
            if not await self._is_there(key, name, size):
                raise
        else:
            if not await self._is_there(key, name, size):
                raise LocalError("an object is not there although the object store said that it was made")

    async def _take_back(self, key: str, upload: str) -> None:
        with trio.move_on_after(_PARTING, shield=True):
            try:
                await self._client.abort(key, upload)
            except LocalError as err:
                _log.warning("an unfinished multipart upload is left behind", error=err.message)

    async def _is_there(self, key: str, name: str, size: int) -> bool:
        """Whether the object is there and made of the same parts. Raises LocalError if it is another."""
        try:
            answer = await self._client.head(key)
        except S3Error as err:
            if err.missing:
                return False
            raise
        if answer.headers.get(IDENTITY) != name:
            raise LocalError("another process has taken the upload over")
        if answer.headers.get("content-length") != str(size):
            await self._client.delete(key)
            raise LocalError("the object store made an object of another size")
        return True
