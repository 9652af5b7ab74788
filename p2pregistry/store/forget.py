"""Forgets what a key vouched for that the tracker has dropped: somebody else may have had it."""

from __future__ import annotations

from collections.abc import Collection

import lmdb

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import ALGORITHMS
from p2pregistry.store.index import Index
from p2pregistry.store.records import CLAIMS, REFS, ClaimsRow, RefRow, digest_key, read_digest
from p2pregistry.trust.claims import read_unverified
from p2pregistry.trust.keys import kid_of


async def keep_only(index: Index, kids: Collection[str]) -> int:
    """Drop every claim that none of these keys has signed, and what it said of blobs; how many. Bodies of manifests
    and blobs stay: they are what their digests say. Raises LocalError."""
    claims, claimed = index.table("claims"), index.table("claimed")

    def op(txn: lmdb.Transaction) -> int:
        count = 0
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
