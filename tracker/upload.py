"""One upload that a request is working on, and what uploads need of the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from p2pregistry.content.metainfo import Metainfo
from p2pregistry.digest import Digest
from p2pregistry.objects.base import Draft, Object
from tracker.catalog.sessions import Lease, Session
from tracker.catalog.trail import By
from tracker.intake import Hashes, Intake


class Recorder(Protocol):
    """What uploads need of the catalog."""

    async def add_blob(
        self,
        repository: str,
        blob: Metainfo,
        name: str,
        by: By,
        *,
        upload: Lease | None = None,
        lost: str | None = None,
    ) -> str:
        """Record the blob and end the session, in one transaction; the name of the object that holds it now."""

    async def holder(self, digest: Digest) -> str | None:
        """The object that holds the blob now."""


@dataclass(slots=True)
class Upload:
    """A session that this request holds. ``size``: bytes that are durable and recorded, or will be when it is given
    back. ``ending``: it is being ended, so that it is gone is no news."""

    session: Session
    size: int
    hashes: Hashes
    scope: trio.CancelScope
    draft: Draft | None = None
    object: Object | None = None
    intake: Intake | None = None
    lost: bool = False
    ending: bool = False
    ended: bool = False
    free: trio.Event = field(default_factory=trio.Event)

    @property
    def lease(self) -> Lease:
        return self.session.lease

    @contextmanager
    def ends(self) -> Iterator[None]:
        """Around the transaction that ends the session, whose outcome comes back later than others may see it."""
        self.ending = True
        try:
            yield
            self.ended = True
        finally:
            self.ending = False

    def lose(self) -> None:
        """Another process has it now."""
        self.lost = True
        if self.intake is not None:
            self.intake.stop()
        self.scope.cancel()
