"""The pull API: the read half of the OCI distribution specification, on localhost.

Nothing here needs a client to be patient: a miss is a prompt 404 or 503, and a 200 goes out only when there are bytes
to send, because podman and skopeo give up at the first body that is cut short.

Who can connect may pull what the node may, unless clients have to show tokens (``client_auth``). A Host header that is
not ours is refused (``hosts``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol
from urllib.parse import quote

import msgspec

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest, cid_text
from p2pregistry.errors import NotFound, RequestError
from p2pregistry.flights import Flights
from p2pregistry.oci.media import OCTET_STREAM, ROOT_HEADER
from p2pregistry.oci.ranges import Multipart, content_range, parse_ranges
from p2pregistry.oci.reference import Route, check_tag, parse_path, parse_reference
from p2pregistry.resolve import Found, Resolver, no_blob, no_manifest, no_repository
from p2pregistry.serve.client_auth import ClientAuth
from p2pregistry.serve.hosts import Hosts
from p2pregistry.serve.http import BlobSlice, Request, Response, Stream
from p2pregistry.serve.multipart import HeldParts, MultipartBody, PartSource
from p2pregistry.store.base import Blob
from p2pregistry.store.records import StoredManifest
from p2pregistry.visible import Visible

_VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")
#: Tags in one answer where the client names no number, and the most it may name.
TAGS_PAGE = 1000
#: Answers to manifest requests that are kept ready.
READY = 1024


class _Ready(NamedTuple):
    """The answer to a manifest request, good from ``since`` to ``until`` (unix seconds), as long as nothing ``changes``
    of who may pull what."""

    since: float
    until: float
    changes: int
    repository: str
    headers: list[tuple[str, str]]
    body: bytes


class Held(Protocol):
    """Blobs that are complete here."""

    async def open(self, digest: Digest) -> Blob:
        """Raises NotFound. Reading counts as use."""
        ...


class PullApi:
    """The handler. ``names`` gives the registry names that ``?ns=`` is answered for; ``clock`` gives unix seconds,
    the same as the resolver's: while a tag is fresh its answer is kept ready. ``auth``: what clients have to show."""

    def __init__(
        self,
        resolver: Resolver,
        visible: Visible,
        held: Held,
        flights: Flights,
        *,
        hosts: Hosts,
        auth: ClientAuth | None = None,
        names: Callable[[], frozenset[str]],
        served: Callable[[int], None],
        clock: Callable[[], float],
        interest: Callable[[StoredManifest], None] = lambda _manifest: None,
    ) -> None:
        self._interest = interest
        self._visible, self._hosts, self._auth = visible, hosts, auth
        self._resolver, self._held, self._flights = resolver, held, flights
        self._names, self._served, self._clock = names, served, clock
        self._ready: dict[str, _Ready] = {}

    async def __call__(self, request: Request) -> Response:
        if request.header("host") not in self._hosts.good:  # asked here: this is where each request passes
            self._hosts.check(request)
        ready = self._ready.get(request.target)
        if ready is not None and request.method in ("GET", "HEAD"):
            if ready.since <= self._clock() < ready.until and ready.changes == self._visible.changes:
                if self._auth is not None:
                    self._auth.check(request, ready.repository)
                return Response(200, ready.headers.copy(), ready.body)
            del self._ready[request.target]
        response = await self._answer(request)
        response.headers.append(_VERSION)
        return response

    async def _answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise RequestError(
                "UNSUPPORTED",
                "this is a node: it can be pulled from; push to the tracker",
                headers={"Allow": "GET, HEAD", _VERSION[0]: _VERSION[1]},
            )
        namespace = request.param("ns")
        if namespace is not None and namespace not in self._names():
            raise NotFound("NAME_UNKNOWN", "this node does not serve that registry", detail={"ns": namespace[:255]})
        route = parse_path(request.path)
        if self._auth is not None:
            await self._admit(self._auth, request, route, mirror=namespace is not None)
        response = await self._route(request, route)
        if namespace is not None:
            response.headers.append(("OCI-Namespace", namespace))
        return response

    async def _admit(self, auth: ClientAuth, request: Request, route: Route, *, mirror: bool) -> None:
        """Raises RequestError unless the client shows what it must.

        A client that uses this node as a mirror takes 401 for the end, but goes on to the registry itself after 404: so
        without a token for it what is private does not exist for such a client, and what is public it may have.
        """
        if not mirror:
            auth.check(request, route.repository or None)
        elif (
            route.repository
            and not auth.allows(request, route.repository)
            and not await self._resolver.public(route.repository)
        ):
            raise _unknown(route)

    async def _route(self, request: Request, route: Route) -> Response:
        match route.kind:
            case "base":
                return Response(200, [("Content-Type", "application/json")], b"{}")
            case "manifest":
                return await self._manifest(request, route)
            case "blob":
                return await self._blob(request, route.repository, Digest.parse(route.reference))
            case "tags":
                return await self._tags(request, route.repository)
            case "uploads" | "upload":
                raise RequestError("UNSUPPORTED", "this is a node: push to the tracker", headers={"Allow": ""})
            case "referrers" | "catalog":
                raise NotFound("NAME_UNKNOWN", "a node does not have this endpoint; ask the tracker")

    async def _manifest(self, request: Request, route: Route) -> Response:
        since, changes = self._clock(), self._visible.changes
        found = await self._resolver.manifest(route.repository, parse_reference(route.reference))
        headers = _manifest_headers(found)
        if request.method == "HEAD":
            return Response(200, [*headers, ("Content-Length", str(len(found.manifest.body)))])
        self._interest(found.manifest)  # by the first request for a layer its holders are known
        if since < found.until and "?" not in request.target:  # which names are answered for may change
            if len(self._ready) >= READY:
                self._ready.clear()
            kept = [*headers, _VERSION]
            self._ready[request.target] = _Ready(
                since, found.until, changes, route.repository, kept, found.manifest.body
            )
        return Response(200, headers, found.manifest.body)

    async def _blob(self, request: Request, repository: str, digest: Digest) -> Response:
        ref = await self._resolver.blob(repository, digest)
        tag = f'"{digest}"'
        headers = [
            ("Docker-Content-Digest", str(digest)),
            ("Accept-Ranges", "bytes"),
            ("ETag", tag),
            (ROOT_HEADER, cid_text(ref.root)),
        ]
        # a client that has part of something else is sent the whole of this (RFC 9110, 13.1.5)
        wanted = request.header("range") if request.header("if-range") in (None, tag) else None
        parts = parse_ranges(wanted, ref.size)
        if parts is not None and len(parts) > 1:
            return await self._several(request, ref, headers, parts)
        headers.append(("Content-Type", OCTET_STREAM))
        offset, length = parts[0] if parts is not None else (0, ref.size)
        if parts is not None:
            headers.append(("Content-Range", content_range(offset, length, ref.size)))
        status = 200 if parts is None else 206
        if request.method == "HEAD":  # from the descriptor: nothing is opened, nothing is fetched
            return Response(status, [*headers, ("Content-Length", str(length))])
        return Response(status, headers, await self._body(ref, offset, length))

    async def _several(
        self, request: Request, ref: BlobRef, headers: list[tuple[str, str]], parts: list[tuple[int, int]]
    ) -> Response:
        multipart = Multipart(parts, ref.size, OCTET_STREAM, ref.digest.hex[:64])
        headers.append(("Content-Type", multipart.content_type))
        if request.method == "HEAD":
            return Response(206, [*headers, ("Content-Length", str(multipart.length))])
        source: PartSource
        try:
            source = HeldParts(await self._held.open(ref.digest))
        except NotFound:
            source = await self._flights.join(ref).open_ranges(parts)
        body = MultipartBody(multipart, source)
        return Response(206, headers, Stream(body, multipart.length, sent=self._served))

    async def _body(self, ref: BlobRef, offset: int, length: int) -> BlobSlice | Stream | bytes:
        if length == 0:
            return b""
        try:
            blob = await self._held.open(ref.digest)
        except NotFound:
            reading = await self._flights.join(ref).open(offset, length)
            return Stream(reading.parts(), length, sent=self._served)
        return BlobSlice(blob, offset, length, sent=self._served)

    async def _tags(self, request: Request, repository: str) -> Response:
        limit = _page(request.param("n"))
        after = request.param("last") or ""
        if after:
            check_tag(after)
        tags, warning = await self._resolver.tags(repository, after, limit + 1 if limit else 1)
        headers = [("Content-Type", "application/json"), *_warn(warning)]
        more = len(tags) > limit > 0
        if more:
            target = f"/v2/{repository}/tags/list?n={limit}&last={quote(tags[limit - 1], safe='')}"
            headers.append(("Link", f'<{target}>; rel="next"'))
        return Response(200, headers, msgspec.json.encode({"name": repository, "tags": tags[:limit]}))


def _unknown(route: Route) -> NotFound:
    """As the resolver says it of what there is not."""
    return {"manifest": no_manifest, "blob": no_blob}.get(route.kind, no_repository)()


def _page(text: str | None) -> int:
    if text is None:
        return TAGS_PAGE
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise RequestError("UNSUPPORTED", "n is a number of tags", status=400, detail={"n": text[:20]})
    return min(int(text), TAGS_PAGE)


def _warn(warning: str | None) -> list[tuple[str, str]]:
    """The one form of Warning that clients show (distribution-spec "Warnings")."""
    return [("Warning", f'299 - "{warning}"')] if warning else []


def _manifest_headers(found: Found) -> list[tuple[str, str]]:
    digest = str(found.manifest.digest)
    return [
        ("Content-Type", found.manifest.media_type),
        ("Docker-Content-Digest", digest),
        ("ETag", f'"{digest}"'),
        *_warn(found.warning),
    ]
