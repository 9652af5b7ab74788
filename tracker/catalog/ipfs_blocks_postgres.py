"""Blocks in Postgres. The tables: migrations/0008_ipfs_blocks.sql.

A piece is found by a key and compared with the piece table where that lies; of the inner nodes only the root is in the
database, others are built anew to be compared, which blobs of more than 1 GiB have.
"""

from __future__ import annotations

import hashlib
from typing import Final

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.content.subdag import LEAVES, MAX_WHOLE, BlockOf, Place, Whole, blocks, inner_place, key_of
from p2pregistry.content.unixfs import PIECE_SIZE, build, piece_count
from p2pregistry.digest import CID_DAG_PB_PREFIX, CID_RAW_PREFIX
from tracker.catalog.ipfs_blocks import BATCH
from tracker.catalog.keys import key_digest
from tracker.db import Connection, Db

_PUBLIC: Final = """not b.damaged and exists (
    select from manifest_blobs mb join repositories r on r.id = mb.repository_id
    where mb.blob_id = b.id and not r.private
)"""
_RAW: Final = f"""
select b.digest, b.size, b.root, 0, null::bytea from blobs b
where b.digest = %(digest)s and b.size <= {PIECE_SIZE} and {_PUBLIC}
union all
select b.digest, b.size, b.root, array_position(k.keys, %(key)s) - 1, null
from blob_blocks k join blobs b on b.id = k.blob_id
where k.keys @> array[%(key)s]::bigint[] and {_PUBLIC}
    and substring(b.hashes from 32 * (array_position(k.keys, %(key)s) - 1) + 1 for 32) = %(hash)s
union all
select null, null, null, null, m.body from manifests m
where m.digest = %(digest)s and octet_length(m.body) <= {MAX_WHOLE} and exists (
    select from repository_manifests rm join repositories r on r.id = rm.repository_id
    where rm.manifest_id = m.id and not r.private
)
union all
select null, null, null, null, rm.claim::bytea
from repository_manifests rm join repositories r on r.id = rm.repository_id
where sha256(rm.claim::bytea) = %(hash)s and not r.private
limit 1
"""  # noqa: S608 - constants
_ROOT: Final = f"""
select b.digest, b.size, b.root, b.keyed from blobs b where b.root = %(cid)s and {_PUBLIC} limit 1
"""  # noqa: S608 - constants
#: Blobs with the same node that are looked at.
_MOST: Final = 20
_INNER: Final = f"""
select b.digest, b.size, b.root, b.hashes, array_position(k.keys, %(key)s) - 1
from blob_blocks k join blobs b on b.id = k.blob_id
where k.keys @> array[%(key)s]::bigint[] and {_PUBLIC} limit {_MOST}
"""  # noqa: S608 - constants
_UNKEYED: Final = f"""
select id, digest, size, root, hashes from blobs
where not keyed and (size > {PIECE_SIZE} or get_byte(digest, 0) <> 18)
order by id limit %s for no key update skip locked
"""  # noqa: S608 - constants
_PUT: Final = "insert into blob_blocks (blob_id, keys) values (%s, %s::bigint[]) on conflict (blob_id) do nothing"
_KEYED: Final = "update blobs set keyed = true where id = %s"


class PostgresIpfsBlocks:
    """``IpfsBlocks`` on a database that ``tracker.catalog.migrate`` has prepared."""

    def __init__(self, db: Db) -> None:
        self._db = db

    async def find(self, cid: bytes) -> BlockOf | Whole | None:
        if cid[:4] == CID_RAW_PREFIX:
            return await self._db.query(_leaf, cid[4:])
        root = await self._db.query(_root, cid)
        if root is None:
            return await self._db.query(_inner, cid)
        found, keyed = root
        if not keyed:  # its pieces will be asked for next
            await self.fill()
        return found

    async def fill(self, limit: int = BATCH) -> int:
        return await self._db.tx(_fill, limit)


def add_keys(connection: Connection, blob_id: int, blob: Metainfo) -> None:
    """Index a blob, in the transaction in which it is recorded as ``keyed``."""
    if blob.count > 1 or blob.digest.algorithm != "sha256":
        connection.execute(_PUT, (blob_id, [key_of(sha256) for _, sha256 in blocks(blob)]))


def _leaf(connection: Connection, sha256: bytes) -> BlockOf | Whole | None:
    parameters = {"digest": b"\x12" + sha256, "hash": sha256, "key": key_of(sha256)}
    row = connection.execute(_RAW.encode(), parameters).fetchone()
    if row is None:
        return None
    if row[4] is not None:
        return Whole(row[4])
    return BlockOf(BlobRef(key_digest(row[0]), row[1], row[2]), Place(LEAVES, row[3]))


def _root(connection: Connection, cid: bytes) -> tuple[BlockOf, bool] | None:
    row = connection.execute(_ROOT.encode(), {"cid": cid}).fetchone()
    if row is None:
        return None
    return BlockOf(BlobRef(key_digest(row[0]), row[1], row[2]), inner_place(piece_count(row[1]), 0)), row[3]


def _inner(connection: Connection, cid: bytes) -> BlockOf | None:
    for digest, size, root, hashes, place in connection.execute(_INNER.encode(), {"key": key_of(cid[4:])}).fetchall():
        nodes = build(hashes, size).blocks
        number = place - piece_count(size)
        if 0 <= number < len(nodes) and CID_DAG_PB_PREFIX + hashlib.sha256(nodes[number]).digest() == cid:
            return BlockOf(BlobRef(key_digest(digest), size, root), inner_place(piece_count(size), number))
    return None


def _fill(connection: Connection, limit: int) -> int:
    rows = connection.execute(_UNKEYED.encode(), (limit,)).fetchall()
    for blob_id, digest, size, root, hashes in rows:
        add_keys(connection, blob_id, Metainfo(key_digest(digest), size, root, hashes))
        connection.execute(_KEYED, (blob_id,))
    return len(rows)
