"""The manifest claim: the tracker's word that a manifest belongs to a repository, and what its blobs are.

It names, for each blob that was uploaded to or mounted in that repository, the digest, the size and the root CID. It
does not expire. It is both the root of trust for piece tables and the proof that a repository holds a blob.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
import pyseto

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest, cid_text, parse_cid
from p2pregistry.errors import BadContent, RequestError
from p2pregistry.oci.reference import check_name
from p2pregistry.trust.keys import MANIFEST_PURPOSE, KeySet, Signer
from p2pregistry.trust.paserk import TOKEN_ERRORS

#: The longest claim that is looked at, bytes: room for 20,000 blobs.
MAX_CLAIM = 6 << 20
#: Bytes of the signature, which follow the payload.
_SIGNATURE: Final = 64


@dataclass(frozen=True, slots=True)
class ManifestClaim:
    """What was signed: repository, digest of the manifest, and its blobs in the order of the manifest."""

    repository: str
    manifest: Digest
    blobs: tuple[BlobRef, ...]

    def blob(self, digest: Digest) -> BlobRef | None:
        """The entry of one blob."""
        return next((ref for ref in self.blobs if ref.digest == digest), None)


class _Claim(msgspec.Struct):
    repository: str
    manifest: str
    blobs: list[tuple[str, int, str]]


def sign_manifest_claim(signer: Signer, claim: ManifestClaim) -> str:
    """A PASETO v4.public token."""
    blobs = [(str(ref.digest), ref.size, cid_text(ref.root)) for ref in claim.blobs]
    return signer.sign(msgspec.json.encode(_Claim(claim.repository, str(claim.manifest), blobs)), MANIFEST_PURPOSE)


def verify_manifest_claim(keys: KeySet, token: str) -> ManifestClaim:
    """Read a claim. Raises BadContent unless a key of the set signed it for this purpose and every field is in form."""
    if len(token) > MAX_CLAIM:
        raise BadContent("a claim is too long")
    return _read(keys.payload(token, MANIFEST_PURPOSE))


def read_unverified(token: str) -> ManifestClaim | None:
    """What a claim says, whoever has signed it; None if it is none. Only for claims that were verified before."""
    try:
        payload: Any = pyseto.Token.new(token).payload
        return _read(bytes(payload)[:-_SIGNATURE])
    except (BadContent, *TOKEN_ERRORS):
        return None


def _read(payload: bytes) -> ManifestClaim:
    try:
        raw = msgspec.json.decode(payload, type=_Claim)
        blobs = tuple(BlobRef(Digest.parse(digest), size, parse_cid(root)) for digest, size, root in raw.blobs)
        if any(ref.size < 0 for ref in blobs):
            raise BadContent("a claim names a negative size")
        return ManifestClaim(check_name(raw.repository), Digest.parse(raw.manifest), blobs)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, RequestError) as err:
        raise BadContent("a claim is signed but not in form") from err
