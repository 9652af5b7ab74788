"""Forgets what a key vouched for that the tracker has dropped: somebody else may have had it.

That is where a tag points, that a repository is public, and that it holds a blob. With a record goes its stamp, which
may be one that no honest record would ever come after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import lmdb

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import ALGORITHMS
from p2pregistry.store.applied import CURSOR
from p2pregistry.store.index import Index
from p2pregistry.store.records import (
    CLAIMS,
    REFS,
    REPOSITORIES,
    TAGS,
    ClaimsRow,
    RefRow,
    RepositoryRow,
    TagRow,
    digest_key,
    meta_key,
    read_digest,
)
from p2pregistry.trust.claims import read_unverified
from p2pregistry.trust.keys import kid_of


async def keep_only(index: Index, kids: Collection[str]) -> int:
    """Drop every record and claim that none of these keys has signed, and what claims said of blobs; how many. Bodies
    of manifests and blobs stay: they are what their digests say. Raises LocalError."""
    claims, claimed = index.table("claims"), index.table("claimed")
    tags, repositories, meta = index.table("tags"), index.table("repos"), index.table("meta")

    def op(txn: lmdb.Transaction) -> int:
        count = _drop(txn, tags, lambda value: _bad(TAGS.decode(value), kids))
        count += _drop(txn, repositories, lambda value: _bad(REPOSITORIES.decode(value), kids))
        if count:  # what was dropped has to be told again
            txn.delete(meta_key(CURSOR), db=meta)
        touched: set[bytes] = set()
        good: list[tuple[bytes, list[str]]] = []
        with txn.cursor(db=claims) as cursor:
            rows = [(bytes(key), CLAIMS.decode(value)) for key, value in cursor]
        for key, row in rows:
            tokens = row.claims if row is not None else []
            left = [token for token in tokens if kid_of(token) in kids]
            owner = _owner(key)
            good.append((owner, left))
            if len(left) == len(tokens):
                continue
            touched.add(owner)
            count += len(tokens) - len(left)
            for ref in (ref for token in tokens if token not in left for ref in _blobs(token)):
                txn.delete(digest_key(ref.digest) + owner, db=claimed)
            if left:
                txn.put(key, CLAIMS.encode(ClaimsRow(left)), db=claims)
            else:
                txn.delete(key, db=claims)
        # what was dropped may be named by another claim of the same repository
        for owner, tokens in good:
            for ref in (ref for token in tokens if owner in touched for ref in _blobs(token)):
                txn.put(digest_key(ref.digest) + owner, REFS.encode(RefRow(ref.size, ref.root)), db=claimed)
        return count

    return await index.write(op)


def _bad(row: TagRow | RepositoryRow | None, kids: Collection[str]) -> bool:
    """A tag that was kept before tags were signed has no token, and is as good as the claim of its manifest."""
    return row is not None and bool(row.token) and kid_of(row.token) not in kids


def _drop(txn: lmdb.Transaction, table: lmdb._Database, bad: Callable[[bytes], bool]) -> int:
    with txn.cursor(db=table) as cursor:
        keys = [bytes(key) for key, value in cursor if bad(bytes(value))]
    for key in keys:
        txn.delete(key, db=table)
    return len(keys)


def _owner(key: bytes) -> bytes:
    """The repository in a key of the table of claims, which begins with a digest."""
    for length in sorted(ALGORITHMS.values()):
        if read_digest(key[: 1 + length]) is not None:
            return key[1 + length :]
    return b""


def _blobs(token: str) -> tuple[BlobRef, ...]:
    """What a claim says of blobs; it was verified when it came."""
    claim = read_unverified(token)
    return () if claim is None else claim.blobs
