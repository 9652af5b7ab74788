"""What the tracker serves to nodes: the peer API, and what only the tracker knows.

Blobs are served only if the claim of some manifest names them: bytes of an upload that no manifest refers to yet belong
to nobody. All of it is public content; who may pull what is not decided here yet.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from p2pregistry import __version__
from p2pregistry.content.car import write_table
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError
from p2pregistry.observe import count_served
from p2pregistry.oci.media import CAR
from p2pregistry.oci.reference import check_name, check_tag, parse_reference
from p2pregistry.serve.http import Request, Response
from p2pregistry.serve.peer_api import Slots, manifest_answer, send_blob
from p2pregistry.store.base import BlobStore
from tracker.catalog.base import Catalog

_PREFIX: Final = "/p2p/v1/"
_JSON: Final[tuple[str, str]] = ("Content-Type", "application/json")
#: Most tags in one answer: more than a page of a node, which asks for one beyond it to know whether there are more.
_TAGS: Final = 10_000
#: How many digests are remembered as named by a claim, and for how many seconds: a node asks once a piece.
_NAMED: Final = 4096
_NAMED_AGE: Final = 30.0


@dataclass(frozen=True, slots=True)
class Swarm:
    """What a node needs to join: the swarm's name, the registry names this tracker is, multiaddrs of its libp2p host
    (with ``/p2p/<peer id>``), its public root key and the key set that the root signed."""

    swarm: str
    names: tuple[str, ...]
    libp2p: tuple[str, ...]
    root_key: str
    key_set: str
    version: str = __version__


class TrackerPeerApi:
    """The handler of the tracker's peer listener. ``swarm`` is asked at each request: addresses may change."""

    def __init__(self, catalog: Catalog, store: BlobStore, slots: Slots, swarm: Callable[[], Swarm]) -> None:
        self._catalog = catalog
        self._store = store
        self._slots = slots
        self._swarm = swarm
        self._named: OrderedDict[Digest, float] = OrderedDict()

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Raises RegistryError."""
        if not request.path.startswith(_PREFIX):
            raise NotFound("NAME_UNKNOWN", "the peer API does not have this endpoint")
        if request.method not in ("GET", "HEAD"):
            raise RequestError("UNSUPPORTED", "peers only read", headers={"Allow": "GET, HEAD"})
        parts = request.path.removeprefix(_PREFIX).split("/")
        # from the right: a repository may have any depth and parts of any name
        match parts:
            case ["swarm"]:
                return _json(msgspec.json.encode(self._swarm()))
            case ["blobs", digest]:
                return await self._blob(request, Digest.parse(digest))
            case ["blobs", digest, "table"]:
                return await self._table(Digest.parse(digest))
            case ["manifests", digest]:
                return await self._manifest(Digest.parse(digest))
            case ["repositories", *name, "blobs", digest, "claims"] if name:
                return await self._claims(check_name("/".join(name)), Digest.parse(digest))
            case ["repositories", *name, "manifests", reference] if name:
                return await self._resolve(check_name("/".join(name)), reference)
            case ["repositories", *name, "tags"] if name:
                return await self._tags(check_name("/".join(name)), request)
        raise NotFound("NAME_UNKNOWN", "the peer API does not have this endpoint")

    async def _blob(self, request: Request, digest: Digest) -> Response:
        await self._check_named(digest)
        blob = await self._store.open(digest)
        try:
            return await send_blob(request, blob, self._slots, count_served("peer"))
        except BaseException:
            blob.close()
            raise

    async def _check_named(self, digest: Digest) -> None:
        now = trio.current_time()
        if self._named.get(digest, 0.0) > now:
            return
        if await self._catalog.metainfo(digest) is None:
            raise _no_blob()
        self._named[digest] = now + _NAMED_AGE
        self._named.move_to_end(digest)
        if len(self._named) > _NAMED:
            self._named.popitem(last=False)

    async def _table(self, digest: Digest) -> Response:
        info = await self._catalog.metainfo(digest)
        if info is None:
            raise _no_blob()
        # rebuilding the tree of a large blob is work of some ten milliseconds
        body = await trio.to_thread.run_sync(lambda: write_table(info.root, info.dag().blocks))
        return Response(200, [("Content-Type", CAR)], body)

    async def _manifest(self, digest: Digest) -> Response:
        records = await self._catalog.manifest_anywhere(digest)
        if not records:
            raise NotFound("MANIFEST_UNKNOWN", "there is no such manifest here")
        first = records[0]
        return manifest_answer(first.media_type, first.body, [("", record.claim) for record in records])

    async def _resolve(self, repository: str, reference: str) -> Response:
        record = await self._catalog.manifest(repository, parse_reference(reference))
        if record is None:
            raise NotFound("MANIFEST_UNKNOWN", "this repository has no such manifest")
        document = {
            "digest": str(record.digest),
            "media_type": record.media_type,
            "manifest": base64.b64encode(record.body).decode("ascii"),
            "claims": [{"repository": repository, "claim": record.claim}],
        }
        return _json(msgspec.json.encode(document))

    async def _tags(self, repository: str, request: Request) -> Response:
        asked, last = request.param("n"), request.param("last") or ""
        if asked is not None and not (asked.isascii() and asked.isdigit() and len(asked) <= 9):
            raise RequestError("UNSUPPORTED", "n is a number of tags", status=400)
        limit = _TAGS if asked is None else min(int(asked), _TAGS)
        if last:
            check_tag(last)
        tags = await self._catalog.tags(repository, after=last, limit=max(1, limit))
        return _json(msgspec.json.encode({"tags": tags[:limit]}))

    async def _claims(self, repository: str, digest: Digest) -> Response:
        return _json(msgspec.json.encode({"claims": await self._catalog.claims_for_blob(repository, digest)}))


def _no_blob() -> NotFound:
    return NotFound("BLOB_UNKNOWN", "there is no such blob here")


def _json(body: bytes) -> Response:
    return Response(200, [_JSON], body)
