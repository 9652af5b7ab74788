"""Repositories, their tags, and uploads under way, on the admin socket."""

from __future__ import annotations

from dataclasses import asdict

from p2pregistry.errors import NotFound
from p2pregistry.oci.reference import check_name
from p2pregistry.serve.http import Request
from tracker.admin import Routes, number, operator, wanted
from tracker.catalog.base import Catalog
from tracker.catalog.sessions import Session
from tracker.uploads import Uploads

_MOST = 10_000


def routes(catalog: Catalog, uploads: Uploads) -> Routes:
    """``/repositories``, ``/tags`` and ``/uploads``."""

    async def repositories(request: Request) -> object:
        found = await catalog.repositories(after=request.param("after") or "", limit=number(request, "n", 1000, _MOST))
        return {"repositories": found}

    async def tags(request: Request) -> object:
        name = check_name(wanted(request, "repository"))
        found = await catalog.tags(name, after=request.param("after") or "", limit=number(request, "n", 1000, _MOST))
        return {"tags": found}

    async def delete_tag(request: Request) -> object:
        name, tag = check_name(wanted(request, "repository")), wanted(request, "tag")
        if not await catalog.delete_tag(name, tag, operator(request)):
            raise NotFound("MANIFEST_UNKNOWN", "this repository has no such tag")
        return {}

    async def sessions(request: Request) -> object:
        found = await catalog.sessions.all(after=request.param("after") or "", limit=number(request, "n", 1000, _MOST))
        return {"uploads": [_shown(one) for one in found]}

    async def cancel(request: Request) -> object:
        found = await catalog.sessions.all(after=wanted(request, "id")[:-1], limit=_MOST)
        for session in found:
            if session.id == wanted(request, "id"):
                async with uploads.hold(session.repository, session.id) as upload:
                    await uploads.cancel(upload, operator(request))
                return {}
        raise NotFound("BLOB_UPLOAD_UNKNOWN", "there is no such upload")

    return {
        ("GET", "/repositories"): repositories,
        ("GET", "/tags"): tags,
        ("DELETE", "/tags"): delete_tag,
        ("GET", "/uploads"): sessions,
        ("DELETE", "/uploads"): cancel,
    }


def _shown(session: Session) -> dict[str, object]:
    return {**asdict(session), "verified": None if session.verified is None else str(session.verified)}
