"""What a node's gateway gives: blocks of the blobs that are complete here, and manifests, as far as anybody may have
them."""

from __future__ import annotations

from typing import Protocol

import trio

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.content.subdag import MAX_WHOLE, BlockOf, Whole
from p2pregistry.digest import CID_RAW_PREFIX, Digest
from p2pregistry.errors import NotFound
from p2pregistry.serve.ipfs_gateway import BUILDERS
from p2pregistry.serve.peer_api import Held
from p2pregistry.store.base import OpenBytes
from p2pregistry.store.blocks import BlockIndex
from p2pregistry.store.records import StoredManifest
from p2pregistry.trust.records import ANYONE
from p2pregistry.visible import Visible


class Known(Protocol):
    """What is needed of the index."""

    def metainfo(self, digest: Digest) -> Metainfo | None: ...
    def manifest(self, digest: Digest) -> StoredManifest | None: ...


class HeldBlocks:
    """A ``Shelf``. A gateway fetches nothing."""

    def __init__(self, blocks: BlockIndex, known: Known, visible: Visible, held: Held) -> None:
        self._blocks, self._known, self._visible, self._held = blocks, known, visible, held
        self._builders = trio.CapacityLimiter(BUILDERS)

    async def find(self, cid: bytes) -> BlockOf | Whole | None:
        """See ``Shelf``."""
        allowed = [digest for digest in self._blocks.holding(cid) if self._visible.may_have(ANYONE, digest)]
        for found in await self._places(cid, allowed):
            if self._visible.may_have(ANYONE, found.ref.digest):  # still
                return found
        if cid[:4] == CID_RAW_PREFIX:
            digest = Digest("sha256", cid[4:])
            manifest = self._known.manifest(digest)
            if manifest is not None and len(manifest.body) <= MAX_WHOLE and self._visible.claims(ANYONE, digest):
                return Whole(manifest.body)
        return None

    async def _places(self, cid: bytes, digests: list[Digest]) -> list[BlockOf]:
        """Not even the time that a look at private blobs takes is to be seen: they are not among ``digests``."""
        if cid[:4] == CID_RAW_PREFIX or not digests:
            await trio.lowlevel.checkpoint()
            return list(self._blocks.places(cid, digests))
        # inner nodes are compared with a tree that is built for it
        return await trio.to_thread.run_sync(lambda: list(self._blocks.places(cid, digests)), limiter=self._builders)

    async def metainfo(self, ref: BlobRef) -> Metainfo:
        """See ``Shelf``."""
        await trio.lowlevel.checkpoint()
        found = self._known.metainfo(ref.digest)
        if found is None:
            raise NotFound("BLOB_UNKNOWN", "not here")
        return found

    async def open(self, ref: BlobRef) -> OpenBytes:
        """See ``Shelf``."""
        return await self._held.open(ref.digest)
