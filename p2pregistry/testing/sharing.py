"""A node that shares a blob while it fetches it: real store, index, have-maps and peer API; the pieces come by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.have_news import Watch
from p2pregistry.haves import Haves
from p2pregistry.partial import SpoolPartial
from p2pregistry.serve.peer_api import PeerApi, Slots
from p2pregistry.spool import Spool
from p2pregistry.store.base import BlobStore
from p2pregistry.store.files import open_files
from p2pregistry.store.index import Index, open_index
from p2pregistry.store.memory import MemoryStore
from p2pregistry.store.records import RepositoryRecord, StoredManifest
from p2pregistry.trust.records import Stamp
from p2pregistry.visible import Visible

#: Of a public repository.
PUBLIC = RepositoryRecord(False, Stamp(1, 1), "a record")


@dataclass
class Growing:
    """A blob on its way, as a flight would have it."""

    sharer: Sharer
    data: bytes
    info: Metainfo
    spool: Spool

    async def put(self, *indexes: int) -> None:
        """These pieces have come: hashed, written, told."""
        for index in indexes:
            piece = memoryview(self.data)[index * PIECE_SIZE : (index + 1) * PIECE_SIZE]
            assert await self.spool.write(index, piece)
            self.sharer.haves.add(self.info.digest, index)

    async def finish(self) -> None:
        """All pieces are here: to its final name, and to the index."""
        staged = await self.spool.hold()
        await staged.commit(self.info.digest)
        self.spool.release(await self.sharer.store.open(self.info.digest))
        await self.sharer.index.put_blob(self.info.digest, self.info.size, 0.0)
        self.sharer.haves.full(self.info.digest)
        self.spool.close()


@dataclass
class Sharer:
    """``api`` is the handler of its peer listener; ``watched`` are those who asked to be told."""

    store: BlobStore
    index: Index
    haves: Haves
    api: PeerApi
    watched: list[Watch] = field(default_factory=list)

    async def claim(self, info: Metainfo) -> None:
        """A claim names the blob from now on."""
        await self.index.put_metainfo(info)
        manifest = StoredManifest(Digest.of(info.digest.raw), "application/x", b"")
        await self.index.put_manifest("a/b", manifest, "a claim", [info.ref])
        await self.index.put_repository("a/b", PUBLIC)

    async def begin(self, data: bytes, have: Iterable[int] = (), *, claimed: bool = True) -> Growing:
        """Start to fetch ``data``; the pieces ``have`` are there from before."""
        info = Metainfo.of_bytes(data)
        if claimed:
            await self.claim(info)
        spool = Spool(info, await self.store.stage(info.digest.hex))
        growing = Growing(self, data, info, spool)
        for index in have:
            assert await spool.write(index, memoryview(data)[index * PIECE_SIZE : (index + 1) * PIECE_SIZE])
        self.haves.begin(info.digest, info.count, have, await SpoolPartial.share(spool))
        return growing


@asynccontextmanager
async def sharing(root: Path, *, slots: Slots | None = None, in_files: bool = True) -> AsyncIterator[Sharer]:
    """A sharer under ``root``; without ``in_files`` its bytes are in memory."""
    async with open_index(root / "index.lmdb") as index:
        if in_files:
            async with open_files(root) as store:
                yield _sharer(store, index, slots)
        else:
            yield _sharer(MemoryStore(), index, slots)


def _sharer(store: BlobStore, index: Index, slots: Slots | None) -> Sharer:
    haves = Haves(index)
    watched: list[Watch] = []
    api = PeerApi(
        index,
        store,
        slots or Slots(4, 64),
        Visible(index),
        served=lambda _count: None,
        haves=haves,
        watching=watched.append,
    )
    return Sharer(store, index, haves, api, watched)
