"""What the tracker serves to nodes: the peer API, and what only the tracker knows.

Everything here is decided with ``Request.caller``. A blob is served only if the claim of some manifest names it, in a
repository that the caller may pull: bytes of an upload that no manifest refers to yet belong to nobody, and a digest
proves nothing. Whatever a caller may not pull is answered as if it did not exist.
"""

from __future__ import annotations

import base64
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from p2pregistry import __version__
from p2pregistry.content.car import write_table
from p2pregistry.content.unixfs import PIECE_SIZE, piece_count
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError
from p2pregistry.feed_messages import MAX_CHANGES, MEDIA_TYPE, read_changes
from p2pregistry.messages import MAX_ANNOUNCE, MAX_NAMES, read_announce, unpack
from p2pregistry.observe import count_served
from p2pregistry.oci.media import CAR, OCTET_STREAM
from p2pregistry.oci.ranges import content_range
from p2pregistry.oci.reference import check_name, check_tag, parse_reference
from p2pregistry.serve.http import BlobSlice, Request, Response, Stream
from p2pregistry.serve.peer_api import Slots, manifest_answer, send_blob
from p2pregistry.store.base import Blob
from tracker.announces import Announces, MemoryAnnounces
from tracker.blobs import Blobs
from tracker.board import Pace
from tracker.catalog.base import Catalog
from tracker.feed import Feed
from tracker.handout import Handout
from tracker.named import Named
from tracker.signed import SignedRecords, read_names

_PREFIX: Final = "/p2p/v1/"
_JSON: Final[tuple[str, str]] = ("Content-Type", "application/json")
#: Most tags in one answer: more than a page of a node, which asks for one beyond it to know whether there are more.
_TAGS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Swarm:
    """What a node needs to join: the swarm's name, the registry names this tracker is, multiaddrs of its libp2p host
    (with ``/p2p/<peer id>``), its public root key and the key set that the root signed; the signed list of revoked
    nodes ("": not known yet), its clock in unix seconds, and where clients of a node get tokens."""

    swarm: str
    names: tuple[str, ...]
    libp2p: tuple[str, ...]
    root_key: str
    key_set: str
    version: str = __version__
    revocations: str = ""
    time: float | None = None
    token_url: str = ""


