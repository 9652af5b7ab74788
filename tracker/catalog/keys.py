"""Digests as the database keeps them: the multicodec code of the hash (0x12 sha2-256, 0x13 sha2-512), then the hash."""

from __future__ import annotations

from typing import Final

from p2pregistry.digest import Digest

_CODES: Final = {"sha256": b"\x12", "sha512": b"\x13"}
_ALGORITHMS: Final = {0x12: "sha256", 0x13: "sha512"}


def digest_key(digest: Digest) -> bytes:
    """The key of a digest: 33 or 65 bytes."""
    return _CODES[digest.algorithm] + digest.raw


def key_digest(key: bytes) -> Digest:
    """The digest of a key."""
    return Digest(_ALGORITHMS[key[0]], key[1:])
