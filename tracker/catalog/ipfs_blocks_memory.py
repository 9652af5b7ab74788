"""Blocks in memory: for tests, and the plainest statement of which are found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.subdag import LEAVES, MAX_WHOLE, BlockOf, Whole, blocks
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX, Digest
from tracker.catalog.ipfs_blocks import BATCH

if TYPE_CHECKING:
    from tracker.catalog.memory import MemoryCatalog, StoredManifest


class MemoryIpfsBlocks:
    """``IpfsBlocks`` over what a catalog in memory has; it looks through everything."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self._catalog = catalog

    async def find(self, cid: bytes) -> BlockOf | Whole | None:
        await trio.lowlevel.checkpoint()
        for info in self._blobs():
            for place, sha256 in blocks(info):
                prefix = CID_RAW_PREFIX if place.level == LEAVES else CID_DAG_PB_PREFIX
                if prefix + sha256 == cid:
                    return BlockOf(info.ref, place)
        for stored in self._manifests():
            for data in (stored.record.body, stored.record.claim.encode()):
                if len(data) <= MAX_WHOLE and Digest.of(data).cid() == cid:
                    return Whole(data)
        return None

    async def fill(self, limit: int = BATCH) -> int:  # noqa: ARG002 - there is nothing that is not indexed
        await trio.lowlevel.checkpoint()
        return 0

    def _manifests(self) -> Iterator[StoredManifest]:
        for repository in self._catalog.content.values():
            if not repository.private:
                yield from repository.manifests.values()

    def _blobs(self) -> Iterator[Metainfo]:
        for digest in sorted({digest for stored in self._manifests() for digest in stored.blobs}):
            kept = self._catalog.blobs[digest]
            if not kept.damaged:
                yield kept.metainfo
