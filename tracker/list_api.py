"""The lists of the registry API: tags, repositories, referrers (OCI distribution-spec, "Content Discovery").

A page ends with the last name it gives; ``Link`` (RFC 8288) has the address of the next one.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlencode

import msgspec

from p2pregistry.digest import Digest
from p2pregistry.errors import RequestError
from p2pregistry.oci.manifest import parse_manifest
from p2pregistry.oci.media import INDEXES, OCI_INDEX
from p2pregistry.oci.reference import check_tag
from p2pregistry.serve.http import Request, Response
from tracker.catalog.base import Catalog, ManifestRecord

#: Tags and repositories in one answer, at most: a list of 100,000 tags comes in ten answers of about 100 KB.
MAX_TAGS: Final = 10_000
MAX_NAMES: Final = 1000
#: Referrers in one answer: with annotations of usual size a page stays well below 4 MiB.
MAX_REFERRERS: Final = 500
JSON: Final[tuple[str, str]] = ("Content-Type", "application/json")


class Lists:
    """Handlers; the caller has checked the name and the rights."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def tags(self, repository: str, request: Request) -> Response:
        """``GET /v2/<name>/tags/list``."""
        last, limit = request.param("last") or "", _limit(request, "tags", MAX_TAGS)
        if last:
            check_tag(last)
        # one more than asked for tells whether there is a next page; with n=0 the question is only whether it exists
        found = await self._catalog.tags(repository, after=last, limit=limit + 1)
        headers = _headers(f"/v2/{repository}/tags/list", found, limit)
        return Response(200, headers, msgspec.json.encode({"name": repository, "tags": found[:limit]}))

    async def repositories(self, request: Request) -> Response:
        """``GET /v2/_catalog``, as docker-registry has it."""
        limit = _limit(request, "repositories", MAX_NAMES)
        found = await self._catalog.repositories(after=request.param("last") or "", limit=limit + 1)
        headers = _headers("/v2/_catalog", found, limit)
        return Response(200, headers, msgspec.json.encode({"repositories": found[:limit]}))

    async def referrers(self, repository: str, subject: Digest, request: Request) -> Response:
        """``GET /v2/<name>/referrers/<digest>``: an index, empty if nothing refers to it or nothing is known of it."""
        kind, last = request.param("artifactType"), request.param("last")
        after = None if last is None else Digest.parse(last)
        found = await self._catalog.referrers(
            repository, subject, artifact_type=kind or None, after=after, limit=MAX_REFERRERS + 1
        )
        page = found[:MAX_REFERRERS]
        entries: dict[str, dict[str, object]] = {}
        if after is None:
            entries.update(await self._fallback(repository, subject, kind))
        for one in page:
            entry: dict[str, object] = {"mediaType": one.media_type, "digest": str(one.digest), "size": one.size}
            if one.artifact_type is not None:
                entry["artifactType"] = one.artifact_type
            if one.annotations:
                entry["annotations"] = dict(one.annotations)
            entries[str(one.digest)] = entry
        headers = [("Content-Type", OCI_INDEX)]
        if kind:
            headers.append(("OCI-Filters-Applied", "artifactType"))
        if len(found) > MAX_REFERRERS:
            query: dict[str, object] = {"artifactType": kind} if kind else {}
            query["last"] = page[-1].digest
            headers.append(_next(f"/v2/{repository}/referrers/{subject}", query))
        body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries.values())}
        return Response(200, headers, msgspec.json.encode(body))

    async def _fallback(self, repository: str, subject: Digest, kind: str | None) -> dict[str, dict[str, object]]:
        """What a client listed under the fallback tag ("Referrers Tag Schema") before this registry listed them."""
        tag = f"{subject.algorithm}-{subject.hex}"[:128]
        record = await self._catalog.manifest(repository, tag)
        if record is None or record.media_type not in INDEXES:
            return {}
        return {
            str(entry["digest"]): entry for entry in _entries(record) if not kind or entry.get("artifactType") == kind
        }


def _entries(record: ManifestRecord) -> list[dict[str, object]]:
    parse_manifest(record.body, record.media_type)  # as it was when it was pushed: raises for nothing we have taken
    listed: list[dict[str, object]] = msgspec.json.decode(record.body)["manifests"]
    return listed


def _limit(request: Request, what: str, most: int) -> int:
    text = request.param("n")
    if text is None:
        return most
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise RequestError("UNSUPPORTED", f"n is a number of {what}", status=400, detail={"n": text[:100]})
    return min(int(text), most)


def _headers(path: str, found: list[str], limit: int) -> list[tuple[str, str]]:
    if 0 < limit < len(found):
        return [JSON, _next(path, {"n": limit, "last": found[limit - 1]})]
    return [JSON]


def _next(path: str, query: dict[str, object]) -> tuple[str, str]:
    return "Link", f'<{path}?{urlencode(query, quote_via=quote)}>; rel="next"'
