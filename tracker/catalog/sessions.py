"""The seam ``Sessions``: uploads that have begun, shared by every tracker process.

A session outlives the process that began it. Whoever works on one holds a lease: nobody else may until it has run out,
and a process that lost it without noticing is stopped by the number of the lease, its ``generation``, which each new
holder counts up. The session knows how many bytes are durable; the bytes themselves are the draft of the object of
``object_name``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from p2pregistry.digest import Digest
from p2pregistry.errors import NotFound, RequestError
from tracker.catalog.trail import By


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a session, as long as its generation is still this one."""

    id: str
    generation: int


@dataclass(frozen=True, slots=True)
class Session:
    """``size``: bytes that are durable. ``algorithm``: what the client said it would name the blob with. ``verified``:
    the digest that all its bytes were found to have, so that only publishing and recording are left to do.
    ``idle``: seconds since a request last had to do with it."""

    id: str
    repository: str
    size: int = 0
    algorithm: str = "sha256"
    verified: Digest | None = None
    generation: int = 0
    actor: str = ""
    held: bool = False
    idle: float = 0.0

    @property
    def lease(self) -> Lease:
        """The lease of who has just taken it."""
        return Lease(self.id, self.generation)

    @property
    def object(self) -> str:
        """The name of its bytes in the object store."""
        return object_name(self.id)


def object_name(session: str) -> str:
    """The name, in the object store, of what is uploaded in the session of this id."""
    return f"u/{session[:2]}/{session}"


def unknown(session: str) -> NotFound:
    """That there is no such session, or none of this repository."""
    return NotFound("BLOB_UPLOAD_UNKNOWN", "there is no such upload", detail={"upload": session[:100]})


def too_many() -> RequestError:
    """That so many sessions are open that no more are begun."""
    return RequestError("TOOMANYREQUESTS", "too many uploads are open", headers={"Retry-After": "10"})


class Sessions(Protocol):
    """Each method is one transaction. Times are seconds, counted by the database. A failed one raises LocalError."""

    async def open(
        self,
        session: str,
        repository: str,
        *,
        algorithm: str = "sha256",
        actor: str = "",
        limit: int,
        holder: str | None = None,
        lasts: float = 0.0,
    ) -> Session:
        """A new session of this id, held from the start if there is a ``holder``. Raises RequestError
        (TOOMANYREQUESTS) where ``limit`` of them are open."""

    async def get(self, repository: str, session: str) -> Session | None:
        """None if it is not there, or another repository's."""

    async def take(self, repository: str, session: str, holder: str, lasts: float) -> Session | None:
        """Take the lease for ``lasts`` seconds. None while another process holds it; NotFound (BLOB_UPLOAD_UNKNOWN) if
        it is not there. A process that comes again gets it: it must know by itself what it is doing."""

    async def renew(self, leases: Collection[Lease], lasts: float) -> set[str]:
        """Make these last ``lasts`` seconds from now; the ids of those that still count."""

    async def record(self, lease: Lease, size: int) -> bool:
        """So many bytes are durable. False if the lease is lost."""

    async def verify(self, lease: Lease, size: int, digest: Digest) -> bool:
        """These are all the bytes, they are durable, and they have this digest. False if the lease is lost."""

    async def release(self, lease: Lease, size: int) -> bool:
        """Give the lease back; so many bytes are durable. False if it was lost already."""

    async def drop(self, lease: Lease, by: By | None = None) -> bool:
        """End the session. Its object is condemned, unless a blob has become of it. ``by``: who is to be found in the
        audit log for it. False if the lease is lost."""

    async def expire(self, idle: float, limit: int) -> list[str]:
        """End sessions, ``limit`` at most, that nobody holds and no request touched for ``idle`` seconds, each as
        ``drop`` does. Their ids; none that another process is ending at the same time."""

    async def known(self, sessions: Sequence[str]) -> set[str]:
        """Those of the ids that are open sessions."""

    async def all(self, *, after: str = "", limit: int = 1000) -> list[Session]:
        """Open sessions by their ids, those greater than ``after``."""

    async def count(self) -> int:
        """How many are open."""
