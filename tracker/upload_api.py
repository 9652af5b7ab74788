"""The endpoints of blob uploads (OCI distribution-spec, "Pushing blobs"; end-4a to end-6, end-11, end-13, end-14).

What clients send: docker POST, one PATCH with chunked encoding and no Content-Range, an empty PUT; skopeo, podman and
buildah the same with a Content-Length; containerd and oras POST, then PUT with the whole body.

``Range`` of an answer is ``0-<last byte>`` without a unit, and ``0-0`` for an upload without bytes: docker parses it
and refuses ``0--1``. Locations are relative, so that they are right behind any proxy.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing

from p2pregistry.digest import ALGORITHMS, Digest
from p2pregistry.errors import RequestError
from p2pregistry.oci.ranges import parse_content_range
from p2pregistry.oci.reference import check_name
from p2pregistry.serve.http import Request, Response
from tracker.catalog.base import Catalog
from tracker.catalog.policies import QuotaExceeded
from tracker.catalog.sessions import Session
from tracker.catalog.trail import By
from tracker.catalog.visible import Visible
from tracker.upload import Upload
from tracker.uploads import Uploads


class UploadApi:
    """Handlers of ``/v2/<name>/blobs/uploads/``; the caller has checked the name and the rights."""

    def __init__(self, catalog: Catalog, uploads: Uploads) -> None:
        self._catalog = catalog
        self._uploads = uploads

    async def start(self, repository: str, request: Request, by: By, visible: Visible | None) -> Response:
        """POST: mount a blob, take a whole one, or open a session. What is not ``visible`` is not mounted, as if it
        were not there."""
        mount = request.param("mount")
        if mount is not None:
            mounted = await self._mount(repository, Digest.parse(mount), request.param("from"), by, visible)
            if mounted is not None:
                return mounted
        algorithm = request.param("digest-algorithm")
        if algorithm is not None and algorithm not in ALGORITHMS:
            raise RequestError("DIGEST_INVALID", "this digest algorithm is not supported", detail=sorted(ALGORITHMS))
        whole = request.param("digest")
        if whole is not None and mount is None:
            return await self._monolithic(repository, Digest.parse(whole), request, by)
        await self._refuse_full(repository, by)
        session = await self._uploads.open(repository, algorithm or "sha256", by)
        return Response(202, _where(session, session.size))

    async def _refuse_full(self, repository: str, by: By) -> None:
        """Before bytes are sent, where not one more would fit."""
        policies = self._catalog.policies
        try:
            await policies.check_quota(repository, 1)
        except QuotaExceeded as err:
            await policies.exceeded(repository, err, by)
            raise

    async def append(self, repository: str, number: str, request: Request) -> Response:
        """PATCH: the next bytes."""
        async with self._uploads.hold(repository, number) as upload:
            await self._take(upload, request, keep=True)
        return Response(202, _where(upload.session, upload.size))

    async def finish(self, repository: str, number: str, request: Request, by: By) -> Response:
        """PUT: the last bytes, if any, and the digest of all.

        Bytes without a Content-Range count only if all of them come, so that a client may repeat the whole request.
        """
        digest = Digest.parse(request.param("digest") or "")
        async with self._uploads.hold(repository, number) as upload:
            # all bytes are there already where an earlier try got as far as knowing their digest
            if _has_body(request) and upload.session.verified is None:
                await self._take(upload, request, keep=request.header("content-range") is not None)
            await self._uploads.finish(upload, digest, by)
        return _created(repository, digest)

    async def status(self, repository: str, number: str) -> Response:
        """GET: how far it is."""
        session = await self._uploads.get(repository, number)
        return Response(204, _where(session, session.size))

    async def cancel(self, repository: str, number: str) -> Response:
        """DELETE: forget it."""
        async with self._uploads.hold(repository, number) as upload:
            await self._uploads.cancel(upload)
        return Response(204)

    async def _mount(
        self, repository: str, digest: Digest, source: str | None, by: By, visible: Visible | None
    ) -> Response | None:
        known = check_name(source) if source else None
        found = await self._catalog.mount_blob(repository, digest, known, by, visible=visible)
        # a client that is told to upload it pushes again what a disk has lost
        return None if found is None or not await self._uploads.stored(found) else _created(repository, digest)

    async def _monolithic(self, repository: str, digest: Digest, request: Request, by: By) -> Response:
        async with self._uploads.whole(repository, digest.algorithm, by) as upload:
            if _has_body(request):
                await self._take(upload, request, keep=False)
            await self._uploads.finish(upload, digest, by, remember=False)
        return _created(repository, digest)

    async def _take(self, upload: Upload, request: Request, *, keep: bool) -> None:
        header = request.header("content-range")
        if header is None:
            await self._uploads.append(upload, request.body, keep=keep)
            return
        first, last = parse_content_range(header)
        if first != upload.size:
            raise RequestError(
                "BLOB_UPLOAD_INVALID",
                f"the next byte of this upload is {upload.size}",
                status=416,
                headers=dict(_where(upload.session, upload.size)),
            )
        length = last - first + 1
        stated = request.header("content-length")
        if stated is not None and stated != str(length):
            raise RequestError("SIZE_INVALID", "Content-Length and Content-Range differ")
        async with aclosing(_exactly(request.body, length)) as chunks:
            await self._uploads.append(upload, chunks, keep=keep)


def _has_body(request: Request) -> bool:
    # Some clients repeat a Content-Range on the empty PUT that closes a session; it says nothing there.
    return request.header("transfer-encoding") is not None or request.header("content-length") not in (None, "0")


async def _exactly(chunks: AsyncIterable[bytes], length: int) -> AsyncGenerator[bytes, None]:
    """The chunks, which must have ``length`` bytes. Raises RequestError (SIZE_INVALID); bytes beyond are not given."""
    left = length
    async for chunk in chunks:
        if len(chunk) > left:
            yield chunk[:left]
            raise RequestError("SIZE_INVALID", "the body is longer than its Content-Range")
        left -= len(chunk)
        yield chunk
    if left:
        raise RequestError("SIZE_INVALID", "the body is shorter than its Content-Range")


def _where(session: Session, size: int) -> list[tuple[str, str]]:
    return [
        ("Location", f"/v2/{session.repository}/blobs/uploads/{session.id}"),
        ("Range", f"0-{max(0, size - 1)}"),
        ("Docker-Upload-UUID", session.id),
    ]


def _created(repository: str, digest: Digest) -> Response:
    headers = [("Location", f"/v2/{repository}/blobs/{digest}"), ("Docker-Content-Digest", str(digest))]
    return Response(201, headers)
