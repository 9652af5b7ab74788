"""CARs of what is published, made while they are sent: blobs out of the object store, manifests and claims as one
block."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import trio

from p2pregistry.content.car import header, section
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE, in_order, piece_length, varint
from p2pregistry.digest import CID_RAW_PREFIX
from p2pregistry.errors import BadContent, LocalError, NotFound
from p2pregistry.objects.base import Object
from tracker.blobs import Blobs
from tracker.catalog.base import Catalog
from tracker.catalog.publishing import Publishing
from tracker.publishing import Item

#: Bytes that are given at a time.
_SEND: Final = 256 << 10


class Car:
    """A CARv1 with one root, depth first. ``size``: its bytes. To be closed."""

    def __init__(self, order: Sequence[tuple[bytes, bytes | int]], size: int, opened: Object | None) -> None:
        self.root = order[0][0]
        self._order, self._content, self._opened = order, size, opened
        self.size = len(header(self.root)) + sum(self._section(block) for _, block in order)

    def _length(self, block: bytes | int) -> int:
        return piece_length(self._content, block) if isinstance(block, int) else len(block)

    def _section(self, block: bytes | int) -> int:
        length = 36 + self._length(block)
        return len(varint(length)) + length

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """Raises NotFound, LocalError."""
        yield header(self.root)
        for cid, block in self._order:
            if isinstance(block, bytes):
                yield section(cid, block)
                continue
            length = self._length(block)
            data = await self._piece(block, length)
            if await trio.to_thread.run_sync(_sha256, data) != cid[4:]:
                raise LocalError("stored bytes are damaged: p2pregistry tracker scrub finds the blob")
            yield varint(36 + length) + cid
            for at in range(0, length, _SEND):
                yield data[at : at + _SEND]

    async def _piece(self, index: int, length: int) -> bytes:
        assert self._opened is not None
        data = b""
        while len(data) < length:
            more = await self._opened.read_at(index * PIECE_SIZE + len(data), length - len(data))
            if not more:
                raise LocalError("an object has fewer bytes than it should")
            data += more
        return data

    def close(self) -> None:
        """Idempotent."""
        if self._opened is not None:
            self._opened.close()


class Cars:
    """Makes them."""

    def __init__(self, catalog: Catalog, blobs: Blobs, publishing: Publishing) -> None:
        self._catalog, self._blobs, self._publishing = catalog, blobs, publishing

    async def open(self, item: Item) -> Car:
        """Raises NotFound if it is not here any more, LocalError."""
        if item.kind != "blob":
            data = await self._publishing.block(item)
            if data is None:
                raise NotFound("MANIFEST_UNKNOWN", f"the {item.kind} is not here any more")
            if CID_RAW_PREFIX + hashlib.sha256(data).digest() != item.cid:
                raise LocalError(f"the {item.kind} in the database is not what it was")
            return Car([(item.cid, data)], len(data), None)
        metainfo = await self._catalog.metainfo(item.digest)
        if metainfo is None:
            raise NotFound("BLOB_UNKNOWN", "no manifest names this blob any more")
        return Car(_order(metainfo, item), item.size, await self._blobs.open(item.digest))


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _order(metainfo: Metainfo, item: Item) -> list[tuple[bytes, bytes | int]]:
    order = list(in_order(metainfo.hashes, metainfo.size))
    if order[0][0] != item.cid:
        raise BadContent("the piece table in the database does not give the root that was signed")
    return order
