"""The tracker's registry API: push and pull of the OCI distribution specification.

Paths are taken apart by ``oci/reference``. Who may do what is decided by ``permission``, before anything of a
repository is looked up but whether it is private: wrong credentials are refused everywhere, and whoever may not do what
he asks for is told which scope he needs, whatever the reason. What he is told does not depend on whether there is such
a repository. The ping always wants credentials, because docker sends none unless the ping asked for them.

Status 403 is left for what no token can help with: an immutable tag, a quota. Clients give up at once there.

``OCI-Subject`` is sent for a manifest with a subject, so that clients leave the list of referrers to us; what they kept
under a fallback tag before is in the list all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from p2pregistry.content.metainfo import BlobRef
from p2pregistry.digest import Digest, cid_text
from p2pregistry.errors import NotFound, RegistryError, RequestError
from p2pregistry.objects.base import ObjectStore
from p2pregistry.observe import count_served
from p2pregistry.oci.manifest import MANIFEST_LIMIT, Manifest, parse_manifest
from p2pregistry.oci.media import OCTET_STREAM, ROOT_HEADER
from p2pregistry.oci.ranges import content_range, parse_range
from p2pregistry.oci.reference import MAX_NAME, Route, check_name, check_tag, parse_path, parse_reference
from p2pregistry.serve.errors_json import error_response
from p2pregistry.serve.http import Request, Response
from p2pregistry.trust.access import Scope
from p2pregistry.trust.claims import ManifestClaim
from tracker.authentication import Authentication, WrongCredentials, challenge, realm
from tracker.catalog.base import BlobHere, Catalog, ManifestRecord, NewManifest
from tracker.catalog.trail import By
from tracker.list_api import JSON as _JSON
from tracker.list_api import Lists
from tracker.permission import Shown, depends, may, needed, scope_text
from tracker.removal_api import Removal
from tracker.upload_api import UploadApi
from tracker.uploads import Uploads

#: Turns a claim into a signed token.
SignClaim = Callable[[ManifestClaim], str]
#: Told of each manifest that is asked for: repository, tag if it was asked for by one, digest, whether it is sent.
Pulled = Callable[[str, str | None, Digest, bool], None]

_API_VERSION: Final[tuple[str, str]] = ("Docker-Distribution-Api-Version", "registry/2.0")
_READS: Final = ("GET", "HEAD")
#: Seconds for which a client that was sent to the object store may begin there.
LINK_LASTS: Final = 900.0


class RegistryApi:
    """The handler. ``public_url``: where clients find it; None: as each says. ``manifest_limit``: bytes."""

    def __init__(
        self,
        catalog: Catalog,
        objects: ObjectStore,
        uploads: Uploads,
        sign: SignClaim,
        authentication: Authentication,
        *,
        public_url: str | None = None,
        manifest_limit: int = MANIFEST_LIMIT,
        pulled: Pulled = lambda _repository, _tag, _digest, _whole: None,
    ) -> None:
        self._catalog = catalog
        self._objects = objects
        self._uploads = UploadApi(catalog, uploads)
        self._lists = Lists(catalog)
        self._removal = Removal(catalog)
        self._sign = sign
        self._authentication = authentication
        self._public_url = public_url
        self._manifest_limit = manifest_limit
        self._pulled = pulled

    async def __call__(self, request: Request) -> Response:
        """Answer one request; every RegistryError becomes the answer that OCI prescribes."""
        try:
            response = await self._route(request)
        except RegistryError as err:
            response = error_response(err)
        response.headers.append(_API_VERSION)
        return response

    # ----------------------------------------------------------------------------------------------------- decisions

    async def _route(self, request: Request) -> Response:
        try:
            route = parse_path(request.path)
        except RequestError:
            await self._shown(request, None)  # who has wrong credentials hears of those
            raise
        need = needed(route, request.method)
        shown = await self._shown(request, need)
        methods = self._methods(route, request, shown)
        handle = methods.get(request.method)
        if handle is None:
            raise RequestError(
                "UNSUPPORTED", "this cannot be done here", status=405, headers={"Allow": ", ".join(methods)}
            )
        if not await self._allowed(shown, need):
            raise self._refusal(request, need, shown)
        return await handle()

    async def _shown(self, request: Request, need: Scope | None) -> Shown:
        try:
            return await self._authentication.shown(request)
        except WrongCredentials as err:
            err.headers = self._challenge(request, need, err.error)
            raise

    async def _allowed(self, shown: Shown, need: Scope | None) -> bool:
        if need is None:
            return shown.anything
        if not depends(shown, need):
            return may(shown, need, private=True)
        return may(shown, need, private=await self._catalog.visibility(need.name) is not False)

    def _refusal(self, request: Request, need: Scope | None, shown: Shown) -> RequestError:
        """The same for what is not there and for what may not be seen."""
        if not shown.anything:
            headers = self._challenge(request, need)
            return RequestError("UNAUTHORIZED", "credentials are needed", headers=headers)
        headers = self._challenge(request, need, "insufficient_scope")
        return RequestError("DENIED", "this may not be done with these credentials", status=401, headers=headers)

    def _challenge(self, request: Request, need: Scope | None, error: str = "") -> dict[str, str]:
        needs = [] if need is None else [need, *_mounted_from(request, need)]
        where = realm(request, self._public_url)
        return {"WWW-Authenticate": challenge(where, self._authentication.service, scope_text(*needs), error)}

    def _methods(self, route: Route, request: Request, shown: Shown) -> dict[str, Callable[[], Awaitable[Response]]]:
        """What can be done at this path."""
        name, reference, uploads = route.repository, route.reference, self._uploads
        by = By(shown.actor, request.client, request.id, shown.account_id)
        match route.kind:
            case "base":
                return dict.fromkeys(_READS, _base)
            case "manifest":
                read = dict.fromkeys(_READS, lambda: self._get_manifest(name, reference, request))
                return {
                    **read,
                    "PUT": lambda: self._put_manifest(name, reference, request, by),
                    "DELETE": lambda: self._removal.manifest(name, reference, by),
                }
            case "blob":
                return {
                    "GET": lambda: self._get_blob(name, Digest.parse(reference), request),
                    "HEAD": lambda: self._head_blob(name, Digest.parse(reference), request),
                    "DELETE": lambda: self._removal.blob(name, Digest.parse(reference), by),
                }
            case "tags":
                return dict.fromkeys(_READS, lambda: self._lists.tags(name, request))
            case "uploads":
                return {"POST": lambda: uploads.start(name, request, by, shown.sees())}
            case "upload":
                return {
                    "GET": lambda: uploads.status(name, reference),
                    "PATCH": lambda: uploads.append(name, reference, request),
                    "PUT": lambda: uploads.finish(name, reference, request, by),
                    "DELETE": lambda: uploads.cancel(name, reference),
                }
            case "referrers":
                return dict.fromkeys(_READS, lambda: self._lists.referrers(name, Digest.parse(reference), request))
            case "catalog":
                return dict.fromkeys(_READS, lambda: self._repositories(request, shown))

    async def _repositories(self, request: Request, shown: Shown) -> Response:
        rights = await self._authentication.rights(shown)
        return await self._lists.repositories(request, rights.visible())

    # --------------------------------------------------------------------------------------------------------- blobs

    async def _blob(self, repository: str, digest: Digest, *, renew: bool = False) -> BlobHere:
        found = await self._catalog.blob(repository, digest, renew=renew)
        if found is None:
            raise _no_blob(digest)
        return found

    async def _head_blob(self, repository: str, digest: Digest, request: Request) -> Response:
        found = await self._blob(repository, digest, renew=True)
        # asked of the store, not of the catalog: a client that is told 404 pushes again what a disk has lost
        if await self._objects.size(found.object) != found.ref.size:
            raise _no_blob(digest)
        if _unchanged(request, digest):
            return Response(304, _blob_headers(found.ref))
        return Response(200, [*_blob_headers(found.ref), ("Content-Length", str(found.ref.size))])

    async def _get_blob(self, repository: str, digest: Digest, request: Request) -> Response:
        found = await self._blob(repository, digest)
        size = found.ref.size
        if _unchanged(request, digest):
            return Response(304, _blob_headers(found.ref))
        # who has part of something else is sent the whole of this (RFC 9110, 13.1.5)
        same = request.header("if-range") in (None, _tag(digest))
        part = parse_range(request.header("range") if same else None, size)
        link = self._objects.link(found.object, digest.hex, LINK_LASTS)
        if link is not None:
            return Response(307, [("Location", link), ("Docker-Content-Digest", str(digest))])
        offset, length = part or (0, size)
        headers = _blob_headers(found.ref)
        if part is not None:
            headers.append(("Content-Range", content_range(offset, length, size)))
        body = await self._objects.body(found.object, size, offset, length)
        body.sent = count_served("client")
        return Response(206 if part else 200, headers, body)

    # ----------------------------------------------------------------------------------------------------- manifests

    async def _get_manifest(self, repository: str, reference: str, request: Request) -> Response:
        found = await self._catalog.manifest(repository, parse_reference(reference))
        if found is None:
            raise NotFound("MANIFEST_UNKNOWN", "this repository has no such manifest", detail={"reference": reference})
        headers = _manifest_headers(found)
        unchanged, head = _unchanged(request, found.digest), request.method == "HEAD"
        # who asks for a tag and takes the manifest by its digest uses the tag, too
        self._pulled(repository, None if ":" in reference else reference, found.digest, not unchanged and not head)
        if unchanged:
            return Response(304, headers)
        if head:
            return Response(200, [*headers, ("Content-Length", str(len(found.body)))])
        count_served("client")(len(found.body))
        return Response(200, headers, found.body)

    async def _put_manifest(self, repository: str, reference: str, request: Request, by: By) -> Response:
        target = parse_reference(reference)
        extra = [check_tag(tag) for tag in dict.fromkeys(request.params("tag"))] if isinstance(target, Digest) else []
        body = await self._manifest_body(request)
        digest = Digest.of(body, target.algorithm if isinstance(target, Digest) else "sha256")
        if isinstance(target, Digest) and target != digest:
            raise RequestError(
                "DIGEST_INVALID", "the manifest does not have this digest", detail={"received": str(digest)}
            )
        manifest = parse_manifest(body, request.header("content-type"))
        tags = extra if isinstance(target, Digest) else [target]
        await self._catalog.put_manifest(
            repository,
            _new_manifest(digest, manifest, body),
            tags,
            lambda blobs: self._sign(ManifestClaim(repository, digest, tuple(blobs))),
            by,
        )
        headers = [("Location", f"/v2/{repository}/manifests/{digest}"), ("Docker-Content-Digest", str(digest))]
        # a line each, but not a hundred of them: that is more than some clients read
        several = -(-len(extra) // 20) or 1
        headers += [("OCI-Tag", ", ".join(extra[at : at + several])) for at in range(0, len(extra), several)]
        if manifest.subject is not None:
            headers.append(("OCI-Subject", str(manifest.subject.digest)))
        return Response(201, headers + _warnings(request, repository, target, manifest))

    async def _manifest_body(self, request: Request) -> bytes:
        try:
            return await request.body.read(self._manifest_limit)
        except RequestError as err:
            if err.status != 413:
                raise
            raise RequestError(
                "MANIFEST_INVALID", f"a manifest may have {self._manifest_limit} bytes", status=413
            ) from err


def _mounted_from(request: Request, need: Scope) -> list[Scope]:
    """Pull of the repository that a blob is to be mounted from, if there is one in the request."""
    source = request.param("from")
    if request.method != "POST" or "push" not in need.actions or source is None or request.param("mount") is None:
        return []
    try:
        return [Scope("repository", check_name(source), frozenset({"pull"}))]
    except RequestError:
        return []


def _warnings(request: Request, repository: str, target: str | Digest, manifest: Manifest) -> list[tuple[str, str]]:
    """What was done, but will surprise somebody (distribution-spec, "Warnings")."""
    found = []
    if not manifest.typed:
        found.append(f"the manifest has no mediaType; it is taken for {manifest.media_type}")
    if isinstance(target, str) and request.params("tag"):
        found.append("tag parameters count only where a manifest is pushed by digest; they were ignored")
    if len(request.header("host") or "") + 1 + len(repository) > MAX_NAME:
        found.append(f"many clients cannot pull this: host and name are longer than {MAX_NAME} characters")
    return [("Warning", f'299 - "{text}"') for text in found]


def _no_blob(digest: Digest) -> NotFound:
    return NotFound("BLOB_UNKNOWN", "this repository has no such blob", detail={"digest": str(digest)})


async def _base() -> Response:
    return Response(200, [_JSON], b"{}")


def _tag(digest: Digest) -> str:
    return f'"{digest}"'


def _unchanged(request: Request, digest: Digest) -> bool:
    """Whether the client has it already, and says so in If-None-Match (RFC 9110, 13.1.2)."""
    asked = [item.strip() for line in request.header_all("if-none-match") for item in line.split(",")]
    return any(item == "*" or item.removeprefix("W/") == _tag(digest) for item in asked)


def _blob_headers(ref: BlobRef) -> list[tuple[str, str]]:
    return [
        ("Content-Type", OCTET_STREAM),
        ("Docker-Content-Digest", str(ref.digest)),
        ("Accept-Ranges", "bytes"),
        ("ETag", _tag(ref.digest)),
        (ROOT_HEADER, cid_text(ref.root)),
    ]


def _manifest_headers(record: ManifestRecord) -> list[tuple[str, str]]:
    return [
        ("Content-Type", record.media_type),
        ("Docker-Content-Digest", str(record.digest)),
        ("ETag", _tag(record.digest)),
    ]


def _new_manifest(digest: Digest, manifest: Manifest, body: bytes) -> NewManifest:
    return NewManifest(
        digest,
        manifest.media_type,
        body,
        tuple(item.digest for item in manifest.required_blobs()),
        tuple(item.digest for item in manifest.children()),
        None if manifest.subject is None else manifest.subject.digest,
        manifest.referrer_type(),
        manifest.annotations,
    )
