"""Blocks of public images, for IPFS clients: what the gateway and the router of this tracker look up."""

from __future__ import annotations

from typing import Final

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.content.subdag import BlockOf, Whole
from p2pregistry.errors import NotFound
from p2pregistry.serve.peer_api import Slots
from p2pregistry.store.base import OpenBytes
from tracker.blobs import Blobs
from tracker.catalog.base import Catalog
from tracker.catalog.ipfs_blocks import IpfsBlocks

#: Questions to the database that may wait.
WAITING: Final = 1024


class PublicBlocks:
    """A ``Shelf``. Whether a block is public is asked each time: what becomes private is gone with that.

    ``lookups``: questions to the database at once. Anybody may ask, and others need its connections."""

    def __init__(self, blocks: IpfsBlocks, catalog: Catalog, blobs: Blobs, *, lookups: int = 2) -> None:
        self._blocks, self._catalog, self._blobs = blocks, catalog, blobs
        self._lookups = Slots(lookups, WAITING)

    async def find(self, cid: bytes) -> BlockOf | Whole | None:
        """See ``Shelf``. Raises RequestError (TOOMANYREQUESTS) too."""
        await self._lookups.take()
        try:
            return await self._blocks.find(cid)
        finally:
            self._lookups.give()

    async def metainfo(self, ref: BlobRef) -> Metainfo:
        """See ``Shelf``."""
        await self._lookups.take()
        try:
            found = await self._catalog.metainfo(ref.digest)
        finally:
            self._lookups.give()
        if found is None:
            raise NotFound("BLOB_UNKNOWN", "there is no such blob here")
        return found

    async def open(self, ref: BlobRef) -> OpenBytes:
        """See ``Shelf``."""
        return await self._blobs.open(ref.digest)
