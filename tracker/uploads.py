"""Upload sessions: what has arrived of a blob, between the requests that bring it.

A session lives in this process's memory, its bytes in the store under ``upload-<id>``. Bytes of sessions that an
earlier run left behind are discarded at start: their hashes are gone with that run, and a client begins again.

The order at the end is: bytes durable in the store, then the row in the catalog. A crash between them leaves a blob
that no repository names, which is invisible; the other order would leave a row without bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import uuid
from collections.abc import AsyncIterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound, RequestError
from p2pregistry.observe import logger
from p2pregistry.store.base import BlobStore
from tracker.catalog.base import Catalog
from tracker.ingest import Ingest

_PREFIX: Final = "upload-"
_READ: Final = 1 << 20

_log = logger(__name__)


@dataclass(slots=True)
class Upload:
    """One session. ``stored`` is set once the bytes are a blob of the store and only the catalog must still be told."""

    id: str
    repository: str
    ingest: Ingest
    touched: float
    busy: bool = False
    staged: bool = False
    stored: Metainfo | None = None
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = _PREFIX + self.id

    @property
    def offset(self) -> int:
        """Bytes that have been taken."""
        return self.ingest.offset


class Uploads:
    """The open sessions of this process. ``expiry``: seconds without a request after which a session is dropped."""

    def __init__(self, catalog: Catalog, store: BlobStore, *, expiry: float = 86400.0, limit: int = 10_000) -> None:
        self._catalog = catalog
        self._store = store
        self._expiry = expiry
        self._limit = limit
        self._sessions: dict[str, Upload] = {}
        # Two hashes a blob, and hashing is all they do: more threads than cores would only take turns.
        self._limiter = trio.CapacityLimiter(max(2, os.cpu_count() or 2))

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def busy(self) -> int:
        """Sessions that a request is working on."""
        return sum(upload.busy for upload in self._sessions.values())

    async def discard_leftovers(self) -> int:
        """Remove the staged bytes of earlier runs; at start, before any session exists. Returns how many there were."""
        keys = [key for key in await self._store.staged() if key.startswith(_PREFIX)]
        for key in keys:
            staged = await self._store.stage(key)
            await staged.discard()
        return len(keys)

    async def run_expiry(self) -> None:
        """Drop idle sessions, for ever. The owner cancels it."""
        while True:
            await trio.sleep(min(60.0, self._expiry))
            now = trio.current_time()
            for upload in list(self._sessions.values()):
                if not upload.busy and now - upload.touched >= self._expiry:
                    try:
                        await self._drop(upload)
                    except LocalError as err:
                        _log.warning("an expired upload could not be removed", error=err.message)

    def open(self, repository: str) -> Upload:
        """A new session. Raises RequestError (TOOMANYREQUESTS) where too many are open."""
        if len(self._sessions) >= self._limit:
            raise RequestError("TOOMANYREQUESTS", "too many uploads are open", headers={"Retry-After": "10"})
        upload = Upload(str(uuid.uuid4()), repository, Ingest(self._limiter), trio.current_time())
        self._sessions[upload.id] = upload
        return upload

    def get(self, repository: str, number: str) -> Upload:
        """The session of this id. Raises NotFound (BLOB_UPLOAD_UNKNOWN), also if it belongs to another repository."""
        upload = self._sessions.get(number)
        if upload is None or upload.repository != repository:
            raise NotFound("BLOB_UPLOAD_UNKNOWN", "there is no such upload", detail={"upload": number[:100]})
        return upload

    @contextlib.contextmanager
    def use(self, upload: Upload) -> Iterator[None]:
        """Hold the session for one request. Raises RequestError (BLOB_UPLOAD_INVALID, 409) if another one does."""
        if upload.busy:
            raise RequestError("BLOB_UPLOAD_INVALID", "another request is writing to this upload", status=409)
        upload.busy = True
        try:
            yield
        finally:
            upload.busy = False
            upload.touched = trio.current_time()

    async def append(self, upload: Upload, chunks: AsyncIterable[bytes]) -> None:
        """Take bytes into a held session. If the client stops short, what came is kept; if the disk fails, nothing is.

        Raises what ``chunks`` raises, StorageFull, LocalError, and RequestError once the bytes are a blob already.
        """
        if upload.stored is not None:
            raise RequestError("BLOB_UPLOAD_INVALID", "this upload is complete", status=409)
        upload.staged = True
        staged = await self._store.stage(upload.key)
        try:
            await upload.ingest.take(staged, chunks)
        finally:
            staged.close()
            if upload.ingest.broken:
                with trio.move_on_at(math.inf, shield=True):
                    await self._drop(upload)

    async def finish(self, upload: Upload, digest: Digest) -> Metainfo:
        """Make a held session the blob ``digest`` of its repository, and end it.

        Raises RequestError (DIGEST_INVALID) if the bytes are others; they are gone then. When the store or the catalog
        fails (LocalError) the session stays and the call may be repeated.
        """
        if upload.stored is None:
            upload.stored = await self._store_blob(upload, digest)
        if upload.stored.digest != digest:
            raise _mismatch(digest, upload.stored.digest)
        await self._catalog.add_blob(upload.repository, upload.stored)
        self._sessions.pop(upload.id, None)
        return upload.stored

    async def cancel(self, upload: Upload) -> None:
        """End a held session and forget its bytes."""
        await self._drop(upload)

    async def forget(self, upload: Upload) -> None:
        """``cancel``, also while the task is being cancelled and if the session has ended already."""
        if upload.id in self._sessions:
            with trio.move_on_at(math.inf, shield=True):
                await self._drop(upload)

    async def _store_blob(self, upload: Upload, digest: Digest) -> Metainfo:
        upload.staged = True
        staged = await self._store.stage(upload.key)
        try:
            found = upload.ingest.digest()
            if digest.algorithm != found.algorithm:
                hasher = hashlib.new(digest.algorithm)
                at = 0
                while at < upload.offset:
                    data = await staged.read_at(at, min(_READ, upload.offset - at))
                    if not data:
                        raise LocalError("staged bytes are shorter than what was written")
                    await trio.to_thread.run_sync(hasher.update, data, limiter=self._limiter)
                    at += len(data)
                found = Digest(digest.algorithm, hasher.digest())
            if found == digest:
                metainfo = upload.ingest.metainfo(digest)
                await staged.commit(digest)
                return metainfo
        finally:
            staged.close()
        await self._drop(upload)
        raise _mismatch(digest, found)

    async def _drop(self, upload: Upload) -> None:
        # out of the table first: nobody may find it while its bytes go
        self._sessions.pop(upload.id, None)
        if upload.staged and upload.stored is None:
            staged = await self._store.stage(upload.key)
            await staged.discard()


def _mismatch(wanted: Digest, found: Digest) -> RequestError:
    return RequestError(
        "DIGEST_INVALID",
        "the bytes do not have this digest",
        detail={"digest": str(wanted), "received": str(found)},
    )
