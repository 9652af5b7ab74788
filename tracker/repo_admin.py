"""Repositories, their tags, and uploads under way, on the admin socket."""

from __future__ import annotations

from dataclasses import asdict

import msgspec

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound
from p2pregistry.oci.reference import check_name, check_tag
from p2pregistry.serve.http import Request
from tracker.admin import Routes, document, number, operator, wanted
from tracker.catalog.base import Catalog
from tracker.catalog.history import TagHistory
from tracker.catalog.sessions import Session
from tracker.uploads import Uploads

_MOST = 10_000


class Move(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tag, and the digest that it is to point at; None: where it pointed before."""

    repository: str
    tag: str
    digest: str | None = None


def routes(catalog: Catalog, uploads: Uploads, history: TagHistory) -> Routes:
    """``/repositories``, ``/tags``, ``/tag-history`` and ``/uploads``."""

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

    async def move_tag(request: Request) -> object:
        asked = await document(request, Move)
        name, tag, by = check_name(asked.repository), check_tag(asked.tag), operator(request)
        if asked.digest is None:
            return {"digest": str(await history.rollback(name, tag, by))}
        digest = Digest.parse(asked.digest)
        before = await history.move(name, tag, digest, by)
        return {"digest": str(digest), "before": None if before is None else str(before)}

    async def tag_history(request: Request) -> object:
        name, tag = check_name(wanted(request, "repository")), check_tag(wanted(request, "tag"))
        found = await history.of(name, tag, limit=number(request, "n", 100, _MOST))
        return {"history": [asdict(one) | {"digest": None if one.digest is None else str(one.digest)} for one in found]}

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
        ("PUT", "/tags"): move_tag,
        ("GET", "/tag-history"): tag_history,
        ("GET", "/uploads"): sessions,
        ("DELETE", "/uploads"): cancel,
    }


def _shown(session: Session) -> dict[str, object]:
    return {**asdict(session), "verified": None if session.verified is None else str(session.verified)}
