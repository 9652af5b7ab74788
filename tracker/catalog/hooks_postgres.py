"""Webhooks, deliveries and the audit log in Postgres: the tables of migrations 0003 and 0004."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final

from tracker.catalog.hooks import AuditLine, AuditQuery, Delivery, Due, State, Webhook, wants
from tracker.catalog.trail import By, record
from tracker.catalog.visible_postgres import expression
from tracker.db import Connection, Db
from tracker.webhooks import Event

_COLUMNS: Final = "id, url, repositories, types, enabled, created_at"
_ADD: Final = f"""
insert into webhooks (url, repositories, types, secret) values (%s, %s, %s, %s) returning {_COLUMNS}
"""  # noqa: S608 - constants
_ALL: Final = f"select {_COLUMNS} from webhooks order by id"  # noqa: S608 - constants
_REMOVE: Final = "delete from webhooks where id = %s"
_ENABLE: Final = "update webhooks set enabled = %s where id = %s"
_TO_FAN_OUT: Final = """
select id, at, type, repository, data from events where not fanned_out order by id limit %s for update skip locked
"""
# Taken so that a webhook which is being removed is not given deliveries any more.
_LISTENING: Final = "select id, repositories, types from webhooks where enabled for key share"
_DELIVER: Final = """
insert into deliveries (webhook_id, event_id) select * from unnest(%s::bigint[], %s::bigint[])
on conflict (webhook_id, event_id) do nothing
"""
_FANNED_OUT: Final = "update events set fanned_out = true where id = any(%s::bigint[])"
_CLAIM: Final = """
update deliveries d set attempts = attempts + 1, next_at = now() + %s * interval '1 second'
from webhooks w, events e
where d.webhook_id = w.id and d.event_id = e.id and d.id in (
    select d2.id from deliveries d2 join webhooks w2 on w2.id = d2.webhook_id
    where d2.next_at <= now() and w2.enabled and w2.id <> all(%s::bigint[])
    order by d2.next_at limit %s for update of d2 skip locked
)
returning d.id, w.id, w.url, w.secret, d.attempts, e.id, e.at, e.type, e.repository, e.data
"""
_DELIVERED: Final = """
update deliveries set delivered_at = now(), next_at = null, last_status = %s, last_error = null where id = %s
"""
_FAILED: Final = """
update deliveries set next_at = now() + %s * interval '1 second', last_status = %s, last_error = %s
where id = %s and delivered_at is null
"""
_REPLAY: Final = """
update deliveries d set next_at = now(), attempts = 0, delivered_at = null from events e
where e.id = d.event_id and d.webhook_id = %s and (%s::timestamptz is null or e.at >= %s)
    and (not %s or d.delivered_at is null)
"""
_DELIVERIES: Final = """
select d.id, d.webhook_id, e.id, e.type, e.repository, e.at, d.delivered_at, d.attempts, d.next_at, d.last_status,
    d.last_error
from deliveries d join events e on e.id = d.event_id
where d.webhook_id = %s and (%s::bigint is null or d.id < %s) order by d.id desc limit %s
"""
_AUDIT: Final = """
select id, at, actor, address, request_id, account_id, action, repository, reference, digest, detail from audit
where (%s::text is null or actor = %s) and (%s::bigint is null or account_id = %s)
    and (%s::text is null or repository = %s)
    and (%s::text is null or repository ~ %s)
    and (%s::text is null or action = %s or split_part(action, '.', 1) = %s)
    and (%s::timestamptz is null or at >= %s) and (%s::timestamptz is null or at < %s)
    and (%s::bigint is null or id < %s)
order by id desc limit %s
"""
_PRUNE_EVENTS: Final = """
delete from events e where at < now() - %s * interval '1 second' and fanned_out
    and not exists (select from deliveries d where d.event_id = e.id and d.next_at is not null)
