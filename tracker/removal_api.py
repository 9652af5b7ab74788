"""The endpoints that delete (OCI distribution-spec, "Content Management"; end-9, end-10)."""

from __future__ import annotations

from collections.abc import Callable

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound
from p2pregistry.oci.reference import parse_reference
from p2pregistry.serve.http import Request, Response
from tracker.catalog.base import Catalog
from tracker.catalog.trail import By


class Removal:
    """Handlers; the caller has checked the name and the rights. ``actor`` names who may write."""

    def __init__(self, catalog: Catalog, actor: Callable[[], str]) -> None:
        self._catalog = catalog
        self._actor = actor

    async def manifest(self, repository: str, reference: str, request: Request) -> Response:
        """DELETE of a tag, which leaves the manifest, or of a manifest by digest, which takes its tags along."""
        target = parse_reference(reference)
        if isinstance(target, Digest):
            gone = await self._catalog.delete_manifest(repository, target, self._by(request))
        else:
            gone = await self._catalog.delete_tag(repository, target, self._by(request))
        if not gone:
            raise NotFound("MANIFEST_UNKNOWN", "this repository has no such manifest", detail={"reference": reference})
        return Response(202)

    async def blob(self, repository: str, digest: Digest, request: Request) -> Response:
        """DELETE of a blob that no manifest of the repository refers to."""
        if not await self._catalog.delete_blob(repository, digest, self._by(request)):
            raise NotFound("BLOB_UNKNOWN", "this repository has no such blob", detail={"digest": str(digest)})
        return Response(202)

    def _by(self, request: Request) -> By:
        return By(self._actor(), request.client)
