"""A node's peer API, seen from another node."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from p2pregistry.content.car import read_table
from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent
from p2pregistry.oci.manifest import MANIFEST_LIMIT
from p2pregistry.sources.base import Incoming
from p2pregistry.sources.wire import Client, refusal

#: The longest piece table taken, bytes: that of a blob of about 1 TiB.
MAX_TABLE = 64 << 20
#: The longest JSON answer: a manifest in base64 and its claims.
MAX_JSON = 2 * MANIFEST_LIMIT + (24 << 20)
#: What msgspec raises for bytes that are not the JSON it was told of.
JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class RemoteManifest:
    """A manifest as another machine gave it: the bytes match ``digest``; the claims are still to be verified."""

    digest: Digest
    media_type: str
    body: bytes
    claims: tuple[str, ...]


class _Claim(msgspec.Struct):
    claim: str
    repository: str = ""


class _Manifest(msgspec.Struct):
    media_type: str
    manifest: str
    claims: list[_Claim | str] = []
    digest: str | None = None


def read_manifest(data: bytes, wanted: Digest | None) -> RemoteManifest:
    """The answer to a manifest request. Raises BadContent unless its bytes have the digest that was asked for."""
    try:
        raw = msgspec.json.decode(data, type=_Manifest)
        body = base64.b64decode(raw.manifest, validate=True)
    except (*JSON_ERRORS, binascii.Error, ValueError) as err:
        raise BadContent("a manifest answer cannot be read") from err
    if len(body) > MANIFEST_LIMIT or len(raw.media_type) > 255 or not raw.media_type.isprintable():
        raise BadContent("a manifest answer is out of bounds")
    if wanted is None and raw.digest is None:
        raise BadContent("a manifest answer lacks its digest")
    digest = wanted or Digest.of(body)
    if Digest.of(body, digest.algorithm) != digest:
        raise BadContent("a manifest does not match its digest")
    claims = tuple(c if isinstance(c, str) else c.claim for c in raw.claims[:20])
    return RemoteManifest(digest, raw.media_type, body, claims)


class PeerSource:
    """Fetches from one peer. ``name`` is its peer id; ``url`` the base of its peer API."""

    kind = "peer"

    def __init__(self, name: str, url: str, *, connect_timeout: float = 3.0, head_timeout: float = 10.0) -> None:
        self.name = name
        self.client = Client(url, connect_timeout=connect_timeout, head_timeout=head_timeout)

    async def table(self, ref: BlobRef) -> dict[bytes, bytes]:
        return read_table(await self.client.get(f"/p2p/v1/blobs/{ref.digest}/table", limit=MAX_TABLE))

    @asynccontextmanager
    async def fetch(self, digest: Digest, offset: int, length: int) -> AsyncIterator[Incoming]:
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"} if length else {}
        async with self.client.request("GET", f"/p2p/v1/blobs/{digest}", headers) as answer:
            if answer.status not in (200, 206):
                raise refusal(answer)
            if answer.length != length:
                raise BadContent("a source sends another range than was asked for")
            if answer.status == 206 and not answer.headers.get("content-range", "").startswith(f"bytes {offset}-"):
                raise BadContent("a source sends another range than was asked for")
            if answer.status == 200 and offset != 0:
                raise BadContent("a source ignores ranges")
            yield answer

    async def manifest(self, digest: Digest) -> RemoteManifest:
        """A manifest by digest. Raises NotFound, RemoteError."""
        return read_manifest(await self.client.get(f"/p2p/v1/manifests/{digest}", limit=MAX_JSON), digest)

    def close(self) -> None:
        self.client.close()
