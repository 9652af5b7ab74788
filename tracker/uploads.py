"""Uploads that outlive the process: sessions in the database, bytes as drafts in the object store.

The order at the end is: the bytes durable; the digest that they were found to have remembered in the session; the draft
published; the blob recorded and the session ended, in one transaction. Whoever dies in between leaves a session that
any process can complete when the client repeats its PUT, or that expires.

Only the holder of a session's lease works on it. A lease is renewed while a request is at work; that of a process that
was killed ends after LEASE seconds. A process that lost its lease without noticing, because it was stopped for as long,
can record nothing any more.
"""

from __future__ import annotations

import math
import os
import secrets
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from p2pregistry.content.metainfo import BlobRef, Metainfo
from p2pregistry.digest import Digest
from p2pregistry.errors import LocalError, NotFound, RequestError, StorageFull
from p2pregistry.objects.base import Draft, Object, ObjectStore
from p2pregistry.observe import logger
from tracker.catalog.sessions import Session, Sessions, object_name, unknown
from tracker.catalog.trail import By
from tracker.intake import BLOCKS, Hashes, Intake, hash_again
from tracker.upload import Recorder, Upload

#: Seconds that a lease lasts after it was last renewed, and between two renewals.
LEASE: Final = 10.0
RENEW: Final = 3.0
#: Seconds that a request waits for an upload that another one is working on, and between two questions.
WAIT: Final = 3.0
_PAUSE: Final = 0.1
#: Seconds that are spent on giving a lease back and recording how far it came, when the request is over.
_PARTING: Final = 5.0
#: Seconds between two rounds of expiry, and sessions ended in one transaction.
_EXPIRY: Final = 60.0
_EXPIRED: Final = 100
#: Seconds between two searches for drafts without session, and how old such a draft must be to go.
_SEARCH: Final = 3600.0
_LEFTOVER: Final = 86400.0
#: Seconds that an answer of the store about its room counts.
_ROOM_AGE: Final = 1.0
#: Uploads whose hashes are kept from one request to the next.
_KEPT: Final = 1000

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """``expiry``: seconds without a request after which a session ends. ``open``: sessions of all processes.
    ``active``: requests of this process that bring bytes. ``min_free``: bytes that the store keeps free. ``wait``:
    seconds that a request waits for an upload that another one is working on."""

    expiry: float = 86400.0
    open: int = 10_000
    active: int = 256
    min_free: int = 0
    wait: float = WAIT


