"""Webhooks, deliveries and the audit log in memory: for tests, and the plainest statement of what they do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import trio

from p2pregistry.globs import matches
from tracker.catalog.hooks import AuditLine, AuditQuery, Delivery, Due, Webhook, wants
from tracker.catalog.trail import By
from tracker.webhooks import Event


@dataclass(slots=True)
class _Row:
    id: int
    webhook: int
    event: Event
    attempts: int = 0
    next_at: datetime | None = None
    delivered: bool = False
    status: int | None = None
    error: str | None = None


class MemoryHooks:
    """``Hooks`` without a database. ``tell`` is how an event gets in, ``lines`` the audit log."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._webhooks: dict[int, tuple[Webhook, bytes]] = {}
        self._events: list[Event] = []
        self._fresh: list[Event] = []
        self._rows: list[_Row] = []
        self._last = 0
        self.lines: list[AuditLine] = []

    def tell(self, kind: str, repository: str, data: dict[str, object]) -> Event:
        """What ``trail.record`` does."""
        self._last += 1
        event = Event(self._last, self._now(), kind, repository, data)
        self._events.append(event)
        self._fresh.append(event)
        return event

    def _record(self, by: By, action: str, webhook: int) -> None:
        self._last += 1
        who = (by.actor, by.address, by.request_id, by.account_id)
        self.lines.append(AuditLine(self._last, self._now(), *who, action, None, None, None, {"webhook": webhook}))

    async def add(self, url: str, repositories: Sequence[str], types: Sequence[str], secret: bytes, by: By) -> Webhook:
        await trio.lowlevel.checkpoint()
        self._last += 1
        made = Webhook(self._last, url, tuple(repositories), tuple(types), True, self._now())
        self._webhooks[made.id] = (made, secret)
        self._record(by, "webhook.add", made.id)
        return made

    async def remove(self, webhook: int, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        if self._webhooks.pop(webhook, None) is None:
            return False
        self._rows = [row for row in self._rows if row.webhook != webhook]
        self._record(by, "webhook.remove", webhook)
        return True

    async def enable(self, webhook: int, on: bool, by: By) -> bool:
        await trio.lowlevel.checkpoint()
        if webhook not in self._webhooks:
            return False
        made, secret = self._webhooks[webhook]
        self._webhooks[webhook] = (replace(made, enabled=on), secret)
        self._record(by, "webhook.enable" if on else "webhook.disable", webhook)
        return True

    async def all(self) -> list[Webhook]:
        await trio.lowlevel.checkpoint()
        return [made for made, _ in self._webhooks.values()]

    async def fan_out(self, limit: int) -> int:
        await trio.lowlevel.checkpoint()
        events, self._fresh = self._fresh[:limit], self._fresh[limit:]
        for event in events:
            for made, _ in self._webhooks.values():
                if made.enabled and wants(made.repositories, made.types, event):
                    self._last += 1
                    self._rows.append(_Row(self._last, made.id, event, next_at=self._now()))
        return len(events)

    async def claim(self, limit: int, lasts: float, but: Collection[int] = ()) -> list[Due]:
        await trio.lowlevel.checkpoint()
        now = self._now()
        due = [row for row in self._rows if row.next_at is not None and row.next_at <= now]
        due = [row for row in due if self._webhooks[row.webhook][0].enabled and row.webhook not in but][:limit]
        for row in due:
            row.attempts += 1
            row.next_at = now + timedelta(seconds=lasts)
        return [
            Due(row.id, made.id, made.url, secret, row.event, row.attempts)
            for row in due
            for made, secret in [self._webhooks[row.webhook]]
        ]

    async def delivered(self, delivery: int, status: int) -> None:
        await trio.lowlevel.checkpoint()
        for row in self._rows:
            if row.id == delivery:
                row.delivered, row.next_at, row.status, row.error = True, None, status, None

    async def failed(self, delivery: int, status: int | None, error: str | None, again: float | None) -> None:
        await trio.lowlevel.checkpoint()
        for row in self._rows:
            if row.id == delivery and not row.delivered:
                row.next_at = None if again is None else self._now() + timedelta(seconds=again)
                row.status, row.error = status, error

    async def replay(self, webhook: int, since: datetime | None, only_failed: bool, by: By) -> int:
        await trio.lowlevel.checkpoint()
        found = [row for row in self._rows if row.webhook == webhook and (since is None or row.event.at >= since)]
        found = [row for row in found if not only_failed or not row.delivered]
        for row in found:
            row.next_at, row.attempts, row.delivered = self._now(), 0, False
        if found:
            self._record(by, "webhook.replay", webhook)
        return len(found)

    async def deliveries(self, webhook: int, *, before: int | None = None, limit: int = 100) -> list[Delivery]:
        await trio.lowlevel.checkpoint()
        rows = [row for row in reversed(self._rows) if row.webhook == webhook and (before is None or row.id < before)]
        return [
            Delivery(
                row.id,
                row.webhook,
                row.event.id,
                row.event.type,
                row.event.repository,
                row.event.at,
                "delivered" if row.delivered else "waiting" if row.next_at else "failed",
                row.attempts,
                row.next_at,
                row.status,
                row.error,
            )
            for row in rows[:limit]
        ]

    async def audit(self, query: AuditQuery) -> list[AuditLine]:
        await trio.lowlevel.checkpoint()
        found = [line for line in reversed(self.lines) if _fits(line, query)]
        return found[: query.limit]

    async def prune(self, events: float, audit: float | None) -> int:
        await trio.lowlevel.checkpoint()
        now = self._now()
        waiting = {row.event.id for row in self._rows if row.next_at is not None} | {one.id for one in self._fresh}
        old = {one.id for one in self._events if one.at < now - timedelta(seconds=events)} - waiting
        self._events = [one for one in self._events if one.id not in old]
        self._rows = [row for row in self._rows if row.event.id not in old]
        gone = len(old)
        if audit is not None:
            kept = [line for line in self.lines if line.at >= now - timedelta(seconds=audit)]
            gone += len(self.lines) - len(kept)
            self.lines = kept
        return gone


def _fits(line: AuditLine, query: AuditQuery) -> bool:
    return (
        query.actor in (None, line.actor)
        and query.account_id in (None, line.account_id)
        and (query.repository is None or (line.repository is not None and matches(query.repository, line.repository)))
        and query.action in (None, line.action, line.action.partition(".")[0])
        and (query.since is None or line.at >= query.since)
        and (query.until is None or line.at < query.until)
        and (query.before is None or line.id < query.before)
    )
