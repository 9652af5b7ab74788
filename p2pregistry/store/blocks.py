"""Which blob a block of an IPFS DAG is of, of the blobs that are complete here; for a gateway.

A table of the index, which is kept only while there is a gateway; what it lacks is added when one begins. Blobs of one
piece are not in it where their digest is the hash of their only block. What it says too much is harmless, since each
answer is compared with the piece table.

    blocks  0x00 digest                 -> the keys of its blocks, 8 bytes each
            0x01 key digest             -> nothing
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

import lmdb
import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.subdag import LEAVES, BlockOf, Place, blocks, inner_place
from p2pregistry.content.unixfs import build
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX, Digest
from p2pregistry.errors import LocalError
from p2pregistry.observe import logger
from p2pregistry.store.index import Index
from p2pregistry.store.records import digest_key, read_digest

_TABLE: Final = "blocks"
_BLOB: Final = b"\x00"
_BLOCK: Final = b"\x01"
_KEY: Final = 8  # bytes
#: Blobs with the same block that are looked at, and of which it is known.
_MOST: Final = 20
_MOST_NAMED: Final = 10_000

#: Seconds in which a blob that is leaving is gone.
_MOMENT: Final = 1.0

_log = logger(__name__)


class BlockIndex:
    """See the module. ``serve`` must be running; the rest are plain calls, as the reads of the index are."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._changed: list[Digest] = []
        self._leaving: list[Digest] = []
        self._wake = trio.Event()

    def changed(self, digest: Digest) -> None:
        """The blob is complete now."""
        self._changed.append(digest)
        self._wake.set()

    def leaving(self, digest: Digest) -> None:
        """The blob will not be here any more in a moment."""
        self._leaving.append(digest)
        self._wake.set()

    async def serve(self) -> None:
        """Add what is missing, remove what is gone, then follow what changes, for ever."""
        known = {read_digest(key[1:]) for key, _ in self._index.scan(_TABLE, _BLOB)}
        held = {digest for digest, _, _ in self._index.held()}
        self._changed += [digest for digest in held ^ known if digest is not None]
        while True:
            self._wake = trio.Event()
            todo, self._changed = self._changed, []
            await self._all(todo)
            todo, self._leaving = self._leaving, []
            if todo:
                await trio.sleep(_MOMENT)
                await self._all(todo)
            await self._wake.wait()

    async def _all(self, digests: list[Digest]) -> None:
        for digest in digests:
            try:
                await self._follow(digest)
            except LocalError as err:
                _log.warning("the blocks of a blob cannot be found now", digest=str(digest), why=err.message)

    async def _follow(self, digest: Digest) -> None:
        name, info = digest_key(digest), None
        if self._index.blob(digest) is not None:
            info = self._index.metainfo(digest)
            if info is None or (info.count == 1 and digest.algorithm == "sha256"):
                return
        keys = [] if info is None else await trio.to_thread.run_sync(_keys, info)
        table = self._index.table(_TABLE)

        def op(txn: lmdb.Transaction) -> None:
            before = bytes(txn.get(_BLOB + name, db=table) or b"")
            for at in range(0, len(before), _KEY):
                txn.delete(_BLOCK + before[at : at + _KEY] + name, db=table)
            txn.delete(_BLOB + name, db=table)
            for key in keys:
                txn.put(_BLOCK + key + name, b"", db=table)
            if keys:
                txn.put(_BLOB + name, b"".join(keys), db=table)

        await self._index.write(op, lambda _done: None)

    def find(self, cid: bytes) -> Iterator[BlockOf]:
        """The blobs that are here and of which this is a block, each with its place. Raises LocalError."""
        return self.places(cid, self.holding(cid))

    def holding(self, cid: bytes) -> list[Digest]:
        """The blobs that may have this block; nothing is read but the index. Raises LocalError."""
        named = [Digest("sha256", cid[4:])] if cid[:4] == CID_RAW_PREFIX else []
        prefix = _BLOCK + cid[4 : 4 + _KEY]
        digests = (read_digest(name[len(prefix) :]) for name, _ in self._index.scan(_TABLE, prefix, _MOST_NAMED))
        return [digest for digest in (*named, *digests) if digest is not None]

    def places(self, cid: bytes, digests: Sequence[Digest]) -> Iterator[BlockOf]:
        """Those of these blobs, which may have a block, that are here and have it. Raises LocalError."""
        raw = cid[:4] == CID_RAW_PREFIX
        for digest in digests[:_MOST]:
            if self._index.blob(digest) is None:
                continue
            if raw and digest.raw == cid[4:]:  # of one piece, or not what is looked for
                ref = self._index.ref(digest)
                if ref is not None and ref.root == cid:
                    yield BlockOf(ref, Place(LEAVES, 0))
                continue
            info = self._index.metainfo(digest)
            place = None if info is None else (_leaf if raw else _inner)(info, cid)
            if info is not None and place is not None:
                yield BlockOf(info.ref, place)


def _keys(info: Metainfo) -> list[bytes]:
    return [sha256[:_KEY] for _, sha256 in blocks(info)]


def _leaf(info: Metainfo, cid: bytes) -> Place | None:
    at = info.hashes.find(cid[4:])
    while at % 32 and at >= 0:  # across two hashes
        at = info.hashes.find(cid[4:], at + 1)
    return None if at < 0 else Place(LEAVES, at // 32)


def _inner(info: Metainfo, cid: bytes) -> Place | None:
    if info.root == cid:
        return inner_place(info.count, 0)
    for number, block in enumerate(build(info.hashes, info.size).blocks):
        if CID_DAG_PB_PREFIX + hashlib.sha256(block).digest() == cid:
            return inner_place(info.count, number)
    return None