"""
_PRUNE_AUDIT: Final = "delete from audit where at < now() - %s * interval '1 second'"


class PostgresHooks:
    """``Hooks`` on a database that ``tracker.catalog.migrate`` has prepared."""

    def __init__(self, db: Db) -> None:
        self._db = db

    async def add(self, url: str, repositories: Sequence[str], types: Sequence[str], secret: bytes, by: By) -> Webhook:
        return await self._db.tx(_add, url, list(repositories), list(types), secret, by)

    async def remove(self, webhook: int, by: By) -> bool:
        return await self._db.tx(_change, _REMOVE, (webhook,), "webhook.remove", webhook, by)

    async def enable(self, webhook: int, on: bool, by: By) -> bool:
        action = "webhook.enable" if on else "webhook.disable"
        return await self._db.tx(_change, _ENABLE, (on, webhook), action, webhook, by)

    async def all(self) -> list[Webhook]:
        return await self._db.query(_all)

    async def fan_out(self, limit: int) -> int:
        return await self._db.tx(_fan_out, limit, retry=True)

    async def claim(self, limit: int, lasts: float, but: Collection[int] = ()) -> list[Due]:
        return await self._db.tx(_claim, limit, lasts, list(but))

    async def delivered(self, delivery: int, status: int) -> None:
        await self._db.tx(_run, _DELIVERED, (status, delivery), retry=True)

    async def failed(self, delivery: int, status: int | None, error: str | None, again: float | None) -> None:
        text = None if error is None else error.replace("\0", "")[:500]
        await self._db.tx(_run, _FAILED, (again, status, text, delivery), retry=True)

    async def replay(self, webhook: int, since: datetime | None, only_failed: bool, by: By) -> int:
        return await self._db.tx(_replay, webhook, since, only_failed, by)

    async def deliveries(self, webhook: int, *, before: int | None = None, limit: int = 100) -> list[Delivery]:
        return await self._db.query(_deliveries, webhook, before, limit)

    async def audit(self, query: AuditQuery) -> list[AuditLine]:
        return await self._db.query(_audit, query)

    async def prune(self, events: float, audit: float | None) -> int:
        return await self._db.tx(_prune, events, audit)


def _webhook(row: Sequence[Any]) -> Webhook:
    number, url, repositories, types, enabled, created = row
    return Webhook(number, url, tuple(repositories), tuple(types), enabled, created)


def _add(connection: Connection, url: str, repositories: list[str], types: list[str], secret: bytes, by: By) -> Webhook:
    made = connection.execute(_ADD, (url, repositories, types, secret)).fetchone()
    assert made is not None
    webhook = _webhook(made)
    detail: dict[str, object] = {"webhook": webhook.id, "url": url, "repositories": repositories, "types": types}
    record(connection, by, "webhook.add", detail=detail)
    return webhook


def _change(
    connection: Connection, statement: str, values: tuple[object, ...], action: str, webhook: int, by: By
) -> bool:
    if connection.execute(statement.encode(), values).rowcount == 0:
        return False
    record(connection, by, action, detail={"webhook": webhook})
    return True


def _all(connection: Connection) -> list[Webhook]:
    return [_webhook(row) for row in connection.execute(_ALL).fetchall()]


def _fan_out(connection: Connection, limit: int) -> int:
    events = [Event(*row) for row in connection.execute(_TO_FAN_OUT, (limit,)).fetchall()]
    if not events:
        return 0
    webhooks = connection.execute(_LISTENING).fetchall()
    pairs = [(number, event.id) for event in events for number, globs, types in webhooks if wants(globs, types, event)]
    if pairs:
        connection.execute(_DELIVER, ([number for number, _ in pairs], [event for _, event in pairs]))
    connection.execute(_FANNED_OUT, ([event.id for event in events],))
    return len(events)


def _claim(connection: Connection, limit: int, lasts: float, but: list[int]) -> list[Due]:
    rows = connection.execute(_CLAIM, (lasts, but, limit)).fetchall()
    due = [Due(row[0], row[1], row[2], bytes(row[3]), Event(*row[5:10]), row[4]) for row in rows]
    return sorted(due, key=lambda one: one.event.id)


def _run(connection: Connection, statement: str, values: tuple[object, ...]) -> int:
    return connection.execute(statement.encode(), values).rowcount


def _replay(connection: Connection, webhook: int, since: datetime | None, only_failed: bool, by: By) -> int:
    count = _run(connection, _REPLAY, (webhook, since, since, only_failed))
    if count:
        record(connection, by, "webhook.replay", detail={"webhook": webhook, "deliveries": count})
    return count


def _deliveries(connection: Connection, webhook: int, before: int | None, limit: int) -> list[Delivery]:
    rows = connection.execute(_DELIVERIES, (webhook, before, before, max(0, limit))).fetchall()
    return [
        Delivery(number, hook, event, kind, repository, at, _state(delivered, again), attempts, again, status, error)
        for number, hook, event, kind, repository, at, delivered, attempts, again, status, error in rows
    ]


def _state(delivered: datetime | None, again: datetime | None) -> State:
    if delivered is not None:
        return "delivered"
    return "failed" if again is None else "waiting"


def _audit(connection: Connection, query: AuditQuery) -> list[AuditLine]:
    name = query.repository
    exact, glob = (name, None) if name is None or "*" not in name else (None, expression(name))
    who = (query.actor, query.actor, query.account_id, query.account_id, exact, exact, glob, glob)
    when = (query.since, query.since, query.until, query.until, query.before, query.before, query.limit)
    values = (*who, query.action, query.action, query.action, *when)
    return [AuditLine(*row) for row in connection.execute(_AUDIT, values).fetchall()]


def _prune(connection: Connection, events: float, audit: float | None) -> int:
    gone = connection.execute(_PRUNE_EVENTS, (events,)).rowcount
    if audit is not None:
        gone += connection.execute(_PRUNE_AUDIT, (audit,)).rowcount
    return gone
