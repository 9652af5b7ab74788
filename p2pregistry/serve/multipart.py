"""Several parts of a blob as the body of one answer."""

from __future__ import annotations

from typing import Final, Protocol

from p2pregistry.oci.ranges import Multipart
from p2pregistry.store.base import Blob, FilePart

_READ_AT: Final = 1 << 20


class PartSource(Protocol):
    """Where the bytes of the parts come from."""

    async def next_part(self, offset: int, length: int) -> FilePart | bytes:
        """1 to ``length`` bytes from ``offset``, good until the next call."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class HeldParts:
    """Parts of a blob that is complete here."""

    def __init__(self, blob: Blob) -> None:
        self._blob = blob

    async def next_part(self, offset: int, length: int) -> FilePart | bytes:
        fd = self._blob.fileno()
        if fd is not None:
            return FilePart(fd, offset, length)
        return await self._blob.read_at(offset, min(length, _READ_AT))

    def close(self) -> None:
        self._blob.close()


class MultipartBody:
    """The chunks of a Stream: heads, parts and tail. ``aclose`` when done; it closes the source."""

    def __init__(self, multipart: Multipart, source: PartSource) -> None:
        self._multipart, self._source = multipart, source
        self._part = 0  # the next whose head is sent
        self._at = self._left = 0  # in the part being sent
        self._over = False

    def __aiter__(self) -> MultipartBody:
        return self

    async def __anext__(self) -> FilePart | bytes:
        multipart = self._multipart
        if self._left:
            part = await self._source.next_part(self._at, self._left)
            size = part.length if isinstance(part, FilePart) else len(part)
            self._at += size
            self._left -= size
            if size:
                return part
            self._over = True  # the blob has ended early: so does the answer
        if self._over:
            raise StopAsyncIteration
        if self._part == len(multipart.parts):
            self._over = True
            return multipart.tail
        self._at, self._left = multipart.parts[self._part]
        self._part += 1
        return multipart.heads[self._part - 1]

    async def aclose(self) -> None:
        self._source.close()
