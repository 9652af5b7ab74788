"""The area ``Hooks`` of a catalog: webhooks, their deliveries, and what the audit log says.

Events are written with the changes that they tell of (``trail.record``). Fanning out turns an event into a delivery for
each webhook that wants it; a delivery is claimed for a while, tried, and its outcome recorded. Who dies between trying
and recording leaves a delivery that is tried again: at least once, not at most once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from p2pregistry.globs import matches_any
from tracker.catalog.trail import By
from tracker.webhooks import Event

State = Literal["waiting", "delivered", "failed"]


@dataclass(frozen=True, slots=True)
class Webhook:
    """``repositories`` and ``types`` are globs; none of them: all. Its secret is never shown."""

    id: int
    url: str
    repositories: tuple[str, ...]
    types: tuple[str, ...]
    enabled: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery to be tried now. ``attempts``: with this one."""

    id: int
    webhook: int
    url: str
    secret: bytes
    event: Event
    attempts: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """How one event fares with one webhook."""

    id: int
    webhook: int
    event: int
    type: str
    repository: str
    at: datetime
    state: State
    attempts: int
    next_at: datetime | None
    last_status: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class AuditLine:
    """Who did what, when, from where. ``account_id``: the actor's, which stays when the account is renamed; None: it
    was no account."""

    id: int
    at: datetime
    actor: str
    address: str
    request_id: str
    account_id: int | None
    action: str
    repository: str | None
    reference: str | None
    digest: str | None
    detail: dict[str, object]


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """What to look for; None: anything. ``repository`` is a glob; ``action`` is an action or the part before its dot.
    Newest first; ``before`` is the id that the page before ended with."""

    actor: str | None = None
    repository: str | None = None
    action: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: int | None = None
    limit: int = 100
    account_id: int | None = None


def wants(repositories: Sequence[str], types: Sequence[str], event: Event) -> bool:
    """Whether a webhook of these globs is told of the event."""
    return (not repositories or matches_any(repositories, event.repository)) and (
        not types or matches_any(types, event.type)
    )


class Hooks(Protocol):
    """Each method is one transaction. A failed one raises LocalError."""

    async def add(self, url: str, repositories: Sequence[str], types: Sequence[str], secret: bytes, by: By) -> Webhook:
        """A webhook that is told of all events from now on."""

    async def remove(self, webhook: int, by: By) -> bool:
        """With its deliveries. False if it is not there."""

    async def enable(self, webhook: int, on: bool, by: By) -> bool:
        """One that is off is told of nothing, and what waits for it waits. False if it is not there."""

    async def all(self) -> list[Webhook]:
        """By id."""

    async def fan_out(self, limit: int) -> int:
        """Turn events, ``limit`` at most, into deliveries; how many events there were. No event is lost or fanned out
        twice, however many processes do this."""

    async def claim(self, limit: int, lasts: float, but: Collection[int] = ()) -> list[Due]:
        """Deliveries that are due, for ``lasts`` seconds: nobody else gets them until then. None of the webhooks
        ``but``."""

    async def delivered(self, delivery: int, status: int) -> None:
        """It was taken."""

    async def failed(self, delivery: int, status: int | None, error: str | None, again: float | None) -> None:
        """It was not; ``again`` in so many seconds, None: never by itself."""

    async def replay(self, webhook: int, since: datetime | None, only_failed: bool, by: By) -> int:
        """Make deliveries due again, of events since then; how many. That there were any is in the audit log."""

    async def deliveries(self, webhook: int, *, before: int | None = None, limit: int = 100) -> list[Delivery]:
        """Newest first; ``before``: the id that the page before ended with."""

    async def audit(self, query: AuditQuery) -> list[AuditLine]:
        """Lines of the audit log."""

    async def prune(self, events: float, audit: float | None) -> int:
        """Forget events older than ``events`` seconds that wait for nothing, and lines of the audit log older than
        ``audit`` seconds (None: none). How many rows went."""
