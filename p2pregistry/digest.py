"""Digests as OCI writes them, and the CIDs that name the same bytes elsewhere.

Sources: OCI image-spec descriptor.md "Digests"; multiformats CID specification (CIDv1, multicodec table).
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from p2pregistry.errors import RequestError

#: Algorithms accepted, with the length of their raw digest in bytes.
ALGORITHMS = {"sha256": 32, "sha512": 64}
_HEX = frozenset("0123456789abcdef")
#: CIDv1, codec raw (0x55), multihash sha2-256 (0x12) of 32 bytes.
CID_RAW_PREFIX = b"\x01\x55\x12\x20"
#: CIDv1, codec dag-pb (0x70), multihash sha2-256 of 32 bytes.
CID_DAG_PB_PREFIX = b"\x01\x70\x12\x20"


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """``algorithm:hex``. ``raw`` is the hash itself: 32 bytes for sha256, 64 for sha512."""

    algorithm: str
    raw: bytes

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``sha256:<64 lower-case hex>`` or ``sha512:<128>``.

        Raises RequestError (DIGEST_INVALID) for anything else: unknown algorithms, upper case, wrong length.
        """
        algorithm, colon, encoded = text.partition(":")
        length = ALGORITHMS.get(algorithm)
        if not colon or length is None:
            raise RequestError(
                "DIGEST_INVALID", "a digest is sha256:<hex> or sha512:<hex>", detail={"digest": text[:160]}
            )
        if len(encoded) != 2 * length or not _HEX.issuperset(encoded):
            raise RequestError(
                "DIGEST_INVALID",
                f"a {algorithm} digest has {2 * length} lower-case hex digits",
                detail={"digest": text[:160]},
            )
        return cls(algorithm, bytes.fromhex(encoded))

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, algorithm: str = "sha256") -> Digest:
        """The digest of ``data``."""
        return cls(algorithm, hashlib.new(algorithm, data).digest())

    @property
    def hex(self) -> str:
        return self.raw.hex()

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.raw.hex()}"

    def cid(self) -> bytes:
        """CIDv1(raw, sha2-256) of the blob: 36 bytes. Only sha256 digests have one here (ValueError otherwise)."""
        if self.algorithm != "sha256":
            raise ValueError("only sha256 digests have a CID")
        return CID_RAW_PREFIX + self.raw


def cid_text(cid: bytes) -> str:
    """The base32 text form of a 36-byte CID: ``bafkrei...`` for raw, ``bafybei...`` for dag-pb."""
    return "b" + base64.b32encode(cid).decode("ascii").lower().rstrip("=")


def parse_cid(text: str) -> bytes:
    """The 36 bytes behind the canonical base32 text of a CIDv1 (raw or dag-pb, sha2-256).

    Raises RequestError (DIGEST_INVALID): the field is named, and a second spelling of the same CID is refused.
    """
    cid = b""
    if len(text) == 59 and text[0] == "b":
        try:
            cid = base64.b32decode(text[1:].upper() + "=" * 6)
        except ValueError:
            cid = b""
    if len(cid) != 36 or cid[:4] not in (CID_RAW_PREFIX, CID_DAG_PB_PREFIX) or cid_text(cid) != text:
        raise RequestError(
            "DIGEST_INVALID", "not a canonical CIDv1 (raw or dag-pb, sha2-256)", detail={"cid": text[:160]}
        )
    return cid
