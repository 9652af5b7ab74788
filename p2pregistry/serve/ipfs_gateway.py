"""A trustless gateway: blocks of our DAGs, and CARs of them, for any IPFS client, without authentication.

What is asked for is read in ``content/gateway_request``. A leaf is a part of its blob, which goes out of the file
where it lies; inner nodes are built from the piece table; a CAR is written while it is sent, a piece at a time at most.

A CID resolves only where anybody may have the blob. Everything else is answered alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, Protocol

import trio

from p2pregistry.content import car
from p2pregistry.content.any_cid import PROBE
from p2pregistry.content.gateway_request import Asked, read_request, unknown
from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.content.subdag import LEAVES, BlockOf, Place, Whole, extent, walk
from p2pregistry.content.unixfs import PIECE_SIZE
from p2pregistry.errors import LocalError, NotFound, RegistryError, RequestError
from p2pregistry.oci.ranges import content_range, parse_range
from p2pregistry.rate import Pace
from p2pregistry.serve.errors_json import error_response
from p2pregistry.serve.http import BlobSlice, Request, Response, Stream
from p2pregistry.serve.peer_api import Slots
from p2pregistry.store.base import FilePart, OpenBytes

#: Browsers are clients too, of every origin: nothing here depends on who asks.
CORS: Final = (
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS"),
    ("Access-Control-Allow-Headers", "Content-Type, Range, User-Agent, X-Requested-With"),
    (
        "Access-Control-Expose-Headers",
        "Content-Length, Content-Location, Content-Range, ETag, Retry-After, X-Ipfs-Path, X-Ipfs-Roots",
    ),
)
#: Trees of large blobs that are built at once, however many are asked for: each is work of some ten milliseconds.
BUILDERS: Final = 2
#: Seconds in a queue after which it is asked anew whether anybody may have a block.
MOMENT: Final = 0.1
#: What is under a CID never changes.
_FOR_EVER: Final = ("Cache-Control", "public, max-age=29030400, immutable")


class Shelf(Protocol):
    """Where a gateway has its blocks from. Whatever raises NotFound is answered as what is not here."""

    async def find(self, cid: bytes) -> BlockOf | Whole | None:
        """The block of a CID of 36 bytes, if anybody may have it now. Raises LocalError."""

    async def metainfo(self, ref: BlobRef) -> Metainfo:
        """The piece table of a blob that was found. Raises NotFound, LocalError."""

    async def open(self, ref: BlobRef) -> OpenBytes:
        """The bytes of a blob that was found. Raises NotFound, LocalError."""


class IpfsGateway:
    """The handler of ``/ipfs/``. ``slots`` are its own, so that it takes none from those who pull; ``served`` is told
    of bytes that went out, ``pace`` awaited before they go."""

    def __init__(self, shelf: Shelf, slots: Slots, *, served: Callable[[int], None], pace: Pace | None = None) -> None:
        self._shelf, self._slots, self._served, self._pace = shelf, slots, served, pace
        self._builders = trio.CapacityLimiter(BUILDERS)

    async def __call__(self, request: Request) -> Response:
        """Answer one request; a refusal is an answer too, for which a browser needs the same headers."""
        try:
            response = await self._answer(request)
        except RegistryError as err:
            response = error_response(err)
        response.headers += CORS
        return response

    async def _answer(self, request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(204, [("Allow", "GET, HEAD, OPTIONS"), ("Access-Control-Max-Age", "86400")])
        if request.method not in ("GET", "HEAD"):
            raise RequestError("UNSUPPORTED", "a gateway is read from", headers={"Allow": "GET, HEAD, OPTIONS"})
        if request.header("service-worker") is not None:
            raise RequestError("UNSUPPORTED", "no page of ours has a service worker", status=400)
        try:
            asked = read_request(request.path, request.query, request.header_all("accept"))
            if asked.probe:
                return self._probe(request, asked)
            found = await self._shelf.find(asked.cid)
            if found is None:
                raise unknown()
            return await self._found(request, asked, found)
        except NotFound as err:
            if "only-if-cached" in (request.header("cache-control") or "").lower():
                raise RequestError("BLOB_UNKNOWN", "there is no such block here", status=412) from err
            raise unknown() from err

    async def _found(self, request: Request, asked: Asked, found: BlockOf | Whole) -> Response:
        if _matches(request.header("if-none-match"), asked.etag):
            return Response(304, [("ETag", asked.etag), _FOR_EVER])
        if asked.format == "raw":
            return await self._raw(request, asked, found)
        return await self._car(request, asked, found)

    def _probe(self, request: Request, asked: Asked) -> Response:
        body = b"" if asked.format == "raw" else car.header(PROBE)
        headers = _headers(asked)
        if request.method == "HEAD":
            return Response(200, [*headers, ("Content-Length", str(len(body)))])
        return Response(200, headers, body)

    # ---------------------------------------------------------------------------------------------------------- blocks

    async def _raw(self, request: Request, asked: Asked, found: BlockOf | Whole) -> Response:
        if isinstance(found, BlockOf) and found.place.level == LEAVES:
            return await self._leaf(request, asked, found)
        head = request.method == "HEAD"
        if not head:
            await self._turn(request, asked)
        try:
            came = trio.current_time()
            data = found.data if isinstance(found, Whole) else await self._inner(found)
            await self._still(asked, came)
        finally:
            if not head:
                self._slots.give()
        status, headers, offset, length = _ranged(request, asked, len(data))
        if head:
            return Response(status, [*headers, ("Content-Length", str(length))])
        if self._pace is not None:
            await self._pace(length)
        self._served(length)
        return Response(status, headers, data[offset : offset + length])

    async def _inner(self, found: BlockOf) -> bytes:
        info = await self._shelf.metainfo(found.ref)
        _, block = await trio.to_thread.run_sync(lambda: next(walk(info, found.place)), limiter=self._builders)
        assert isinstance(block, bytes)
        return block

    async def _leaf(self, request: Request, asked: Asked, found: BlockOf) -> Response:
        begin, size = extent(found.ref.size, found.place)
        status, headers, offset, length = _ranged(request, asked, size)
        if request.method == "HEAD" or length == 0:
            return Response(status, [*headers, ("Content-Length", str(length))])
        blob = await self._open(request, asked, found.ref)
        return Response(status, headers, BlobSlice(blob, begin + offset, length, sent=self._sent, pace=self._pace))

    async def _turn(self, request: Request, asked: Asked) -> None:
        """Take a slot. Raises NotFound where the block is not for everybody any more when the turn comes."""
        came = trio.current_time()
        await self._slots.take(request.gone)
        try:
            await self._still(asked, came)
        except BaseException:
            self._slots.give()
            raise

    async def _still(self, asked: Asked, since: float) -> None:
        """Raises NotFound where the block is not for everybody any more, if ``since`` is more than a moment ago."""
        if trio.current_time() - since >= MOMENT and await self._shelf.find(asked.cid) is None:
            raise unknown()

    async def _open(self, request: Request, asked: Asked, ref: BlobRef) -> OpenBytes:
        """The bytes of a blob, with a slot taken; ``_sent`` gives it back."""
        await self._turn(request, asked)
        try:
            return await self._shelf.open(ref)
        except BaseException:
            self._slots.give()
            raise

    def _sent(self, count: int) -> None:
        self._slots.give()
        self._served(count)

    # ------------------------------------------------------------------------------------------------------------ CARs

    async def _car(self, request: Request, asked: Asked, found: BlockOf | Whole) -> Response:
        headers = [*_headers(asked), ("Accept-Ranges", "none")]
        if isinstance(found, Whole):
            body = car.header(asked.cid) + car.section(asked.cid, found.data)
            if request.method == "HEAD":
                return Response(200, [*headers, ("Content-Length", str(len(body)))])
            await self._turn(request, asked)
            self._slots.give()
            if self._pace is not None:
                await self._pace(len(body))
            self._served(len(body))
            return Response(200, headers, body)
        if request.method == "HEAD":
            plan = await self._plan(asked, found)
            return Response(200, [*headers, ("Content-Length", str(plan.length))])
        blob = await self._open(request, asked, found.ref)
        try:
            came = trio.current_time()
            plan = await self._plan(asked, found)
            await self._still(asked, came)
        except BaseException:
            self._slots.give()
            blob.close()
            raise
        return Response(200, headers, Stream(_CarBody(plan, blob), plan.length, sent=self._sent, pace=self._pace))

    async def _plan(self, asked: Asked, found: BlockOf) -> _Plan:
        ref, place = found.ref, found.place
        if place.level == LEAVES:  # no table is needed for one block
            return _Plan(asked.cid, ref.size, [(asked.cid, place.index)])
        info = await self._shelf.metainfo(ref)
        return await trio.to_thread.run_sync(_plan_below, asked, info, place, limiter=self._builders)


class _Plan:
    """What a CAR consists of: ``items`` are blocks with their CIDs, of a piece of the blob its number instead."""

    def __init__(self, root: bytes, size: int, items: Iterable[tuple[bytes, bytes | int]]) -> None:
        self.header = car.header(root)
        self.size = size
        self.items = list(items)
        self.length = len(self.header) + sum(len(self.head(*item)) + self.extent(item[1])[1] for item in self.items)

    def extent(self, item: bytes | int) -> tuple[int, int]:
        """Where a piece begins in the blob, and its length; of other blocks the length."""
        return (0, len(item)) if isinstance(item, bytes) else extent(self.size, Place(LEAVES, item))

    def head(self, cid: bytes, item: bytes | int) -> bytes:
        """What stands in front of a block."""
        return car.section_head(cid, self.extent(item)[1])


def _plan_below(asked: Asked, info: Metainfo, place: Place) -> _Plan:
    part = None if asked.part is None else asked.part.within(extent(info.size, place)[1])
    below = walk(info, place, part)
    if asked.scope == "block" or (asked.part is not None and part is None):  # such a range has no bytes here
        below = islice(below, 1)
    return _Plan(asked.cid, info.size, below if asked.dups else dict(below).items())


class _CarBody:
    """The chunks of a Stream: heads of sections, and blocks, of which leaves are parts of the file. ``aclose`` when
    done; it closes the blob."""

    def __init__(self, plan: _Plan, blob: OpenBytes) -> None:
        self._plan, self._blob = plan, blob
        self._items = iter(plan.items)
        self._ready = plan.header  # what goes out next
        self._at = self._left = 0  # and then these bytes of the blob

    def __aiter__(self) -> _CarBody:
        return self

    async def __anext__(self) -> FilePart | bytes:
        while not self._left and len(self._ready) < PIECE_SIZE:
            cid, item = next(self._items, (b"", b""))
            if not cid:
                break
            self._ready += self._plan.head(cid, item)
            if isinstance(item, bytes):
                self._ready += item
            else:
                self._at, self._left = self._plan.extent(item)
        if self._ready:
            ready, self._ready = self._ready, b""
            return ready
        if not self._left:
            raise StopAsyncIteration
        fd = self._blob.fileno()
        if fd is not None:
            part, self._left = FilePart(fd, self._at, self._left), 0
            return part
        data = await self._blob.read_at(self._at, self._left)
        if not data:
            raise LocalError("a blob ended early")
        self._at, self._left = self._at + len(data), self._left - len(data)
        return data

    async def aclose(self) -> None:
        self._blob.close()


# ------------------------------------------------------------------------------------------------------------- headers


def _headers(asked: Asked) -> list[tuple[str, str]]:
    headers = [
        ("Content-Type", asked.content_type),
        ("Content-Disposition", f'attachment; filename="{asked.filename}"'),
        ("ETag", asked.etag),
        _FOR_EVER,
        ("X-Content-Type-Options", "nosniff"),
        ("X-Ipfs-Path", f"/ipfs/{asked.text}"),
        ("X-Ipfs-Roots", asked.text),
        ("Vary", "Accept"),
    ]
    if asked.location:
        headers.append(("Content-Location", asked.location))
    return headers


def _ranged(request: Request, asked: Asked, size: int) -> tuple[int, list[tuple[str, str]], int, int]:
    """Status and headers of the answer with a block of ``size`` bytes, or the part of it that is asked for, and that
    part: where it begins, and its length. Raises RequestError with status 416."""
    headers = [*_headers(asked), ("Accept-Ranges", "bytes")]
    # a client that has part of something else is sent the whole of this (RFC 9110, 13.1.5)
    wanted = request.header("range") if request.header("if-range") in (None, asked.etag) else None
    part = parse_range(wanted, size)
    if part is None:
        return 200, headers, 0, size
    return 206, [*headers, ("Content-Range", content_range(*part, size))], *part


def _matches(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names ``etag``, weakly or not (RFC 9110, 13.1.2)."""
    if header is None:
        return False
    return header.strip() == "*" or any(one.strip().removeprefix("W/") == etag for one in header.split(","))