class TrackerPeerApi:
    """The handler of the tracker's peer listener. ``swarm`` is asked at each request: addresses may change.

    ``named`` is this process's memory of what claims name; without ``announces`` they are kept in memory; without
    ``feed`` nobody is told of changes. ``pulled`` is told of each manifest that a node resolves: repository, tag if it
    was asked for by one, digest, true.
    """

    def __init__(
        self,
        catalog: Catalog,
        blobs: Blobs,
        slots: Slots,
        swarm: Callable[[], Swarm],
        signed: SignedRecords,
        *,
        named: Named | None = None,
        announces: Announces | None = None,
        feed: Feed | None = None,
        pulled: Callable[[str, str | None, Digest, bool], None] = lambda _repository, _tag, _digest, _whole: None,
    ) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._slots = slots
        self._swarm = swarm
        self._signed = signed
        self._feed = feed
        self._named = Named(catalog) if named is None else named
        randrange = random.Random().randrange  # noqa: S311 - chance, not secrets
        self._announces = announces or MemoryAnnounces(self._named, pace=Pace(), randrange=randrange)
        self._pulled = pulled
        self._handout = Handout(randrange=randrange)

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Raises RegistryError."""
        if not request.path.startswith(_PREFIX):
            raise NotFound("NAME_UNKNOWN", "the peer API does not have this endpoint")
        parts = request.path.removeprefix(_PREFIX).split("/")
        match parts:
            case ["announce"]:
                _check_method(request, "POST")
                return await self._announce(request)
            case ["blobs", digest, "next"]:
                _check_method(request, "POST")
                return await self._next(request, Digest.parse(digest))
            case ["repositories"]:
                _check_method(request, "POST")
                return await self._records(request)
            case ["changes"]:
                _check_method(request, "POST")
                return await self._changes(request)
        _check_method(request, "GET", "HEAD")
        # from the right: a repository may have any depth and parts of any name
        match parts:
            case ["swarm"]:
                return _json(msgspec.json.encode(self._swarm()))
            case ["blobs", digest]:
                return await self._blob(request, Digest.parse(digest))
            case ["blobs", digest, "table"]:
                return await self._table(request, Digest.parse(digest))
            case ["manifests", digest]:
                return await self._manifest(request, Digest.parse(digest))
            case ["repositories", *name, "blobs", digest, "claims"] if name:
                return await self._claims(request, check_name("/".join(name)), Digest.parse(digest))
            case ["repositories", *name, "manifests", reference] if name:
                return await self._resolve(request, check_name("/".join(name)), reference)
            case ["repositories", *name, "tags"] if name:
                return await self._tags(request, check_name("/".join(name)))
        raise NotFound("NAME_UNKNOWN", "the peer API does not have this endpoint")

    async def _announce(self, request: Request) -> Response:
        announce = read_announce(await request.body.read(MAX_ANNOUNCE))
        if request.caller.peer_id not in ("", announce.peer_id):
            raise RequestError("DENIED", "a node announces itself and no other")
        return _json((await self._announces.announce(announce, request.caller)).encode())

    async def _blob(self, request: Request, digest: Digest) -> Response:
        await self._named.check(digest, request.caller)
        blob = await self._blobs.open(digest)
        try:
            return await send_blob(request, blob, self._slots, count_served("peer"))
        except BaseException:
            blob.close()
            raise

    async def _next(self, request: Request, digest: Digest) -> Response:
        await self._named.check(digest, request.caller)
        blob = await self._blobs.open(digest)
        try:
            if blob.size == 0:
                raise RequestError("SIZE_INVALID", "an empty blob has no pieces to choose from")
            count = piece_count(blob.size)
            # a body somewhat too long is read, so that the answer can say how long it should be
            wanted = unpack(await request.body.read(2 * (count // 8) + 1024), count)
            await self._slots.take(request.gone)
            # chosen only now: while this request waited, others were sent pieces
            return self._hand(blob, wanted)
        except BaseException:
            blob.close()
            raise

    def _hand(self, blob: Blob, wanted: bytes) -> Response:
        """The answer with a piece, once a slot has been taken; it is given back when the piece is out."""
        handed, wait = self._handout.choose(blob.digest, blob.size, wanted, trio.current_time())
        if handed is None:
            self._slots.give()
            blob.close()
            return Response(204, [("P2P-Wait", str(math.ceil(1000 * wait)))])

        def sent(count: int) -> None:
            self._slots.give()
            handed.sent(count)
            count_served("peer")(count)

        offset = handed.index * PIECE_SIZE
        headers = [("Content-Type", OCTET_STREAM), ("Content-Range", content_range(offset, handed.length, blob.size))]
        return Response(206, headers, BlobSlice(blob, offset, handed.length, sent=sent))

    async def _table(self, request: Request, digest: Digest) -> Response:
        await self._named.check(digest, request.caller)
        info = await self._catalog.metainfo(digest)
        if info is None:
            raise NotFound("BLOB_UNKNOWN", "there is no such blob here")
        # rebuilding the tree of a large blob is work of some ten milliseconds
        body = await trio.to_thread.run_sync(lambda: write_table(info.root, info.dag().blocks))
        return Response(200, [("Content-Type", CAR)], body)

    async def _manifest(self, request: Request, digest: Digest) -> Response:
        places = await self._catalog.manifest_anywhere(digest, request.caller.may_pull)
        if not places:
            raise NotFound("MANIFEST_UNKNOWN", "there is no such manifest here")
        first = places[0].manifest
        said = [
            (at.repository, at.manifest.claim, self._signed.repository(at.repository, at.standing)) for at in places
        ]
        return manifest_answer(first.media_type, first.body, said)

    async def _resolve(self, request: Request, repository: str, reference: str) -> Response:
        parsed = parse_reference(reference)
        found = await self._catalog.resolve(repository, parsed)
        if found is None or not request.caller.may_pull(repository, found.standing.private):
            raise NotFound("MANIFEST_UNKNOWN", "this repository has no such manifest")
        record = found.manifest
        tag = parsed if isinstance(parsed, str) else None
        self._pulled(repository, tag, record.digest, True)
        document: dict[str, object] = {
            "digest": str(record.digest),
            "media_type": record.media_type,
            "manifest": base64.b64encode(record.body).decode("ascii"),
            "claims": [{"repository": repository, "claim": record.claim}],
            "repository": self._signed.repository(repository, found.standing),
        }
        if tag is not None and found.tag is not None:
            document["tag"] = self._signed.tag(repository, tag, record.digest, found.tag)
            document["as_of"] = {"epoch": found.as_of.epoch, "number": found.as_of.number}
        return _json(msgspec.json.encode(document))

    async def _tags(self, request: Request, repository: str) -> Response:
        asked, last = request.param("n"), request.param("last") or ""
        if asked is not None and not (asked.isascii() and asked.isdigit() and len(asked) <= 9):
            raise RequestError("UNSUPPORTED", "n is a number of tags", status=400)
        limit = _TAGS if asked is None else min(int(asked), _TAGS)
        if last:
            check_tag(last)
        record = await self._record(request, repository)
        if record is None:
            raise NotFound("NAME_UNKNOWN", "there is no such repository")
        tags = await self._catalog.tags(repository, after=last, limit=max(1, limit))
        return _json(msgspec.json.encode({"tags": tags[:limit], "repository": record}))

    async def _claims(self, request: Request, repository: str, digest: Digest) -> Response:
        record = await self._record(request, repository)
        claims = [] if record is None else await self._catalog.claims_for_blob(repository, digest)
        if not claims:
            raise NotFound("BLOB_UNKNOWN", "there is no such blob here")
        return _json(msgspec.json.encode({"claims": claims, "repository": record}))

    async def _records(self, request: Request) -> Response:
        """The records of those of many repositories that the caller may pull."""
        names = read_names(await request.body.read(MAX_NAMES))
        standings = await self._catalog.standings(names)
        may = request.caller.may_pull
        records = [self._signed.repository(name, at) for name, at in standings.items() if may(name, at.private)]
        return _json(msgspec.json.encode({"records": records}))

    async def _changes(self, request: Request) -> Response:
        """What has changed since the caller's cursor, and what changes, for as long as both like."""
        asked = read_changes(await request.body.read(MAX_CHANGES))
        if self._feed is None:
            raise NotFound("NAME_UNKNOWN", "this tracker does not tell of changes")
        stream = self._feed.stream(asked, request.caller, request.recheck)
        headers = [("Content-Type", MEDIA_TYPE), ("Cache-Control", "no-store")]
        return Response(200, headers, Stream(stream, None, endless=True))

    async def _record(self, request: Request, repository: str) -> str | None:
        """The record of one repository, None if it does not exist for the caller."""
        standing = (await self._catalog.standings([repository])).get(repository)
        if standing is None or not request.caller.may_pull(repository, standing.private):
            return None
        return self._signed.repository(repository, standing)


def _check_method(request: Request, *allowed: str) -> None:
    if request.method not in allowed:
        raise RequestError("UNSUPPORTED", "not with this method", headers={"Allow": ", ".join(allowed)})


def _json(body: bytes) -> Response:
    return Response(200, [_JSON], body)
