"""The area ``Publishing`` of a catalog: what is published to IPFS, and how far that has come.

A change of a repository is noted in its own transaction. Looking at what was noted (``reconcile``) compares what the
repository is to have published with what it had, and queues a job for each service and each root: to publish it, or, if
no repository wants it any more, to unpin it. A blob that no manifest names any more stays published until it has been
collected. A job is held by one tracker for a while, which says again and again that it is at it; who dies leaves a job
that another one takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from p2pregistry.digest import Digest
from tracker.catalog.trail import By
from tracker.publishing import Image, Item, State


@dataclass(frozen=True, slots=True)
class Pattern:
    """Repositories of these names are published."""

    pattern: str
    created_at: datetime
    actor: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job that is held. ``state``: publishing, unpinning, or published, which is to be checked. ``attempts``: with
    this one. ``remote``: what the service calls it, once that is known."""

    id: int
    service: str
    item: Item
    state: State
    attempts: int
    generation: int
    remote: str | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How one root fares with one service. ``sent``: bytes of its CAR."""

    cid: bytes
    service: str
    state: State
    sent: int
    attempts: int
    next_at: datetime | None
    error: str | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Figure:
    """So many jobs of a service are in a state, with so many bytes of content."""

    service: str
    state: State
    jobs: int
    size: int


class Publishing(Protocol):
    """Each method is one transaction. A failed one raises LocalError."""

    async def patterns(self) -> list[Pattern]:
        """By name."""

    async def publish(self, pattern: str, by: By) -> bool:
        """Publish the repositories that it names, now and in future. False if that is so already."""

    async def unpublish(self, pattern: str, by: By) -> bool:
        """No longer; what no other pattern names is unpinned. False if there is no such pattern."""

    async def mark_all(self) -> None:
        """Look at every repository again that is published or is to be."""

    async def reconcile(self, limit: int, services: Sequence[str], *, encrypted: bool) -> int:
        """Look at ``limit`` repositories at most in which something has changed; how many there were. One tracker at a
        time does: meanwhile there are none for others."""

    async def claim(self, services: Sequence[str], limit: int, lasts: float, *, only: str | None = None) -> list[Job]:
        """Jobs that are due, for ``lasts`` seconds, ``only`` of one service or of all. Of one root the service
        ``pinning`` comes after ``kubo``, if ``services`` have both."""

    async def progress(self, job: Job, sent: int, lasts: float) -> bool:
        """Go on with it. False: it is not to be done any more, or is another's."""

    async def published(self, job: Job, note: str | None = None, check: float | None = None) -> None:
        """It is done, or still so; to be checked in ``check`` seconds, None: never."""

    async def lost(self, job: Job, error: str) -> None:
        """It was published, and the service has not got it any more: it is queued again."""

    async def check_all(self, within: float) -> None:
        """Have everything checked that is published and is not to be checked yet, spread over so many seconds."""

    async def later(self, job: Job, remote: str, after: float) -> None:
        """The service works on it: look again in so many seconds."""

    async def failed(
        self, job: Job, error: str, again: float | None, *, counts: bool = True, forget: bool = False
    ) -> None:
        """It is not; ``again`` in so many seconds, None: never by itself. Not ``counts``: it was not the job's fault,
        and this was no try. ``forget``: what the service called it means nothing any more."""

    async def removed(self, job: Job) -> None:
        """It is unpinned."""

    async def release(self, job: Job) -> None:
        """Let go of it, as if it had not been begun."""

    async def block(self, item: Item) -> bytes | None:
        """The bytes of a manifest or claim; None if nobody has it any more."""

    async def image(self, repository: str, digest: Digest) -> Image | None:
        """A manifest of a repository with what is published of it."""

    async def chosen(self, repository: str) -> bool:
        """Whether a pattern names it."""

    async def states(self, cids: Sequence[bytes]) -> list[Progress]:
        """Of these roots, at each service."""

    async def repository(self, repository: str) -> list[Figure]:
        """Of all that a repository wants to be published."""

    async def failures(self, limit: int) -> list[tuple[Item, Progress]]:
        """What failed, latest first."""

    async def retry(self, by: By) -> int:
        """Make due again what failed or waits; how many jobs."""

    async def figures(self) -> list[Figure]:
        """Of everything, for metrics."""

    async def prune(self, age: float) -> int:
        """Forget jobs that were removed more than ``age`` seconds ago."""
