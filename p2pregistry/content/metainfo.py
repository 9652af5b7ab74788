"""Metainfo: what is needed to fetch a blob by pieces."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from p2pregistry.content.unixfs import PIECE_SIZE, Dag, build, parse_table, piece_count, piece_length
from p2pregistry.digest import Digest


@dataclass(frozen=True, slots=True)
class BlobRef:
    """What a claim says of a blob: its digest, its size in bytes, the root CID (36 bytes) of its DAG."""

    digest: Digest
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Metainfo:
    """A blob's digest, size in bytes, root CID and piece table (sha256 of each 1 MiB piece, 32 bytes each)."""

    digest: Digest
    size: int
    root: bytes
    hashes: bytes

    @classmethod
    def of(cls, digest: Digest, size: int, hashes: bytes) -> Metainfo:
        """From piece hashes that were computed here."""
        return cls(digest, size, build(hashes, size).root, hashes)

    @classmethod
    def of_bytes(cls, data: bytes) -> Metainfo:
        """Of a blob in memory."""
        hashes = b"".join(
            hashlib.sha256(data[i : i + PIECE_SIZE]).digest() for i in range(0, max(1, len(data)), PIECE_SIZE)
        )
        return cls.of(Digest.of(data), len(data), hashes)

    @classmethod
    def of_small(cls, ref: BlobRef) -> Metainfo | None:
        """Of a sha256 blob of one piece, which needs no table: the digest is the piece hash. None if it is larger."""
        if ref.size > PIECE_SIZE or ref.digest.algorithm != "sha256":
            return None
        return cls(ref.digest, ref.size, ref.root, ref.digest.raw)

    @classmethod
    def of_table(cls, ref: BlobRef, blocks: dict[bytes, bytes]) -> Metainfo:
        """From dag-pb blocks that anyone sent. Raises BadContent unless they give ``ref.root``."""
        return cls(ref.digest, ref.size, ref.root, parse_table(ref.root, ref.size, blocks))

    @property
    def ref(self) -> BlobRef:
        return BlobRef(self.digest, self.size, self.root)

    @property
    def count(self) -> int:
        """Number of pieces, at least 1."""
        return piece_count(self.size)

    def length(self, index: int) -> int:
        """Bytes in piece ``index``."""
        return piece_length(self.size, index)

    def hash(self, index: int) -> bytes:
        """sha256 of piece ``index``."""
        return self.hashes[32 * index : 32 * index + 32]

    def dag(self) -> Dag:
        """The DAG with its inner blocks, rebuilt from the table."""
        return build(self.hashes, self.size)