class Uploads:
    """The uploads of this process. ``run`` must be running, or leases are not renewed."""

    def __init__(
        self,
        recorder: Recorder,
        sessions: Sessions,
        objects: ObjectStore,
        limits: Limits = Limits(),
        *,
        draw: Callable[[], float] = lambda: secrets.randbelow(1000) / 1000,
    ) -> None:
        self._recorder, self._sessions, self._objects, self._limits = recorder, sessions, objects, limits
        self._draw = draw
        self._holder = secrets.token_hex(8)
        self._held: dict[str, Upload] = {}
        self._waiting: dict[str, trio.Event] = {}
        self._hashes: OrderedDict[str, Hashes] = OrderedDict()
        self._active = 0
        self._budget = trio.Semaphore(BLOCKS)
        self._room: tuple[float, int | None] | None = None
        # Two hashes a blob, and hashing is all they do: more threads than cores would only take turns.
        self._limiter = trio.CapacityLimiter(max(2, os.cpu_count() or 2))

    @property
    def busy(self) -> int:
        """Sessions that a request of this process is working on."""
        return len(self._held)

    # ------------------------------------------------------------------------------------------------------ requests

    async def open(self, repository: str, algorithm: str, by: By) -> Session:
        """A new session. Raises RequestError (TOOMANYREQUESTS) where too many are open, StorageFull."""
        await self._check_room()
        return await self._sessions.open(
            str(uuid.uuid4()), repository, algorithm=algorithm, actor=by.actor, limit=self._limits.open
        )

    async def get(self, repository: str, number: str) -> Session:
        """How far it is. Raises NotFound (BLOB_UPLOAD_UNKNOWN), also if it belongs to another repository."""
        session = await self._sessions.get(repository, number)
        if session is None:
            raise unknown(number)
        return session

    async def stored(self, blob: BlobRef) -> bool:
        """Whether the store has the bytes of a blob that the catalog knows. Raises LocalError."""
        used = await self._recorder.holder(blob.digest)
        return used is not None and await self._holds(used, blob.size)

    @asynccontextmanager
    async def hold(self, repository: str, number: str) -> AsyncIterator[Upload]:
        """Hold a session for one request. Raises NotFound, and RequestError (BLOB_UPLOAD_INVALID, 409) where another
        request has it, or has taken it over after this one was thought dead."""
        with trio.CancelScope() as scope:
            upload = self._begin(await self._take(repository, number), scope)
            try:
                yield upload
            finally:
                await self._part(upload)
        if scope.cancelled_caught:
            raise _busy()

    @asynccontextmanager
    async def whole(self, repository: str, algorithm: str, by: By) -> AsyncIterator[Upload]:
        """Hold a session that nobody is told of; it ends with the block, if it has not become a blob. Raises LocalError
        where the database has lost it."""
        await self._check_room()
        session = await self._sessions.open(
            str(uuid.uuid4()),
            repository,
            algorithm=algorithm,
            actor=by.actor,
            limit=self._limits.open,
            holder=self._holder,
            lasts=LEASE,
        )
        with trio.CancelScope() as scope:
            upload = self._begin(session, scope)
            try:
                yield upload
            finally:
                with trio.move_on_after(_PARTING, shield=True):
                    try:
                        await self.cancel(upload)
                    except LocalError as err:
                        _log.warning("an upload could not be removed; it will expire", error=err.message)
                await self._part(upload)
        if scope.cancelled_caught:  # nobody else knows of it, so no other request has it
            raise LocalError("the database knows nothing of this upload any more")

    async def append(self, upload: Upload, chunks: AsyncIterable[bytes], *, keep: bool) -> None:
        """Take bytes into a held session. If the client stops short, or the process dies, what came stays if it is to
        ``keep``; else the session is as before, so that the request can be repeated as it was.

        Raises what ``chunks`` raises, StorageFull, LocalError, and RequestError once all bytes are known to be there.
        """
        if upload.session.verified is not None:
            raise RequestError("BLOB_UPLOAD_INVALID", "this upload is complete", status=409)
        if self._active >= self._limits.active:
            raise RequestError("TOOMANYREQUESTS", "too many uploads are under way", headers={"Retry-After": "2"})
        self._active += 1
        try:
            await self._check_room()
            draft = await self._draft(upload)
            upload.intake = Intake(draft, upload.hashes, self._budget, self._recording(upload) if keep else None)
            done = False
            try:
                await upload.intake.take(chunks)
                done = True
            finally:
                if (keep or done) and upload.intake.sound:
                    with trio.move_on_at(math.inf, shield=True):
                        await draft.flush()
                        upload.size = draft.size
                else:
                    await self._forget(upload)
        finally:
            self._active -= 1

    async def finish(self, upload: Upload, digest: Digest, by: By, *, remember: bool = True) -> None:
        """Make a held session the blob ``digest`` of its repository, and end it. May be repeated after LocalError.

        Raises RequestError (DIGEST_INVALID) if the bytes are others, or what the catalog refuses it with; the session
        is gone then. ``remember``: somebody may come and repeat this.
        """
        source = await self._bytes(upload)
        await upload.hashes.catch_up(source, upload.size)
        found = upload.hashes.digest()
        if found.algorithm != digest.algorithm:
            found = await hash_again(source, upload.size, digest.algorithm, self._limiter)
        if found != digest:
            await self.cancel(upload)
            raise _mismatch(digest, found)
        metainfo = await trio.to_thread.run_sync(upload.hashes.metainfo, digest)
        if upload.draft is not None:
            if remember and not await self._sessions.verify(upload.lease, upload.size, digest):
                raise _busy()
            await upload.draft.publish()
            upload.draft = None
        await self._record(upload, metainfo, by)

    async def cancel(self, upload: Upload, by: By | None = None) -> None:
        """End a held session and forget its bytes. ``by``: for the audit log, where it is not who began it. Raises
        LocalError."""
        if upload.ended:
            return
        with upload.ends():
            dropped = await self._sessions.drop(upload.lease, by)
        if dropped:
            await self._discard(upload)

    # --------------------------------------------------------------------------------------------------------- tasks

    async def run(self) -> None:
        """Renew leases, end idle sessions, remove drafts that nobody knows of: for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._renewing)
            nursery.start_soon(self._every, _EXPIRY, self.expire)
            nursery.start_soon(self._every, _SEARCH, self.remove_leftovers)

    async def expire(self) -> int:
        """End the sessions that are idle; how many. Raises LocalError."""
        ended = 0
        while True:
            gone = await self._sessions.expire(self._limits.expiry, _EXPIRED)
            for number in gone:
                await self._discard_name(object_name(number))
            ended += len(gone)
            if len(gone) < _EXPIRED:
                return ended

    async def remove_leftovers(self, now: float | None = None) -> int:
        """Remove drafts of no session that nobody has written to for a day: a process died between ending the session
        and removing its bytes. ``now``: seconds since 1970. Returns how many. Raises LocalError."""
        before = (time.time() if now is None else now) - _LEFTOVER
        old: dict[str, str] = {}
        async for stored in self._objects.drafts():
            number = stored.name.rpartition("/")[2]
            if stored.modified < before and stored.name == object_name(number):
                old[number] = stored.name
        removed = 0
        names = list(old)
        for i in range(0, len(names), 1000):
            known = await self._sessions.known(names[i : i + 1000])
            for number in names[i : i + 1000]:
                if number not in known:
                    await self._discard_name(old[number])
                    removed += 1
        return removed

    async def _every(self, seconds: float, work: Callable[[], Awaitable[int]]) -> None:
        while True:
            # not all processes at the same moment
            await trio.sleep(min(seconds, self._limits.expiry) * (0.5 + self._draw()))
            try:
                await work()
            except LocalError as err:
                _log.warning("idle uploads could not be removed; it is tried again", error=err.message)

    async def _renewing(self) -> None:
        while True:
            await trio.sleep(RENEW)
            held = [upload for upload in self._held.values() if not upload.ended]
            if not held:
                continue
            try:
                kept = await self._sessions.renew([upload.lease for upload in held], LEASE)
            except LocalError as err:
                # whoever takes the lease counts up its number, and then nothing of ours is recorded
                _log.warning("leases of uploads could not be renewed", error=err.message)
                continue
            for upload in held:
                ours = self._held.get(upload.session.id) is upload and not upload.ending and not upload.ended
                if ours and upload.session.id not in kept:
                    upload.lose()

    # --------------------------------------------------------------------------------------------------------- parts

    async def _take(self, repository: str, number: str) -> Session:
        give_up = trio.current_time() + self._limits.wait
        while True:
            other = self._held.get(number)
            if other is None and number not in self._waiting:
                # nobody else of this process may ask: the database gives it to a process that has it already
                self._waiting[number] = trio.Event()
                try:
                    session = await self._sessions.take(repository, number, self._holder, LEASE)
                finally:
                    self._waiting.pop(number).set()
                if session is not None:
                    return session
            left = give_up - trio.current_time()
            if left <= 0:
                raise _busy()
            with trio.move_on_after(min(left, _PAUSE)):
                if other is not None:
                    await other.free.wait()
                else:
                    await trio.sleep_forever()

    def _begin(self, session: Session, scope: trio.CancelScope) -> Upload:
        hashes = self._hashes.pop(session.id, None)
        if hashes is None or hashes.offset > session.size:
            hashes = Hashes(session.algorithm, self._limiter)
        upload = self._held[session.id] = Upload(session, session.size, hashes, scope)
        return upload

    async def _part(self, upload: Upload) -> None:
        """Give the session back: its size recorded, its hashes kept for the next request."""
        number = upload.session.id
        try:
            if upload.object is not None:
                upload.object.close()
            with trio.move_on_after(_PARTING, shield=True):
                if upload.draft is not None:
                    await upload.draft.aclose()
                if not upload.ended and not upload.lost and await self._sessions.release(upload.lease, upload.size):
                    self._keep(number, upload)
        except LocalError as err:
            # the lease runs out by itself; what is durable beyond the recorded size is sent again
            raise LocalError(f"how far an upload is could not be recorded: {err.message}") from err
        finally:
            del self._held[number]
            upload.free.set()

    def _keep(self, number: str, upload: Upload) -> None:
        if upload.hashes.offset <= upload.size:
            self._hashes[number] = upload.hashes
            while len(self._hashes) > _KEPT:
                self._hashes.popitem(last=False)

    def _recording(self, upload: Upload) -> Callable[[int], Awaitable[None]]:
        async def record(size: int) -> None:
            try:
                kept = await self._sessions.record(upload.lease, size)
            except LocalError as err:
                # the upload goes on: it is recorded with the next bytes, or at the end
                _log.warning("how far an upload is could not be recorded", error=err.message)
                return
            if kept:
                upload.size = size
            else:
                upload.lose()

        return record

    async def _draft(self, upload: Upload) -> Draft:
        if upload.draft is None:
            upload.draft = await self._objects.draft(upload.session.object, upload.size)
        return upload.draft

    async def _bytes(self, upload: Upload) -> Draft | Object:
        """All of it, to be read: what a process that died has published already is an object."""
        if upload.session.verified is not None and upload.draft is None:
            name, size = upload.session.object, upload.size
            try:
                if upload.object is None and await self._objects.size(name) == size:
                    upload.object = await self._objects.open(name, size)
                if upload.object is not None:
                    return upload.object
            except NotFound:
                pass  # not published yet
        return await self._draft(upload)

    async def _forget(self, upload: Upload) -> None:
        """The bytes since ``size`` are not wanted: draft and hashes are opened anew by whoever comes next."""
        upload.hashes = Hashes(upload.session.algorithm, self._limiter)
        if upload.draft is not None:
            draft, upload.draft = upload.draft, None
            with trio.move_on_after(_PARTING, shield=True):
                await draft.aclose()

    async def _record(self, upload: Upload, metainfo: Metainfo, by: By) -> None:
        session = upload.session
        lost = await self._lost(metainfo, session.object)
        try:
            with upload.ends():
                used = await self._recorder.add_blob(
                    session.repository, metainfo, session.object, by, upload=upload.lease, lost=lost
                )
        except RequestError:
            await self.cancel(upload)
            raise
        if used != session.object:
            # The blob was there. The catalog has condemned ours; this only frees the room sooner.
            try:
                await self._objects.delete(session.object)
            except LocalError as err:
                _log.warning("the second copy of a blob is left to the collector", error=err.message)

    async def _lost(self, metainfo: Metainfo, name: str) -> str | None:
        """The object that should hold the blob, if its bytes are not there: what was just pushed takes its place."""
        used = await self._recorder.holder(metainfo.digest)
        if used is None or used == name or await self._holds(used, metainfo.size):
            return None
        _log.error("the bytes of a blob are gone; a push replaces them", digest=str(metainfo.digest), object=used)
        return used

    async def _holds(self, name: str, size: int) -> bool:
        try:
            return await self._objects.size(name) == size
        except NotFound:
            return False

    async def _discard(self, upload: Upload) -> None:
        if upload.draft is None:
            await self._discard_name(upload.session.object)
        else:
            draft, upload.draft = upload.draft, None
            await draft.discard()

    async def _discard_name(self, name: str) -> None:
        try:
            draft = await self._objects.draft(name, 0)
            await draft.discard()
        except LocalError as err:
            _log.warning("bytes of an upload are left for later to remove", error=err.message)

    async def _check_room(self) -> None:
        now = trio.current_time()
        if self._room is None or now - self._room[0] > _ROOM_AGE:
            self._room = (now, await self._objects.room())
        free = self._room[1]
        if free is not None and free < self._limits.min_free:
            raise StorageFull("the store has hardly any room left")


def _busy() -> RequestError:
    return RequestError(
        "BLOB_UPLOAD_INVALID", "another request is writing to this upload", status=409, headers={"Retry-After": "1"}
    )


def _mismatch(wanted: Digest, found: Digest) -> RequestError:
    return RequestError(
        "DIGEST_INVALID",
        "the bytes do not have this digest",
        detail={"digest": str(wanted), "received": str(found)},
    )
