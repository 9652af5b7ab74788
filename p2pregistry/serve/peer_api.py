"""The peer API: what a node serves to other nodes. A request that came from a peer never makes this node fetch.

Each answer is decided with ``Request.caller``: what it may not pull is answered as if it were not here.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol

import msgspec
import trio

from p2pregistry.content.car import write_table
from p2pregistry.content.metainfo import Metainfo
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError
from p2pregistry.have_news import MAX_WATCH, Watch, read_watch
from p2pregistry.haves import Haves
from p2pregistry.oci.media import CAR, OCTET_STREAM
from p2pregistry.oci.ranges import content_range, parse_range
from p2pregistry.oci.reference import check_name, check_tag
from p2pregistry.rate import Pace
from p2pregistry.serve.have_stream import HaveStream
from p2pregistry.serve.http import BlobSlice, Request, Response, Stream
from p2pregistry.store.base import Blob
from p2pregistry.store.records import StoredManifest, TagRecord
from p2pregistry.trust.records import says_gone
from p2pregistry.visible import Visible

#: Nodes that are told at a time of the pieces that are here.
MAX_STREAMS: Final = 64
#: The longest zone a caller can name.
MAX_ZONE: Final = 64
#: The media type of lines of JSON.
NEWS: Final = "application/x-ndjson"


class Slots:
    """A few active uploads; the others wait in the order they came; beyond ``queue`` of them they are turned away.

    Serving whole pieces one after another gets every piece to somebody sooner than serving all of them slowly at once.
    """

    def __init__(self, active: int, queue: int) -> None:
        self._free = active
        self._queue = queue
        self._waiting: deque[_Turn] = deque()

    async def take(self, gone: Callable[[], bool] = lambda: False) -> None:
        """Wait for a turn. Raises RequestError: TOOMANYREQUESTS where too many wait already, status 408 where the turn
        came to a client that is ``gone``: it goes to the next at once."""
        if self._free > 0:
            self._free -= 1
            return
        if len(self._waiting) >= self._queue:
            raise RequestError("TOOMANYREQUESTS", "too many transfers wait here already", headers={"Retry-After": "1"})
        turn = _Turn(gone)
        self._waiting.append(turn)
        try:
            await turn.came.wait()
        except trio.Cancelled:
            if turn.mine:
                self.give()  # the turn came as the caller left: pass it on
            elif not turn.came.is_set():
                self._waiting.remove(turn)
            raise
        if not turn.mine:
            raise RequestError("UNAVAILABLE", "the client left while it waited", status=408)

    def give(self) -> None:
        """A transfer has ended."""
        while self._waiting:
            turn = self._waiting.popleft()
            turn.mine = not turn.gone()
            turn.came.set()
            if turn.mine:
                return
        self._free += 1


class _Turn:
    """One who waits; ``mine`` once the turn has come and was taken."""

    def __init__(self, gone: Callable[[], bool]) -> None:
        self.gone = gone
        self.came = trio.Event()
        self.mine = False


class Holdings(Protocol):
    """What this node has, for whoever asks."""

    def metainfo(self, digest: Digest) -> Metainfo | None: ...
    def manifest(self, digest: Digest) -> StoredManifest | None: ...
    def tag(self, repository: str, tag: str) -> TagRecord | None: ...


class Held(Protocol):
    async def open(self, digest: Digest) -> Blob: ...


class PeerApi:
    """The handler of a node's peer listener. ``watching`` is told of each node that asks to be told what is here: it
    fetches the same, so it is a source too. ``pace`` gives the rate limit toward a zone ("": the caller named none)."""

    def __init__(
        self,
        holdings: Holdings,
        held: Held,
        slots: Slots,
        visible: Visible,
        *,
        served: Callable[[int], None],
        haves: Haves | None = None,
        watching: Callable[[Watch], None] = lambda _watch: None,
        pace: Callable[[str], Pace | None] = lambda _zone: None,
    ) -> None:
        self._holdings, self._held, self._slots, self._served = holdings, held, slots, served
        self._visible = visible
        self._haves = Haves() if haves is None else haves
        self._watching, self._pace = watching, pace

    async def __call__(self, request: Request) -> Response:
        parts = request.path.split("/")
        if parts == ["", "p2p", "v1", "have"]:
            if request.method != "POST":
                raise RequestError("UNSUPPORTED", "POST what you want to be told of", headers={"Allow": "POST"})
            return await self._have(request)
        if request.method not in ("GET", "HEAD"):
            raise RequestError("UNSUPPORTED", "peers only read", headers={"Allow": "GET, HEAD"})
        match parts:
            case ["", "p2p", "v1", "blobs", digest]:
                return await self._blob(request, Digest.parse(digest))
            case ["", "p2p", "v1", "blobs", digest, "table"]:
                return self._table(request, Digest.parse(digest))
            case ["", "p2p", "v1", "manifests", digest]:
                return self._manifest(request, Digest.parse(digest))
            case ["", "p2p", "v1", "tags", *name, tag] if name:
                return self._tag(request, check_name("/".join(name)), check_tag(tag))
        raise NotFound("NAME_UNKNOWN", "the peer API does not have this endpoint")

    async def _blob(self, request: Request, digest: Digest) -> Response:
        self._check(request, digest)
        blob = await self._open(request, digest)
        try:
            pace = self._pace((request.header("p2p-zone") or "")[:MAX_ZONE])
            return await send_blob(request, blob, self._slots, self._served, pace)
        except BaseException:
            blob.close()
            raise

    def _check(self, request: Request, digest: Digest) -> None:
        """Raises NotFound (BLOB_UNKNOWN) unless the blob may go to the caller."""
        if not self._visible.may_have(request.caller, digest):
            raise NotFound("BLOB_UNKNOWN", "not here")

    async def _open(self, request: Request, digest: Digest) -> Blob:
        """The blob, or as much of an unfinished one as was asked for."""
        for _ in range(2):  # while one place is looked at, the blob may move to the other
            partial = self._haves.partial(digest)
            if partial is not None:
                offset, length = parse_range(request.header("range"), partial.size) or (0, partial.size)
                last = max(offset, offset + length - 1)
                if not all(partial.has(index) for index in range(offset // PIECE_SIZE, last // PIECE_SIZE + 1)):
                    raise RequestError("PIECE_UNKNOWN", "some of these pieces are not here yet", status=416)
                return await partial.open()
            try:
                return await self._held.open(digest)
            except NotFound:
                continue
        raise NotFound("BLOB_UNKNOWN", "not here")

    async def _have(self, request: Request) -> Response:
        caller, watch = request.caller, read_watch(await request.body.read(MAX_WATCH))
        if caller.peer_id not in ("", watch.peer_id):
            raise RequestError("DENIED", "a node asks for itself and for no other")
        if self._haves.watchers >= MAX_STREAMS:
            raise RequestError(
                "TOOMANYREQUESTS", "too many nodes are told of pieces here already", headers={"Retry-After": "10"}
            )

        def may(digest: Digest) -> bool:
            return self._visible.may_have(caller, digest)

        # what it may not have it cannot be a source of, and that this node has to do with it is not for it to know
        self._watching(replace(watch, want=tuple(filter(may, watch.want))))
        stream = HaveStream(self._haves.watch(watch, may))
        return Response(200, [("Content-Type", NEWS)], Stream(stream, None, endless=True))

    def _table(self, request: Request, digest: Digest) -> Response:
        self._check(request, digest)
        info = self._holdings.metainfo(digest)
        if info is None:
            raise NotFound("BLOB_UNKNOWN", "not here")
        return Response(200, [("Content-Type", CAR)], write_table(info.root, info.dag().blocks))

    def _manifest(self, request: Request, digest: Digest) -> Response:
        manifest = self._holdings.manifest(digest)
        claims = self._visible.claims(request.caller, digest)
        if manifest is None or not claims:
            raise NotFound("MANIFEST_UNKNOWN", "not here")
        return manifest_answer(manifest.media_type, manifest.body, claims)

    def _tag(self, request: Request, repository: str, tag: str) -> Response:
        """The signed records of a tag and of its repository, as far as this node knows them; it asks nobody."""
        found, record = self._holdings.tag(repository, tag), self._visible.record(request.caller, repository)
        # one that is known to be gone, but not by a record that says so, is of no use to others
        if found is None or not record or not found.token or (found.digest is None and not says_gone(found.token)):
            raise NotFound("MANIFEST_UNKNOWN", "not here")
        document = {"tag": found.token, "repository": record}
        return Response(200, [("Content-Type", "application/json")], msgspec.json.encode(document))


def manifest_answer(media_type: str, body: bytes, claims: Sequence[tuple[str, str, str]]) -> Response:
    """A manifest as JSON with, of each repository that has it: its name, the claim and the repository's record ("":
    none is known)."""
    document = {
        "media_type": media_type,
        "manifest": base64.b64encode(body).decode("ascii"),
        "claims": [{"repository": name, "claim": claim, "record": record} for name, claim, record in claims],
    }
    return Response(200, [("Content-Type", "application/json")], msgspec.json.encode(document))


async def send_blob(
    request: Request, blob: Blob, slots: Slots, served: Callable[[int], None], pace: Pace | None = None
) -> Response:
    """A blob or a range of it, once a slot is free. The listener closes the blob; on an exception the caller does."""
    part = parse_range(request.header("range"), blob.size)
    offset, length = part or (0, blob.size)
    headers = [("Content-Type", OCTET_STREAM), ("Accept-Ranges", "bytes")]
    if part is not None:
        headers.append(("Content-Range", content_range(offset, length, blob.size)))
    status = 200 if part is None else 206
    if request.method == "HEAD":
        blob.close()
        return Response(status, [*headers, ("Content-Length", str(length))])
    await slots.take(request.gone)

    def sent(count: int) -> None:
        slots.give()
        served(count)

    return Response(status, headers, BlobSlice(blob, offset, length, sent=sent, pace=pace))
