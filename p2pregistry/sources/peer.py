"""A node's peer API, seen from another node."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from p2pregistry.content.car import read_table
from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest
from p2pregistry.errors import BadContent, Unreachable
from p2pregistry.have_news import MAX_LINE, HaveNews, Watch, read_news
from p2pregistry.oci.manifest import MANIFEST_LIMIT
from p2pregistry.sources.base import Incoming
from p2pregistry.sources.speaker import Speaker
from p2pregistry.sources.wire import Client, Lines, refusal
from p2pregistry.trust.records import MAX_RECORD

#: The longest piece table taken, bytes: that of a blob of about 1 TiB.
MAX_TABLE = 64 << 20
#: The longest JSON answer: a manifest in base64 and its claims.
MAX_JSON = 2 * MANIFEST_LIMIT + (24 << 20)
#: Seconds without a line, be it an empty one, after which a peer that is watched is taken for gone.
SILENCE: Final = 25.0
_NO_NEWS: Final = HaveNews()
#: What msgspec raises for bytes that are not the JSON it was told of.
JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class RemoteManifest:
    """A manifest as another machine gave it: the bytes match ``digest``; all else is still to be verified.

    ``records``: behind each claim the record of its repository, "" where none was given; ``repository`` and ``tag``:
    the records of what was asked for, from the tracker alone."""

    digest: Digest
    media_type: str
    body: bytes
    claims: tuple[str, ...]
    records: tuple[str, ...] = ()
    repository: str = ""
    tag: str = ""


class RemoteTag(msgspec.Struct):
    """The signed records of a tag and of its repository, as another machine gave them: still to be verified."""

    tag: str
    repository: str


class _Claim(msgspec.Struct):
    claim: str
    repository: str = ""
    record: str = ""


class _Manifest(msgspec.Struct):
    media_type: str
    manifest: str
    claims: list[_Claim | str] = []
    digest: str | None = None
    repository: str = ""
    tag: str = ""


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
    said = [_Claim(claim) if isinstance(claim, str) else claim for claim in raw.claims[:20]]
    claims, records = tuple(one.claim for one in said), tuple(one.record for one in said)
    return RemoteManifest(digest, raw.media_type, body, claims, records, raw.repository, raw.tag)


class News:
    """What a peer tells of what it has; an async iterator of HaveNews that ends only with an error. Heartbeats are left
    out."""

    def __init__(self, lines: Lines, watched: int) -> None:
        self._lines, self._watched = lines, watched

    def __aiter__(self) -> News:
        return self

    async def __anext__(self) -> HaveNews:
        """Raises Unreachable when it ends, breaks off or falls silent, BadContent for what is no news."""
        async for line in self._lines:
            news = read_news(line, self._watched)
            if news != _NO_NEWS:
                return news
        raise Unreachable("it tells nothing any more")


class PeerSource:
    """Fetches from one peer. ``name`` is its peer id; ``url`` the base of its peer API; ``zone`` this node's own zone,
    which it is told; ``there`` the peer's, as far as is known; ``speaker`` shows it who this node is;
    without ``plain`` its URL must be https. Raises Unreachable for a URL that cannot be used."""

    kind = "peer"

    def __init__(
        self,
        name: str,
        url: str,
        *,
        zone: str = "",
        speaker: Speaker | None = None,
        connect_timeout: float = 3.0,
        head_timeout: float = 10.0,
        peer_id: str | None = None,
        plain: bool = True,
    ) -> None:
        self.name = name
        self.there = ""
        self.client = Client(
            url,
            connect_timeout=connect_timeout,
            head_timeout=head_timeout,
            peer_id=name if peer_id is None else peer_id,
            plain=plain,
            speaker=speaker,
        )
        self._headers = {"P2P-Zone": zone} if zone else {}

    async def table(self, ref: BlobRef) -> dict[bytes, bytes]:
        return read_table(await self.client.get(f"/p2p/v1/blobs/{ref.digest}/table", limit=MAX_TABLE))

    @asynccontextmanager
    async def fetch(self, digest: Digest, offset: int, length: int) -> AsyncIterator[Incoming]:
        """See Source. Raises NotYet where it has the blob but not these pieces.

        Its head may take as long as it likes: a transfer waits for its turn there. Whoever asks knows how long it is
        worth while, and cancels.
        """
        headers = self._headers | ({"Range": f"bytes={offset}-{offset + length - 1}"} if length else {})
        target = f"/p2p/v1/blobs/{digest}"
        async with self.client.request("GET", target, headers, head_timeout=math.inf) as answer:
            if answer.status not in (200, 206):
                raise refusal(answer)
            if answer.length != length:
                raise BadContent("a source sends another range than was asked for")
            if answer.status == 206 and not answer.headers.get("content-range", "").startswith(f"bytes {offset}-"):
                raise BadContent("a source sends another range than was asked for")
            if answer.status == 200 and offset != 0:
                raise BadContent("a source ignores ranges")
            yield answer

    @asynccontextmanager
    async def watch(self, watch: Watch) -> AsyncIterator[News]:
        """Be told what the peer has of these digests: first the state, then what changes. A connection of its own.

        Entering raises Unreachable, RemoteBusy (it tells enough others) or NotFound (it tells nobody).
        """
        headers = self._headers | {"Content-Type": "application/json"}
        async with self.client.lines("/p2p/v1/have", headers, watch.encode(), silence=SILENCE, limit=MAX_LINE) as lines:
            yield News(lines, len(watch.want))

    async def manifest(self, digest: Digest) -> RemoteManifest:
        """A manifest by digest. Raises NotFound, RemoteError."""
        return read_manifest(await self.client.get(f"/p2p/v1/manifests/{digest}", limit=MAX_JSON), digest)

    async def tag(self, repository: str, tag: str) -> RemoteTag:
        """What it knows of a tag. Raises NotFound, RemoteError."""
        data = await self.client.get(f"/p2p/v1/tags/{repository}/{tag}", limit=2 * MAX_RECORD + 1000)
        try:
            return msgspec.json.decode(data, type=RemoteTag)
        except JSON_ERRORS as err:
            raise BadContent("a peer's records of a tag cannot be read") from err

    def close(self) -> None:
        self.client.close()
