"""Policies in Postgres: the tables ``namespaces`` and ``immutable_tags`` of migrations/0003_registry.sql.

The functions below the class are called inside the transactions that they have a say in. A row of ``namespaces`` is the
last thing such a transaction locks, after blobs and links, so that no two of them wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tracker.catalog.policies import (
    WARN_EVERY,
    ImmutableTags,
    Quota,
    QuotaExceeded,
    check_namespace,
    check_pattern,
    check_room,
    covered,
    namespace_of,
    never_moves,
    no_namespace,
)
from tracker.catalog.trail import By, record
from tracker.db import Connection, Db

_QUOTAS: Final = "select name, quota, used from namespaces where name > %s order by name limit %s"
_QUOTA: Final = "select quota, used from namespaces where name = %s and quota is not null"
_BEFORE: Final = "select quota from namespaces where name = %s for no key update"
_SET: Final = """
insert into namespaces (name, quota) values (%s, %s)
on conflict (name) do update set quota = excluded.quota, warned_at = null returning quota, used
"""
_WARN: Final = """
update namespaces set warned_at = now()
where name = %s and (warned_at is null or warned_at < now() - %s * interval '1 second')
"""
_PATTERNS: Final = "select pattern from immutable_tags"
_IMMUTABLE: Final = "select pattern, created_at from immutable_tags order by pattern"
_ADD: Final = "insert into immutable_tags (pattern) values (%s) on conflict (pattern) do nothing"
_REMOVE: Final = "delete from immutable_tags where pattern = %s"


class PostgresPolicies:
    """``Policies`` on a database that ``tracker.catalog.migrate`` has prepared."""

    def __init__(self, db: Db) -> None:
        self._db = db

    async def quotas(self, *, after: str = "", limit: int = 1000) -> list[Quota]:
        return await self._db.query(_quotas, after, limit)

    async def set_quota(self, namespace: str, quota: int | None, by: By) -> Quota:
        check_namespace(namespace)
        return await self._db.tx(_set_quota, namespace, quota, by)

    async def check_quota(self, repository: str, added: int) -> None:
        await self._db.query(_check_early, repository, added)

    async def exceeded(self, repository: str, refusal: QuotaExceeded, by: By) -> None:
        await self._db.tx(_exceeded, repository, refusal, by)

    async def immutable_tags(self) -> list[ImmutableTags]:
        return await self._db.query(_immutable_tags)

    async def add_immutable(self, pattern: str, by: By) -> bool:
        check_pattern(pattern)
        return await self._db.tx(_change, _ADD, pattern, "immutable.add", by)

    async def remove_immutable(self, pattern: str, by: By) -> bool:
        return await self._db.tx(_change, _REMOVE, pattern, "immutable.remove", by)

    async def immutable(self, repository: str, tags: Sequence[str]) -> set[str]:
        return await self._db.query(immutable, repository, tags)


def immutable(connection: Connection, repository: str, tags: Sequence[str]) -> set[str]:
    """Those of the tags that a pattern covers, whether or not they exist."""
    if not tags:
        return set()
    return covered([pattern for (pattern,) in connection.execute(_PATTERNS).fetchall()], repository, tags)


def refuse_immutable(connection: Connection, repository: str, tags: Sequence[str]) -> None:
    """Raises RequestError (DENIED) if one of the tags, which exist, is to move or to go and must not."""
    found = immutable(connection, repository, tags)
    if found:
        raise never_moves(repository, min(found))


def _quotas(connection: Connection, after: str, limit: int) -> list[Quota]:
    rows = connection.execute(_QUOTAS, (after.partition("\0")[0], max(0, limit))).fetchall()
    return [Quota(name, quota, used) for name, quota, used in rows]


def _set_quota(connection: Connection, namespace: str, quota: int | None, by: By) -> Quota:
    before = connection.execute(_BEFORE, (namespace,)).fetchone()
    if before is None and quota is None:
        raise no_namespace(namespace)
    row = connection.execute(_SET, (namespace, quota)).fetchone()
    assert row is not None
    detail: dict[str, object] = {"quota": quota, "before": None if before is None else before[0]}
    record(connection, by, "quota.set", reference=namespace, detail=detail)
    return Quota(namespace, row[0], row[1])


def _check_early(connection: Connection, repository: str, added: int) -> None:
    row = connection.execute(_QUOTA, (namespace_of(repository),)).fetchone()
    if row is not None:
        check_room(Quota(namespace_of(repository), row[0], row[1]), added)


def _exceeded(connection: Connection, repository: str, refusal: QuotaExceeded, by: By) -> None:
    if connection.execute(_WARN, (refusal.quota.namespace, WARN_EVERY)).rowcount:
        detail: dict[str, object] = {
            "namespace": refusal.quota.namespace,
            "quota": refusal.quota.quota,
            "used": refusal.quota.used,
            "added": refusal.added,
        }
        record(connection, by, "quota.exceeded", repository, detail=detail)


def _immutable_tags(connection: Connection) -> list[ImmutableTags]:
    return [ImmutableTags(pattern, created) for pattern, created in connection.execute(_IMMUTABLE).fetchall()]


def _change(connection: Connection, statement: str, pattern: str, action: str, by: By) -> bool:
    if connection.execute(statement.encode(), (pattern.replace("\0", ""),)).rowcount == 0:
        return False
    record(connection, by, action, reference=pattern)
    return True
