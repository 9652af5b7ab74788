"""After a start: make the index agree with the files, and find out what partials are worth.

A file under ``blobs`` is whole, because the rename that made it came last; so files are believed and records follow.
Of a partial nothing is believed: after a crash any part of it may be missing, so each piece is hashed again before it
counts, when the flight that needs it begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.store.base import BlobStore, Sparse, Staged
from p2pregistry.store.index import Index


@dataclass(frozen=True, slots=True)
class Recovered:
    """What ``reconcile`` found: blobs that had no record, records that had no blob, keys of partials."""

    adopted: list[Digest]
    lost: list[Digest]
    partials: list[str]


async def reconcile(store: BlobStore, index: Index, now: float) -> Recovered:
    """Make the blob records of ``index`` those of the files. Call before anything is served.

    ``now`` (unix seconds) is the last use of blobs that had no record. Raises LocalError.
    """
    known = {digest: size for digest, size, _ in index.held()}
    found = [(digest, size) async for digest, size in store.blobs()]
    adopted = [(digest, size) for digest, size in found if known.pop(digest, None) != size]
    async with trio.open_nursery() as nursery:  # together, so that they share transactions
        for digest, size in adopted:
            nursery.start_soon(index.put_blob, digest, size, now)
        for digest in known:
            nursery.start_soon(index.drop_blob, digest)
    return Recovered([digest for digest, _ in adopted], sorted(known), await store.staged())


def touched_pieces(extents: list[tuple[int, int]], size: int) -> list[int]:
    """The pieces of a blob of ``size`` bytes all of whose bytes lie in ``extents`` (start, end), in order.

    Extents that meet are one; those of a file system may be wider than what was written, never narrower.
    """
    merged: list[tuple[int, int]] = []
    for start, end in sorted(extents):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, min(end, size)))
    pieces: list[int] = []
    for start, end in merged:
        first = -(-start // PIECE_SIZE)
        last = -(-size // PIECE_SIZE) if end >= size else end // PIECE_SIZE
        pieces.extend(range(first, last))
    return pieces


def _is(data: bytes, sha256: bytes) -> bool:
    return hashlib.sha256(data).digest() == sha256


async def surviving_pieces(staged: Staged, info: Metainfo) -> set[int]:
    """The pieces that are in ``staged`` and have the hash that ``info`` gives them. Raises LocalError.

    Holes are not read where the file system tells of them; the rest costs about a millisecond a piece, in worker
    threads, one at a time. A piece of zeros that lies in a hole counts as missing; that is safe, and rare.
    """
    if isinstance(staged, Sparse):
        candidates = touched_pieces(await staged.extents(), info.size)
    else:
        candidates = list(range(info.count))
    found: set[int] = set()
    for piece in candidates:
        data = await staged.read_at(piece * PIECE_SIZE, info.length(piece))
        if len(data) == info.length(piece) and await trio.to_thread.run_sync(_is, data, info.hash(piece)):
            found.add(piece)
    return found


def stale_partials(written: Mapping[str, float], now: float, max_age: float, known: Callable[[str], bool]) -> list[str]:
    """Keys to discard: those that ``known`` denies, and those not written for ``max_age`` seconds.

    ``written`` gives the last write of each in unix seconds, as ``now``. One from the future is kept.
    """
    return sorted(key for key, at in written.items() if not known(key) or now - at > max_age)


async def discard_partials(store: BlobStore, keys: list[str]) -> None:
    """Discard staged bytes that nobody has open. Raises LocalError."""
    for key in keys:
        await (await store.stage(key)).discard()
