"""The endpoints that delete (OCI distribution-spec, "Content Management"; end-9, end-10)."""

from __future__ import annotations

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound
from p2pregistry.oci.reference import parse_reference
from p2pregistry.serve.http import Response
from tracker.catalog.base import Catalog
from tracker.catalog.trail import By


class Removal:
    """Handlers; the caller has checked the name and the rights."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def manifest(self, repository: str, reference: str, by: By) -> Response:
        """DELETE of a tag, which leaves the manifest, or of a manifest by digest, which takes its tags along."""
        target = parse_reference(reference)
        if isinstance(target, Digest):
            gone = await self._catalog.delete_manifest(repository, target, by)
        else:
            gone = await self._catalog.delete_tag(repository, target, by)
        if not gone:
            raise NotFound("MANIFEST_UNKNOWN", "this repository has no such manifest", detail={"reference": reference})
        return Response(202)

    async def blob(self, repository: str, digest: Digest, by: By) -> Response:
        """DELETE of a blob that no manifest of the repository refers to."""
        if not await self._catalog.delete_blob(repository, digest, by):
            raise NotFound("BLOB_UNKNOWN", "this repository has no such blob", detail={"digest": str(digest)})
        return Response(202)
