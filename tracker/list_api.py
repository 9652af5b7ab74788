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
from tracker.catalog.base import Catalog, Referrer
from tracker.catalog.visible import Visible

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

    async def repositories(self, request: Request, visible: Visible | None) -> Response:
        """``GET /v2/_catalog``, as docker-registry has it, of what is ``visible``."""
        limit = _limit(request, "repositories", MAX_NAMES)
        last = request.param("last") or ""
        found = await self._catalog.repositories(after=last, limit=limit + 1, visible=visible)
        headers = _headers("/v2/_catalog", found, limit)
        return Response(200, headers, msgspec.json.encode({"repositories": found[:limit]}))

    async def referrers(self, repository: str, subject: Digest, request: Request) -> Response:
        """``GET /v2/<name>/referrers/<digest>``: an index, empty if nothing refers to it or nothing is known of it.

        ``n`` makes pages smaller, as some clients ask for; the specification has no such parameter.
        """
        kind, last = request.param("artifactType") or None, request.param("last")
        limit = _limit(request, "referrers", MAX_REFERRERS) or MAX_REFERRERS
        after = None if last is None else Digest.parse(last)
        found = await self._catalog.referrers(repository, subject, artifact_type=kind, after=after, limit=limit + 1)
        known = {one.digest: one for one in found}
        # both lists are by digest, so that a page of the two together is one of each
        listed = await self._fallback(repository, subject)
        page = sorted({*known, *(digest for digest in listed if after is None or digest > after)})
        entries = []
        for digest in page[:limit]:
            one = known.get(digest) or await self._listed(repository, subject, digest)
            if one is not None and kind in (None, one.artifact_type):
                entries.append(_entry(one))
        headers = [("Content-Type", OCI_INDEX)]
        if kind:
            headers.append(("OCI-Filters-Applied", "artifactType"))
        if len(page) > limit:
            query: dict[str, object] = {"artifactType": kind} if kind else {}
            query |= {} if limit == MAX_REFERRERS else {"n": limit}
            headers.append(_next(f"/v2/{repository}/referrers/{subject}", query | {"last": page[limit - 1]}))
        return Response(
            200, headers, msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
        )

    async def _fallback(self, repository: str, subject: Digest) -> list[Digest]:
        """What clients listed under the fallback tag ("Referrers Tag Schema") when this registry listed nothing."""
        record = await self._catalog.manifest(repository, f"{subject.algorithm}-{subject.hex[:64]}")
        if record is None or record.media_type not in INDEXES:
            return []
        return [child.digest for child in parse_manifest(record.body, record.media_type).children()]

    async def _listed(self, repository: str, subject: Digest, digest: Digest) -> Referrer | None:
        """A manifest that a client listed, if it is here and is about the subject ("Enabling the Referrers API"): one
        that was pushed before subjects were recorded."""
        record = await self._catalog.manifest(repository, digest)
        if record is None:
            return None
        manifest = parse_manifest(record.body, record.media_type)
        if manifest.subject is None or manifest.subject.digest != subject:
            return None
        size, kind = len(record.body), manifest.referrer_type()
        return Referrer(digest, record.media_type, size, kind, manifest.annotations)


def _entry(one: Referrer) -> dict[str, object]:
    entry: dict[str, object] = {"mediaType": one.media_type, "digest": str(one.digest), "size": one.size}
    if one.artifact_type is not None:
        entry["artifactType"] = one.artifact_type
    if one.annotations:
        entry["annotations"] = dict(one.annotations)
    return entry


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
